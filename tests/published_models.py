"""Small random models of the five families, made by `transformers`, and the same weights opened by us."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import load_model
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.tokenizer import save as save_tokenizer

TOKENIZER = CharTokenizer.train("".join(map(chr, range(32, 127))))
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 40, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "Llama": {**SHAPE},
    "Mistral": {**SHAPE, "sliding_window": 5},
    "Qwen2": {**SHAPE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {**SHAPE, "head_dim": 12},
}


def make(family: str, folder: Path) -> tuple[Any, GPT]:
    """The model of `transformers`, with eager attention, and ours."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    tokens = {"vocab_size": TOKENIZER.vocab_size, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **tokens)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    for name, p in theirs.named_parameters():  # nothing at zero, nothing at one
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.3 * noise if p.dim() == 1 and name.endswith("weight") else 0.2 * noise)
    theirs.eval().save_pretrained(folder)
    save_tokenizer(TOKENIZER, folder, 64)
    return theirs, load_model(folder)[0]
