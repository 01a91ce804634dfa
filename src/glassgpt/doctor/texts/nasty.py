"""Texts that tokenizers get wrong, and a name for what a tokenizer has changed in a text."""

import unicodedata

#: Texts by what they have. All are valid Unicode; a lone surrogate is not a text, and any answer to it is right.
NASTY = {
    "prose": "Hello, world! It's 9 o'clock; don't you think?  (Yes.)",
    "spaces": "  two  and   three    spaces, and at the end:   ",
    "long run of spaces": "def f():" + " " * 70 + "pass",
    "tabs and lines": "a\tb\t\tc\n\n\nd\n e \n\nf\n",
    "CRLF": "first\r\nsecond\r\n\r\nthird\r",
    "accents": "Größe naïve façade Ünïcode Việt Nam İstanbul",
    "combining marks": "e\u0301 n\u0303 a\u0323\u0308 q\u0301 \u0915\u093f",
    "right to left": "שלום עולם \u202bمرحبا بالعالم\u202c abc",
    "East Asian": "日本語の文章です。中文字符，한국어",
    "emoji": "👍🏽 🦊 🇩🇪 ❤️‍🔥 1️⃣",
    "joined emoji": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈",
    "ligatures and widths": "ﬁn ²½ Ⅷ ＡＢＣ １２３ …",
    "beyond the BMP": "𝔘𝔫𝔦 𐍈 𝟘𝟙 🜁",
    "digits": "0 12 123 1234 12345 3.14159 1,000,000 x1y22z",
    "code": 'if (a && b || !c) {\n\treturn "\\n" + f(x)[0];  // ok\n}\n',
    "marks of tokenizers": "▁a Ġb ##c </w> <0x41> @@ Ċ",
    "byte order mark": "\ufeffstart and a no-break\u00a0space\u200b",
    "all ASCII": "".join(map(chr, range(0x20, 0x7F))),
    "Latin-1": "".join(map(chr, range(0xA1, 0x100))),
    "control characters": "a\x00b\x01c\x07d\x1b[0me\x7f",
}


def without_controls(text: str) -> str:
    """Drop control characters, which many published vocabularies lack; white space stays."""
    return "".join(c for c in text if unicodedata.category(c) != "Cc" or c in "\t\n\r")


def name_loss(text: str, decoded: str) -> str:
    """Name what is lost between a text and its round trip: the mildest of several names that explains it."""
    kinds = {
        "control characters": without_controls,
        "case": lambda s: s.casefold(),
        "Unicode normal form": lambda s: unicodedata.normalize("NFKC", s),
        "white space": lambda s: "".join(s.split()),
    }
    for kind, change in kinds.items():
        if change(text) == change(decoded):
            return kind

    def bare(s: str) -> str:
        s = unicodedata.normalize("NFKD", without_controls(s)).casefold()
        return "".join(
            c for c in s if not c.isspace() and not unicodedata.combining(c) and unicodedata.category(c) != "Cf"
        )

    return "case, normal form and white space" if bare(text) == bare(decoded) else "characters"


def first_difference(a: str, b: str) -> str:
    """Show where two texts begin to differ."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, at - 12)
    return f"at character {at}: {a[start : at + 20]!r} became {b[start : at + 20]!r}"
