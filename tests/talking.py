"""A small model that answers in ASCII, of any length: random weights, bytes as tokens, and the ChatML template."""

import dataclasses
from typing import Any

import torch

from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, Tokenizer
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.chat import CHATML
from glassgpt.tokenizer.published import PublishedSettings

START, END = 256, 257


def talker(template: str | None = CHATML, *, ends: bool = True, **config: Any) -> tuple[GPT, Tokenizer]:
    """The model and its tokenizer; without ``ends``, an answer goes on for as long as it may."""
    special = {"<|im_start|>": START, "<|im_end|>": END}
    tokenizer = BPETokenizer(BPEModel({bytes([i]): i for i in range(256)}, [], special=special, eos="<|im_end|>"))
    tokenizer.published = PublishedSettings(chat_templates={} if template is None else {"default": template})
    base = ModelConfig(vocab_size=258, block_size=512, n_layer=2, n_head=4, n_embd=32, tie_embeddings=False)
    model = GPT(dataclasses.replace(base, **MODERN, n_kv_head=2, intermediate_size=48, **config))
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.2 * noise if "norm" in name else 0.4 * noise
    model.head.weight.data[END] *= 2  # more often the largest
    quiet = [*range(32), *range(127, END), *([] if ends else [END])]
    model.head.weight.data[quiet] = 0  # the largest of some hundred random logits is above 0
    model.tie_weights_and_build_rope()
    return model.eval(), tokenizer
