"""Unicode normal forms as `tokenizers` computes them, in every version of Python.

`tokenizers` uses Unicode 9, Python a newer version. Characters that came later are left as they are, and nothing is
composed or reordered across them; the normal forms of older characters never change (Unicode's stability policy).
"""

import re
import unicodedata
from typing import Literal

#: Code points since Unicode 10 that normal forms change or reorder: marks, composed characters and their parts.
_LATER = (
    "558 58b-58c 5c8-5c9 7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1af0 1df6-1dfa 209d-209f 32ff a7f1-a7f4 "
    "a82c ab69 105c9 105d2 105da 105e4 10781-10785 10787-107b0 107b2-107bf 10d24-10d27 10d69-10d6d 10eab-10eac "
    "10ecb-10ecf 10ef0-10efb 10efd-10eff 10f46-10f50 10f82-10f85 11070 1133b 11382-11385 1138b 1138e 11390-11391 "
    "113b8 113bb 113c2 113c5 113c7-113c9 113ce-113d0 1145e 11839-1183a 11930 11935 11938 1193d-1193e 11943 119e0 "
    "11a34 11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 1611e-16129 1612f 16d63 16d67-16d6a 16ff0-16ff1 "
    "1b123-1b126 1ccd6-1ccf9 1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f 1d280-1d281 1d6a6 1df95 1dfcd-1dfff "
    "1e030-1e06d 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6 1e6ee-1e6ef 1e6f5 1f16c "
    "1fbf0-1fbf9"
)
_LATER_RUNS = re.compile("([" + re.sub(r"\w+", lambda code: chr(int(code[0], 16)), _LATER).replace(" ", "") + "]+)")

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]


def normalize(form: NormalForm, text: str) -> str:
    """Bring a text into a normal form."""
    if text.isascii():
        return text
    parts = _LATER_RUNS.split(text)
    parts[::2] = [unicodedata.normalize(form, part) for part in parts[::2]]
    return "".join(parts)
