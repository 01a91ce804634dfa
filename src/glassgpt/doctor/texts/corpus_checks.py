"""The checks of a corpus: validation text in training, repetitions, odd documents, ids."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from glassgpt.data.audit.leaks import GRAM, Grams, describe, overlap
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.corpus_subject import MOST, Corpus, Split

#: Shares of the validation 13-grams that are in the training text: more is warned of; more is a bug.
_SOME, _MUCH = 0.05, 0.2
#: Ids in a row that are compared where there are only ids.
_IDS = 24
#: Share of the validation ids that training never has.
_NEVER_SEEN = 0.01


def check_leak(corpus: Corpus) -> Iterator[Result]:
    """Validation text is not in the training text."""
    if corpus.documents is None or not _has_words(corpus):
        yield _judge(*_shared_ids(corpus), f"runs of {_IDS} tokens")
        return
    found = overlap(Grams.of(corpus.documents("val")), corpus.documents("train"), shown=3)
    if not found.grams:
        yield _judge(*_shared_ids(corpus), f"runs of {_IDS} tokens")
        return
    yield _judge(found.found, found.grams, f"{GRAM}-grams", examples=describe(found)[-4:])


def _has_words(corpus: Corpus) -> bool:
    """Whether the text has words to compare: code of numbers, or a text without spaces, has not."""
    text = corpus.text("val")[:10_000]
    return len(text.split()) > len(text) / 40


def _judge(found: int, total: int, kind: str, examples: Any = ()) -> Result:
    if not total:
        raise NotRun("the validation split is too short to compare")
    share = found / total
    evidence: dict[str, Any] = {"shared": found, "of": total, "share": round(share, 4), "examples": list(examples)}
    message = f"{share:.1%} of the {total:,} different {kind} of the validation split are in the training split"
    if share > _MUCH:
        return failed("data leak", f"{message}: the validation loss measures memory", **evidence)
    if share > _SOME:
        return warned("data leak", f"{message}; look at them with `glassgpt data show --leaks`", **evidence)
    return passed(message, **evidence)


def _shared_ids(corpus: Corpus) -> tuple[int, int]:
    """How many different runs of ids of the validation split are in the training split, and how many there are."""
    if not corpus.ids:
        raise NotRun("there is neither text with words nor ids")
    train, val = (np.unique(_runs(corpus.ids[split])) for split in ("train", "val"))
    return int(np.isin(val, train).sum()), len(val)


def _runs(ids: np.ndarray) -> np.ndarray:
    """Hashes of all runs of ids, uint64."""
    if len(ids) < _IDS:
        return np.empty(0, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        total = np.zeros(len(ids) - _IDS + 1, dtype=np.uint64)
        for at in range(_IDS):
            total = (total ^ mixed[at : at + len(total)]) * np.uint64(0xFF51AFD7ED558CCD)
            total ^= total >> np.uint64(32)
    return total


def check_documents(corpus: Corpus) -> Iterator[Result]:
    """Documents are not empty, and do not repeat each other."""
    if corpus.documents is None or not corpus.by_document:
        raise NotRun("it is one text, without documents")
    seen: dict[Split, set[bytes]] = {"val": set(), "train": set()}
    lengths, empty, repeated, across = list[int](), 0, 0, 0
    for split in ("val", "train"):
        for document in corpus.documents(split):
            text = "".join(document)
            lengths.append(len(text))
            key = hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).digest()
            if not text.strip():
                empty += 1
            elif split == "train" and key in seen["val"]:
                across += 1
            else:
                repeated += key in seen[split]
                seen[split].add(key)
            if sum(lengths) > MOST:
                break
    total = len(lengths)
    evidence: dict[str, Any] = {"documents": total, "empty": empty, "repeated": repeated, "in both splits": across,
                                "longest": max(lengths, default=0)}  # fmt: skip
    if across:
        yield failed(
            "data leak",
            f"{across} training documents are validation documents, too: split first by content",
            **evidence,
        )
    elif repeated > 0.3 * total:
        yield warned(
            "data leak",
            f"{repeated} of {total} documents repeat an earlier one; near copies may be in both splits",
            **evidence,
        )
    elif empty > 0.1 * total:
        yield warned("tokenizer", f"{empty} of {total} documents are empty", **evidence)
    else:
        notes = f"{repeated} repeated, {empty} empty, the longest has {max(lengths, default=0):,} characters"
        yield passed(f"{total} documents; {notes}", **evidence)


def check_tokens(corpus: Corpus) -> Iterator[Result]:
    """Ids are below the vocabulary size, and training has the tokens that validation has."""
    if not corpus.ids or not len(corpus.ids["train"]):
        raise NotRun("there are no ids")
    size = corpus.tokenizer.vocab_size if corpus.tokenizer else None
    train, val = corpus.ids["train"][:MOST], corpus.ids["val"][:MOST]
    largest, least = (int(extreme([extreme(ids) for ids in (train, val) if len(ids)])) for extreme in (np.max, np.min))
    evidence: dict[str, Any] = {"largest": largest, "vocab_size": size}
    if least < 0 or (size is not None and largest >= size):
        yield failed(
            "tokenizer",
            f"ids are from {least} to {largest}, and the tokenizer has ids 0 to {(size or 0) - 1}",
            **evidence,
        )
        return
    if train.dtype == np.uint16 and size is not None and size > 1 << 16:
        yield failed(
            "tokenizer",
            f"the ids are stored in 16 bits, and the vocabulary has {size} tokens: larger ids have wrapped",
            **evidence,
        )
        return
    never = ~np.isin(val, np.unique(train))
    share = float(never.mean()) if len(val) else 0.0
    evidence |= {"never seen": round(share, 5), "used": len(np.unique(train))}
    if share > _NEVER_SEEN:
        yield warned(
            "data leak",
            f"{share:.1%} of the validation tokens never occur in training: is it another kind of text?",
            **evidence,
        )
        return
    yield passed(
        f"ids up to {largest}; training has {evidence['used']} different ones, and all but {share:.2%} of validation's",
        **evidence,
    )


def check_text(corpus: Corpus) -> Iterator[Result]:
    """The text is text: few replacement characters, which stand for what could not be decoded."""
    if corpus.documents is None:
        raise NotRun("there are only ids, and no tokenizer to read them")
    text = corpus.text("train")[:MOST]
    wrong, mojibake = (
        text.count("\ufffd"),
        sum(text.count(pair) for pair in ("Ã©", "Ã¤", "Ã¶", "Ã¼", "â€™", "â€œ", "Â ")),
    )
    new = set(corpus.text("val")[:MOST]) - set(text)
    evidence: dict[str, Any] = {
        "characters": len(text),
        "replacement": wrong,
        "mojibake": mojibake,
        "new": sorted(new)[:20],
    }
    if not text.strip():
        yield failed("tokenizer", "the training text is empty", **evidence)
    elif wrong > 0.001 * len(text):
        yield failed("tokenizer", f"{wrong:,} of {len(text):,} characters are U+FFFD: bytes were decoded wrongly, "
                                  f"or ids are of "
                     "another tokenizer", **evidence)  # fmt: skip
    elif mojibake > 0.0005 * len(text):
        yield warned("tokenizer", f"{mojibake:,} sequences such as 'Ã©': UTF-8 was read as Latin-1", **evidence)
    else:
        note = f"; validation has {len(new)} characters that training has not" if new else ""
        yield passed(f"{len(text):,} characters of training text{note}", **evidence)


CORPUS_CHECKS: tuple[Check[Corpus], ...] = (
    Check("validation text in training", f"Looks for runs of {GRAM} words of the validation split in the training "
                                         f"split.",
          "reads both splits once", f"{_SOME:.0%} is warned of, {_MUCH:.0%} fails: proverbs, headings and licences "
                                    f"give "
          "under 1 %", ("data leak",), check_leak),
    Check("documents", "Looks for empty documents, and for equal ones.", "a hash of each document",
          "no training document may equal a validation document; 30 % repetitions are warned of", ("data "
              "leak", "tokenizer"),
          check_documents),
    Check("token ids", "Compares the ids with the vocabulary size, and those of validation with those of training.",
          "one look at each id", f"all below the size; {_NEVER_SEEN:.0%} of the validation tokens may be new",
          ("tokenizer", "data leak"), check_tokens),
    Check("text", "Counts characters that stand for what could not be decoded.", "one look at each character",
          "one in a thousand", ("tokenizer",), check_text),
)  # fmt: skip
