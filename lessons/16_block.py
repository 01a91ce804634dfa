# %% [markdown]
# # Lesson 16: the block
#
# You will know at the end: the four pieces of a Transformer block, why each is there, where the norm belongs, and how
# to test one block before you stack many.
#
# Time: 9 minutes to read, about 10 seconds to compute. Before: lesson 15 (many heads). The picture needs `pip install
# glassgpt[plot]`.

# %% [markdown]
# ## The norm
#
# After some layers the numbers can be huge or tiny, and training gets difficult. A *layer norm* gives the C numbers of
# each token mean 0 and variance 1. Then it multiplies by a weight and adds a bias, both learned, so that the model can
# choose another size.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import Block

torch.set_num_threads(1)  # for so small a model, one thread is faster than several


class Norm(nn.Module):
    def __init__(self, C: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight + self.bias


seed(0)
B, T, C, H = 2, 8, 32, 4
x = 100 * torch.randn(B, T, C) + 7
guess = predict("x has a standard deviation of 100 and a mean of 7. The standard deviation after the norm?")
guess.measured(Norm(C)(x).std(unbiased=False).item())
equal(Norm(C)(x), F.layer_norm(x, (C,)), "our norm, and PyTorch's")

# %% [markdown]
# ## The MLP
#
# Attention moves information between tokens. The *MLP* (multilayer perceptron, lesson 4) then works on each token
# alone: up to 4 C numbers, an *activation function*, and down to C. Here it is GELU: nearly 0 for negative numbers,
# nearly x for positive ones.


# %%
class MLP(nn.Module):
    def __init__(self, C: int):
        super().__init__()
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Attention(nn.Module):  # from lesson 15
    def __init__(self, C: int, H: int):
        super().__init__()
        self.H, self.qkv, self.out = H, nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.H, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool).tril()
        weights = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


# %% [markdown]
# ## The residual connection, and the order
#
# A block does not replace its input. It *adds* to it: `x = x + layer(x)`. This is a *residual connection*. A layer that
# has learned nothing useful may add nearly nothing.
#
# Where does the norm go? The first Transformer (2017) put it after the addition: `x = norm(x + layer(x))`. GPT-2 and
# most later models put it before the layer: `x = x + layer(norm(x))`. Then no norm and no matrix touches the way from
# the first block to the last, the *residual stream*. Our class can do both, and a third to compare.


# %%
class MyBlock(nn.Module):
    def __init__(self, C: int, H: int, kind: str = "norm before"):
        super().__init__()
        self.kind = kind
        self.norm_1, self.attention = Norm(C), Attention(C, H)
        self.norm_2, self.mlp = Norm(C), MLP(C)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in ((self.norm_1, self.attention), (self.norm_2, self.mlp)):
            if self.kind == "norm before":
                x = x + layer(norm(x))
            elif self.kind == "norm after":
                x = norm(x + layer(x))
            else:  # no residual connection
                x = layer(norm(x))
        return x


mine = MyBlock(C, H)
theirs = Block(ModelConfig(n_embd=C, n_head=H), layer=0)
theirs.load_state_dict(mine.state_dict())
equal(mine(x), theirs(x, None, None, None, None), "our block, and the package's")

# %% [markdown]
# ## Test one block before you stack many
#
# In a model of twelve blocks, a bug is hard to find. In one block, five tests find many.


# %%
def test_block(block: nn.Module) -> None:
    x = torch.randn(2, 8, C, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape, "the shape stays the same, so that blocks can be stacked"
    changed = x.detach().clone()
    changed[:, 5] = torch.randn(2, C)
    moved = (block(changed) != y).any(dim=-1)  # [B, T]
    assert not moved[:, :5].any(), "no token sees a later one"
    assert moved[:, 5:].all(), "each later token sees this one"
    assert torch.allclose(block(x[:1]), y[:1], atol=1e-5), "a text does not depend on the others of its batch"
    y.square().mean().backward()
    silent = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent, f"each parameter gets a gradient, but not {silent}"
    print("all five tests passed")


test_block(mine)

# %% [markdown]
# A test must fail when there is a bug. We build one: the second norm is computed, but its result is thrown away.


# %%
class Careless(MyBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        self.norm_2(x)  # the bug
        return x + self.mlp(x)


guess = predict("Which of the five tests fails?")
try:
    test_block(Careless(C, H))
except AssertionError as error:
    guess.measured(error)
else:
    raise AssertionError("the bug was not found")

# %% [markdown]
# ## The usual bug: no residual connection
#
# `x = layer(norm(x))` passes all five tests. But blocks are stacked. We stack 24 of each kind, with random weights, and
# compare two tokens of a text at the end by the *cosine* of their vectors: 1 means the same direction.


# %%
test_block(MyBlock(C, H, "no residual"))
kinds, alike = ("norm before", "norm after", "no residual"), {}
guess = predict("24 blocks without residual connections: the cosine of two tokens at the end? (at the start: near 0)")
for kind in kinds:
    seed(0)
    x = nn.Sequential(*(MyBlock(C, H, kind) for _ in range(24)))(torch.randn(1, 16, C))[0]  # [T, C]
    alike[kind] = F.cosine_similarity(x[0], x[-1], dim=0).item()
guess.measured({kind: round(value, 2) for kind, value in alike.items()})
assert alike["no residual"] > 0.95 > alike["norm before"]

# %% [markdown]
# Without residual connections, all tokens have become the same vector: each layer of attention averages, and nothing
# keeps the tokens apart. Can such a stack learn which of 10 tokens stood one place before? We train 12 blocks with a
# high learning rate.


# %%
def learn(kind: str, steps: int) -> list[float]:
    seed(1)
    tokens, positions, head = nn.Embedding(10, C), nn.Embedding(16, C), nn.Linear(C, 10)
    model = nn.Sequential(*(MyBlock(C, H, kind) for _ in range(12)), Norm(C), head)
    optimizer = torch.optim.AdamW([*model.parameters(), *tokens.parameters(), *positions.parameters()], lr=1e-2)
    losses = []
    for _ in range(steps):
        idx = torch.randint(10, (16, 16))  # [B, T]
        logits = model(tokens(idx) + positions.weight)[:, 1:]  # [B, T - 1, 10]
        loss = F.cross_entropy(logits.flatten(0, 1), idx[:, :-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


steps = short(full=100, quick=18)
guess = predict(f"The loss after {steps} steps: norm before? norm after? no residual connection? (ln 10 = 2.30)")
curves = {kind: learn(kind, steps) for kind in kinds}
guess.measured({kind: round(curve[-1], 2) for kind, curve in curves.items()})
assert curves["norm before"][-1] < curves["no residual"][-1] - 0.2

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
for kind in kinds:
    axes.plot(curves[kind], label=kind)
axes.set(xlabel="step", ylabel="loss (nats)", title="12 blocks, learning rate 0.01")
axes.legend()
picture(figure, "16-stack")

# %% [markdown]
# Without residual connections, nothing is learned. With the norm after the addition, nothing is learned at *this*
# learning rate, but with a third of it that stack learns, too. With the norm before, a stack is the easiest to train.
#
# ## In real systems
#
# Nearly all large language models have the norm before the layer. Most use RMSNorm, which divides by the root of the
# mean square, without mean and bias. The MLP of Llama and Qwen has a third matrix, a gate (SwiGLU).
#
# ## Exercises
#
# 1. `rms_norm(x, weight, eps)` divides each vector of x `[..., C]` by the square root of (the mean of its squares plus
#    eps), and multiplies by weight `[C]`.
# 2. `block(x, attention, mlp, norm_1, norm_2, before)` computes a block from four functions; `before` is True for the
#    norm before the layer, and False for the norm after the addition.
#
# Check them with `glassgpt learn 16 --check my_answer.py`.
#
# Next: `glassgpt doctor --break no-residual-at-all` trains a GPT with this lesson's bug. Then lesson 17: the whole GPT.
