"""Special tokens, normal forms and invalid Unicode: byte-level BPE treats them as `tokenizers` does."""

from functools import cache
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, MIXED, gpt2, trained
from tokenizers import normalizers

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer, specs
from glassgpt.tokenizer.bpe import engine
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.normal import NormalForm, normalize
from glassgpt.tokenizer.library import LibraryTokenizer

FORMS = ["NFC", "NFD", "NFKC", "NFKD"]


def with_special(**changes: Any) -> BPETokenizer:
    model = trained().model
    special = {"<|endoftext|>": 5000, "<|end|>": 5001, "<|end|>x": 5002, " <a b> ": 5003, "<|<x>|>": 5004}
    added = {"<x>": 6000, "t|": 6001, "\n\n\n": 6002, "ée": 6003}
    parts: dict[str, Any] = {"special": special, "added": added, "eos": "<|endoftext|>", **changes}
    return BPETokenizer(BPEModel(model.vocab, model.merges, **parts))


SPECIAL_PARTS = ["<|endoftext|>", "<|end|>", "<|end|>x", " <a b> ", "<|<x>|>", "<x>", "t|", "\n\n\n", "ée"]
SPECIAL_PARTS += ["<|", "é", "|>", "<", "e\u0301", "end", "\n", " ", "x", "the "]
SPECIAL_TEXT = st.lists(st.one_of(st.sampled_from(SPECIAL_PARTS), ANY_TEXT), max_size=12).map("".join)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(text=SPECIAL_TEXT, allowed=st.booleans())
@pytest.mark.parametrize("form", [None, "NFC"])
def test_special_and_added_tokens_are_found_as_tokenizers_finds_them(form: str, text: str, allowed: bool) -> None:
    ours, library = with_special_beside_theirs(form)
    library.encode_special_tokens = not allowed
    ids = ours.encode(text, allow_special=allowed)
    assert library.encode(text, add_special_tokens=False).ids == ids
    if form is None:
        assert ours.decode(ids) == text
    if not allowed:
        assert not set(ids) & set(ours.special_ids().values())
        assert ours.encode_array(text).tolist() == ids


@cache
def with_special_beside_theirs(form: str | None) -> tuple[BPETokenizer, tokenizers.Tokenizer]:
    ours = with_special(normal_form=form)
    return ours, tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode("utf-8"))


def test_text_of_users_never_becomes_a_control_token() -> None:
    text = "a<|endoftext|>b"
    for tokenizer in (trained(), gpt2(), with_special()):
        end = tokenizer.eos_token_id
        assert end is not None and tokenizer.special_ids()["<|endoftext|>"] == end
        for quick in ("python", "tiktoken"):
            assert end not in tokenizer.encode(text, engine=quick)
            assert end not in tokenizer.encode_array(text * 10, engine=quick)
        assert tokenizer.encode(text, allow_special=True) == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
        assert tokenizer.decode([end]) == "<|endoftext|>" and tokenizer.token_bytes(end) == b"<|endoftext|>"


NAMES = {"<|endoftext|>": 1500, "<|a|>": 1501, "<|b|>": 1502}
NAMED_TEXT = st.lists(st.sampled_from([*NAMES, "<|", "a", " b|>", "the end", "\n"]), max_size=8).map("".join)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=NAMED_TEXT, allowed=st.sets(st.sampled_from([*NAMES])), forbidden=st.sets(st.sampled_from([*NAMES, "the"])))
def test_special_tokens_are_allowed_and_forbidden_as_by_tiktoken(
    text: str, allowed: set[str], forbidden: set[str]
) -> None:
    for ours in (chosen(), LibraryTokenizer(chosen().to_json())):
        assert ours.encode(text, allowed) == tiktoken_chosen().encode(
            text, allowed_special=allowed, disallowed_special=()
        )
        for options, theirs in (({"forbid_special": True}, "all"), ({"forbid_special": forbidden}, forbidden)):
            try:
                ids = tiktoken_chosen().encode(text, allowed_special=allowed, disallowed_special=theirs)
            except ValueError:
                with pytest.raises(TokenizerError, match="forbid_special forbids it"):
                    ours.encode(text, allowed, **options)
            else:
                assert ours.encode(text, allowed, **options) == ids
        assert ours.encode_batch([text, "", "a"], allowed) == [ours.encode(t, allowed) for t in (text, "", "a")]


@cache
def chosen() -> BPETokenizer:
    return BPETokenizer(BPEModel(trained().model.vocab, trained().model.merges, special=NAMES))


@cache
def tiktoken_chosen() -> tiktoken.Encoding:
    model = chosen().model
    ranks, special = dict(model.vocab), dict(model.special)
    return tiktoken.Encoding("x", pat_str=model.patterns[0], mergeable_ranks=ranks, special_tokens=special)


def test_words_and_characters_allow_and_forbid_special_tokens() -> None:
    words, characters = WordTokenizer.train("a b", vocab_size=5), CharTokenizer.train("ab<>")
    unknown, end = words.special_ids().values()
    assert words.encode("a<|unk|><|endoftext|>", {"<|endoftext|>"})[-1] == end
    assert words.encode("<|unk|>a<|endoftext|>", True) == [unknown, *words.encode("a"), end]
    with pytest.raises(TokenizerError, match=r"'<\|unk\|>' at position 1"):
        words.encode("a<|unk|>", forbid_special=True)
    assert characters.encode("ab", True, forbid_special=True) == characters.encode("ab")
    for tokenizer in (words, characters, trained()):
        with pytest.raises(TokenizerError, match="'<nothing>' is not a special token"):
            tokenizer.encode("a", {"<nothing>"})


def test_a_surrogate_pair_is_the_character_that_it_stands_for() -> None:
    pair, whole = "ab\ud83d\ude00a", "ab\U0001f600a"
    library = LibraryTokenizer(trained().to_json())
    words, characters = WordTokenizer.train(whole), CharTokenizer.train(whole)
    for tokenizer in (trained(), with_special(), library, words, characters, specs.with_eos_as_bos(words)):
        assert tokenizer.encode(pair) == tokenizer.encode_array(pair).tolist() == tokenizer.encode(whole)
    assert trained().replay(pair) == trained().replay(whole)
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+DE00 at position 1,"):
        trained().encode("\U0001f600\ude00\ud83d")


def test_eos_becomes_bos_in_a_copy() -> None:
    for tokenizer in (trained(), WordTokenizer.train("a b", vocab_size=4)):
        changed = specs.with_eos_as_bos(tokenizer)
        assert tokenizer.bos_token_id is None and "bos_token" not in tokenizer.special_tokens()
        assert changed.bos_token_id == changed.eos_token_id == tokenizer.eos_token_id is not None
        assert changed.special_tokens()["bos_token"] == "<|endoftext|>" and specs.with_eos_as_bos(changed) is changed
        assert changed.encode("a b") == tokenizer.encode("a b")


#: Characters that normal forms decompose, compose or reorder, some only since Unicode 10.
MARKED = st.text(
    "aeAEoui "
    "\u0301\u0323\u0307\u0345\u0334\u1100\u1161\u11a8\uac00\u0958\u212b\ufb01\u2460\u1e9b\u09fe\u0898\u1dfa\u08cf"
    "\u0c3c\U000105d2\U00016121\U00016d67\U00011938\U00011935\U00011930\U0001e6e3\U00010d69\u32ff\ua7f1",
    max_size=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.one_of(MARKED, ANY_TEXT))
@pytest.mark.parametrize("form", FORMS)
def test_normal_forms_are_those_of_tokenizers(form: NormalForm, text: str) -> None:
    assert normalize(form, text) == getattr(normalizers, form)().normalize_str(text)


@pytest.mark.parametrize("form", FORMS)
def test_every_character_has_the_normal_form_of_tokenizers(form: NormalForm) -> None:
    library = getattr(normalizers, form)()
    codes = [*range(0xD800), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20)]
    for begin in range(0, len(codes), 50):
        text = "".join(f" {chr(code)} " for code in codes[begin : begin + 50] if not 0xD800 <= code < 0xE000)
        assert normalize(form, text) == library.normalize_str(text)


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_normalised_before_merging_with_every_engine(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MIN_CHARACTERS", 1000)
    text = "e\u0301 \u00e9 \u1100\u1161\u11a8 ﬁ ① a\u0323\u0307 a\u0307\u0323 \u212b \u0958 ②\ufb20 " + MIXED["scripts"]
    model = trained().model
    ours = BPETokenizer(BPEModel(model.vocab, model.merges, normal_form=form))
    library = tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode("utf-8"))
    expected = library.encode(text).ids
    assert expected != trained().encode(text)
    for quick in ("python", "tiktoken"):
        assert ours.encode(text, engine=quick) == expected
        assert ours.encode_array(text * 20, engine=quick).tolist() == library.encode(text * 20).ids
    replayed = [token for steps in ours.replay(text) for token in steps[-1].tokens]
    assert [model.vocab[token] for token in replayed] == expected


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "the" * 100_000 + "\udc80"])
def test_half_a_character_is_refused_with_its_place(text: str) -> None:
    at = next(i for i, character in enumerate(text) if 0xD800 <= ord(character) < 0xE000)
    for tokenizer in (trained(), with_special(), with_special(normal_form="NFC")):
        for encode in (tokenizer.encode, tokenizer.encode_array, tokenizer.replay):
            with pytest.raises(TokenizerError) as caught:
                encode(text)
            said = str(caught.value)
            assert f"U+{ord(text[at]):04X} at position {at}," in said and "encode_bytes" in said
            said.encode("utf-8")
