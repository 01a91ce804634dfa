"""Duplicates: sketches against exact similarity, and what is found against comparing everything with everything."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wording import jaccard, plain_grams, plays_apart, prose, scenes

from glassgpt.data.audit import duplicates, sorting, words
from glassgpt.data.audit import pairs as similar
from glassgpt.data.audit.duplicates import Duplicates, Pair, find_duplicates
from glassgpt.data.audit.pairs import bands, missed
from glassgpt.data.audit.signatures import PERMUTATIONS, SignatureFile, Signatures, sign
from glassgpt.errors import DataError


def search(folder: Path, tasks: Sequence[Signatures], threshold: float = 0.8) -> Duplicates:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.safetensors" for number in range(len(tasks))]
    for path, task in zip(paths, tasks, strict=True):
        task.save(path)
    return find_duplicates(paths, folder / "scratch", threshold)


def divide(all_of: Signatures, cuts: Iterable[int]) -> list[Signatures]:
    borders = [0, *cuts, len(all_of)]
    return [Signatures(all_of.digest[i:j], all_of.sketches[i:j], all_of.validation[i:j]) for i, j in pairwise(borders)]


def globally(found: Duplicates) -> tuple[list[int], list[tuple[Any, ...]], tuple[Any, ...]]:
    """Number the documents of a result over all tasks."""
    begins = np.cumsum([0, *found.documents])
    dropped = [int(begins[task] + row) for task in range(len(found.documents)) for row in found.dropped(task)]
    pairs = [
        (
            int(begins[pair.first[0]] + pair.first[1]),
            int(begins[pair.second[0]] + pair.second[1]),
            pair.similarity,
            pair.exact,
            pair.kind,
            pair.dropped,
        )
        for pair in found.pairs
    ]
    return dropped, pairs, (found.kinds, found.exact, found.near)


def expected(all_of: Signatures, threshold: float = 0.8) -> tuple[list[int], list[tuple[Any, ...]], tuple[Any, ...]]:
    """The rule as `find_duplicates` states it, by comparing every document with every earlier one."""
    number, rows = bands(threshold)
    order = sorted(range(len(all_of)), key=lambda row: (not all_of.validation[row], row))
    dropped, pairs, kinds = set[int](), [], {"train": 0, "validation": 0, "across": 0}
    exact = 0
    for place, late in enumerate(order):
        alike = []
        for early in order[:place]:
            agree = all_of.sketches[late] == all_of.sketches[early]
            same = bool((all_of.digest[late] == all_of.digest[early]).all())
            has_words = bool((all_of.sketches[late] != 2**32 - 1).any())
            in_band = agree[: number * rows].reshape(number, rows).all(axis=1).any()
            if same or (has_words and in_band and agree.sum() >= threshold * PERMUTATIONS):
                alike.append((early, float(agree.sum() / PERMUTATIONS), same))
        if not alike:
            continue
        if drop := any(early not in dropped for early, _, _ in alike):
            dropped.add(late)
            exact += any(same for _, _, same in alike)
        early, similarity, same = alike[0]
        sides = {bool(all_of.validation[early]), bool(all_of.validation[late])}
        kind = "across" if len(sides) == 2 else "validation" if sides == {True} else "train"
        kinds[kind] += 1
        pairs.append((early, late, similarity, same, kind, drop))
    return sorted(dropped), pairs, (kinds, exact, len(dropped) - exact)


# --- signing ---------------------------------------------------------------------------------------------------------


def edited(text: str, generator: random.Random, edits: int) -> str:
    """A text with some words replaced."""
    parts = text.split(" ")
    for place in generator.sample(range(len(parts)), edits):
        parts[place] = "replaced"
    return " ".join(parts)


def test_sketches_estimate_the_similarity_of_jaccard() -> None:
    """Without bias, and with the spread of independent hash functions, at every similarity."""
    generator = random.Random(5)
    pairs = []
    for _ in range(300):
        text = prose(generator, 300)
        pairs.append((text, edited(text, generator, generator.choice([0, 1, 3, 8, 20, 40, 80]))))
    exact = np.array([jaccard(*(plain_grams(text, 5, 1) for text in pair)) for pair in pairs])
    sketches = [sign([pair[side] for pair in pairs], [False] * len(pairs)).sketches for side in (0, 1)]
    estimates = (sketches[0] == sketches[1]).mean(axis=1)
    assert (estimates[exact == 1] == 1).all() and (exact == 1).sum() > 15
    middle = (exact > 0.05) & (exact < 0.95)
    deviations = (estimates - exact)[middle] / np.sqrt((exact * (1 - exact))[middle] / PERMUTATIONS)
    assert middle.sum() > 150 and np.ptp(exact[middle]) > 0.7
    assert abs(deviations.mean()) < 4 / np.sqrt(middle.sum())
    assert 0.85 < deviations.std() < 1.15 and np.abs(deviations).max() < 4.5
    for number in range(PERMUTATIONS):  # no hash function is special
        assert abs((sketches[0][:, number] == sketches[1][:, number]).mean() - exact.mean()) < 0.1


def test_a_sketch_is_of_the_set_of_shingles() -> None:
    text = prose(random.Random(1), 200)
    once, twice, shouted, other = sign(
        [text, f"{text} {text} {text}", re.sub("[.;!]", " --", text).upper(), text[::-1]], [False] * 4
    ).sketches
    joints = len(plain_grams(f"{text} {text}", 5, 1)) - len(plain_grams(text, 5, 1))
    assert joints == 4 and (once == twice).mean() > 0.9 and (twice <= once).all()
    assert (once == shouted).all() and (once != other).mean() > 0.95


def test_short_documents_are_known_by_the_words_they_have() -> None:
    texts = ["Yes.", "yes", "yes yes", "a b c d", "d c b a", "A, b, c -- d!", "a b c d e", "", "...", "?!"]
    all_of = sign(texts, [False] * len(texts))
    alike = {(i, j) for i in range(10) for j in range(i) if (all_of.sketches[i] == all_of.sketches[j]).all()}
    assert alike == {(1, 0), (5, 3), (8, 7), (9, 7), (9, 8)}
    assert len({bytes(digest) for digest in all_of.digest}) == 10
    some = (all_of.sketches[:, None, :] == all_of.sketches[None, :, :]).mean(axis=2)
    assert all(some[i, j] < 0.05 for i in range(10) for j in range(i) if (i, j) not in alike)


def test_the_digest_is_of_the_text() -> None:
    texts = ["one", "one ", "", "Größe 🦊", "x" * (2**20 + 5), "\ud800"]
    for text, digest in zip(texts, sign(texts, [False] * 6).digest, strict=True):
        assert bytes(digest) == hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def test_signing_depends_on_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its neighbours, nor on how it is divided into blocks, nor on the machine (a number written down)."""
    generator = random.Random(2)
    texts = [prose(generator, generator.choice([0, 1, 4, 5, 6, 50, 400])) + " ,;. " * 5 for _ in range(30)]
    together = sign(iter(texts), (index % 3 == 0 for index in range(30)))
    assert together.validation.tolist() == [index % 3 == 0 for index in range(30)]
    for block in (words.BLOCK, 200, 3000):
        monkeypatch.setattr(words, "BLOCK", block)
        alone = [sign([text], [False]) for text in texts]
        assert (np.concatenate([one.sketches for one in alone]) == together.sketches).all()
        assert (sign(texts, [False] * 30).sketches == together.sketches).all()
    assert hashlib.sha256(sign(["The quick, brown fox jumped over Größe, 日本の 🦊"], [True]).sketches).hexdigest() == (
        "701323c9e09840fdab9d6bb71505651546cbbfe3932e4f48e4d6363fcd091592"
    )


def test_texts_and_sides_have_to_be_as_many() -> None:
    for texts, sides in (["a", "b"], [True]), (["a"], [True, False]), ([], [True]):
        with pytest.raises(ValueError, match="zip"):
            sign(texts, sides)
    assert len(sign([], [])) == 0


# --- files of signatures ---------------------------------------------------------------------------------------------


def test_saved_signatures_are_loaded_as_they_were(tmp_path: Path) -> None:
    for texts in ([], ["one"], [prose(random.Random(seed), 40) for seed in range(30)]):
        signed = sign(texts, [len(text) % 2 == 0 for text in texts])
        signed.save(tmp_path / "s")
        loaded = SignatureFile(tmp_path / "s")
        assert loaded.documents == len(texts)
        for name in ("digest", "sketches", "validation"):
            one, other = getattr(signed, name), loaded.rows(name, 0, loaded.documents)
            assert (one.dtype, one.shape) == (other.dtype, other.shape) and (one == other).all()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "no header": lambda path: path.write_bytes(b"\xff" * 64),
    "text": lambda path: path.write_bytes(b"\x05\0\0\0\0\0\0\0[1,2]"),
    "another version": lambda path: edit_header(path, lambda header: header["__metadata__"].update(version="0")),
    "another size": lambda path: edit_header(path, lambda header: header["digest"].update(shape=[3, 16])),
    "another type": lambda path: edit_header(path, lambda header: header["sketches"].update(dtype="F32")),
    "no sketches": lambda path: edit_header(path, lambda header: header.pop("sketches")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    for path in paths:
        sign(["one two", "three"], [True, False]).save(path)
    DAMAGES[damage](paths[1])
    for attempt in (lambda: SignatureFile(paths[1]), lambda: find_duplicates(paths, tmp_path / "scratch")):
        with pytest.raises(DataError) as caught:
            attempt()
        assert str(paths[1]) in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


# --- finding ---------------------------------------------------------------------------------------------------------


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
    generator = random.Random(11)
    texts = planted(generator)
    validation = [generator.random() < 0.2 for _ in texts]
    grams = [plain_grams(text, 5, 1) for text in texts]
    similarity = np.array([[jaccard(one, other) for other in grams] for one in grams])
    order = sorted(range(len(texts)), key=lambda row: (not validation[row], row))
    tasks = [sign(texts[i : i + 50], validation[i : i + 50]) for i in range(0, len(texts), 50)]
    dropped, pairs, (kinds, _, _) = globally(search(tmp_path, tasks))
    listed = {second: first for first, second, *_ in pairs}
    for place, late in enumerate(order):
        alike = [early for early in order[:place] if similarity[late, early] >= 0.9]
        assert not alike or order.index(listed[late]) <= order.index(alike[0])
    assert len(listed) > 60 and min(kinds.values()) > 0
    for first, second, estimate, exact, kind, _ in pairs:
        assert similarity[first, second] >= 0.7 and abs(estimate - similarity[first, second]) < 0.15
        assert exact == (texts[first] == texts[second])
        assert (kind == "across") == (validation[first] != validation[second])
    kept = [row for row in range(len(texts)) if row not in set(dropped)]
    assert np.triu(similarity[np.ix_(kept, kept)], 1).max() < 0.9


def families(seed: int, documents: int = 240) -> Signatures:
    """Signatures of documents in chains and clusters: each is like an earlier one, more or less, or on its own."""
    generator = np.random.default_rng(seed)
    sketches = generator.integers(0, 2**32 - 1, (documents, PERMUTATIONS), dtype=np.uint32)
    digests = generator.integers(0, 256, (documents, 16), dtype=np.uint8)
    for row in range(1, documents):
        like = generator.integers(max(0, row - 40), row)
        if generator.random() < 0.75:
            keep = generator.random(PERMUTATIONS) < generator.choice([1.0, 0.99, 0.95, 0.9, 0.85, 0.8, 0.7])
            sketches[row, keep] = sketches[like, keep]
            if generator.random() < 0.2:
                sketches[row], digests[row] = sketches[like], digests[like]
    blank = np.flatnonzero(generator.random(documents) < 0.05)  # no words
    sketches[blank], digests[blank] = 2**32 - 1, generator.integers(0, 256, (len(blank), 16), dtype=np.uint8)
    digests[blank[::3]] = digests[blank[0]]
    validation = generator.random(documents) < 0.3
    order = generator.permutation(documents)
    return Signatures(digests[order], sketches[order], validation[order])


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_it_finds_what_comparing_everything_finds(
    seed: int, threshold: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the documents are divided into tasks, and however little memory there is."""
    monkeypatch.setattr(similar, "_SMALL", 1000)
    all_of = families(seed, 110)
    wanted = expected(all_of, threshold)
    assert len(wanted[0]) > 10
    assert threshold != 0.8 or len(wanted[1]) > len(wanted[0])  # some duplicates stay, as their partners are dropped
    generator = random.Random(seed)
    records = (bands(threshold)[0] + 1) * len(all_of)
    for number, (runs, block) in enumerate([(1, 8192), (1, 8192), (4, 7), (12, 60)]):
        monkeypatch.setattr(sorting, "MEMORY", records // runs)
        monkeypatch.setattr(similar, "_BLOCK", block)
        cuts = [] if number == 0 else sorted(generator.choices(range(len(all_of) + 1), k=generator.randint(1, 30)))
        assert globally(search(tmp_path / str(number), divide(all_of, cuts), threshold)) == wanted


def test_the_dropped_rows_of_each_task_are_read_from_the_file(tmp_path: Path) -> None:
    found = search(tmp_path, divide(families(1), [50, 50, 170]))
    assert isinstance(found.pairs[0], Pair)
    assert found.documents == [50, 0, 120, 70]
    for task in range(4):
        rows = found.dropped(task)
        assert rows.dtype == np.int64 and rows.tolist() == sorted(set(rows.tolist()))
        assert len(rows) == 0 or rows[-1] < found.documents[task]
    assert sum(len(found.dropped(task)) for task in range(4)) == found.exact + found.near
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["dropped.bin"]


def test_the_list_is_bounded_by_kind_and_the_counts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of = families(2)
    full = search(tmp_path / "full", [all_of])
    monkeypatch.setattr(duplicates, "LISTED", 5)
    short = search(tmp_path / "short", [all_of])
    assert (short.kinds, short.exact, short.near) == (full.kinds, full.exact, full.near)
    assert min(full.kinds.values()) > 5
    for kind in full.kinds:
        assert [p for p in short.pairs if p.kind == kind] == [p for p in full.pairs if p.kind == kind][:5]


def test_nothing_to_find(tmp_path: Path) -> None:
    for tasks in ([], [sign([], [])], [sign(["one"], [True]), sign(["two"], [False])]):
        found = search(tmp_path, tasks)
        assert (found.pairs, found.exact, found.near) == ([], 0, 0)
        assert [found.dropped(task).tolist() for task in range(len(tasks))] == [[] for _ in tasks]
    for threshold in (0.0, -1.0, 1.01):
        with pytest.raises(ValueError, match="threshold"):
            find_duplicates([], tmp_path, threshold)


@pytest.mark.parametrize("copies", [2, 32, 33, 100])
@pytest.mark.parametrize("text", ["...", "one two", "one two three four five six"])
def test_of_copies_the_first_stays(text: str, copies: int, tmp_path: Path) -> None:
    found = search(tmp_path, [sign([text], [False]), sign([text] * (copies - 1), [False] * (copies - 1))])
    assert found.dropped(0).tolist() == [] and found.dropped(1).tolist() == list(range(copies - 1))
    assert (found.exact, found.near, {pair.first for pair in found.pairs}) == (copies - 1, 0, {(0, 0)})


@pytest.mark.parametrize("small", [2, 32])
def test_a_mould_of_many_pages_leaves_one(small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of similar documents: only the first from each template stays, and it is fast."""
    monkeypatch.setattr(similar, "_SMALL", small)
    monkeypatch.setattr(similar, "_BLOCK", 300)
    generator = np.random.default_rng(4)
    moulds = generator.integers(0, 2**32 - 1, (3, PERMUTATIONS), dtype=np.uint32)
    which = generator.integers(0, 3, 2000)
    sketches = moulds[which]
    changed = generator.random(sketches.shape) < 0.03
    sketches[changed] = generator.integers(0, 2**32 - 1, int(changed.sum()), dtype=np.uint32)
    digests = generator.integers(0, 256, (2000, 16), dtype=np.uint8)
    all_of = Signatures(digests, sketches, np.zeros(2000, dtype=bool))
    dropped, pairs, (kinds, exact, near) = globally(search(tmp_path, divide(all_of, [500, 750])))
    first = {int(np.argmax(which == mould)) for mould in range(3)}
    assert set(range(2000)) - set(dropped) == first
    assert {early for early, *_ in pairs} == first and (kinds["train"], exact, near) == (1997, 0, 1997)


@pytest.mark.parametrize("small", [2, 5, 32])
def test_a_group_may_lie_across_any_borders(small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At this threshold there is one group for documents with the same words: only it can find them."""
    monkeypatch.setattr(similar, "_SMALL", small)
    generator = np.random.default_rng(9)
    sketches = generator.integers(0, 2**32 - 1, (20, PERMUTATIONS), dtype=np.uint32)
    which = generator.choice(20, 200, p=generator.dirichlet(np.full(20, 0.5)))
    digests = generator.integers(0, 256, (200, 16), dtype=np.uint8)
    all_of = Signatures(digests, sketches[which], generator.random(200) < 0.5)
    wanted = expected(all_of, 1.0)
    for number, (memory, block) in enumerate([(1 << 20, 8192), (150, 9), (61, 50)]):
        monkeypatch.setattr(sorting, "MEMORY", memory)
        monkeypatch.setattr(similar, "_BLOCK", block)
        assert globally(search(tmp_path / str(number), divide(all_of, range(0, 200, 30)), 1.0)) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_with_leaders_what_is_dropped_still_resembles_what_is_kept(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar, "_SMALL", 3)
    monkeypatch.setattr(similar, "_LEADERS", 2)
    monkeypatch.setattr(similar, "_BLOCK", 10)
    all_of = families(seed + 50)
    results = [
        globally(search(tmp_path / str(number), divide(all_of, cuts)))
        for number, cuts in enumerate([[], [7, 80], range(0, 240, 5)])
    ]
    assert results[0] == results[1] == results[2]
    dropped, pairs, _ = results[0]
    agree = (all_of.sketches[:, None, :] == all_of.sketches[None, :, :]).mean(axis=2)
    kept = [row for row in range(240) if row not in set(dropped)]
    order = [(not side, row) for row, side in enumerate(all_of.validation.tolist())]
    assert len(dropped) > 0.9 * len(expected(all_of)[0])
    for late in dropped:
        assert any(agree[late, early] >= 0.8 and order[early] < order[late] for early in kept)
    assert all(agree[first, second] >= 0.8 for first, second, *_ in pairs)


def test_the_probability_of_missing_a_pair(tmp_path: Path) -> None:
    """As computed, as measured, and as the documentation says."""
    generator = np.random.default_rng(8)
    for similarity in (0.7, 0.8, 0.85):
        sketches = generator.integers(0, 2**32 - 1, (2000, PERMUTATIONS), dtype=np.uint32)
        keep = generator.random((1000, PERMUTATIONS)) < similarity
        sketches[1::2][keep] = sketches[0::2][keep]
        digests = generator.integers(0, 256, (2000, 16), dtype=np.uint8)
        found = search(tmp_path, [Signatures(digests, sketches, np.zeros(2000, dtype=bool))])
        chance = missed(similarity)
        spread = np.sqrt(chance * (1 - chance) / 1000)
        assert abs(1 - found.kinds["train"] / 1000 - chance) < 4 * spread
    said = " ".join((find_duplicates.__doc__ or "").split())
    assert bands(0.8) == (21, 6) and "21 bands of 6 numbers" in said
    assert f"0.85 similar {missed(0.85):.1%}".replace("%", " %") in said
    assert f"at 0.9 {missed(0.9):.3%}".replace("%", " %") in said and missed(1.0) == 0
    assert f"0.7 similar {1 - missed(0.7):.1%}".replace("%", " %") in said and 1 - missed(0.6) < 1e-6
    assert all((1 - t**rows) ** number <= 0.01 for t in (0.1, 0.3, 0.5, 0.9, 1.0) for number, rows in [bands(t)])


# --- real text, and a lot of it --------------------------------------------------------------------------------------


def test_no_false_alarm_on_different_plays(tmp_path: Path) -> None:
    """No play, and no scene, is similar to one of another play."""
    plays = list(plays_apart().values())
    whole = search(tmp_path / "whole", [sign(plays, [False] * len(plays))])
    assert whole.pairs == []
    tasks = [sign(texts, [number % 5 == 0] * len(texts)) for number, texts in enumerate(map(list, map(scenes, plays)))]
    found = search(tmp_path / "scenes", tasks)
    assert sum(found.documents) > 4000 and found.pairs == []


def test_no_false_alarm_on_prose(tmp_path: Path) -> None:
    generator = random.Random(6)
    texts = [prose(generator, generator.randint(20, 200), vocabulary=500) for _ in range(1500)]
    assert search(tmp_path, [sign(texts, [False] * 1500)]).pairs == []


MEASURE = """
import random, sys
from pathlib import Path
from glassgpt.bench.memory import peak_resident
from glassgpt.data.audit import sorting
from glassgpt.data.audit.duplicates import find_duplicates
from glassgpt.data.audit.signatures import sign
folder, tasks, sorting.MEMORY = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def texts(task):
    generator = random.Random(task)
    for number in range(5000):
        yield f"page {number // 100}" if number % 10 == 0 else generator.randbytes(40).hex(" ", 3)
paths = [folder / str(task) for task in range(tasks)]
for task, path in enumerate(paths):
    sign(texts(task), [False] * 5000).save(path)
found = find_duplicates(paths, folder / "scratch")
print(found.exact, found.near, peak_resident() or 0)
"""


@pytest.mark.parametrize(
    ("tasks", "memory"), [((2, 6), 1 << 15), pytest.param((10, 40), 1 << 20, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_documents(tasks: tuple[int, int], memory: int, tmp_path: Path) -> None:
    """Nor with the number of copies that some have. In the slow one, there are 50,000 and 200,000 documents."""
    peaks = []
    for count in tasks:
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", MEASURE, str(folder), str(count), str(memory)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        exact, near, peak = map(int, done.stdout.split())
        assert (exact, near) == (count * 500 - 50, 0)
        peaks.append(peak)
    assert peaks[1] < 300e6 and peaks[1] - peaks[0] < 15e6, peaks
