"""The tokenizer in a GGUF file, of the types ``gpt2`` (byte-level BPE) and ``llama`` (SentencePiece's BPE)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glassgpt import gguf_header
from glassgpt.errors import TokenizerError
from glassgpt.files import has_type, parse_json
from glassgpt.tokenizer.base import Tokenizer, added_token, attach, bos_processor, tokenizer_json
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.library import SPACE, LibraryTokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.published import PublishedSettings

#: llama.cpp's names of pre-tokenizers (`tokenizer.ggml.pre`): split patterns, and `ignore_merges`. "smollm" and similar
#: ones first split off every digit.
_PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2"), ((PATTERNS["gpt2"],), False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), ((r"\p{N}", PATTERNS["gpt2"]), False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), ((PATTERNS["llama3"],), True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), ((PATTERNS["llama3"],), False)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), ((PATTERNS["qwen2"],), False)),
    "gpt-4o": ((PATTERNS["o200k"],), False),
}
#: Pre-tokenizers with BOS before every text, unless `tokenizer.ggml.add_bos_token` says otherwise.
_ADDING_BOS = ("llama-bpe", "llama3", "llama-v3")
#: The roles of tokens, and llama.cpp's keys of their ids.
_ROLE_KEYS = {
    f"{role}_token": f"tokenizer.ggml.{key}_token_id"
    for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}.items()
}
#: The keys of the tokens that end a generation, in the order in which they are written.
END_KEYS = tuple(f"tokenizer.ggml.{key}_token_id" for key in ("eos", "eot", "eom"))
#: The control tokens at which llama.cpp ends a generation even if no key names them.
_END_NAMES = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>"),
    *("<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<eos>", "</s>"),
)
_TEMPLATE_KEY = "tokenizer.chat_template"
#: The key of what llama.cpp has no keys for, as JSON: the settings that were published with the model.
PUBLISHED_KEY = "glassgpt.published"
#: Values of `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6


def read_gguf(path: Path) -> Tokenizer:
    """Read the tokenizer of a GGUF file.

    Raises:
        TokenizerError: if the file is damaged, or the type or pre-tokenizer is not supported.
    """
    return tokenizer_from_metadata(path, gguf_header.read_header(path, TokenizerError).metadata)


def tokenizer_from_metadata(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file's metadata describe; the path is for messages.

    Raises:
        TokenizerError: if the metadata are damaged, or the type or pre-tokenizer is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if kind in ("gpt2", "llama"):
            tokenizer: Tokenizer = _byte_level(metadata) if kind == "gpt2" else _sentencepiece_bpe(metadata)
            attach(tokenizer, _published(metadata))
            return tokenizer
    except (TokenizerError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = error if isinstance(error, TokenizerError) else f"its tokenizer is damaged: {error!r}"
        raise TokenizerError(f"{path}: {reason}") from None
    raise TokenizerError(f"{path} has a tokenizer of the type {kind!r}; gpt2 and llama can be read")


def pre_tokenizer_name(tokenizer: BPETokenizer) -> str:
    """llama.cpp's name of a tokenizer's pre-tokenizer.

    Raises:
        TokenizerError: if it has none.
    """
    model = tokenizer.model
    for name, (patterns, ignore_merges) in _PRE_TOKENIZERS.items():
        if patterns == tuple(model.patterns) and ignore_merges == model.ignore_merges:
            return name
    raise TokenizerError(
        f"llama.cpp has no name for this tokenizer's split pattern {' then '.join(model.patterns)!r}, so it would "
        f"produce other tokens; it supports those of {', '.join(PATTERNS)}, and export --to hf supports any"
    )


def _roles(metadata: Mapping[str, Any]) -> dict[str, int]:
    roles = {role: metadata[key] for role, key in _ROLE_KEYS.items() if key in metadata}
    for role, i in roles.items():
        if type(i) is not int or not 0 <= i < len(metadata["tokenizer.ggml.tokens"]):
            raise TokenizerError(f"the id of its {role} is {i!r}, which is not one of its tokens")
    return roles


def published_json(published: PublishedSettings) -> str:
    """The value of PUBLISHED_KEY; chat templates have keys of llama.cpp's."""
    entries = asdict(published)
    del entries["chat_templates"]
    return json.dumps(entries, ensure_ascii=False)


def _published(metadata: Mapping[str, Any]) -> PublishedSettings:
    """The settings in a GGUF file: under glassgpt's own key, or as llama.cpp finds them."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    own, prefix = metadata.get(PUBLISHED_KEY), f"{_TEMPLATE_KEY}."
    templates = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    templates |= {"default": metadata[_TEMPLATE_KEY]} if _TEMPLATE_KEY in metadata else {}
    templates = {name: text for name, text in templates.items() if isinstance(text, str)}
    if own is not None:
        entries = parse_json(own)
        if not has_type(entries, dict[str, dict[str, Any]]) or not has_type(entries.get("roles", {}), dict[str, str]):
            raise TokenizerError(f"its {PUBLISHED_KEY} is damaged")
        return PublishedSettings(**entries, chat_templates=templates)
    ends = [int(metadata[key]) for key in END_KEYS if key in metadata]
    ends += [i for i, name in enumerate(tokens) if name in _END_NAMES and types[i] == _CONTROL]
    ends = list(dict.fromkeys(ends))
    return PublishedSettings(
        roles={role: tokens[i] for role, i in _roles(metadata).items()},
        chat_templates=templates,
        token_ids={"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {},
    )


def _byte_level(metadata: Mapping[str, Any]) -> BPETokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise TokenizerError(f"its pre-tokenizer {pre!r} is not supported; supported are {', '.join(_PRE_TOKENIZERS)}")
    patterns, ignore_merges = _PRE_TOKENIZERS[pre]
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    named = {i: token for i, token in enumerate(tokens) if types[i] in (_CONTROL, _USER_DEFINED)}
    special = {token: i for i, token in named.items() if types[i] == _CONTROL}
    roles = {role: tokens[i] for role, i in _roles(metadata).items() if types[i] == _CONTROL}
    plain = [i for i in range(len(tokens)) if i not in named and types[i] != _UNUSED]
    ids = {bytelevel.unicode_to_bytes(tokens[i]): i for i in plain}
    model = BPEModel(
        vocab={token: i for token, i in ids.items() if token},  # a token outside the byte alphabet is padding
        merges=[bytelevel.parse_merge(merge) for merge in metadata["tokenizer.ggml.merges"]],
        patterns=patterns,
        special=special,
        added={token: i for i, token in named.items() if token not in special},
        eos=roles.get("eos_token"),
        bos=roles.get("bos_token"),
        ignore_merges=ignore_merges,
    )
    if model.bos and metadata.get("tokenizer.ggml.add_bos_token", pre in _ADDING_BOS):
        content = bytelevel.to_json(model) | {"post_processor": bos_processor(model.bos, special[model.bos])}
        return BPETokenizer(model, content)
    return BPETokenizer(model)


def _sentencepiece_bpe(metadata: Mapping[str, Any]) -> LibraryTokenizer:
    """SentencePiece's BPE as a tokenizer.json: the pair whose token has the highest score is merged first."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = metadata["tokenizer.ggml.token_type"]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-scores[i], i, cut, token)
        for i, token in enumerate(tokens)
        if types[i] not in (_UNKNOWN, _CONTROL, _BYTE)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    content = tokenizer_json(
        bytelevel.bpe_json(
            unk_token=next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=True,
            vocab=ids,
            merges=[[token[:cut], token[cut:]] for _, _, cut, token in sorted(merges)],
        ),
        {"type": "Sequence", "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        added_tokens=[
            added_token(i, token, special=types[i] != _USER_DEFINED)
            for i, token in enumerate(tokens)
            if types[i] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        normalizer={"type": "Sequence", "normalizers": [*prepend, to_mark]},
    )
    roles = {role: tokens[i] for role, i in _roles(metadata).items()}
    if "bos_token" in roles and metadata.get("tokenizer.ggml.add_bos_token", True):
        content["post_processor"] = bos_processor(roles["bos_token"], ids[roles["bos_token"]])
    return LibraryTokenizer(content, roles)
