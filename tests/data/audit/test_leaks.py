"""Leaks: planted passages are found, counted as sets of tuples count them, and shown where they are."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wording import plain_grams, plain_words, plays_apart, prose

from glassgpt.data.audit import words
from glassgpt.data.audit.leaks import GRAM, MIN_WORDS, Grams, Overlap, Passage, describe, overlap
from glassgpt.data.audit.words import TextOrParts


def counted(small: Sequence[str], large: Sequence[str]) -> tuple[int, int, int, int, int]:
    """Documents, short ones, those hit, n-grams, those found: by sets of tuples of words."""
    mine = [plain_grams(text, GRAM, MIN_WORDS) for text in small]
    sizes = {len(gram) for grams in mine for gram in grams}
    theirs = {gram for text in large for size in sizes for gram in plain_grams(text, size, size)}
    every = set().union(*mine)
    documents = sum(map(bool, mine))
    return (documents, len(small) - documents, sum(map(bool, (m & theirs for m in mine))), len(every),
            len(every & theirs))  # fmt: skip


def counts(found: Overlap) -> tuple[int, int, int, int, int]:
    return found.documents, found.short, found.hit, found.grams, found.found


def longest(one: str, other: str) -> int:
    """Words of the longest run that both texts have."""
    mine, theirs = plain_words(one), plain_words(other)
    best, row = 0, [0] * (len(theirs) + 1)
    for word in mine:
        row = [0, *(row[place] + 1 if word == their else 0 for place, their in enumerate(theirs))]
        best = max(best, *row)
    return best


def check_places(found: Overlap, small: Sequence[str], large: Sequence[str]) -> None:
    """Every passage is where it is said to be, on both sides; texts are called by their numbers."""
    for passage in found.passages:
        text, other = small[int(passage.document)], large[int(passage.other)]
        assert text[passage.offset :].startswith(passage.text)
        mine, theirs = plain_words(passage.text), plain_words(other[passage.other_offset :])
        assert len(mine) == passage.words and mine == theirs[: passage.words]
        assert plain_words(other[: passage.other_offset]) + theirs == plain_words(other)  # not within a word
        grams = plain_grams(text, GRAM, MIN_WORDS)
        assert passage.found <= passage.grams and len(grams) <= passage.grams
    lengths = [passage.words for passage in found.passages]
    assert lengths == sorted(lengths, reverse=True)


def named(texts: Sequence[TextOrParts]) -> list[str]:
    return [str(number) for number in range(len(texts))]


def disguised(text: str, generator: random.Random) -> str:
    return generator.choice([str, str.upper, lambda text: re.sub(r"\W+", " * ", text)])(text)


def planted(seed: int) -> tuple[list[str], list[str], dict[int, int]]:
    """Two sides, and the words of the passage that was planted, by document."""
    generator = random.Random(seed)
    small = [prose(generator, generator.choice([3, 7, 8, 10, 12, 13, 14, 60, 200])) for _ in range(60)]
    large = [prose(generator, generator.choice([5, 100, 500])) for _ in range(25)]
    passages = {}
    for number in generator.sample(range(60), 25):
        parts = small[number].split()
        length = min(len(parts), generator.choice([12, 13, 14, 30, 250]))
        begin = generator.randint(0, len(parts) - length)
        place = generator.randrange(25)
        large[place] += (
            "\n" + disguised(" ".join(parts[begin : begin + length]), generator) + ". " + prose(generator, 5)
        )
        passages[number] = length
    return small, large, passages


@pytest.mark.parametrize("seed", range(3))
def test_planted_passages_are_all_found_and_counted_exactly(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, passages = planted(seed)
    found = overlap(Grams.of(small, named(small)), large, named(large), shown=100)
    assert counts(found) == counted(small, large)
    check_places(found, small, large)
    listed = {int(passage.document): passage.words for passage in found.passages}
    expected = {
        number: length
        for number, length in passages.items()
        if length >= GRAM or MIN_WORDS <= length == len(plain_words(small[number]))
    }
    assert len(expected) > 8 and listed == expected
    generator = random.Random(seed)
    for block in (333, 900):  # divided into blocks, and given in parts, it is the same
        monkeypatch.setattr(words, "BLOCK", block)
        in_parts = [
            [text[i : i + block // 3] for i in range(0, len(text), block // 3)] if generator.random() < 0.5 else text
            for text in large
        ]
        assert overlap(Grams.of(iter(small), named(small)), in_parts, named(large), shown=100) == found


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=45).map(" ".join), max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, TEXTS, st.integers(60, 100))
def test_counts_are_exact_where_everything_repeats(small: list[str], large: list[str], block: int) -> None:
    large = large + small[:1] + [" ".join(text for text in large + small)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BLOCK", block)
        found = overlap(Grams.of(small, named(small)), large, named(large))
    assert counts(found) == counted(small, large)
    check_places(found, small, large)
    assert found.hit == found.documents


def test_the_longest_common_passage_wins_over_parts_of_it() -> None:
    generator = random.Random(3)
    text = prose(generator, 300)
    parts = text.split()
    pieces = [" ".join(parts[begin : begin + size]) for begin, size in ((100, 20), (40, 150), (60, 40), (170, 30))]
    large = [f"{prose(generator, 50)} {piece} {prose(generator, 50)}" for piece in pieces]
    found = overlap(Grams.of([text], ["0"]), large, named(large))
    check_places(found, [text], large)
    assert found.passages[0].words == 150 == longest(text, large[1]) and found.passages[0].other == "1"
    second = found.passages[1]  # of one document, its longest passages
    assert (
        second.words == 10 + 12 and second.other == "3"
    )  # the 13-grams of the fourth piece that are not in the second


def test_one_text_on_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text split by position; some of its end is in the beginning, a long passage across many blocks."""
    monkeypatch.setattr(words, "BLOCK", 1 << 12)
    generator = random.Random(9)
    train, val = prose(generator, 30_000), prose(generator, 5000)
    cut = len(train) // 3
    train = f"{train[:cut]} {val[3000:20_000].upper()} {train[cut:]}"
    parts = (train[begin : begin + 777] for begin in range(0, len(train), 777))
    found = overlap(Grams.of([val], ["0"]), [parts], ["0"])
    assert counts(found) == counted([val], [train])
    check_places(found, [val], [train])
    again = overlap(Grams.of([val], ["0"]), [train], ["0"])
    assert again == found and len(found.passages) == 1
    assert abs(found.passages[0].offset - 3000) < 20 and abs(found.passages[0].other_offset - cut) < 20
    assert abs(len(found.passages[0].text) - 17_000) < 30 and 0.4 < found.found / found.grams < 0.5


def test_short_documents_raise_no_alarm() -> None:
    small = ["Yes.", "What is the capital of France?", "one two three four five six seven EIGHT", "no one is here"]
    large = ["Yes. What is the capital of France? Yes. One, two, three, four, five, six, seven: eight nine. No."]
    found = overlap(Grams.of(small), large)
    assert counts(found) == (1, 3, 1, 1, 1)
    assert found.passages == [
        Passage("document 3", 0, "text 1", large[0].index("One"), 8, small[2], 1, 1)  # not "One, two" in the text
    ]


def test_nothing_on_either_side() -> None:
    text = prose(random.Random(1), 30)
    for small, large in (([], [text]), ([text], []), (["", "..."], [text, ""]), ([text], ["", "?!"])):
        found = overlap(Grams.of(small), large)
        assert counts(found) == counted(small, large) and found.passages == []
        assert all(isinstance(line, str) and line for line in describe(found))
    with pytest.raises(ValueError, match="only 1 names"):
        Grams.of(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="only 1 names"):
        overlap(Grams.of([text]), ["a", "b"], ["a"])


def test_what_people_and_programs_are_told() -> None:
    generator = random.Random(4)
    passage = " ".join(f"word{number}" for number in range(60))
    small = [f"{prose(generator, 20)} {passage}", prose(generator, 40), "too short"]
    found = overlap(Grams.of(small, ["a", "b", "c"]), [prose(generator, 99), f"Then: {passage.upper()}!"], ["x", "y"])
    lines = describe(found, "evaluation", "training")
    assert lines[0].startswith("1 of 2 evaluation documents (50.0%) have 13 consecutive words in common with the train")
    assert (
        lines[1]
        == f"{found.found} of their {found.grams} different 13-grams ({found.found / found.grams:.1%}) are in it"
    )
    assert lines[2] == "1 documents of fewer than 8 words were skipped"
    assert lines[3].startswith(f"60 words: a, character {small[0].index('word0')}, and y, character 6 (")
    assert lines[4].strip() == " ".join(passage.split()[:40]) + " ... (20 more)" and len(lines) == 5
    told = json.loads(json.dumps(asdict(found)))
    assert told["found"] == 48 == told["passages"][0]["found"]
    assert Overlap(**{**told, "passages": [Passage(**entry) for entry in told["passages"]]}) == found


def test_only_so_many_passages_are_given_and_names_are_not_piled_up() -> None:
    generator = random.Random(8)
    small = [prose(generator, 30) for _ in range(20)]
    large = [text for text in small for _ in range(200)]
    found = overlap(Grams.of(small), large, (f"text {number}" for number in range(len(large))), shown=3)
    assert counts(found) == counted(small, small) and [passage.words for passage in found.passages] == [30] * 3
    assert [passage.other for passage in found.passages] == ["text 0", "text 200", "text 400"]  # the first of several


# --- real text, and a lot of it --------------------------------------------------------------------------------------


def test_no_false_alarm_on_different_plays() -> None:
    """No 13 consecutive words of one of Shakespeare's plays are in another; the plays are divided in all ways."""
    plays = list(plays_apart().items())
    for bit in range(6):
        sides = [[play for number, play in enumerate(plays) if number >> bit & 1 == side] for side in (0, 1)]
        found = overlap(Grams.of([text for _, text in sides[0]]), [text for _, text in sides[1]])
        assert (found.documents, found.hit, found.found, found.passages) == (len(sides[0]), 0, 0, [])
        assert found.grams > 100_000


def test_a_planted_passage_of_13_words_is_found_in_a_play() -> None:
    plays = plays_apart()
    hamlet, macbeth = plays["hamlet"], plays["macbeth"]
    place = hamlet.index("To be, or not to be")
    passage = " ".join(hamlet[place : place + 200].split()[:13])
    cut = macbeth.index("\n\n", 50_000)
    found = overlap(Grams.of([hamlet]), [f"{macbeth[:cut]}\n\n{passage.upper()}{macbeth[cut:]}"])
    assert counts(found) == counted([hamlet], [passage]) and found.found == 1
    assert found.passages[0].offset == place and found.passages[0].other_offset == cut + 2
    assert found.grams == len(plain_grams(hamlet, GRAM, MIN_WORDS))


MEASURE = """
import random, sys
from glassgpt.bench.memory import peak_resident
from glassgpt.data.audit.leaks import Grams, overlap
generator = random.Random(1)
small = [" ".join(generator.choices(["to", "be", "or", "not"], k=60)) for _ in range(500)]
part = " ".join(generator.choices(["to", "be", "or", "not", "is"], k=20_000)) + " " + " ".join(small)
count, kind = int(sys.argv[1]), sys.argv[2]
texts = [(part for _ in range(count))] if kind == "one" else (part[begin : begin + 90] for _ in range(count)
    for begin in range(0, len(part), 90))
found = overlap(Grams.of(small), texts)
print(found.hit, peak_resident() or 0)
"""


@pytest.mark.parametrize("kind", ["one", "many"])
def test_memory_does_not_grow_with_the_large_side(kind: str) -> None:
    """As one text in parts, or as many short ones."""
    peaks = []
    for count in (10, 45):
        command = [sys.executable, "-c", MEASURE, str(count), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        hit, peak = map(int, done.stdout.split())
        assert hit == 500
        peaks.append(peak)
    assert peaks[1] < 300e6 and peaks[1] - peaks[0] < 15e6, peaks
