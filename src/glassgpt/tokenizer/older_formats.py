"""Byte-level BPE in older folders: its files as the content of a ``tokenizer.json``, as `transformers` converts them.

=========================================  ===========================================================================
``vocab.json`` and ``merges.txt``          GPT-2's and Qwen's; the rest of the tokenizer is in the code of its class
``tokenizer.model`` in tiktoken's format   Llama 3's; its special tokens are in tokenizer_config.json, or in Meta's code
=========================================  ===========================================================================
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import added_token, bos_processor
from glassgpt.tokenizer.bpe.bytelevel import BPEModel, parse_merge, parse_token, to_json
from glassgpt.tokenizer.bpe.normal import NormalForm
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.published import (
    CLASS_DEFAULTS,
    PublishedSettings,
    class_name,
    read_json_object,
    read_published,
)
from glassgpt.tokenizer.tiktoken_file import merges_from_ranks, read_ranks

#: The classes whose vocab.json and merges.txt can be read: split pattern and normal form.
_CLASSES: dict[str, tuple[str, NormalForm | None]] = {
    "GPT2Tokenizer": ("gpt2", None),
    "Qwen2Tokenizer": ("qwen2", "NFC"),
}
#: The roles of tokens in a folder that names no class, so that it is GPT-2's.
GPT2_ROLES = CLASS_DEFAULTS["GPT2Tokenizer"]
#: The first special tokens of Llama 3.1 and later (meta-llama/llama-models); 256 in all, the others are reserved.
_LLAMA_3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
    *("<|eot_id|>", "<|python_tag|>", "<|image|>"),
)
LLAMA_3_ROLES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
#: The order in which `transformers` numbers tokens with a role that no file numbers.
_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")


def is_ranks(content: bytes) -> bool:
    """Whether a ``tokenizer.model`` is in tiktoken's format, not in SentencePiece's."""
    return _RANKS.match(content) is not None


def read_vocab_and_merges(path: Path) -> dict[str, Any]:
    """Read a ``vocab.json`` and the ``merges.txt`` beside it.

    Raises:
        TokenizerError: if a file is missing or damaged, or the class is not known.
    """
    name, ids = class_name(path.parent) or "GPT2Tokenizer", read_json_object(path)
    if name not in _CLASSES:
        raise TokenizerError(
            f"{path} is of a tokenizer of the class {name}; vocab.json and merges.txt can be read for "
            f"{' and '.join(_CLASSES)}. Let transformers write a tokenizer.json: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    try:
        lines = path.with_name("merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path.with_name('merges.txt')} cannot be read: {error}") from None
    if any(type(i) is not int for i in ids.values()):
        raise TokenizerError(f"{path} is damaged: an id is not a whole number")
    published = read_published(path.parent, defaults=CLASS_DEFAULTS[name])
    added = _added_tokens(published, published.roles, ids)
    pattern, form = _CLASSES[name]
    model = BPEModel(
        vocab={parse_token(text): i for text, i in ids.items() if text not in added},
        merges=[parse_merge(line.rstrip("\r")) for line in lines if line.strip() and not line.startswith("#version")],
        patterns=(PATTERNS[pattern],),
        normal_form=form,
    )
    content = _with_added(to_json(model), added)
    if published.tokenizer_config.get("add_prefix_space"):
        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        content["pre_tokenizer"] = byte_level if pattern == "gpt2" else content["pre_tokenizer"]
    return content


def read_llama_3(path: Path) -> dict[str, Any]:
    """Read a ``tokenizer.model`` in tiktoken's format. Llama 3 expects prompts that begin with BOS.

    Raises:
        TokenizerError: if a file is damaged.
    """
    ranks = read_ranks(path)
    merges, ignore_merges = merges_from_ranks(ranks)
    content = to_json(BPEModel(ranks, merges, (PATTERNS["llama3"],), ignore_merges=ignore_merges))
    published, roles = read_published(path.parent), read_published(path.parent, content, LLAMA_3_ROLES).roles
    first = 1 + max(ranks.values(), default=-1)
    names = (*_LLAMA_3, *(f"<|reserved_special_token_{i}|>" for i in range(2, 2 + 256 - len(_LLAMA_3))))
    if published.tokenizer_config.get("added_tokens_decoder"):
        added = _added_tokens(published, roles, {"": first - 1})
    else:
        added = {name: added_token(first + i, name, special=True) for i, name in enumerate(names)}
    bos = roles.get("bos_token")
    if bos and published.tokenizer_config.get("add_bos_token", True):
        content["post_processor"] = bos_processor(bos, added[bos]["id"])
    return _with_added(content, added)


def _added_tokens(
    published: PublishedSettings, roles: Mapping[str, str], ids: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """The entries of `added_tokens` by name; tokens with a role that have no id follow the vocabulary."""
    entries = dict[str, dict[str, Any]]()
    for i, token in (published.tokenizer_config.get("added_tokens_decoder") or {}).items():
        entry = added_token(int(i), token["content"], bool(token.get("special")))
        entries[token["content"]] = {
            key: token.get(key, value) if key != "id" else value for key, value in entry.items()
        }
    for name in (roles[role] for role in _ROLES if role in roles):
        if name not in entries:
            following = 1 + max([*ids.values(), *(entry["id"] for entry in entries.values())], default=-1)
            entries[name] = added_token(ids.get(name, following), name, special=True)
    return entries


def _with_added(content: dict[str, Any], added: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put added tokens into the content of a ``tokenizer.json``, and into its vocabulary, which fixes their ids."""
    content["model"]["vocab"] |= {name: entry["id"] for name, entry in added.items()}
    return content | {"added_tokens": sorted(added.values(), key=lambda entry: entry["id"])}
