"""Four small models with random weights, one per way of attention, and the page of each."""

import torch

from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer

HOSTILE = '</script><img src=x onerror="alert(1)">'
EMOJI, RIGHT_TO_LEFT = "a 😀‍🙂 b", "שלום, مرحبا"
TOKENIZER = CharTokenizer.train("".join(map(chr, range(32, 127))), "\n", HOSTILE, EMOJI, RIGHT_TO_LEFT)

_ROPE = {"position": "rope", "norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "mlp_bias": False}
_ROPE |= {"attention_out_bias": False, "qkv_bias": False, "intermediate_size": 24, "norm_eps": 1e-3}
CONFIGS = {
    "learned positions": {"mlp": "gelu_tanh"},
    "grouped queries": {**_ROPE, "n_kv_head": 2, "tie_embeddings": False},
    "QK-norm": {**_ROPE, "qk_norm": True, "n_kv_head": 1, "head_dim": 6},
    "sliding window": {**_ROPE, "sliding_window": 3, "first_window_layer": 1, "qkv_bias": True},
}


def make_model(kind: str, seed: int = 0, **changes: object) -> GPT:
    """Build a model whose weights are large enough that heads look at something and the mask matters."""
    values = {"vocab_size": TOKENIZER.vocab_size, "n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 64}
    model = GPT(ModelConfig(**values | CONFIGS[kind] | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            one_if_norm = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 1.3 / parameter.size(1) ** 0.5 if parameter.dim() == 2 and "embedding" not in name else 0.4
            parameter.copy_(one_if_norm + spread * noise)
    return model.eval()
