"""Published tokenizers: GPT-2's, and the files of other programs.

==================  ==========================================================================================
``tokenizer.json``  Hugging Face's format. Byte-level BPE, words and characters become our own tokenizers; all
                    others are run by the `tokenizers` library
``*.tiktoken``      tiktoken's ranks
``*.gguf``          llama.cpp's; tokenizers of the types ``gpt2`` and ``llama``
``tokenizer.model`` SentencePiece's, run by its library; or Llama 3's, in tiktoken's format
``vocab.json``      with ``merges.txt`` beside it: the older layout of GPT-2's and Qwen's
==================  ==========================================================================================
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glassgpt import assets
from glassgpt.errors import GlassError, MissingExtraError, TokenizerError
from glassgpt.tokenizer import older_formats
from glassgpt.tokenizer.base import END_OF_TEXT, Tokenizer, added_token, attach, tokenizer_file_in
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.char import CharTokenizer
from glassgpt.tokenizer.gguf import read_gguf
from glassgpt.tokenizer.library import LibraryTokenizer, SentencePieceTokenizer
from glassgpt.tokenizer.published import TOKENIZER_CONFIG, added_tokens, read_json_object, read_published
from glassgpt.tokenizer.tiktoken_file import read_tiktoken
from glassgpt.tokenizer.word import WordTokenizer

#: Names of tokens that end a document, used if no configuration names one.
_EOS_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")


def gpt2() -> BPETokenizer:
    """GPT-2's tokenizer, from the asset `gpt2-bpe`: 50,257 tokens including ``<|endoftext|>``.

    Raises:
        AssetError: if its two files cannot be found or downloaded.
    """
    files = assets.paths("gpt2-bpe")
    lines = files["vocab.bpe"].read_text(encoding="utf-8").split("\n")[1:]  # the first line is the version
    merges = [bytelevel.parse_merge(line) for line in lines if line]
    ids = json.loads(files["encoder.json"].read_text(encoding="utf-8"))
    special = {END_OF_TEXT: ids.pop(END_OF_TEXT)}
    vocab = {bytelevel.parse_token(text): i for text, i in ids.items()}
    return BPETokenizer(BPEModel(vocab, merges, special=special, eos=END_OF_TEXT, bos=END_OF_TEXT))


def load(path: Path, pattern: str | None = None) -> Tokenizer:
    """Load a tokenizer from a file of any supported format, or from a model folder.

    ``pattern`` names the split pattern of a ``.tiktoken`` file; see :func:`read_tiktoken`.

    Raises:
        TokenizerError: if the file is missing, damaged, or of an unknown format.
        MissingExtraError: if the file needs a library that is not installed.
    """
    if path.is_dir():
        path = tokenizer_file_in(path)
    readers = {".json": _read_json, ".gguf": read_gguf, ".model": _read_model}
    if path.suffix == ".tiktoken":
        return read_tiktoken(path, pattern)
    if path.suffix not in readers:
        formats = ", ".join([*readers, ".tiktoken"])
        raise TokenizerError(f"{path} is not a tokenizer file of a known format: {formats}, or a model folder")
    return readers[path.suffix](path)


def _read_json(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``; or a ``vocab.json`` and the ``merges.txt`` beside it."""
    if path.name == "vocab.json":
        return _with_published(path, older_formats.read_vocab_and_merges, older_formats.GPT2_ROLES)
    return _with_published(path, read_json_object)


def _with_published(
    path: Path, read: Callable[[Path], Mapping[str, Any]], defaults: Mapping[str, str | None] | None = None
) -> Tokenizer:
    """Make a tokenizer from the content of a ``tokenizer.json``, and the settings published in the files beside it.

    ``read`` gives the content, and ``defaults`` are the roles of tokens that no file names.
    """
    try:
        own_content = read(path)
        published = read_published(path.parent, own_content, defaults)
        content = _with_role_tokens(own_content, published.roles)
        tokenizer = from_content(content, _roles(path, content, published.roles), path)
        attach(tokenizer, published)
        return tokenizer
    except GlassError as error:
        if isinstance(error, MissingExtraError) or str(path) in str(error):
            raise
        raise TokenizerError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def from_content(content: Mapping[str, Any], roles: Mapping[str, str], path: Path) -> Tokenizer:
    """Make a tokenizer from the content of a ``tokenizer.json``; the path is for messages.

    Raises:
        TokenizerError: if it is damaged.
        MissingExtraError: if it needs a library that is not installed.
    """
    model = content.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("it has no model")
    if model.get("type") == "WordLevel":
        tokenizer = CharTokenizer.from_json(content, path) or WordTokenizer.from_json(content, path)
        if tokenizer:
            ids = tokenizer.special_ids()
            tokenizer.bos_token_id = ids.get(roles.get("bos_token", ""))
            tokenizer.eos_token_id = ids.get(roles.get("eos_token", ""), tokenizer.eos_token_id)
            return tokenizer
    elif not isinstance(bpe := bytelevel.from_json(content, roles.get("eos_token"), roles.get("bos_token")), str):
        return BPETokenizer(bpe, content)
    return LibraryTokenizer(content, roles)


def _roles(path: Path, content: Mapping[str, Any], published: Mapping[str, str]) -> dict[str, str]:
    """The roles of the special tokens in a tokenizer.json; without a configuration, EOS is known by its name."""
    names = {token["content"] for token in content.get("added_tokens") or []}
    roles = {role: name for role, name in published.items() if name in names}
    if "eos_token" not in roles and not path.with_name(TOKENIZER_CONFIG).exists():
        known = [name for name in _EOS_NAMES if name in names]
        return roles | ({"eos_token": known[0]} if known else {})
    return roles


def _with_role_tokens(content: Mapping[str, Any], roles: Mapping[str, str]) -> Mapping[str, Any]:
    """Add the tokens with a role that are only in the vocabulary to the special tokens, as `transformers` does."""
    added, vocab = content.get("added_tokens") or [], (content.get("model") or {}).get("vocab")
    if not isinstance(vocab, dict):
        return content
    names = set(roles.values()).intersection(vocab).difference(token["content"] for token in added)
    missing = [added_token(vocab[name], name, special=True) for name in sorted(names, key=vocab.__getitem__)]
    return {**content, "added_tokens": [*added, *missing]} if missing else content


def _read_model(path: Path) -> Tokenizer:
    """Read a ``tokenizer.model``, and the tokens and settings that were published in the files beside it."""
    try:
        proto = path.read_bytes()
        if older_formats.is_ranks(proto):
            return _with_published(path, older_formats.read_llama_3, older_formats.LLAMA_3_ROLES)
        published = read_published(path.parent, defaults=SentencePieceTokenizer(proto).own_roles())
        tokenizer = SentencePieceTokenizer(proto, published.roles, added_tokens(published))
        attach(tokenizer, published)
        return tokenizer
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"the added tokens beside {path} are damaged: {error!r}") from None
