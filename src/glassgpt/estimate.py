"""The cost of a model, by arithmetic only: parameters, floating-point operations, and the memory of training.

Nothing is measured and no tensor is made, so GPT-3 is planned as fast as a toy. What is counted is what this
package's model does; the tests hold it to the real thing (autograd's saved tensors, the allocator, FLOP counters).

Sources: FLOPs as in Kaplan et al. (2020, arXiv:2001.08361, table 1), PaLM (arXiv:2204.02311, appendix B) and
Chinchilla (arXiv:2203.15556, appendix F); activations in the manner of Korthikanti et al. (2022, arXiv:2205.05198).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from glassgpt.config import ModelConfig

#: From this vocabulary size on, the loss never holds all logits of a micro-batch (see training.objective), but
#: this many at a time: few on a CPU, for its caches; more on a GPU, which adds up the head's gradient after each part.
LARGE_VOCABULARY = 8192
LOGITS_AT_A_TIME = 2**25
LOGITS_AT_A_TIME_ON_GPU = 2**28
#: Tokens of a forward pass in validation and in timing, about.
TOKENS_PER_PASS = 8192
#: Queries in a block of :class:`glassgpt.model.UnfusedAttention`.
UNFUSED_QUERIES = 128
#: Share of the free memory that training may plan with: a process takes up to a third more than its tensors.
SHARE_OF_FREE = 0.65

Optimizer = Literal["muon", "adamw"]


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by group. A tied head has none of its own: it is the token embedding."""
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    q, k, v = config.qkv_sizes
    attention = sum(rows * columns for rows, columns in _attention_matrices(config))
    attention += (q + k + v) * config.qkv_bias + C * config.attention_out_bias
    mlp = sum(rows * columns for rows, columns in _mlp_matrices(config))
    mlp += sum(rows for rows, _ in _mlp_matrices(config)) * config.mlp_bias
    norm = C * (1 + config.norm_bias)
    return {
        "token embedding": V * C,
        "position embedding": config.block_size * C if config.position == "learned" else 0,
        "attention": L * attention,
        "mlp": L * mlp,
        "norms": L * (2 * norm + 2 * config.head_dim * config.qk_norm) + norm,
        "head": 0 if config.tie_embeddings else V * C,
    }


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token, two for each multiply-add, of a forward pass.

    Attributes:
        matrices: in the blocks' projections: twice their weights.
        attention: in the scores and the mix of values, of an average query.
        head: twice the head's weights, tied or not.
    """

    matrices: int
    attention: int
    head: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.matrices + self.attention + self.head

    @property
    def training(self) -> int:
        """Forward and backward: the gradient of a product is two products of the same size."""
        return 3 * self.forward


def flops_per_token(config: ModelConfig, context: int | None = None) -> Flops:
    """FLOPs per token in windows of so many tokens (the model's context by default).

    Per block ``2 * weights + 4 * H * D * keys``, and ``2 * V * C`` for the head. A causal query sees itself and what
    came before: ``keys = (T + 1) / 2`` on average (PaLM counts all T; so do most FLOP counters), and fewer behind a
    sliding window. Norms, activations, softmax and the look-up of embeddings are left out: they are bound by memory,
    not by arithmetic.
    """
    T = context or config.block_size
    # The first w queries see 1, 2, ..., w keys, the others w: w (2 T - w + 1) / 2 pairs in all.
    seen = [w * (2 * T - w + 1) for w in (min(window or T, T) for window in config.windows)]
    weights = sum(rows * columns for rows, columns in _hidden_matrices(config))
    return Flops(
        matrices=2 * config.n_layer * weights,
        attention=2 * config.n_head * config.head_dim * sum(seen) // T,
        head=2 * config.vocab_size * config.n_embd,
    )


def optimizer_flops(config: ModelConfig, optimizer: Optimizer, iterations: int) -> int:
    """FLOPs of the matrix products in one optimiser step: Muon's Newton-Schulz, nothing for AdamW.

    An iteration on a matrix ``[m, n]``, m <= n, is the Gram matrix (2 m m n), its square (2 m^3), and their product
    with the matrix (2 m m n). The parts of a fused projection (q, k, v) are matrices of their own.
    """
    if optimizer == "adamw":
        return 0
    total = 0
    for shape in _hidden_matrices(config):
        m, n = min(shape), max(shape)
        total += 4 * m * m * n + 2 * m**3
    return config.n_layer * iterations * total


@dataclass(frozen=True)
class Activations:
    """Bytes of activations in training on one micro-batch.

    Attributes:
        kept: what autograd holds between the forward and the backward pass.
        peak: the most there is at once: that, and the temporaries of the loss or of a block's backward pass.
    """

    kept: int
    peak: int


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds, by purpose.

    Attributes:
        weights: in the type that is computed in.
        masters: float32 copies of them, where that type is shorter.
        gradients: float32, all of them: what accumulates over micro-batches; in a shorter type, the newest's besides.
        optimizer: its state: one momentum per weight for Muon, two moments for AdamW; and the average of the weights.
        activations: of one micro-batch, at their peak.
        update: temporaries of the optimiser's step, when there are no activations.
    """

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    update: int

    @property
    def total(self) -> int:
        """The most that is held at once."""
        lasting = self.weights + self.masters + self.gradients + self.optimizer
        return lasting + max(self.activations, self.update)


def memory(
    config: ModelConfig,
    rows: int,
    *,
    bytes_per_weight: int = 4,
    optimizer: Optimizer = "muon",
    recompute: bool = False,
    context: int | None = None,
    device: str = "cpu",
    lora: int = 0,
    attention: str = "fused",
    ema: bool = False,
) -> Memory:
    """Memory of a training step whose micro-batches have so many rows; without torch.compile.

    These are tensors. A process holds more: the libraries (some 300 MB), and what its allocator does not give back.
    On Linux that was a sixth to a third on top, and nothing with MALLOC_TOP_PAD_=0 (see benchmarks/plan_accuracy.py).

    Args:
        config: the model.
        rows: sequences per forward pass.
        bytes_per_weight: of the type computed in; 2 for bfloat16 and float16, which have float32 masters.
        optimizer: with Muon, AdamW still has what is not a matrix inside a block.
        recompute: activation checkpointing: of a block, only its input is kept.
        context: tokens per row; the model's context by default.
        device: ``cpu`` or ``cuda``: some operations keep less on a GPU.
        lora: parameters of LoRA's matrices, if only they are trained (by AdamW); the weights of the model are frozen.
        attention: ``unfused`` keeps the weights of attention.
        ema: whether an average of the weights that are trained is kept.
    """
    parameters = sum(count_parameters(config).values()) + lora
    hidden = config.n_layer * sum(rows * columns for rows, columns in _hidden_matrices(config))
    momentum_only = hidden if optimizer == "muon" else 0
    held = activations(
        config, rows, bytes_per_weight=bytes_per_weight, recompute=recompute, context=context, device=device,
        attention=attention,
    )  # fmt: skip
    momentum_only, trained = (0, lora) if lora else (momentum_only, parameters)
    return Memory(
        weights=bytes_per_weight * parameters,
        masters=4 * trained if bytes_per_weight < 4 else 0,
        gradients=(4 + (bytes_per_weight if bytes_per_weight < 4 else 0)) * trained,
        optimizer=4 * momentum_only + 8 * (trained - momentum_only) + (4 * trained if ema else 0),
        activations=held.peak,
        update=_muon_temporaries(config, bytes_per_weight) if optimizer == "muon" and not lora else 0,
    )


def activations(
    config: ModelConfig,
    rows: int,
    *,
    bytes_per_weight: int = 4,
    recompute: bool = False,
    context: int | None = None,
    device: str = "cpu",
    attention: str = "fused",
) -> Activations:
    """Bytes of activations, for arguments as in :func:`memory`. Fused attention never holds its scores.

    The peak is at the loss, whose gradients are as large as the logits, or in the backward pass of the last block,
    in the middle of its MLP, when most of what the head kept is gone. It is approximate by a few percent; ``kept`` is
    exact up to single scalars on the CPU.
    """
    L, C, b = config.n_layer, config.n_embd, bytes_per_weight
    T = context or config.block_size
    tokens = rows * T
    masks = sum(0 < window < T for window in config.windows) * b * T * T  # of sliding windows, in numbers, per block
    embeddings = tokens * (8 + _mask_bytes(config, b, device))  # the token ids (int64), and dropout
    block = tokens * sum(block_activations(config, b, device).values())
    if attention == "unfused":
        block += rows * config.n_head * b * unfused_weights(T)
    loss = _loss_activations(config, tokens, b, device)
    # Gradients of the stream and of the hidden layer; with SwiGLU of gate and up, when their product is gone.
    gradients = tokens * b * (C + config.intermediate_size * (2 if config.mlp == "swiglu" else 1))
    if recompute:
        stem = embeddings + L * tokens * b * C + (T * T if masks else 0)
        block += b * T * T if masks else 0
        return Activations(stem + loss.kept, stem + max(loss.kept + loss.temporaries, block + gradients))
    stem = embeddings + L * block + masks
    return Activations(stem + loss.kept, stem + max(loss.kept + loss.temporaries, gradients))


def unfused_weights(T: int) -> int:
    """How many weights unfused attention keeps of a head, over ``T`` tokens: no key after the last query of a block."""
    size = UNFUSED_QUERIES
    return sum(min(size, T - first) * min(first + size, T) for first in range(0, T, size))


def block_activations(config: ModelConfig, bytes_per_weight: int = 4, device: str = "cpu") -> dict[str, int]:
    """Bytes per token that a block keeps for its backward pass, operation by operation."""
    C, b = config.n_embd, bytes_per_weight
    q, k, v = config.qkv_sizes
    moved = config.position == "rope" or config.qk_norm
    qk_norm = (_norm_bytes(config.head_dim, "rmsnorm", b, device, input_kept=b == 4)) if config.qk_norm else 0
    mask = _mask_bytes(config, b, device)
    return {
        "norm_1: its input and statistics": _norm_bytes(C, config.norm, b, device),
        "qkv projection: its input": b * C,
        "q, k, v, in one piece": b * (q + k + v),  # v alone keeps all of it alive
        "q and k norm: input in float32, normalised": (config.n_head + config.n_kv_head) * qk_norm,
        "q and k, normalised or rotated": b * (q + k) if moved else 0,
        "attention: its output": b * q,
        "attention: a logsumexp per head": 4 * config.n_head,
        "out projection: its input, where not that output": b * q if config.qk_norm else 0,  # heads side by side
        "attention branch: dropout mask": mask,
        "norm_2: its input and statistics": _norm_bytes(C, config.norm, b, device),
        "MLP: its input": b * C,
        "MLP: gate, its silu, up, their product": 4 * b * config.intermediate_size if config.mlp == "swiglu" else 0,
        "MLP: up and its gelu": 2 * b * config.intermediate_size if config.mlp != "swiglu" else 0,
        "MLP branch: dropout mask": mask,
    }


def largest_micro_batch(config: ModelConfig, batch_size: int, bytes_free: int, **settings: Any) -> int:
    """Rows per forward pass so that training fits into so many bytes, weights and all; 1 if not even one row does.

    Of the numbers that need as few passes for ``batch_size`` rows, the smallest: 10 rows where 7 fit are 5 and 5.
    The settings are those of :func:`memory`.
    """
    fits, too_many = 1, batch_size + 1
    while too_many - fits > 1:
        rows = (fits + too_many) // 2
        if memory(config, rows, **settings).total <= bytes_free:
            fits = rows
        else:
            too_many = rows
    passes = math.ceil(batch_size / fits)
    return math.ceil(batch_size / passes)


def _attention_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of a block's q, k, v and out."""
    q, k, v = config.qkv_sizes
    return [(q, config.n_embd), (k, config.n_embd), (v, config.n_embd), (config.n_embd, q)]


def _mlp_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of a block's (gate,) up and down."""
    widening = (config.intermediate_size, config.n_embd)
    return [widening] * (2 if config.mlp == "swiglu" else 1) + [(config.n_embd, config.intermediate_size)]


def _hidden_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    return _attention_matrices(config) + _mlp_matrices(config)


def _norm_bytes(size: int, kind: str, b: int, device: str, *, input_kept: bool = False) -> int:
    """Bytes that a norm over ``size`` channels keeps. ``input_kept``: its input is counted elsewhere."""
    if kind == "layernorm":
        return b * size + 8  # the input; mean and inverse deviation
    if device == "cuda":  # one kernel: the input; the inverse root mean square
        return (0 if input_kept else b * size) + 4
    return (0 if input_kept else 4 * size) + 4 * size + 4  # spelt out in float32: the input, normalised, the inverse


def _mask_bytes(config: ModelConfig, b: int, device: str) -> int:
    """Bytes per token of one dropout mask over the stream: booleans on a GPU, numbers elsewhere."""
    if config.dropout == 0:
        return 0
    return config.n_embd * (1 if device == "cuda" else b)


@dataclass(frozen=True)
class _LossActivations:
    """Bytes of the last norm, the head and the loss.

    Attributes:
        kept: between the forward and the backward pass.
        temporaries: what the loss needs on top of that at its peak.
    """

    kept: int
    temporaries: int


def _loss_activations(config: ModelConfig, tokens: int, b: int, device: str) -> _LossActivations:
    C, V = config.n_embd, config.vocab_size
    norm = tokens * _norm_bytes(C, config.norm, b, device)
    if V < LARGE_VOCABULARY:
        # Head input, log-probabilities in float32, targets (int64); then the gradients of both kinds of logits.
        return _LossActivations(norm + tokens * (b * C + 4 * V + 8), tokens * 8 * V)
    # The gradients of features and head are ready after the forward pass, which needs the features themselves and two
    # copies of some logits; the backward pass scales these gradients in place.
    gradients = tokens * b * C + 4 * V * C
    chunk = V * min(tokens, max(1, (LOGITS_AT_A_TIME_ON_GPU if device == "cuda" else LOGITS_AT_A_TIME) // V))
    return _LossActivations(norm + gradients, tokens * b * C + 8 * chunk)


def _muon_temporaries(config: ModelConfig, b: int) -> int:
    """Bytes of Muon's step at its peak: every matrix's update, and the work on all matrices of one shape.

    The work is at its largest at the end of an iteration: the matrices (with bfloat16, in float32 too), x and its
    successor, and two square matrices; and the group before has left its result.
    """
    groups = Counter(_hidden_matrices(config))
    updates = sum(count * rows * columns for (rows, columns), count in groups.items())
    most = result = 0
    for shape, count in groups.items():
        group, square = count * shape[0] * shape[1], count * min(shape) ** 2
        most = max(most, result + b * (3 * group + 2 * square) + (4 * group if b < 4 else 0))
        result = b * group
    return config.n_layer * (4 * updates + most)


def format_flops(value: float) -> str:
    """``12.3 MFLOP``, ``1.50 GFLOP``."""
    return with_prefix(value, "FLOP")


def format_bytes(value: float) -> str:
    """``12.3 MiB``, ``1.50 GiB``."""
    return with_prefix(value, "B", 1024)


def with_prefix(value: float, unit: str, base: int = 1000) -> str:
    """A number of about three digits, and its unit with a prefix: of SI, or for ``base`` 1024 those of binary units.

    >>> with_prefix(0.0123, "s"), with_prefix(1.5e12, "FLOP/s"), with_prefix(7, "B"), with_prefix(2500, "s")
    ('12.3 ms', '1.50 TFLOP/s', '7 B', '2,500 s')
    """
    power = 0
    while value >= base and power < 6 and unit != "s":
        value, power = value / base, power + 1
    while 0 < value < 1 and power > -3 and base == 1000:
        value, power = value * base, power - 1
    prefix = " kMGTPEnµm"[power].strip()  # the last three are those of negative powers
    if prefix and base == 1024:
        prefix = f"{prefix.upper()}i"
    digits = 0 if value >= 100 or (not power and value == int(value)) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {prefix}{unit}"
