"""The numbers that describe a model."""

import math
from dataclasses import dataclass
from typing import Literal

from glassgpt.config.section import Section, option

#: Bounds far beyond any model, within which the size of every tensor is a 64-bit number of bytes.
MAX_TOKENS, MAX_HEADS, MAX_WIDTH, MAX_HIDDEN = 2**40, 10_000, 1_000_000, 10_000_000
#: Bound of the settings of rotary scaling.
MAX_FACTOR = 1e6


@dataclass(frozen=True)
class ModelConfig(Section):
    """The numbers that describe a decoder-only Transformer. Validated on construction.

    GPT-2, GPT-3, Llama, Mistral, Qwen-2 and Qwen-3 are points in this space. Fields left at 0 are derived from the
    others.

    Raises:
        ConfigError: with every problem found.
    """

    section = "model"

    vocab_size: int = option(
        65, "tokens in the vocabulary (in training: the tokenizer's)", min_value=1, max_value=MAX_TOKENS
    )
    block_size: int = option(256, "context length in tokens", min_value=1, max_value=MAX_TOKENS)
    n_layer: int = option(6, "Transformer blocks", min_value=1, max_value=10_000)
    n_head: int = option(4, "query heads", min_value=1, max_value=MAX_HEADS)
    n_kv_head: int = option(0, "key/value heads; 0: n_head", min_value=0, max_value=MAX_HEADS)
    head_dim: int = option(0, "width of a head; 0: n_embd / n_head", min_value=0, max_value=MAX_WIDTH)
    n_embd: int = option(128, "width of the residual stream", min_value=1, max_value=MAX_WIDTH)
    intermediate_size: int = option(
        0, "hidden width of the MLP; 0: 4 n_embd, or 8/3 for swiglu", min_value=0, max_value=MAX_HIDDEN
    )
    norm: Literal["layernorm", "rmsnorm"] = option("layernorm", "normalisation")
    norm_eps: float = option(1e-5, "epsilon of the normalisation", min_value=0)
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = option("gelu_tanh", "activation of the MLP")
    position: Literal["learned", "rope"] = option("learned", "position encoding")
    rope_theta: float = option(10000.0, "base of the rotary frequencies", min_value=1, max_value=1e15)
    rope_scaling: Literal["none", "linear", "dynamic", "llama3", "yarn"] = option(
        "none", "how rotary frequencies are scaled for a longer context; dynamic: only beyond block_size"
    )
    rope_factor: float = option(1.0, "rope_scaling: how many times longer", min_value=1, max_value=MAX_FACTOR)
    rope_original_context: int = option(
        0, "rope_scaling llama3, yarn: the context before it", min_value=0, max_value=MAX_TOKENS
    )
    rope_low_freq_factor: float = option(
        1.0,
        "llama3, yarn: frequencies with fewer rotations than this over the original context are fully scaled",
        min_value=1e-3,
        max_value=MAX_FACTOR,
    )
    rope_high_freq_factor: float = option(
        0.0,
        "llama3, yarn: frequencies with more rotations than this are not scaled; 0: 4 for llama3, 32 for yarn",
        min_value=0,
        max_value=MAX_FACTOR,
    )
    rope_attention_factor: float = option(
        0.0, "yarn: factor on queries and keys; 0: 0.1 ln rope_factor + 1", min_value=0, max_value=MAX_FACTOR
    )
    sliding_window: int = option(0, "tokens that a query attends to, itself included; 0: all before it", min_value=0)
    first_window_layer: int = option(
        0, "the first block with a sliding window; earlier blocks attend to everything", min_value=0
    )
    qk_norm: bool = option(False, "RMS-normalise queries and keys, per head, before the rotation")
    qkv_bias: bool = option(True, "bias on the q, k, v projection")
    attention_out_bias: bool = option(True, "bias on the attention's output projection")
    mlp_bias: bool = option(True, "bias in the MLP")
    norm_bias: bool = option(True, "bias in the layer norms")
    dropout: float = option(0.0, "dropout on embeddings and residual branches", min_value=0, max_value=0.999)
    tie_embeddings: bool = option(True, "share the token embedding with the output head")

    def _fill_derived_fields(self) -> None:
        """Set the fields that are 0 and derived from others."""
        derived: dict[str, float] = {
            "n_kv_head": self.n_head,
            "head_dim": 0 if self.n_embd % self.n_head else self.n_embd // self.n_head,
            "intermediate_size": self._default_intermediate_size(),
            "rope_high_freq_factor": {"llama3": 4.0, "yarn": 32.0}.get(self.rope_scaling, 0.0),
        }
        if self.rope_scaling == "yarn":
            derived["rope_attention_factor"] = 0.1 * math.log(self.rope_factor) + 1.0
        for name, value in derived.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)

    def _cross_field_errors(self) -> list[str]:
        problems = []
        if self.head_dim == 0:
            problems.append(
                f"model.n_embd: {self.n_embd} does not divide into n_head={self.n_head} heads; "
                f"use a multiple of {self.n_head}, or set head_dim"
            )
        if self.n_head % self.n_kv_head:
            problems.append(
                f"model.n_kv_head: {self.n_kv_head} does not divide n_head={self.n_head}; "
                "every key/value head serves the same number of query heads"
            )
        if self.position == "rope" and self.head_dim % 2:
            problems.append(f"model.head_dim: rotary positions need an even head_dim, got {self.head_dim}")
        if self.norm == "rmsnorm" and self.norm_bias:
            problems.append("model.norm_bias: rmsnorm has no bias; set norm_bias=false")
        if self.first_window_layer and not self.sliding_window:
            problems.append("model.first_window_layer: there is no window; set sliding_window")
        return problems + self._rope_errors()

    def _rope_errors(self) -> list[str]:
        """Settings of rotary scaling that are missing, or that do nothing."""
        kind, by_frequency = self.rope_scaling, self.rope_scaling in ("llama3", "yarn")
        if kind != "none" and self.position != "rope":
            return [f"model.rope_scaling: {kind} scales rotary positions; set position=rope, or rope_scaling=none"]
        used = {"rope_factor": kind != "none", "rope_attention_factor": kind == "yarn"}
        used |= dict.fromkeys(("rope_original_context", "rope_low_freq_factor", "rope_high_freq_factor"), by_frequency)
        fields = self.__dataclass_fields__
        problems = [
            f"model.{name}: {getattr(self, name)} does nothing with rope_scaling={kind}; leave it out"
            for name, matters in used.items()
            if not matters and getattr(self, name) != fields[name].default
        ]
        if by_frequency and self.rope_original_context == 0:
            problems.append(f"model.rope_original_context: {kind} needs the context that the model had before")
        if kind == "yarn" and self.rope_theta <= 1:
            problems.append(f"model.rope_theta: yarn needs frequencies that differ, so more than {self.rope_theta}")
        if by_frequency and self.rope_low_freq_factor >= self.rope_high_freq_factor:
            problems.append(
                f"model.rope_low_freq_factor: {self.rope_low_freq_factor} should be less than "
                f"rope_high_freq_factor={self.rope_high_freq_factor}"
            )
        return problems

    @property
    def windows(self) -> tuple[int, ...]:
        """The sliding window of each block; 0: none."""
        return tuple(self.sliding_window * (layer >= self.first_window_layer) for layer in range(self.n_layer))

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of q, k and v in the fused projection."""
        return (self.n_head * self.head_dim, self.n_kv_head * self.head_dim, self.n_kv_head * self.head_dim)

    def _default_intermediate_size(self) -> int:
        if self.mlp != "swiglu":
            return 4 * self.n_embd
        return 64 * math.ceil(8 * self.n_embd / 3 / 64)  # as many parameters as a 4x MLP of two matrices
