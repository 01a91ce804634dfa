"""From what a user writes, ``tokenizer=bpe:4096``, to a tokenizer.

=============  =====================================================================================================
``char``       the characters of the text
``word``       the words of the text, a closed vocabulary
``word:N``     its most frequent words, ``<|unk|>`` and ``<|endoftext|>``: N tokens
``bpe:N``      byte-level BPE trained on the training part of the text: N tokens, ``<|endoftext|>`` among them
``gpt2``       GPT-2's own
a path         a file (tokenizer.json, .tiktoken, .gguf, tokenizer.model), a folder that holds one, or a run
=============  =====================================================================================================
"""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from glassgpt import assets
from glassgpt.errors import TokenizerError
from glassgpt.files import Progress, sha256_of
from glassgpt.tokenizer import pretrained
from glassgpt.tokenizer.base import FILES, Tokenizer, file_in
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.char import CharTokenizer
from glassgpt.tokenizer.pretokenize import Texts
from glassgpt.tokenizer.word import WordTokenizer

#: What can be written, for messages.
FORMS = "char, word, word:N, bpe:N, gpt2, or a tokenizer file or folder"
_TRAINED = re.compile(r"(char|word|bpe)(?::(.*))?")


@dataclass(frozen=True)
class Spec:
    """A tokenizer that was asked for.

    Attributes:
        text: what was written.
        kind: "char", "word" or "bpe", which are made from a text; "gpt2"; "file".
        vocab_size: asked for; None for what a text has.
    """

    text: str
    kind: str
    vocab_size: int | None = None

    @property
    def trained(self) -> bool:
        """Whether it is made from a text."""
        return self.kind in ("char", "word", "bpe")

    @property
    def path(self) -> Path:
        """The file or folder."""
        assert self.kind == "file"
        try:
            return Path(self.text).expanduser()
        except RuntimeError:  # ~name, and there is no such user
            return Path(self.text)


def parse(text: str) -> Spec:
    """Understand what was written. Whether a file exists is not looked at.

    Raises:
        TokenizerError: for a number that is missing, or none.
    """
    if text == "gpt2":
        return Spec(text, "gpt2")
    match = _TRAINED.fullmatch(text)
    if match is None:
        if not text or "\0" in text:
            raise TokenizerError(f"{text!r} is no tokenizer; there are {FORMS}")
        return Spec(text, "file")
    kind, size = match[1], match[2]
    if size is None and kind != "bpe":
        return Spec(text, kind)
    if kind == "char" or size is None or not re.fullmatch(r"\d{1,7}", size):
        example = {"char": "char", "word": "word:8000", "bpe": "bpe:4096"}[kind]
        raise TokenizerError(f"{text!r} is no tokenizer; write for example {example}")
    return Spec(text, kind, int(size))


def identity(spec: Spec) -> str:
    """What tells two tokenizers apart, as long as their text is the same: the file's content, or what was written.

    Raises:
        TokenizerError: if there is no such file.
    """
    if spec.kind != "file":
        return spec.text
    return f"file {sha256_of(_existing(spec))}"


def absolute(text: str) -> str:
    """What was written, with a path from the root, as a run keeps it.

    Raises:
        TokenizerError: as for :func:`parse`.
    """
    spec = parse(text)
    return str(spec.path.resolve()) if spec.kind == "file" else text


def make(
    spec: Spec,
    train_text: Texts,
    *other_texts: Texts,
    progress: Progress | None = None,
    characters: int | None = None,
) -> Tokenizer:
    """The tokenizer itself, trained if need be.

    Args:
        spec: what was asked for.
        train_text: what is learned from: a text, or several.
        other_texts: that closed vocabularies (`char`, `word`) have to know, too: validation text, for example.
        progress: called while BPE is trained.
        characters: of the texts to learn from, where that is known.

    Raises:
        TokenizerError: if it cannot be made, or read.
        AssetError: if GPT-2's files cannot be found.
        MissingExtraError: if a file takes a library that is not installed.
    """
    if spec.kind == "char":
        return CharTokenizer.train(train_text, *other_texts)
    if spec.kind == "word":
        closed = spec.vocab_size is None
        return WordTokenizer.train(train_text, *(other_texts if closed else ()), vocab_size=spec.vocab_size)
    if spec.kind == "bpe":
        assert spec.vocab_size is not None
        return BPETokenizer.train(train_text, spec.vocab_size, progress=progress, characters=characters)
    return pretrained.gpt2() if spec.kind == "gpt2" else pretrained.load(_existing(spec))


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """The same, which says that documents begin with its end token, where it has one and says nothing yet."""
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is None:
        return tokenizer
    if isinstance(tokenizer, BPETokenizer):
        return BPETokenizer(replace(tokenizer.model, bos=tokenizer.model.eos), tokenizer.content)
    if isinstance(tokenizer, WordTokenizer):
        tokenizer.bos_token_id = tokenizer.eos_token_id
    return tokenizer


def open_tokenizer(text: str, pattern: str | None = None, runs: Path = Path("runs")) -> Tokenizer:
    """A tokenizer that needs no text to be made: ``gpt2``, a file or folder, a run or an asset by its name.

    Args:
        text: what was written.
        pattern: the split pattern of a ``.tiktoken`` file.
        runs: where runs are, by name.

    Raises:
        TokenizerError: if there is none, or it would have to be trained first.
    """
    spec = parse(text)
    if spec.kind == "file" and not _folder_of(spec.path) and (run := _folder_of(runs / text)):
        spec = Spec(str(run), "file")
    if text in assets.names("weights") and not spec.path.exists():
        spec = Spec(str(assets.path(text)), "file")
    if spec.trained:
        raise TokenizerError(
            f"{text!r} is made from a text: train it first (glassgpt tokenizer train TEXT {text} -o FOLDER), "
            "then give that folder"
        )
    return pretrained.gpt2() if spec.kind == "gpt2" else pretrained.load(_existing(spec), pattern)


def _folder_of(path: Path) -> Path | None:
    """The folder itself, or of a run its checkpoint, that holds a tokenizer."""
    try:
        for folder in (path, path / "best", path / "last"):
            if any((folder / name).is_file() for name in FILES):
                return folder
    except OSError:  # too long for a name, for example
        pass
    return None


def _existing(spec: Spec) -> Path:
    """The file; of a folder or run the one in it that holds the tokenizer."""
    path = spec.path
    try:
        if path.is_dir():
            return file_in(_folder_of(path) or path)
        if path.exists():
            return path
    except OSError:  # too long for a name, for example
        pass
    near = difflib.get_close_matches(spec.text.split(":")[0], ["char", "word", "bpe", "gpt2"], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TokenizerError(f"there is no tokenizer {spec.text[:80]!r}; {hint}There are {FORMS}")
