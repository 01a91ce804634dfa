"""A decoder-only Transformer, described by a ModelConfig; to be read from top to bottom.

Shapes: B batch, T time (tokens), C n_embd, H query heads, KV key/value heads, D head_dim, V vocab_size,
S keys (T, or more with a cache). The model does not depend on losses, sampling or files.

Sources: GPT-2 (Radford et al., 2019), rotary positions (arXiv:2104.09864), RMSNorm (arXiv:1910.07467),
SwiGLU (arXiv:2002.05202), grouped queries (arXiv:2305.13245), QK-norm as in Qwen-3 (arXiv:2505.09388),
sliding windows as in Mistral (arXiv:2310.06825).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.model.attention import FusedAttention, causal_mask
from glassgpt.model.cache import KVCache
from glassgpt.model.dropout import Dropout
from glassgpt.model.rope import rotary_tables, rotate

#: Positions in the rotary tables at first. They grow when longer texts come: a configuration may claim any context.
ROPE_POSITIONS = 8192


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dimension."""

    def __init__(self, size: int, kind: str, eps: float, bias: bool = False):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size] -> [..., size]``."""
        if self.kind == "rmsnorm":
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped queries. One matrix projects to q, k and v."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads = (config.n_head, config.n_kv_head, config.n_kv_head)  # of q, k, v
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.n_embd, sum(self.heads) * self.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(config.n_head * self.head_dim, config.n_embd, bias=config.attention_out_bias)
        self.q_norm = Norm(self.head_dim, "rmsnorm", config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = Norm(self.head_dim, "rmsnorm", config.norm_eps) if config.qk_norm else nn.Identity()
        self.attend: nn.Module = FusedAttention()

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        slots: Tensor | None,
    ) -> Tensor:
        """``x [B, T, C] -> [B, T, C]``. ``slots`` are the cache slots of these tokens."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_dim)  # [B, T, H + 2 KV, D]
        q, k, v = qkv.transpose(1, 2).split(self.heads, dim=1)  # [B, H, T, D], [B, KV, T, D] twice
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None and slots is not None:
            k, v = cache.update(self.layer, k, v, slots)  # [B, KV, S, D]
        y, _ = self.attend(q, k, v, mask)  # [B, H, T, D]
        y = y.transpose(1, 2).reshape(B, T, -1)  # [B, T, H D]
        return self.out(y)  # [B, T, C]


class MLP(nn.Module):
    """The position-wise network: two matrices with a GELU, or three with a gate (SwiGLU)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, hidden, bias = config.n_embd, config.intermediate_size, config.mlp_bias
        self.gate = nn.Linear(C, hidden, bias=bias) if config.mlp == "swiglu" else None
        self.up = nn.Linear(C, hidden, bias=bias)
        self.down = nn.Linear(hidden, C, bias=bias)
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, C] -> [B, T, C]``."""
        if self.gate is not None:
            hidden = F.silu(self.gate(x)) * self.up(x)  # [B, T, intermediate_size]
        else:
            hidden = F.gelu(self.up(x), approximate=self.approximate)  # [B, T, intermediate_size]
        return self.down(hidden)  # [B, T, C]


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream and added back to it."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm_1 = Norm(config.n_embd, config.norm, config.norm_eps, config.norm_bias)
        self.attention = Attention(config, layer)
        self.norm_2 = Norm(config.n_embd, config.norm, config.norm_eps, config.norm_bias)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        slots: Tensor | None,
    ) -> Tensor:
        """``x [B, T, C] -> [B, T, C]``."""
        x = x + self.dropout(self.attention(self.norm_1(x), rope, mask, cache, slots))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class GPT(nn.Module):
    """The language model: tokens in, logits for the next token out.

    The weights are set by :meth:`init_weights` or a loader, not here, so that a model can be built on the meta device,
    transformed, and allocated after that (:func:`glassgpt.model.materialize`).
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        learned = config.position == "learned"
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = Norm(config.n_embd, config.norm, config.norm_eps, config.norm_bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights_and_build_rope()

    def tie_weights_and_build_rope(self) -> None:
        """Tie the head to the token embedding and compute the rotary tables, on the device of the weights."""
        if self.config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        if self.config.position == "rope":
            self._build_rope(min(ROPE_POSITIONS, self.config.block_size), torch.float32)

    @torch.inference_mode(False)  # a table that grows while generating serves training, too
    def _build_rope(self, positions: int, dtype: torch.dtype) -> None:
        cos, sin = rotary_tables(self.config, self.device, positions)
        self.register_buffer("rope_cos", cos.to(dtype), persistent=False)  # [positions, D]
        self.register_buffer("rope_sin", sin.to(dtype), persistent=False)  # [positions, D]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """GPT-2's initialisation: normal(0, 0.02), zero biases, unit norms; a pure function of the seed.

        The two projections into the residual stream are divided by sqrt(2 n_layer), so that its variance does not
        grow with depth.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))

    def forward(
        self,
        idx: Tensor,
        *,
        cache: KVCache | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        apply_head: bool = True,
    ) -> Tensor:
        """Predict the token after each of ``idx``.

        This is the only entry point, so that forward hooks (for example FSDP's) run in every pass.

        Args:
            idx: token ids ``[B, T]``, int64.
            cache: keys and values of the tokens before; the new ones are added to it.
            position_ids: ``[T]`` or ``[B, T]``; by default positions continue after the cache.
            document_ids: ``[B, T]``; a token attends only to tokens of its own document. Not with a cache.
            apply_head: False returns the hidden states, and the caller applies the head. (Then the root of FSDP has to
                keep its weights gathered after the forward pass, as it does by default.)

        Returns:
            Logits ``[B, T, V]``, or hidden states ``[B, T, C]`` after the final norm.

        Raises:
            ValueError: if the tokens do not fit the context.
        """
        T = idx.size(1)
        end = T + (cache.longest if cache is not None else 0)  # positions in use, if they are the default ones
        if position_ids is None and end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit the model's context of {self.config.block_size}")
        slots = cache.next_slots(T) if cache is not None else None  # [T] or [B, T]
        if position_ids is not None and self.config.block_size > ROPE_POSITIONS:
            end = int(position_ids.max()) + 1
        position_ids = slots if position_ids is None else position_ids  # None: 0..T-1
        windows = self.config.windows
        masks = {window: self._mask(idx, window, cache, slots, document_ids) for window in set(windows)}

        x = self.token_embedding(idx)  # [B, T, C]
        if self.position_embedding is not None:
            table = self.position_embedding.weight
            x = x + (table[:T] if position_ids is None else table[position_ids])  # [B, T, C]
        x = self.dropout(x)
        rope = self._rope(T, end, position_ids)
        for block, window in zip(self.blocks, windows, strict=True):
            x = block(x, rope, masks[window], cache, slots)  # [B, T, C]
        if cache is not None:
            cache.advance(T)
        x = self.final_norm(x)
        return self.head(x) if apply_head else x

    @staticmethod
    def _mask(
        idx: Tensor, window: int, cache: KVCache | None, slots: Tensor | None, document_ids: Tensor | None
    ) -> Tensor | None:
        """Return the attention mask: bool ``[B or 1, 1, T, S]``, True = attend; None = plain causal attention."""
        if cache is not None and slots is not None:
            assert document_ids is None, "documents are packed in training, without a cache"
            return cache.attention_mask(slots, window)
        T = idx.size(1)
        if document_ids is None and not 0 < window < T:
            return None
        here = torch.arange(T, device=idx.device)  # [T]
        mask = causal_mask(here, here, window)[None, None]  # [1, 1, T, T]
        if document_ids is not None:
            mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])  # [B, 1, T, T]
        return mask

    def _rope(self, T: int, end: int, position_ids: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines at positions below ``end``: ``[T, D]``, or ``[B, 1, T, D]`` where rows differ."""
        if self.config.position != "rope":
            return None
        if end > (built := len(self.rope_cos)):
            self._build_rope(min(max(end, 2 * built), self.config.block_size), self.rope_cos.dtype)
        if position_ids is None:
            return self.rope_cos[:T], self.rope_sin[:T]
        cos, sin = self.rope_cos[position_ids], self.rope_sin[position_ids]  # [T, D] or [B, T, D]
        return (cos, sin) if position_ids.dim() == 1 else (cos.unsqueeze(1), sin.unsqueeze(1))

    @property
    def device(self) -> torch.device:
        """The device of the weights, on which the model computes."""
        return self.final_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the norms' weights and of the activations; other weights may be quantised."""
        return self.final_norm.weight.dtype

    def num_parameters(self) -> int:
        """Count the parameters; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
