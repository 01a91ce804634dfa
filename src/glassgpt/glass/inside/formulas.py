"""The formula of every tensor of a forward pass, with the sizes put in, from the model's configuration."""

from glassgpt.config import ModelConfig
from glassgpt.recording import axes_of


def formulas(config: ModelConfig, T: int, layer: int = 0) -> dict[str, str]:
    """Return the formulas by the names of the tensors: those outside the blocks, and those of one layer.

    They name the tensors and weights that a tensor is computed from. Sizes are those of one row, without the batch:
    ``[rows, columns]``, or ``[heads, rows, columns]``. ``^T`` is a matrix transposed.
    """
    of = _Formulas(config, T)
    return of.outside() | of.attention(layer) | of.mlp()


class _Formulas:
    def __init__(self, config: ModelConfig, T: int):
        self.config, self.T = config, T
        H, KV, D = config.n_head, config.n_kv_head, config.head_dim
        self.size = {
            "T": T, "C": config.n_embd, "H": H, "KV": KV, "D": D, "I": config.intermediate_size,
            "V": config.vocab_size, "P": (H + 2 * KV) * D, "A": H * D,
        }  # fmt: skip

    def sizes(self, name: str) -> str:
        """The sizes of one row of a tensor: ``[9, 14, 64]``."""
        return str([self.size[axis] for axis in axes_of(name, self.config) if axis != "B"])

    def linear(self, x: str, layer: str, bias: bool, y: str) -> str:
        """A matrix product with a weight, and its bias."""
        columns = [self.size[axes_of(name, self.config)[-1]] for name in (x, y)]
        added = f" + {layer}.bias" if bias else ""
        return f"{x} @ {layer}.weight^T{added}  {self.sizes(x)} @ {columns} -> {self.sizes(y)}"

    def norm(self, x: str, kind: str = "") -> str:
        """A norm, its weight and its bias."""
        bias = " + bias" if self.config.norm_bias and not kind else ""
        return f"{kind or self.config.norm}({x}) * weight{bias}, eps {self.config.norm_eps:g}"

    def outside(self) -> dict[str, str]:
        """The tensors before and after the blocks."""
        config, T = self.config, self.T
        table = "token_embedding.weight"
        learned = config.position == "learned"
        head = table if config.tie_embeddings else "head.weight"
        rows = f"  {[config.vocab_size, config.n_embd]}[{[T]}] -> {self.sizes('token embedding')}"
        return {
            "idx": "the ids of the prompt's tokens",
            "token embedding": f"{table}[idx]{rows}",
            "position embedding": f"position_embedding.weight[0:{T}]",
            "embeddings": "token embedding" + " + position embedding" * learned,
            "final norm": self.norm(f"residual after mlp of layer {config.n_layer - 1}"),
            "logits": self.linear("final norm", "head", False, "logits").replace("head.weight", head),
        }

    def attention(self, layer: int) -> dict[str, str]:
        """The tensors of a layer's attention, and the residual stream around it."""
        config, T, sizes = self.config, self.T, self.sizes
        H, KV, D = config.n_head, config.n_kv_head, config.head_dim
        x = f"residual after mlp of layer {layer - 1}" if layer else "embeddings"
        normed = "normed " * config.qk_norm
        rotated = "rotated " if config.position == "rope" else normed
        k, v = ("k per query head", "v per query head") if KV < H else (f"{rotated}k", "v")
        window = config.windows[layer]
        visible = f"query - {window} < key <= query" if window else "key <= query"
        result = {"norm 1": self.norm(x), "qkv": self.linear("norm 1", "attention.qkv", config.qkv_bias, "qkv")}
        for name, start, heads in (("q", 0, H), ("k", H * D, KV), ("v", (H + KV) * D, KV)):
            part = f"qkv[:, {start}:{start + heads * D}] as {heads} heads of {D}"
            result |= {name: f"{part}  {[T, heads * D]} -> {sizes(name)}"}
            result |= {f"normed {name}": self.norm(name, "rmsnorm")}
            result |= {f"rotated {name}": f"{normed}{name} * cos + rotate_half({normed}{name}) * sin, {self.rope()}"}
        for name, x_per_head in (("k per query head", f"{rotated}k"), ("v per query head", "v")):
            result[name] = f"each head of {x_per_head}, {H // KV} times  {sizes(x_per_head)} -> {sizes(name)}"
        transposed = str([H, D, T])
        return result | {
            "scores": f"{rotated}q @ {k}^T  {sizes('q')} @ {transposed} -> {sizes('scores')}",
            "scaled scores": f"scores / sqrt({D})",
            "masked scores": f"scaled scores where {visible}, else -inf",
            "attention weights": "softmax(masked scores) over the keys, in float32",
            "head outputs": f"attention weights @ {v}  {sizes('scores')} @ {sizes('q')} -> {sizes('head outputs')}",
            "concatenated heads": f"head outputs side by side  {sizes('q')} -> {sizes('concatenated heads')}",
            "attention output": self.linear(
                "concatenated heads", "attention.out", config.attention_out_bias, "attention output"
            ),
            "residual after attention": f"{x} + attention output",
        }

    def rope(self) -> str:
        """How rotary positions turn."""
        config = self.config
        scaling = "" if config.rope_scaling == "none" else f", {config.rope_scaling} scaling by {config.rope_factor:g}"
        return f"positions 0 to {self.T - 1}, theta {config.rope_theta:g}{scaling}"

    def mlp(self) -> dict[str, str]:
        """The tensors of the MLP, and the residual stream around it."""
        bias = self.config.mlp_bias
        hidden = {"swiglu": "silu(gate) * up", "gelu": "gelu(up)", "gelu_tanh": "gelu(up), by tanh"}
        return {
            "norm 2": self.norm("residual after attention"),
            "gate": self.linear("norm 2", "mlp.gate", bias, "gate"),
            "up": self.linear("norm 2", "mlp.up", bias, "up"),
            "hidden": hidden[self.config.mlp],
            "mlp output": self.linear("hidden", "mlp.down", bias, "mlp output"),
            "residual after mlp": "residual after attention + mlp output",
        }
