"""The checks of a tokenizer: what it loses, which ids it gives, its special tokens, its merges."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.nasty import NASTY, first_difference, name_loss, without_controls
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject, byte_of, is_byte_level, looks_special
from glassgpt.tokenizer.bpe.bytelevel import BYTES
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer

#: Bytes without which common text is lost: white space, ASCII, and the bytes of characters of the first two planes.
#: Published vocabularies may lack the others: control characters, and bytes that UTF-8 never or hardly ever has.
_COMMON = {bytes([b]) for b in (9, 10, 13, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC3, 0xDA),
                                *range(0xE0, 0xF1))}  # fmt: skip
#: Tokens, and texts of their own tokens, that are tried.
_TRIED, _OWN_TEXTS = 1500, 20
#: Share of longer tokens that encode to themselves. GPT-2's and SmolLM2's merges reach all of them.
_MIN_REACHED = 0.97
#: Tokens that are needed for that share.
_MIN_TOKENS = 20


def check_file(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """The file can be read, and its parts fit together."""
    problems = [tokenizer.problem] if tokenizer.problem else []
    problems += _content_problems(tokenizer.content or {})
    if isinstance(tokenizer.house, BPETokenizer):
        missing = sorted(set(tokenizer.house.model.missing_bytes()) & _COMMON)
    elif is_byte_level(tokenizer) and tokenizer.special is not None and not tokenizer.house:
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
    if model.get("dropout"):
        problems.append(f"it has BPE dropout {model['dropout']}: the same text has other ids each time")
    return problems


def _joined(merge: list[str], model: Any) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return merge[0] + (merge[1].removeprefix(prefix) if prefix else merge[1])


def check_round_trip(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Decode what was encoded, on texts that tokenizers get wrong."""
    _require(tokenizer)
    lost: dict[str, list[str]] = {}
    refused, unknown = list[str](), 0
    for name, text in NASTY.items():
        usable = text
        try:
            ids = tokenizer.encode(text)
        except Exception:  # a closed alphabet refuses what it does not have
            refused.append(name)
            usable = "".join(c for c in text if _knows(tokenizer, c))
            if len(usable) < 2:
                continue
            try:
                ids = tokenizer.encode(usable)
            except Exception:
                continue
        if tokenizer.encode(usable) != ids:
            yield failed("tokenizer", f"{name}: the same text gets other ids the second time", text=usable[:80])
            return
        decoded = _decode(tokenizer, ids)
        if decoded == usable:
            continue
        if tokenizer.roles.get("unk") in ids:
            unknown += 1
            continue
        kind = name_loss(usable, decoded)
        lost.setdefault(kind, []).append(f"{name}, {first_difference(usable, decoded)}")
    lost.pop("control characters", None) if not _loses_more_controls(tokenizer) else None
    yield _round_trip_result(tokenizer, lost, refused, unknown)


def _round_trip_result(
    tokenizer: TokenizerSubject, lost: dict[str, list[str]], refused: list[str], unknown: int
) -> Result:
    evidence: dict[str, Any] = {"lost": {kind: len(texts) for kind, texts in lost.items()}, "refused": len(refused), "unknown": unknown}
    by_design = tokenizer.declared or "unk" in tokenizer.roles and bool(unknown)
    if (wrong := lost.get("characters")) and by_design and _drops_unknown(tokenizer):
        wrong = None
    if wrong or (lost and not by_design):
        kind = "characters" if wrong else next(iter(lost))
        if kind == "characters" and _is_closed(tokenizer) and _drops_unknown(tokenizer):
            return warned(
                "tokenizer", "characters that are not in the alphabet are dropped without a word: "
                f"{lost[kind][0]}; raise an error for them, or give them an unknown token", **evidence,
            )  # fmt: skip
        return failed(
            "tokenizer", f"decode(encode(text)) is another text in {sum(map(len, lost.values()))} of {len(NASTY)} "
            f"texts; lost: {kind}: {lost[kind][0]}", **evidence,
        )  # fmt: skip
    notes = [f"{kind} is changed, as the tokenizer declares" for kind in lost]
    notes += [f"unknown words are lost in {unknown} of {len(NASTY)} texts (a token for them)"] if unknown else []
    notes += [f"{len(refused)} texts have characters that the alphabet refuses"] if refused else []
    return passed("; ".join(["all texts that it takes come back", *notes] if not lost else notes), **evidence)


def _loses_more_controls(tokenizer: TokenizerSubject) -> bool:
    """Whether the loss of control characters cannot be a vocabulary without them: they have ids."""
    return any(_try_encode(tokenizer, c) for c in "\x01") and _decode(tokenizer, _try_encode(tokenizer, "\x01") or []) == ""


def _drops_unknown(tokenizer: TokenizerSubject) -> bool:
    """Whether all that is lost is characters that encode to nothing."""
    for text in NASTY.values():
        known = "".join(c for c in text if _try_encode(tokenizer, c))
        ids = _try_encode(tokenizer, text)
        if ids is not None and tokenizer.roles.get("unk") not in ids:
            decoded = _decode(tokenizer, ids)
            if decoded != known and name_loss(known, decoded) == "characters":
                return False
    return True


def _is_closed(tokenizer: TokenizerSubject) -> bool:
    """Whether the vocabulary is an alphabet of characters."""
    plain = [t for i, t in tokenizer.tokens.items() if i not in set(tokenizer.special.values())]
    return bool(plain) and all(len(t if isinstance(t, str) else t.decode("utf-8", "replace")) <= 1 for t in plain)


def check_own_texts(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Texts made of the tokenizer's own tokens, and sentences of its own words, come back unchanged."""
    _require(tokenizer)
    if not tokenizer.tokens:
        raise NotRun("the vocabulary was not found; give the object an attribute that maps tokens to ids")
    chance, special = random.Random(0), set(tokenizer.special.values()) | set(tokenizer.roles.values())
    ids = [i for i in tokenizer.tokens if i not in special]
    words = _words(tokenizer, chance.sample(ids, min(len(ids), _TRIED)))
    texts = [" ".join(chance.choices(words, k=8)) for _ in range(_OWN_TEXTS)] if len(words) >= 8 else []
    lossy = "unk" in tokenizer.roles or tokenizer.declared
    if not lossy:
        own = ("".join(_decode(tokenizer, [i]) for i in chance.choices(ids, k=30)) for _ in range(_OWN_TEXTS))
        texts += [text for text in own if "\ufffd" not in text]
    if not texts:
        raise NotRun("the vocabulary has too few tokens that are text")
    for text in texts:
        encoded = _try_encode(tokenizer, text)
        if encoded is None or (lossy and tokenizer.roles.get("unk") in encoded):
            continue
        decoded = _decode(tokenizer, encoded)
        same = decoded.strip() == text if lossy else decoded == text
        if not same and not (lossy and name_loss(text, decoded) in ("case", "Unicode normal form")):
            yield failed(
                "tokenizer", f"a text of its own tokens comes back changed, {first_difference(text, decoded)}",
                loss=name_loss(text, decoded),
            )  # fmt: skip
            return
    yield passed(f"{len(texts)} texts of its own tokens come back unchanged", texts=len(texts))


def _words(tokenizer: TokenizerSubject, ids: list[int]) -> list[str]:
    """Whole words of the vocabulary."""
    found = (_decode(tokenizer, [i]).strip() for i in ids)
    return sorted({word for word in found if word.isalpha() and word.isascii() and len(word) > 1 and _one(tokenizer, word)})


def _one(tokenizer: TokenizerSubject, word: str) -> bool:
    encoded = _try_encode(tokenizer, word)
    return bool(encoded) and tokenizer.roles.get("unk") not in (encoded or ())


def check_ids(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """All ids are whole numbers from 0 to the vocabulary size, which is the model's."""
    _require(tokenizer)
    seen = {i for text in NASTY.values() for i in _try_encode(tokenizer, text) or ()}
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
    texts = Counter(token for i, token in tokenizer.tokens.items() if token)
    repeated = [token for token, n in texts.items() if n > 1]
    if len(repeated) > 0.01 * len(texts) + 2:
        yield warned("tokenizer", f"{len(repeated)} tokens have several ids, the first {repeated[0]!r}", repeated=len(repeated))
        return
    holes = known + 1 - len({*tokenizer.tokens, *tokenizer.special.values()}) if tokenizer.tokens else 0
    note = f"; {holes} ids below have no token" if holes > 0 else ""
    note += f"; the model has {model - (size or known + 1)} more embeddings" if model and model > (size or known + 1) else ""
    yield passed(f"all ids are from 0 to {known}{note}", largest_id=known, vocab_size=size, holes=max(0, holes))


def check_special(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Special tokens are different tokens, and no text becomes one."""
    _require(tokenizer)
    by_id = Counter(tokenizer.special.values())
    if doubled := [i for i, n in by_id.items() if n > 1]:
        names = [name for name, i in tokenizer.special.items() if i == doubled[0]]
        yield failed("tokenizer", f"the special tokens {' and '.join(names[:3])} have the same id {doubled[0]}")
        return
    if (own := _is_plain_text(tokenizer)) is not None:
        yield own
        return
    ids = {**tokenizer.special, **_added_names(tokenizer)}
    became = [name for name, i in ids.items() if _becomes(tokenizer, name, i)]
    if became and _word_level(tokenizer):
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
    """Tokens of a tokenizer.json that are matched in any text and have the name of a control token."""
    added = (tokenizer.content or {}).get("added_tokens") or []
    return {t["content"]: t["id"] for t in added if t["content"].startswith("<|") and t["content"].endswith("|>")}


def _becomes(tokenizer: TokenizerSubject, name: str, i: int) -> bool:
    ids = (_try_encode(tokenizer, text) or () for text in (name, f"a{name}b", f"say {name} twice"))
    return i != tokenizer.roles.get("unk") and any(i in found for found in ids)


def _word_level(tokenizer: TokenizerSubject) -> bool:
    """Whether it has one token per word or character and one for unknown words: special names are words of it."""
    return "unk" in tokenizer.roles and not tokenizer.house and not is_byte_level(tokenizer)


def _is_plain_text(tokenizer: TokenizerSubject) -> Result | None:
    """The failure of an end, begin or padding token that is the token of ordinary text."""
    plain = {i: name for name, text in NASTY.items() for i in _try_encode(tokenizer, text) or ()}
    for role in ("eos", "bos", "pad"):
        i = tokenizer.roles.get(role)
        if i is None or i not in plain or i == tokenizer.roles.get("unk"):
            continue
        text = _decode(tokenizer, [i])
        if text in ("\n", " ", ".") or looks_special(text):  # chosen so; names are examined by themselves
            continue
        return failed(
            "tokenizer", f"the {role} token has the id {i}, which is also the token of ordinary text ({text!r}, in "
            f"{plain[i]}): such text would be read as {role}", role=role, id=i,
        )  # fmt: skip
    return None


def check_end(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """There is a token that ends a document."""
    _require(tokenizer)
    published = getattr(tokenizer.house, "published", None)
    named = (published.roles if published else {}).get("eos_token")
    if named and tokenizer.roles.get("eos") is None:
        yield failed("tokenizer", f"the end token is {named!r} by its configuration, and the vocabulary lacks it")
    elif "eos" in tokenizer.roles:
        i = tokenizer.roles["eos"]
        yield passed(f"documents end with token {i} ({_decode(tokenizer, [i])!r})", eos=i)
    elif "bos" in tokenizer.roles:
        yield warned("tokenizer", "it has a token that begins a document and none that ends one: a model cannot stop")
    else:
        yield passed("it has no end token, which is right for one continuous text; a model of documents needs one")


def check_merges(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Longer tokens encode to themselves, as they do where merges are applied in the order in which they were learned."""
    _require(tokenizer)
    if not is_byte_level(tokenizer):
        raise NotRun("it is not a byte-level BPE")
    special = {*tokenizer.special.values(), *tokenizer.roles.values()}
    chance, tried, reached, first = random.Random(0), 0, 0, ""
    ids = [i for i in tokenizer.tokens if i not in special and i not in _added_names(tokenizer).values()]
    for i in chance.sample(ids, min(len(ids), _TRIED)):
        text = _decode(tokenizer, [i])
        if len(text.encode("utf-8", "replace")) < 2 or "\ufffd" in text:
            continue
        tried += 1
        if tokenizer.encode(text) == [i]:
            reached += 1
        else:
            first = first or f"{text!r} becomes {tokenizer.encode(text)[:8]}, not [{i}]"
    if tried < _MIN_TOKENS:
        raise NotRun(f"it has only {tried} tokens of several bytes that are text")
    share = reached / tried
    evidence: dict[str, Any] = {"tried": tried, "reached": round(share, 4)}
    if share < _MIN_REACHED:
        yield failed(
            "tokenizer", f"only {share:.0%} of {tried} longer tokens encode to themselves: the merges are out of order, "
            f"or another rule splits the text; {first}", **evidence,
        )  # fmt: skip
        return
    yield passed(f"{share:.1%} of {tried} longer tokens encode to themselves", **evidence)


def _require(tokenizer: TokenizerSubject) -> None:
    if tokenizer.problem:
        raise NotRun("the file cannot be read as a tokenizer")


def _decode(tokenizer: TokenizerSubject, ids: list[int]) -> str:
    try:
        return tokenizer.decode(ids)
    except Exception as error:  # of somebody's code: shown as the decoded text
        return f"<decode raised {type(error).__name__}>"


def _try_encode(tokenizer: TokenizerSubject, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text)
    except Exception:  # of somebody's code: it refuses the text
        return None


def _knows(tokenizer: TokenizerSubject, character: str) -> bool:
    return bool(_try_encode(tokenizer, character))


_UNIQUE_BYTES = len(BYTES)
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
        "own texts", "Encodes and decodes texts made of its own tokens.", f"{2 * _OWN_TEXTS} short texts",
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
        "merge order", "Encodes longer tokens by themselves.", f"{_TRIED} short texts",
        f"at least {_MIN_REACHED:.0%} encode to themselves; with learned merges all or nearly all do, with the "
        "newest merge first 92 % of a small vocabulary", ("tokenizer",), check_merges,
    ),
)  # fmt: skip
