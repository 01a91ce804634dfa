"""ChatML's template and its two control tokens, for a tokenizer that has no chat template.

The new tokens are added as `transformers` and llama.cpp need them: as special tokens, which plain text never becomes.
``<|im_end|>`` gets the role of EOS, as in the published models that use ChatML: `transformers` stops at every id in
generation_config.json, but other programs (TRL, vLLM, llama.cpp's converter) look only at ``eos_token``. The former
EOS token still ends a generation.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import Tokenizer, added_token, adds_bos_token, attach
from glassgpt.tokenizer.chat import CHATML
from glassgpt.tokenizer.library import LibraryTokenizer, SentencePieceTokenizer
from glassgpt.tokenizer.pretrained import from_content
from glassgpt.tokenizer.published import PublishedSettings, added_tokens

#: The tokens that begin and end a message.
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


def with_chatml(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """Copy a tokenizer with ChatML as its default chat template, and with its control tokens.

    Tokens that the tokenizer has keep their ids, and the new ones follow. ``end_token_ids`` begins with ``<|im_end|>``.
    If the model expects prompts that begin with BOS, so does the template; llama.cpp adds BOS there in any case.

    Args:
        tokenizer: of any kind.
        path: where it is from, for messages.

    Raises:
        TokenizerError: if the tokens cannot be added.
    """
    files = tokenizer.files()
    roles = tokenizer.roles() | {"eos_token": IM_END}
    if "tokenizer.json" in files:
        content = _with_special(json.loads(files["tokenizer.json"]), tokenizer)
        changed = from_content(content, roles, path)
        published = tokenizer.published
    elif isinstance(tokenizer, SentencePieceTokenizer):
        published = _with_added_decoder(tokenizer)
        changed = SentencePieceTokenizer(files["tokenizer.model"], roles, added_tokens(published))
    else:
        raise TokenizerError(f"{path}: ChatML's tokens cannot be added to a tokenizer of the kind {tokenizer.kind!r}")
    special = changed.special_ids()
    _check(tokenizer, changed, path)
    template = "{{ bos_token }}" + CHATML if adds_bos_token(tokenizer) else CHATML
    ends: Any = list(dict.fromkeys((special[IM_END], *tokenizer.end_token_ids)))
    ends = ends if len(ends) > 1 else ends[0]
    attach(
        changed,
        replace(
            published,
            roles={**published.roles, "eos_token": IM_END},
            chat_templates={**published.chat_templates, "default": template},
            token_ids={**published.token_ids, "eos_token_id": ends},
            generation_config={**published.generation_config, "eos_token_id": ends},
        ),
    )
    return changed


def _check(tokenizer: Tokenizer, changed: Tokenizer, path: Path) -> None:
    """Check that the control tokens are there, that no other token has another id, and that no text becomes them."""
    special, reason = changed.special_ids(), ""
    if {IM_START, IM_END} - special.keys() or tokenizer.special_ids().items() - special.items():
        reason = "without changing the ids of others"
    for name in (IM_START, IM_END):
        with contextlib.suppress(TokenizerError):  # a text that it cannot encode
            if not reason and special[name] in changed.encode(name):
                reason = f"as {name} is a token that plain text becomes"
    if reason:
        raise TokenizerError(
            f"{path}: {IM_START} and {IM_END} cannot be made control tokens of this tokenizer {reason}; use a model "
            "that has a chat template, or train one with tokenizer=bpe:N"
        )


def _with_special(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Add the control tokens to the content of a ``tokenizer.json``; those that are there become special."""
    added, vocab = {token["content"]: token for token in content.get("added_tokens") or ()}, content["model"]["vocab"]
    listed = isinstance(vocab, list)  # a Unigram model's [token, score] pairs, in the order of ids
    ids: Mapping[str, int] = {entry[0]: i for i, entry in enumerate(vocab)} if listed else vocab
    following, new = max([len(vocab), *(token["id"] + 1 for token in added.values())]), tokenizer.vocab_size
    for name in (IM_START, IM_END):
        if name in added:
            added[name] = {**added[name], "special": True}
            continue
        i = ids.get(name, new)
        added[name] = added_token(i, name, special=True)
        if i == new:
            # `tokenizers` gives the id `following` to a token that is not in the vocabulary. In the vocabulary of some
            # models a plain text could become the token, so it is put there only if needed
            if not listed and (i != following or not isinstance(tokenizer, LibraryTokenizer)):
                vocab[name] = i
            following, new = max(following, i + 1), new + 1
    return {**content, "added_tokens": [*added.values()]}


def _with_added_decoder(tokenizer: SentencePieceTokenizer) -> PublishedSettings:
    """Add the control tokens to the ``added_tokens_decoder`` beside a SentencePiece model."""
    published, new = tokenizer.published, tokenizer.vocab_size
    entries = dict(published.tokenizer_config.get("added_tokens_decoder") or {})
    known = {entry["content"]: i for i, entry in entries.items()}
    known |= {name: str(i) for name, i in tokenizer.special_ids().items()}
    for name in (IM_START, IM_END):
        i = known.get(name)
        if i is None:
            i, new = str(new), new + 1
        entry = added_token(int(i), name, special=True) | entries.get(i, {}) | {"special": True}
        entries[i] = {key: value for key, value in entry.items() if key != "id"}
    return replace(published, tokenizer_config={**published.tokenizer_config, "added_tokens_decoder": entries})
