"""Families of published models: one table each, used for loading and for saving."""

from glassgpt.weights.families.gpt2 import GPT2
from glassgpt.weights.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3

#: By model_type, in the order in which they are tried when a model is saved.
FAMILIES = {family.model_type: family for family in (GPT2, QWEN3, LLAMA, MISTRAL, QWEN2)}
