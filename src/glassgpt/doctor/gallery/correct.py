"""Correct models, plain and unusual: the doctor must raise nothing on them."""

from glassgpt.doctor.gallery.bug import Correct
from glassgpt.doctor.gallery.variants.attention import ATTENTION_VARIANTS
from glassgpt.doctor.gallery.variants.blocks import BLOCKS_VARIANTS
from glassgpt.doctor.gallery.variants.interfaces import INTERFACES_VARIANTS

#: The programs, each correct as it stands.
MODEL_PROGRAMS = (
    "lecture",
    "classes",
    "book",
    "llama_like",
    "torch_layers",
    "functional",
    "ours",
    "hf_like",
    "complex_rope",
    "recurrent",
    "convolutional",
    "bigram",
)

#: Each program as it is, and the variants.
CORRECT: tuple[Correct, ...] = (
    *(Correct(name, "As it is.", name, window=1 if name == "bigram" else None) for name in MODEL_PROGRAMS),
    *ATTENTION_VARIANTS,
    *BLOCKS_VARIANTS,
    *INTERFACES_VARIANTS,
)
