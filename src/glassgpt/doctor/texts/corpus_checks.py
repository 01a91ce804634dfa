"""The checks of a corpus: validation text in training, repetitions, odd documents, ids."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from glassgpt.data.audit.leaks import GRAM, Grams, Overlap, describe, overlap
from glassgpt.data.hashing import splitmix64
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.corpus_subject import MOST, Corpus, Split

#: Shares of the validation text that are copied from the training text: more is warned of; more is a bug.
_SOME, _MUCH = 0.02, 0.1
#: A passage of one long text is a copy from so many words on.
_COPY_WORDS = 40
#: Passages that are looked at.
_PASSAGES = 20_000
#: Characters from which two documents are not equal by chance.
_LONG = 100
#: Ids in a row that are compared where there are only ids: as characters, a dozen words.
_IDS = 64
#: Share of the validation ids that training never has.
_NEVER_SEEN = 0.01


def check_leak(corpus: Corpus) -> Iterator[Result]:
    """Validation text is not in the training text."""
    if corpus.documents is None or not _has_words(corpus):
        yield _judge_ids(corpus)
        return
    found = overlap(Grams.of(corpus.documents("val")), corpus.documents("train"), shown=_PASSAGES)
    if not found.grams:
        yield _judge_ids(corpus)
        return
    yield _judge(_copied(found), f"{found.found / found.grams:.1%} of its {GRAM}-grams", describe(found)[-2:])


def _copied(found: Overlap) -> float:
    """The share of the validation split that is copied: of its documents by half or more; or of the words of one text.

    Texts from one template have many n-grams in common, but no long passages.
    """
    if found.documents > 1:
        return sum(p.words - GRAM + 1 >= 0.5 * p.grams for p in found.passages) / found.documents
    return sum(p.words - GRAM + 1 for p in found.passages if p.words >= _COPY_WORDS) / found.grams


def _has_words(corpus: Corpus) -> bool:
    """Whether the text has words to compare: code of numbers, or a text without spaces, has not."""
    text = corpus.text("val")[:10_000]
    return len(text.split()) > len(text) / 40


def _judge(share: float, more: str, examples: Sequence[str] = ()) -> Result:
    evidence: dict[str, Any] = {"share": round(share, 4), "examples": list(examples)}
    message = f"{share:.1%} of the validation split is copied from the training split ({more})"
    if share > _MUCH:
        return failed("data leak", f"{message}: the validation loss measures memory", **evidence)
    if share > _SOME:
        return warned("data leak", f"{message}; look at it with `glassgpt data show --leaks`", **evidence)
    return passed(message, **evidence)


def _judge_ids(corpus: Corpus) -> Result:
    """Judge by runs of ids. Short rows share short runs by chance, so only most of them are a copy."""
    size = min(_IDS, max(12, corpus.window // 2)) if corpus.window else _IDS
    train, val = (hashes_of_runs(_ids(corpus, split), size, corpus.window) for split in ("train", "val"))
    if not len(val):
        raise NotRun("the validation split is too short to compare")
    val = np.unique(val)
    maybe = np.zeros(1 << 20, dtype=bool)  # whether a run of the validation split has these lowest bits
    low = np.uint64(len(maybe) - 1)
    maybe[(val & low).astype(np.intp)] = True
    train = train[maybe[(train & low).astype(np.intp)]]
    share = float(np.isin(val, train).mean())
    more = f"of {len(val):,} different runs of {size} tokens"
    return _judge(share, more) if size == _IDS or share > 0.6 else passed(f"{share:.1%} {more} are in both splits")


def _ids(corpus: Corpus, split: Split) -> np.ndarray:
    """The ids of a split; without any, its code points."""
    if corpus.ids and len(corpus.ids[split]):
        return corpus.ids[split]
    return np.frombuffer(corpus.text(split).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def hashes_of_runs(ids: np.ndarray, size: int, window: int = 0) -> np.ndarray:
    """Hashes of all runs of ids, uint64; of rows of a window, those inside rows."""
    if len(ids) < size:
        return np.empty(0, dtype=np.uint64)
    total, length = splitmix64(ids.astype(np.uint64)), 1
    while length < size:  # of two runs that overlap or follow each other
        step = min(length, size - length)
        total, length = splitmix64(total[:-step] * np.uint64(0x9E3779B97F4A7C15) + total[step:]), length + step
    if window and len(ids) % window == 0:
        return total[np.arange(len(total)) % window <= window - size]
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
                across += len(text) >= _LONG
            else:
                repeated += key in seen[split]
                seen[split].add(key)
            if sum(lengths) > MOST:
                break
    total, count = len(lengths), len(seen["val"])
    evidence: dict[str, Any] = {"documents": total, "empty": empty, "repeated": repeated, "in both splits": across,
                                "longest": max(lengths, default=0)}  # fmt: skip
    if across > 0.01 * count:
        yield failed(
            "data leak",
            f"{across} training documents are validation documents, too ({count} validate): drop repetitions before "
            "the split, or split by content",
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
          f"1 % of the validation documents, of {_LONG} characters and more; 30 % repetitions are warned of", ("data "
              "leak", "tokenizer"),
          check_documents),
    Check("token ids", "Compares the ids with the vocabulary size, and those of validation with those of training.",
          "one look at each id", f"all below the size; {_NEVER_SEEN:.0%} of the validation tokens may be new",
          ("tokenizer", "data leak"), check_tokens),
    Check("text", "Counts characters that stand for what could not be decoded.", "one look at each character",
          "one in a thousand", ("tokenizer",), check_text),
)  # fmt: skip
