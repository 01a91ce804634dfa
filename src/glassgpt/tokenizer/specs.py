"""Tokenizer specs, as users write them (``tokenizer=bpe:4096``), and the tokenizers that they name.

=============  =====================================================================================================
``char``       the characters of the text
``word``       the words of the text, a closed vocabulary
``word:N``     its most frequent words, ``<|unk|>`` and ``<|endoftext|>``: N tokens
``bpe:N``      byte-level BPE trained on the training split of the text: N tokens including ``<|endoftext|>``
``gpt2``       GPT-2's tokenizer
a path         a file (tokenizer.json, .tiktoken, .gguf, tokenizer.model, vocab.json), a folder with one, or a run
=============  =====================================================================================================
"""

import copy
import difflib
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from glassgpt import assets
from glassgpt.errors import TokenizerError
from glassgpt.files import Progress, path_exists, sha256_of
from glassgpt.tokenizer import pretrained
from glassgpt.tokenizer.base import Tokenizer, adds_bos_token, attach, find_tokenizer_file, tokenizer_file_in
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.char import CharTokenizer
from glassgpt.tokenizer.pretokenize import Texts
from glassgpt.tokenizer.word import WordTokenizer

#: The valid specs, for messages.
FORMS = "char, word, word:N, bpe:N, gpt2, or a tokenizer file or folder"
_TRAINED = re.compile(r"(char|word|bpe)(?::(.*))?")


@dataclass(frozen=True)
class Spec:
    """A parsed tokenizer spec.

    Attributes:
        text: as the user wrote it.
        kind: "char", "word", "bpe", "gpt2" or "file".
        vocab_size: the N of ``word:N`` and ``bpe:N``.
    """

    text: str
    kind: str
    vocab_size: int | None = None

    @property
    def trained(self) -> bool:
        """Whether the tokenizer is trained on a text."""
        return self.kind in ("char", "word", "bpe")

    @property
    def path(self) -> Path:
        """The file or folder."""
        assert self.kind == "file"
        try:
            return Path(self.text).expanduser()
        except RuntimeError:  # ~name, but there is no such user
            return Path(self.text)


def parse(text: str) -> Spec:
    """Parse a tokenizer spec, without checking that a file exists.

    Raises:
        TokenizerError: if the number is missing, invalid or not allowed.
    """
    if text == "gpt2":
        return Spec(text, "gpt2")
    match = _TRAINED.fullmatch(text)
    if match is None:
        if not text or "\0" in text:
            raise TokenizerError(f"{text!r} is not a tokenizer; write {FORMS}")
        return Spec(text, "file")
    kind, size = match[1], match[2]
    if size is None and kind != "bpe":
        return Spec(text, kind)
    if kind == "char" or size is None or not re.fullmatch(r"\d{1,7}", size):
        example = {"char": "char", "word": "word:8000", "bpe": "bpe:4096"}[kind]
        raise TokenizerError(f"{text!r} is not a tokenizer; write for example {example}")
    return Spec(text, kind, int(size))


def identity(spec: Spec) -> str:
    """Tokenizer ID for the cache key: the spec as written; for a file, :func:`identity_of` the tokenizer in it.

    Raises:
        GlassError: as for :func:`make`, if there is no such file, or it cannot be read.
    """
    return identity_of(load(spec)) if spec.kind == "file" else spec.text


def identity_of(tokenizer: Tokenizer) -> str:
    """ID of a loaded tokenizer: a hash of all that decides ids, document borders, and the tokenizer that a run saves.

    A file alone does not say it: the roles of special tokens are in another file, and the split pattern of a
    ``.tiktoken`` file comes from its name.
    """
    parts = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        parts.update(f"{name} {len(content)}\n".encode() + content)
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, adds_bos_token(tokenizer)]
    published = tokenizer.published
    beside = [published.tokenizer_config.get(key) for key in ("added_tokens_decoder", "legacy")]
    beside += [tokenizer.roles(), dict(published.chat_templates)]  # a run saves those that its corpus has
    parts.update(json.dumps([*ids, *beside], sort_keys=True).encode())
    return f"loaded {parts.hexdigest()}"


def is_identity(text: str, spec: Spec) -> bool:
    """Whether a tokenizer ID, as a run or a corpus has stored it, is that of a spec.

    Raises:
        GlassError: as for :func:`identity`.
    """
    if text.startswith("file "):  # of version 0.1: the SHA-256 of the file alone
        return spec.kind == "file" and text == f"file {sha256_of(_existing_file(spec))}"
    return text == identity(spec)


def absolute(text: str) -> str:
    """A spec with an absolute path, as a run stores it.

    Raises:
        TokenizerError: as for :func:`parse`.
    """
    spec = parse(text)
    return str(spec.path.resolve()) if spec.kind == "file" else text


def make(
    spec: Spec, train_text: Texts, *other_texts: Texts, progress: Progress | None = None, characters: int | None = None
) -> Tokenizer:
    """Train or load a tokenizer.

    Args:
        spec: names it.
        train_text: the text to train on, or its parts.
        other_texts: texts that closed vocabularies (`char`, `word`) must cover, too, such as the validation split.
        progress: callback while BPE is trained.
        characters: approximate length of the training text, if known.

    Raises:
        TokenizerError: if the tokenizer cannot be trained, or its file cannot be read.
        AssetError: if GPT-2's files cannot be found.
        MissingExtraError: if a file needs a library that is not installed.
    """
    if spec.kind == "char":
        return CharTokenizer.train(train_text, *other_texts)
    if spec.kind == "word":
        closed = spec.vocab_size is None
        return WordTokenizer.train(train_text, *(other_texts if closed else ()), vocab_size=spec.vocab_size)
    if spec.kind == "bpe":
        assert spec.vocab_size is not None
        return BPETokenizer.train(train_text, spec.vocab_size, progress=progress, characters=characters)
    return load(spec)


def with_eos_as_bos(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a BPE or word tokenizer and set bos = eos, so that documents begin with the token that ends them.

    A tokenizer that has a BOS token, or has no EOS token, is returned as it is; so are those of other libraries.
    """
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is None:
        return tokenizer
    if isinstance(tokenizer, BPETokenizer):
        with_bos = BPETokenizer(replace(tokenizer.model, bos=tokenizer.model.eos), tokenizer.content)
        attach(with_bos, tokenizer.published)
        return with_bos
    if isinstance(tokenizer, WordTokenizer):
        tokenizer = copy.copy(tokenizer)
        tokenizer.bos_token_id = tokenizer.eos_token_id
    return tokenizer


def open_tokenizer(text: str, pattern: str | None = None, runs: Path = Path("runs")) -> Tokenizer:
    """Load a tokenizer that needs no training: ``gpt2``, a file or folder, or the name of an asset, or of a run.

    ``pattern`` names the split pattern of a ``.tiktoken`` file, and ``runs`` is the folder of runs.

    Raises:
        TokenizerError: if it is not found, or must be trained first; or if ``pattern`` is given for another file.
    """
    spec = parse(text)
    if pattern and not text.endswith(".tiktoken"):
        raise TokenizerError(f"a split pattern is for .tiktoken files; {text} has its own")
    if spec.kind == "file" and not _tokenizer_folder(spec.path) and (run := _tokenizer_folder(runs / text)):
        spec = Spec(str(run), "file")
    if text in assets.names("weights") and not spec.path.exists():
        spec = Spec(str(assets.path(text)), "file")
    if spec.trained:
        raise TokenizerError(
            f"the tokenizer {text!r} is made from a text; train it first (glassgpt tokenizer train TEXT {text} -o "
            "FOLDER), then give that folder"
        )
    return load(spec, pattern)


def load(spec: Spec, pattern: str | None = None) -> Tokenizer:
    """Load the tokenizer of a spec that needs no training; ``pattern`` is for a ``.tiktoken`` file.

    Raises:
        GlassError: as for :func:`make`.
    """
    return pretrained.gpt2() if spec.kind == "gpt2" else pretrained.load(_existing_file(spec), pattern)


def _tokenizer_folder(path: Path) -> Path | None:
    """The folder with the tokenizer: this one, or the best or last checkpoint of a run; None if there is none."""
    folders = (path, path / "best", path / "last")
    return next(filter(find_tokenizer_file, folders), None)


def _existing_file(spec: Spec) -> Path:
    """The tokenizer file of a spec, which may name a folder or run."""
    path = spec.path
    if path_exists(path):
        return tokenizer_file_in(_tokenizer_folder(path) or path) if path.is_dir() else path
    near = difflib.get_close_matches(spec.text.split(":")[0], ["char", "word", "bpe", "gpt2"], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TokenizerError(f"there is no tokenizer {spec.text[:80]!r}; {hint}There are {FORMS}")
