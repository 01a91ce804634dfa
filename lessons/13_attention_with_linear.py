# %% [markdown]
# # Lesson 13: attention with `nn.Linear`
#
# You will know at the end: what `nn.Linear` does for attention that three plain matrices do not, why its weight is
# stored transposed, and how one layer makes queries, keys and values at once.
#
# Time: 6 minutes to read, 3 seconds to compute. Before: lessons 4 (linear layers) and 12 (queries, keys and values).
# The picture needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Two classes, one computation
#
# The first class makes the matrices of lesson 12 parameters of a module. An `nn.Parameter` is a tensor that the module
# lists: `parameters()` returns it, so an optimizer can train it, and `state_dict()` returns it, so it can be saved. The
# second class uses three linear layers.

# %%
import torch
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed
from glassgpt.model.gpt import Attention


class ByHand(nn.Module):
    def __init__(self, C: int, D: int):
        super().__init__()
        self.W_q, self.W_k, self.W_v = (nn.Parameter(torch.randn(C, D)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return attend(x @ self.W_q, x @ self.W_k, x @ self.W_v)


class WithLinear(nn.Module):
    def __init__(self, C: int, D: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, D, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return attend(self.q(x), self.k(x), self.v(x))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys and values [B, T, D] -> averaged values [B, T, D]."""
    return (q @ k.mT / q.size(-1) ** 0.5).softmax(dim=-1) @ v


seed(0)
B, T, C, D = 2, 5, 6, 4
x = torch.randn(B, T, C)
by_hand, linear = ByHand(C, D), WithLinear(C, D)

# %% [markdown]
# ## The weight is stored transposed
#
# `nn.Linear(C, D)` computes `x @ weight.T + bias` (lesson 4).

# %%
guess = predict(f"The shape of nn.Linear({C}, {D}).weight?")
guess.measured(tuple(linear.q.weight.shape))
equal(linear.q(x), x @ linear.q.weight.T, "nn.Linear, and a product with the transposed weight")

# %% [markdown]
# In this order, a row of the weight contains all numbers that one output needs, side by side in memory. To copy our
# matrices into the layers, we transpose them.

# %%
for name in "qkv":
    getattr(linear, name).weight.data = getattr(by_hand, f"W_{name}").data.T
equal(linear(x), by_hand(x), "attention with nn.Linear, and by hand")

# %% [markdown]
# ## The usual bug: copied without transposing
#
# We forget `.T`, once with C = 6 and D = 4, and once with square matrices, C = D = 6.


# %%
def copied_wrongly(D: int) -> str:
    source, copy = ByHand(C, D), WithLinear(C, D)
    for name in "qkv":
        getattr(copy, name).weight.data = getattr(source, f"W_{name}").data  # the bug: no .T
    try:
        return f"no error; the outputs differ by up to {(copy(x) - source(x)).abs().max():.2f}"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


guess = predict("In which of the two cases does PyTorch raise an error?")
guess.measured(f"\n  D = {D}: {copied_wrongly(D)}\n  D = {C}: {copied_wrongly(C)}")

# %%
assert copied_wrongly(C).startswith("no error")

# %% [markdown]
# With square matrices, there is no error, and the model writes nonsense. This happens with real models: the attention
# of a GPT often has C = D, and GPT-2 was published with its matrices as `[in, out]` (lesson 24). So compare outputs.
#
# A second bug: `self.W_q = torch.randn(C, D)` without `nn.Parameter`. The model runs, but `parameters()` does not list
# the matrix, so it is never trained.

# %%
forgotten = ByHand(C, D)
del forgotten.W_q
forgotten.W_q = torch.randn(C, D)
assert [name for name, _ in forgotten.named_parameters()] == ["W_k", "W_v"]

# %% [markdown]
# ## The first weights
#
# The scale of lesson 12 is right for queries and keys with the standard deviation 1. With weights from `torch.randn`, a
# number of a query is a sum of C such numbers: too large. `nn.Linear` draws its first weights evenly from the range
# between -1 / sqrt(C) and 1 / sqrt(C). So the outputs do not grow with C.

# %%
wide = 256
inputs = torch.randn(64, 16, wide)


def largest_weight(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / q.size(-1) ** 0.5).softmax(dim=-1).amax(dim=-1).flatten().detach()


guess = predict("C = 256. The largest of the 16 weights of a row, on average, with torch.randn? (equal weights: 0.06)")
plain = largest_weight(inputs @ torch.randn(wide, wide), inputs @ torch.randn(wide, wide))
layers = largest_weight(*(nn.Linear(wide, wide, bias=False)(inputs) for _ in range(2)))
guess.measured(f"{plain.mean():.3f}; with nn.Linear: {layers.mean():.3f}")
assert plain.mean() > 0.95 and layers.mean() < 0.25

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
bins = [i / 40 for i in range(41)]
axes.hist(plain.tolist(), bins, alpha=0.7, label="torch.randn")
axes.hist(layers.tolist(), bins, alpha=0.7, label="nn.Linear")
axes.axvline(1 / 16, color="grey", linestyle=":", label="equal weights")
axes.set(xlabel="largest of the 16 weights of a row", ylabel="number of rows", title="Attention before training")
axes.legend()
picture(figure, "13-first-weights")

# %% [markdown]
# With `torch.randn`, each token looks at one random token only. Training would first have to undo that.
#
# ## One layer for all three
#
# q, k and v are made from the same x. So one layer with 3 D outputs does the same in one matrix product. Its weight
# contains the rows of the three weights, one after another. `chunk` cuts the result into three.

# %%
fused = nn.Linear(C, 3 * D, bias=False)
fused.weight.data = torch.cat([linear.q.weight, linear.k.weight, linear.v.weight])  # [3 D, C]
equal(attend(*fused(x).chunk(3, dim=-1)), linear(x), "one layer, and three")

# %% [markdown]
# The package's attention has such a layer, `qkv`, and one more after the average, `out`. It also hides later tokens
# (the mask, lesson 14), so we compare only the last one, which may look at all. The weight of `out` is here the
# identity matrix: the first D outputs are then the averages.

# %%
config = ModelConfig(n_embd=C, n_head=1, head_dim=D, qkv_bias=False, attention_out_bias=False)
theirs = Attention(config, layer=0)
theirs.load_state_dict({"qkv.weight": fused.weight, "out.weight": torch.eye(C, D)})
equal(linear(x)[:, -1], theirs(x, None, None, None, None)[:, -1, :D], "the last token: ours, and the package's")

# %% [markdown]
# ## In real systems
#
# GPT-2 has biases in these layers, Llama has none, and Qwen-2 has them for q, k and v only. GPT-2 and this package
# store the three matrices in one. Llama's published files have three; a loader joins them, as we did.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 13 --check my_answer.py`.
#
# 1. `to_linear(W, b)` returns an `nn.Linear` that computes `x @ W + b` for a matrix W `[C, D]` and a vector b `[D]`;
#    for `b = None`, one without a bias.
# 2. `fuse(q, k, v)` receives three `nn.Linear` with the same number of inputs; their numbers of outputs may differ. All
#    have a bias, or none has. It returns one `nn.Linear` whose outputs are those of q, k and v, side by side.
#
# Next: `glassgpt doctor --break tensor-not-a-parameter` shows the second bug. Then lesson 14: the causal mask.
