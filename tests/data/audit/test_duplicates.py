"""Duplicates: what is found against comparing everything with everything, and what is dropped."""

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from wording import jaccard, plain_grams, plays_apart, prose, scenes

from glassgpt.data.audit import duplicates, words
from glassgpt.data.audit.duplicates import Duplicates, find_duplicates, sign
from glassgpt.errors import MissingExtraError

pytest.importorskip("datasketch")


def search(folder: Path, texts: Sequence[str], validation: Sequence[bool] | None = None, task: int = 50) -> Duplicates:
    """Find duplicates, with so many documents in a task."""
    validation, paths = validation or [False] * len(texts), []
    for begin in range(0, len(texts), task):
        paths.append(folder / f"{begin}.npy")
        np.save(paths[-1], sign(texts[begin : begin + task], validation[begin : begin + task]))
    return find_duplicates(paths)


def edited(text: str, generator: random.Random, edits: int) -> str:
    """A text with some words replaced."""
    parts = text.split(" ")
    for place in generator.sample(range(len(parts)), edits):
        parts[place] = "replaced"
    return " ".join(parts)


def planted(generator: random.Random) -> list[str]:
    """Documents of their own, and copies of some in several disguises."""
    texts = [prose(generator, generator.choice([30, 120, 400])) for _ in range(170)]
    texts += generator.sample(texts, 15)  # the same
    for text in generator.sample(texts, 60):
        disguise = generator.randint(0, 4)
        if disguise == 0:
            text = text.upper()
        elif disguise == 1:
            text = re.sub(r"[.;!\n]+", " - ", text)
        elif disguise == 2:
            sentences = text.split(". ")
            place = generator.randint(0, len(sentences))
            text = ". ".join([*sentences[:place], prose(generator, 6).strip(), *sentences[place:]])
        else:
            text = edited(text, generator, generator.choice([1, 2, 5]))
        texts.append(text)
    generator.shuffle(texts)
    return texts


def test_planted_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    """However the documents are divided into tasks."""
    generator = random.Random(11)
    texts = planted(generator)
    validation = [generator.random() < 0.2 for _ in texts]
    grams = [plain_grams(text, 5, 1) for text in texts]
    similarity = np.array([[jaccard(one, other) for other in grams] for one in grams])
    order = sorted(range(len(texts)), key=lambda row: (not validation[row], row))
    found = search(tmp_path, texts, validation, len(texts))
    divided = search(tmp_path, texts, validation, 7)
    dropped = np.flatnonzero(found.dropped[0]).tolist()
    assert np.concatenate(divided.dropped).nonzero()[0].tolist() == dropped
    assert (divided.kinds, divided.exact, divided.near) == (found.kinds, found.exact, found.near)
    for one, other in zip(found.pairs, divided.pairs, strict=True):
        assert [task * 7 + row for task, row in (other.first, other.second)] == [one.first[1], one.second[1]]
    assert len(dropped) == found.exact + found.near == len(found.pairs) > 60 and min(found.kinds.values()) > 0
    for pair in found.pairs:
        first, second = pair.first[1], pair.second[1]
        assert order.index(first) < order.index(second)
        assert similarity[first, second] >= 0.7 and abs(pair.similarity - similarity[first, second]) < 0.15
        assert pair.exact == (texts[first] == texts[second])
        sides = {validation[first], validation[second]}
        assert pair.kind == ("across" if len(sides) == 2 else "validation" if sides == {True} else "train")
    kept = [row for row in range(len(texts)) if row not in set(dropped)]
    assert np.triu(similarity[np.ix_(kept, kept)], 1).max() < 0.9


@pytest.mark.parametrize(("similarity", "least", "most"), [(0.7, 0.96, 1), (0.85, 0.03, 0.09), (0.9, 0, 0.004)])
def test_the_share_of_similar_pairs_that_is_missed(
    similarity: float, least: float, most: float, tmp_path: Path
) -> None:
    """As `find_duplicates` says: at 0.9 0.036 %, at 0.85 6.4 %, at 0.7 99.5 %."""
    generator, texts = random.Random(5), list[str]()
    for _ in range(800):
        text = generator.choices(range(10**6), k=104)  # 100 shingles
        replaced = round(100 * (1 - similarity) / (1 + similarity))
        texts += [" ".join(map(str, text)), " ".join(map(str, [*text[replaced:], *range(replaced)]))]
    found = search(tmp_path, texts, task=400)
    assert found.exact == 0 and least <= 1 - found.near / 800 <= most


def test_short_documents_are_known_by_the_words_they_have(tmp_path: Path) -> None:
    texts = ["Yes.", "yes", "yes yes", "a b c d", "d c b a", "A, b, c -- d!", "a b c d e", "", "...", "?!", "..."]
    pairs = [(pair.first[1], pair.second[1], pair.exact) for pair in search(tmp_path, texts).pairs]
    assert pairs == [(0, 1, False), (3, 5, False), (8, 10, True)]  # without words, only equal texts


def test_signing_depends_on_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its neighbours, nor on how it is divided into blocks, nor on the machine (numbers written down)."""
    generator = random.Random(2)
    texts = [prose(generator, generator.choice([0, 1, 4, 5, 6, 50, 400])) + " ,;. " * 5 for _ in range(30)]
    together = sign(iter(texts), (index % 3 == 0 for index in range(30)))
    assert together["validation"].tolist() == [index % 3 == 0 for index in range(30)]
    for block in (words.BLOCK, 300, 3000):
        monkeypatch.setattr(words, "BLOCK", block)
        assert (np.concatenate([sign([text], [False]) for text in texts])["sketch"] == together["sketch"]).all()
    (row,) = sign(["The quick, brown fox jumped over Größe, 日本の 🦊"], [True])
    assert row["digest"].tobytes().hex() == "02886b2a5c8cd78c8a53e31bb4416d85"
    assert row["sketch"][:3].tolist() == [1301540451, 196128375, 577251747]
    with pytest.raises(ValueError, match="zip"):
        sign(["a", "b"], [True])


def test_nothing_to_find_and_only_the_first_pairs_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for texts in ([], ["one", "two"]):
        assert search(tmp_path, texts).pairs == []
    monkeypatch.setattr(duplicates, "LISTED", 5)
    found = search(tmp_path, [f"{number % 3}" for number in range(30)], [number < 10 for number in range(30)])
    assert found.kinds == {"train": 0, "validation": 7, "across": 20} and found.exact == 27
    assert [pair.kind for pair in found.pairs] == ["validation"] * 5 + ["across"] * 5


def test_a_document_like_a_dropped_one_stays(tmp_path: Path) -> None:
    """b is similar to a, and c to b but not to a. A copy of b is dropped, as b is."""
    parts = [str(number) for number in range(130)]
    a, b, c = (" ".join(parts[begin : begin + 104]) for begin in (0, 8, 16))
    found = search(tmp_path, [a, b, c, b])
    assert found.dropped[0].tolist() == [False, True, False, True] and (found.exact, found.near) == (1, 1)
    assert [(pair.first, pair.second) for pair in found.pairs] == [((0, 0), (0, 1)), ((0, 1), (0, 3))]


def test_without_the_library_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match="datasketch"):
        sign(["one"], [False])


def test_no_false_alarm_on_different_plays(tmp_path: Path) -> None:
    """No scene is similar to another one, nor is any prose."""
    texts = [scene for play in plays_apart().values() for scene in scenes(play)]
    generator = random.Random(6)
    texts += [prose(generator, generator.randint(20, 200), vocabulary=500) for _ in range(500)]
    found = search(tmp_path, texts, task=1000)
    assert len(texts) > 4500 and found.pairs == []
