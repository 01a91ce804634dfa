"""Prepare a source for training: survey it, make the tokenizer, encode in parallel, write the manifest.

The work is divided into tasks by the file sizes alone, and each task writes its own shards. So the result does not
depend on the number of processes, and a killed preparation resumes with the unfinished tasks. A task holds some tens of
megabytes, however long the source is.

A single text is split by position: its end is the validation split. Documents are split by their content: a document is
in the validation split if its SHA-256, as a fraction of one, is below ``val_fraction``. So new documents never move old
ones to the other split.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data.corpus.building import CorpusBuilder, MakeTokenizer
from glassgpt.data.corpus.manifest import TokenStream, cache_key, open_stream, read_manifest, settings_of
from glassgpt.data.corpus.tasks import MIN_PARALLEL_BYTES
from glassgpt.data.sources.source import TextSource
from glassgpt.errors import DataError, GlassError
from glassgpt.files import Progress
from glassgpt.tokenizer import Tokenizer, load, specs
from glassgpt.tokenizer.pretokenize import usable_cpus


def prepare(
    source: TextSource,
    config: DataConfig,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    processes: int | None = None,
) -> TokenStream:
    """Tokenise a source once and keep the result; later calls with the same source and settings only open it.

    Args:
        source: from :func:`glassgpt.data.find_source`; a prepared corpus is opened.
        config: the tokenizer, and how to split.
        progress: called as the work goes on.
        folder: the folder to write; an interrupted preparation there is resumed. By default a folder of the cache.
        processes: how many to use; by default one per CPU, or one for a short source.

    Raises:
        DataError: if the source cannot be read, or the folder cannot be written or holds something else.
        TokenizerError: if the tokenizer does not exist, or cannot encode the text.
    """
    if source.prepared:
        return open_stream(source.prepared)
    spec = specs.parse(config.tokenizer)
    if spec.kind == "file":
        tokenizer = specs.load(spec)
        identity = specs.identity_of(tokenizer)
        if folder and _holds_earlier_id(folder, tokenizer if source.single else specs.with_eos_as_bos(tokenizer)):
            identity = read_manifest(folder).tokenizer
        return _prepare(source, config, identity, lambda *texts: tokenizer, progress, folder, processes)

    def make(train: Iterable[str], everything: Iterable[str], characters: int) -> Tokenizer:
        closed = spec.kind in ("char", "word") and spec.vocab_size is None
        return specs.make(spec, everything if closed else train, progress=progress, characters=characters)

    return _prepare(source, config, spec.text, make, progress, folder, processes)


def prepare_again(source: TextSource, config: DataConfig, identity: str, tokenizer: Tokenizer) -> TokenStream:
    """Prepare as :func:`prepare` does, with a given tokenizer whose identity was ``identity`` at the first time.

    Raises:
        DataError: as :func:`prepare`.
    """
    if source.prepared:
        return open_stream(source.prepared)
    return _prepare(source, config, identity, lambda *texts: tokenizer, None, None, None)


def _holds_earlier_id(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether a folder holds a corpus of this tokenizer with the kind of ID that version 0.1 wrote."""
    try:
        earlier = read_manifest(folder).tokenizer.startswith("file ")
        return earlier and specs.identity_of(load(folder)) == specs.identity_of(tokenizer)
    except GlassError:
        return False


def find_prepared(text_sha256: str, identity: str, config: DataConfig) -> TokenStream | None:
    """Open the corpus in the cache for a text and a tokenizer; None if there is none or it is damaged.

    Args:
        text_sha256: of the text, in UTF-8; of several files, see :class:`glassgpt.data.corpus.manifest.Manifest`.
        identity: of the tokenizer, see :func:`glassgpt.tokenizer.specs.identity`.
        config: how the text was split.
    """
    key = cache_key(text_sha256, identity, settings_of(config))
    try:
        stream = open_stream(_cache_folder(key))
    except DataError:
        return None
    return stream if stream.manifest.key == key else None


def _cache_folder(key: str) -> Path:
    return assets.cache_dir() / "streams" / key[:16]


def _prepare(
    source: TextSource,
    config: DataConfig,
    identity: str,
    make: MakeTokenizer,
    progress: Progress | None,
    folder: Path | None,
    processes: int | None,
) -> TokenStream:
    if source.single and config.duplicates == "drop":
        raise DataError(
            f"data.duplicates=drop is for documents, and {source.source} is one text; give a folder, a .jsonl file, or "
            "the separator between documents"
        )
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as scratch:
        survey = source.survey(Path(scratch), progress)
        key = cache_key(survey.sha256, identity, settings_of(config))
        if processes is None:
            processes = usable_cpus() if survey.bytes >= MIN_PARALLEL_BYTES else 1
        progress = progress or (lambda label, done, total: None)
        builder = CorpusBuilder(source, survey, config, identity, make, key, processes, progress, Path(scratch))
        return builder.build_in(folder) if folder else _build_in_cache(builder)


def _build_in_cache(builder: CorpusBuilder) -> TokenStream:
    """Open the corpus in the cache, or build it there."""
    folder = _cache_folder(builder.key)
    for _ in range(10):  # another process may be preparing the same text, or replacing the same damaged folder
        found = find_prepared(builder.survey.sha256, builder.tokenizer_id, builder.config)
        if found is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=".tmp", dir=folder.parent))
        except OSError as error:
            raise DataError(
                f"the cache {folder.parent} cannot be written: {error.strerror}; set GLASSGPT_CACHE to a folder that "
                "can"
            ) from None
        try:
            builder.write(temporary)
            with contextlib.suppress(OSError):  # another process has put its own there
                os.replace(temporary, folder)
        except OSError as error:
            raise DataError(
                f"the cache {folder.parent} cannot be written: {error}; make room, or set GLASSGPT_CACHE to a folder "
                "on another disk"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise DataError(f"the prepared corpus {folder} cannot be written; is another program changing that folder?")
