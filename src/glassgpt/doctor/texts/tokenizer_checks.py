"""The checks of a tokenizer: what it loses, which ids it gives, its special tokens, its merges."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.nasty import NASTY
from glassgpt.doctor.texts.round_trip import TRIED, check_own_texts, check_round_trip, decode, require, try_encode
from glassgpt.doctor.texts.tokenizer_subject import (
    TokenizerSubject,
    byte_of,
    is_byte_level,
    is_word_level,
    looks_special,
)
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer

#: Bytes without which common text is lost: white space, ASCII, and the bytes of characters of the first two planes.
#: Published vocabularies may lack the others: control characters, and bytes that UTF-8 never or hardly ever has.
_COMMON = {bytes([b]) for b in (9, 10, 13, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC3, 0xDA),
                                *range(0xE0, 0xF1))}  # fmt: skip
#: Share of longer tokens that encode to themselves. GPT-2's and SmolLM2's merges reach all of them.
_MIN_REACHED = 0.97
#: Tokens that are needed for that share.
_MIN_TOKENS = 20
_USUAL_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>", "<s>", "<eos>", "<|end_of_text|>", "<|eot_id|>")


def check_file(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """The file can be read, and its parts fit together."""
    problems = [tokenizer.problem] if tokenizer.problem else []
    problems += _content_problems(tokenizer.content or {})
    problems += [f"the tokens {' and '.join(map(repr, pair))} have the same id" for pair in tokenizer.same_id[:1]]
    if isinstance(tokenizer.house, BPETokenizer):
        missing = sorted(set(tokenizer.house.model.missing_bytes()) & _COMMON)
    elif is_byte_level(tokenizer) and tokenizer.house is None:
        have = {byte_of(token) for token in tokenizer.tokens.values()}
        raw = {token for token in tokenizer.tokens.values() if isinstance(token, bytes)}
        missing = sorted(_COMMON - (raw if raw else have))
    else:
        missing = []
    if missing:
        shown = ", ".join(f"0x{byte.hex()}" for byte in missing[:6])
        problems.append(f"{len(missing)} bytes of common text have no token: {shown}; text with them is lost")
    if problems:
        yield failed("tokenizer", f"{tokenizer.name}: {'; '.join(problems[:4])}", problems=problems[:20])
        return
    yield passed("the parts of the tokenizer fit together", tokens=len(tokenizer.tokens))


def _content_problems(content: Any) -> list[str]:
    """What is wrong in the content of a tokenizer.json."""
    model = content.get("model")
    if not isinstance(model, dict):
        return []
    vocab, problems = model.get("vocab"), list[str]()
    if isinstance(vocab, list):  # Unigram: [token, score]
        vocab = {entry[0]: i for i, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    if not isinstance(vocab, dict):
        return problems
    repeated = [i for i, n in Counter(vocab.values()).items() if n > 1]
    if repeated:
        tokens = [token for token, i in vocab.items() if i == repeated[0]]
        problems.append(f"{len(repeated)} ids stand for several tokens: id {repeated[0]} for {tokens[:3]}")
    owners = {i: token for token, i in vocab.items()}
    for token in content.get("added_tokens") or []:
        i, name = token.get("id"), token.get("content")
        if owners.get(i, name) != name:
            problems.append(f"the added token {name!r} has id {i}, which is the token {owners[i]!r}")
        elif name in vocab and vocab[name] != i:
            problems.append(f"the added token {name!r} has id {i}, and id {vocab[name]} in the vocabulary")
    merges = [m.split(" ") if isinstance(m, str) else list(m) for m in model.get("merges") or []]
    wrong = [m for m in merges if len(m) != 2 or not {*m, _joined(m, model)} <= vocab.keys()]
    if wrong:
        problems.append(f"{len(wrong)} merges have parts or a result that is no token, the first {wrong[0]}")
    if "ByteLevel" in str(content.get("pre_tokenizer")) and not content.get("decoder"):
        problems.append("it writes bytes as characters (ByteLevel) and has no decoder that reads them back")
    if model.get("dropout"):
        problems.append(f"it has BPE dropout {model['dropout']}: the same text has other ids each time")
    return problems


def _joined(merge: list[str], model: Any) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return merge[0] + (merge[1].removeprefix(prefix) if prefix else merge[1])


def check_ids(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """All ids are whole numbers from 0 to the vocabulary size, which is the model's."""
    require(tokenizer)
    seen = {i for text in NASTY.values() for i in _encode_known(tokenizer, text)}
    seen |= set(tokenizer.special.values()) | set(tokenizer.roles.values())
    if wrong := [i for i in seen if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        yield failed("tokenizer", f"encode gives {wrong[0]!r}, which is not an id (a whole number from 0)")
        return
    known = max([*seen, *tokenizer.tokens], default=0)
    size, model = tokenizer.vocab_size, tokenizer.model_vocab_size
    if size is not None and known >= size:
        yield failed(
            "tokenizer", f"it gives the id {known}, and says that it has {size} ids (0 to {size - 1}): the embedding "
            "of a model made with that number has no such row", largest_id=known, vocab_size=size,
        )  # fmt: skip
        return
    if model is not None and max(known + 1, size or 0) > model:
        yield failed(
            "tokenizer", f"it gives ids up to {max(known, (size or 0) - 1)}, and the model has {model} embeddings",
            largest_id=known, model_vocab_size=model,
        )  # fmt: skip
        return
    texts = Counter(token for token in tokenizer.tokens.values() if token)
    repeated = [token for token, n in texts.items() if n > 1]
    if len(repeated) > 0.01 * len(texts) + 2 and tokenizer.house is None:
        yield warned(
            "tokenizer", f"{len(repeated)} tokens have several ids, the first {repeated[0]!r}", repeated=len(repeated)
        )
        return
    holes = known + 1 - len({*tokenizer.tokens, *tokenizer.special.values()}) if tokenizer.tokens else 0
    if holes > 0.01 * (known + 1) and seen <= {*tokenizer.tokens, *tokenizer.special.values()}:
        say = failed if holes > 0.05 * (known + 1) else warned  # published ones have some tens
        yield say(
            "tokenizer", f"{holes} of the ids from 0 to {known} have no token: their embeddings are never trained, and "
            "a sampled one cannot be decoded", holes=holes, largest_id=known,
        )  # fmt: skip
        return
    note = f"; {holes} ids below have no token" if holes > 0 else ""
    note += (
        f"; the model has {model - (size or known + 1)} more embeddings"
        if model and model > (size or known + 1)
        else ""
    )
    yield passed(f"all ids are from 0 to {known}{note}", largest_id=known, vocab_size=size, holes=max(0, holes))


def _encode_known(tokenizer: TokenizerSubject, text: str) -> list[int]:
    """Encode a text; if the tokenizer refuses it, the characters that it knows."""
    ids = try_encode(tokenizer, text)
    return [i for c in text for i in try_encode(tokenizer, c) or ()] if ids is None else ids


def check_special(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Special tokens are different tokens, and no text becomes one."""
    require(tokenizer)
    by_id = Counter(tokenizer.special.values())
    if doubled := [i for i, n in by_id.items() if n > 1]:
        names = [name for name, i in tokenizer.special.items() if i == doubled[0]]
        yield failed("tokenizer", f"the special tokens {' and '.join(names[:3])} have the same id {doubled[0]}")
        return
    if (own := _is_plain_text(tokenizer)) is not None:
        yield own
        return
    ids = {**_found_in_text(tokenizer), **tokenizer.special, **_added_names(tokenizer)}
    became = [name for name, i in ids.items() if _becomes(tokenizer, name, i)]
    if became and is_word_level(tokenizer) and tokenizer.house is None:
        yield passed(f"{became[0]!r} is a word of the vocabulary: a text that spells it gets its id", became=became[:5])
        return
    if became:
        yield failed(
            "tokenizer", f"a text that spells {became[0]!r} gets the special token {ids[became[0]]}: whoever writes "
            "it ends the document or forges a turn", became=became[:10],
        )  # fmt: skip
        return
    note = f" (with {tokenizer.options})" if tokenizer.options else ""
    yield passed(f"{len(ids)} special tokens, which no text becomes{note}", special=len(ids))


def _added_names(tokenizer: TokenizerSubject) -> dict[str, int]:
    """Tokens of a tokenizer.json that are matched in any text though they end or begin turns or documents.

    Others may be: published tokenizers let code spell marks such as ``<|fim_prefix|>``.
    """
    added = (tokenizer.content or {}).get("added_tokens") or []
    ends = {*tokenizer.end_ids, *tokenizer.roles.values()}
    return {t["content"]: t["id"] for t in added if t["content"] in _USUAL_NAMES or t["id"] in ends}


def _becomes(tokenizer: TokenizerSubject, name: str, i: int) -> bool:
    ids = (try_encode(tokenizer, text) or () for text in (name, f"a{name}b", f"say {name} twice"))
    return i != tokenizer.roles.get("unk") and any(i in found for found in ids)


def _found_in_text(tokenizer: TokenizerSubject) -> dict[str, int]:
    """Usual names of special tokens that a text becomes, though the object does not list them."""
    found = ((name, try_encode(tokenizer, name) or []) for name in _USUAL_NAMES)
    return {name: ids[0] for name, ids in found if len(ids) == 1 and decode(tokenizer, ids) == name}


def _is_plain_text(tokenizer: TokenizerSubject) -> Result | None:
    """The failure of an end, begin or padding token that is the token of ordinary text."""
    plain = {i: name for name, text in NASTY.items() for i in _encode_known(tokenizer, text)}
    for role in ("eos", "bos", "pad"):
        i = tokenizer.roles.get(role)
        if i is None or i not in plain or i == tokenizer.roles.get("unk"):
            continue
        text = decode(tokenizer, [i])
        if text in ("\n", " ", ".") or looks_special(text):  # chosen so; names are examined by themselves
            continue
        return failed(
            "tokenizer", f"the {role} token has the id {i}, which is also the token of ordinary text ({text!r}, in "
            f"{plain[i]}): such text would be read as {role}", role=role, id=i,
        )  # fmt: skip
    return None


def check_end(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """There is a token that ends a document."""
    require(tokenizer)
    published = getattr(tokenizer.house, "published", None)
    named = (published.roles if published else {}).get("eos_token")
    if named and tokenizer.roles.get("eos") is None:
        yield failed("tokenizer", f"the end token is {named!r} by its configuration, and the vocabulary lacks it")
    elif "eos" in tokenizer.roles:
        i = tokenizer.roles["eos"]
        yield passed(f"documents end with token {i} ({decode(tokenizer, [i])!r})", eos=i)
    elif "bos" in tokenizer.roles:
        yield passed("it has no end token; the one that begins the next document can end a text")
    else:
        yield passed("it has no end token, which is right for one continuous text; a model of documents needs one")


def check_merges(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Longer tokens encode to themselves, as they do where merges are applied in the order of learning."""
    require(tokenizer)
    if not is_byte_level(tokenizer):
        raise NotRun("it is not a byte-level BPE")
    special = {*tokenizer.special.values(), *tokenizer.roles.values()}
    chance, tried, reached, first = random.Random(0), 0, 0, ""
    special |= {token["id"] for token in (tokenizer.content or {}).get("added_tokens") or []}
    ids = [i for i in tokenizer.tokens if i not in special]
    for i in chance.sample(ids, min(len(ids), TRIED)):
        text = decode(tokenizer, [i])
        if len(text.encode("utf-8", "replace")) < 2 or "\ufffd" in text:
            continue
        encoded = try_encode(tokenizer, text) or []
        if decode(tokenizer, encoded) != text:  # a normaliser, or a space before each text: another check's
            continue
        tried += 1
        reached += encoded == [i]
        first = first or ("" if encoded == [i] else f"{text!r} becomes {encoded[:8]}, not [{i}]")
    if tried < _MIN_TOKENS:
        raise NotRun(f"it has only {tried} tokens of several bytes that are text")
    share = reached / tried
    evidence: dict[str, Any] = {"tried": tried, "reached": round(share, 4)}
    if share < _MIN_REACHED:
        yield failed(
            "tokenizer", f"only {share:.0%} of {tried} longer tokens encode to themselves: the merges are out of "
                         f"order, "
            f"or another rule splits the text; {first}", **evidence,
        )  # fmt: skip
        return
    yield passed(f"{share:.1%} of {tried} longer tokens encode to themselves", **evidence)


TOKENIZER_CHECKS: tuple[Check[TokenizerSubject], ...] = (
    Check(
        "tokenizer parts", "Reads the tokenizer and compares its parts: ids, merges, added tokens, bytes.",
        "one look at each token", "no part may contradict another; control characters may be missing, as in published "
        "vocabularies", ("tokenizer",), check_file,
    ),
    Check(
        "round trip", f"Encodes and decodes {len(NASTY)} texts that tokenizers get wrong.", "40 short texts",
        "equal, character by character; a tokenizer that declares its losses (an unknown token, a normaliser) may "
        "lose just these", ("tokenizer",), check_round_trip,
    ),
    Check(
        "own texts", "Encodes and decodes texts made of its own tokens.", "40 short texts",
        "equal, character by character", ("tokenizer",), check_own_texts,
    ),
    Check(
        "ids in range", "Compares the largest id with the vocabulary sizes of the tokenizer and of the model.",
        "20 short texts", "an id at or above the size has no embedding", ("tokenizer",), check_ids,
    ),
    Check(
        "special tokens", "Encodes texts that spell special tokens, and looks for their ids in other texts.",
        "three texts per special token", "never: text is not control", ("tokenizer",), check_special,
    ),
    Check(
        "end of document", "Looks for the token that ends a document.", "none", "a token named as the end must exist",
        ("tokenizer",), check_end,
    ),
    Check(
        "merge order", "Encodes longer tokens by themselves.", f"{TRIED} short texts",
        f"at least {_MIN_REACHED:.0%} encode to themselves; with learned merges all or nearly all do, with the "
        "newest merge first 92 % of a small vocabulary", ("tokenizer",), check_merges,
    ),
)  # fmt: skip
