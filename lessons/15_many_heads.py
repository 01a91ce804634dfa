# %% [markdown]
# # Lesson 15: many heads
#
# You will know at the end: why attention has several heads, how to write them as a list, how to compute them all at
# once, and why a wrong `reshape` gives no error and a wrong model.
#
# Time: 9 minutes to read, 6 seconds to compute. Before: lesson 14 (the causal mask). The picture needs matplotlib
# (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Why more than one
#
# A token gets a weighted *average* of the values. If it looks at two tokens, it does not know which part came from
# which. With two *heads*, two attentions are computed side by side, each with its own queries, keys and values. Their
# results are put next to each other.
#
# The width C is divided among the heads. With C = 32 and H = 4 heads, each has queries, keys and values of D = C / H =
# 8 numbers.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model.gpt import Attention

torch.set_num_threads(1)  # for so small a model, one thread is faster than several

B, T, C, H = 2, 6, 32, 4
D = C // H
seed(0)
x = torch.randn(B, T, C)

# %% [markdown]
# ## First: a list of heads
#
# This is the attention of lesson 14 in a class, and H of them in a list. A last matrix mixes their results.


# %%
class Head(nn.Module):
    def __init__(self, C: int, D: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, D, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)  # each [B, T, D]
        T = x.size(1)
        scores = q @ k.mT / q.size(-1) ** 0.5  # [B, T, T]
        scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf"))
        return scores.softmax(dim=-1) @ v  # [B, T, D]


class ListOfHeads(nn.Module):
    def __init__(self, C: int, H: int):
        super().__init__()
        self.heads = nn.ModuleList(Head(C, C // H) for _ in range(H))
        self.out = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([head(x) for head in self.heads], dim=-1))  # [B, T, H D] = [B, T, C]


slow = ListOfHeads(C, H)
guess = predict(f"4 heads have {sum(p.numel() for p in slow.parameters()):,} parameters. And 8 heads, with the same C?")
guess.measured(sum(p.numel() for p in ListOfHeads(C, 8).parameters()))

# %% [markdown]
# ## Then: split and merge
#
# One large product is faster than many small ones (lesson 6). So we join the matrices of all heads to one, as in lesson
# 13. The result is then *split*: the C numbers of a token become H rows of D.
#
# ```text
# [B, T, C]  -- view -->  [B, T, H, D]  -- transpose -->  [B, H, T, D]     split
# [B, H, T, D]  -- transpose -->  [B, T, H, D]  -- reshape -->  [B, T, C]  merge
# ```
#
# A matrix product works on the last two dimensions. After the transpose, these are T and D.


# %%
class ManyHeads(nn.Module):
    def __init__(self, C: int, H: int):
        super().__init__()
        self.H = H
        self.qkv = nn.Linear(C, 3 * C, bias=False)  # its rows: q of all heads, k of all heads, v of all heads
        self.out = nn.Linear(C, C, bias=False)

    def split(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        return x.view(B, T, self.H, C // self.H).transpose(1, 2)  # [B, H, T, D]

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        mask = torch.ones(q.size(2), q.size(2), dtype=torch.bool).tril()
        return (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask, float("-inf")).softmax(dim=-1)  # [B, H, T, T]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.qkv(x).chunk(3, dim=-1))
        y = self.weights(q, k) @ v  # [B, H, T, D]
        return self.out(y.transpose(1, 2).reshape(x.shape))  # [B, T, C]


fast = ManyHeads(C, H)
rows = [head.get_submodule(name).weight for name in "qkv" for head in slow.heads]  # 12 matrices, each [D, C]
fast.load_state_dict({"qkv.weight": torch.cat(rows), "out.weight": slow.out.weight})
equal(fast(x), slow(x), "one matrix, and a list of heads")

# %% [markdown]
# PyTorch and the package have the same layer, and store the three matrices as we do.

# %%
torchs = nn.MultiheadAttention(C, H, bias=False, batch_first=True)
torchs.load_state_dict({"in_proj_weight": fast.qkv.weight, "out_proj.weight": fast.out.weight})
hidden = ~torch.ones(T, T, dtype=torch.bool).tril()  # here True means: do NOT look
equal(fast(x), torchs(x, x, x, attn_mask=hidden, need_weights=False)[0], "ours, and nn.MultiheadAttention")

config = ModelConfig(n_embd=C, n_head=H, qkv_bias=False, attention_out_bias=False)
packages = Attention(config, layer=0)
packages.load_state_dict(fast.state_dict())
equal(fast(x), packages(x, None, None, None, None), "ours, and the package's")

# %% [markdown]
# ## The usual bug: a reshape in place of a transpose
#
# Why not `reshape(B, H, T, D)` at once? There is no error. But `reshape` and `view` keep the numbers in their order:
# first the C numbers of token 0, then those of token 1. So the first T D numbers are *not* one head of T tokens: they
# are all heads of the first T / H tokens.

# %%
numbers = torch.arange(12).view(1, 3, 4)  # B = 1, T = 3 tokens, C = 4: token t has the numbers 4 t to 4 t + 3
print("head 0, right:", numbers.view(1, 3, 2, 2).transpose(1, 2)[0, 0].tolist())
print("head 0, wrong:", numbers.reshape(1, 2, 3, 2)[0, 0].tolist())


class WrongHeads(ManyHeads):
    def split(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        return x.reshape(B, self.H, T, C // self.H)  # the bug


wrong = WrongHeads(C, H)
wrong.load_state_dict(fast.state_dict())
changed = x.clone()
changed[:, -1] += 1  # another last token
guess = predict(f"We change the last of {T} tokens. How many tokens before it change: in ours, in the wrong one?")
before = [int((part(x) != part(changed))[0, :-1].any(dim=-1).sum()) for part in (fast, wrong)]
guess.measured(f"ours: {before[0]}, the wrong one: {before[1]}")
assert before[0] == 0 < before[1], "the wrong split mixes tokens, and so it leaks"

# %% [markdown]
# The mask is right, but its rows and columns are not tokens any more. So earlier tokens see later ones.
#
# In the merge, the tensor is not contiguous after `transpose`. So `view` raises an error, and `reshape` copies in the
# right order (lesson 1).

# %%
y = torch.randn(B, H, T, D)
try:
    y.transpose(1, 2).view(B, T, C)
except RuntimeError as error:
    print("RuntimeError:", str(error).split(" (")[0])
equal(y.transpose(1, 2).reshape(B, T, C), torch.cat(list(y.unbind(1)), dim=-1), "merged, and heads side by side")

# %% [markdown]
# ## What two heads can do, and one cannot
#
# The task at every position: name the token 1 place before, and the token 4 places before. We train one layer of
# attention with one head, and with two. The numbers of parameters are the same.


# %%
def learn(heads: int, steps: int) -> tuple[float, Tensor]:
    seed(1)
    V, T, C = 10, 12, 32
    tokens, positions, attention = nn.Embedding(V, C), nn.Embedding(T, C), ManyHeads(C, heads)
    answers = nn.Linear(C, 2 * V)
    optimizer = torch.optim.AdamW(nn.ModuleList([tokens, positions, attention, answers]).parameters(), lr=1e-2)
    for _ in range(steps):
        idx = torch.randint(V, (32, T))  # [B, T]
        logits = answers(attention(tokens(idx) + positions.weight))[:, 4:].unflatten(-1, (2, V))  # [B, T - 4, 2, V]
        targets = torch.stack([idx[:, 3:-1], idx[:, :-4]], dim=-1)  # [B, T - 4, 2]
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    q, k, _ = map(attention.split, attention.qkv(tokens(idx) + positions.weight).chunk(3, dim=-1))
    return loss.item(), attention.weights(q, k).mean(dim=0).detach()  # the weights: [heads, T, T]


steps = short(full=400, quick=100)
guess = predict("The last loss with one head? (a guess among 10 tokens: ln 10 = 2.30; among two: ln 2 = 0.69)")
(one_loss, one), (two_loss, two) = learn(1, steps), learn(2, steps)
guess.measured(f"{one_loss:.3f}; with two heads: {two_loss:.3f}")
assert two_loss < 0.5 * one_loss, "two heads keep apart what they found"

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
titles = ("one head: mixes both places", "two heads: the first", "two heads: the second")
for place, weights, title in zip(axes, (one[0], *two), titles, strict=True):
    image = place.imshow(weights.numpy(), vmin=0, vmax=1, cmap="viridis")
    place.set(title=title, xlabel="position of the key")
axes[0].set(ylabel="position of the query")
figure.colorbar(image, ax=list(axes), label="mean weight")
picture(figure, "15-heads")

# %% [markdown]
# From position 4 on, each of the two heads looks at one place. The single head looks at both, and cannot say which
# token was at which place. (Its loss is a little less than ln 2: in one of ten cases the two are the same.)
#
# ## In real systems
#
# GPT-2 has 12 heads of 64 numbers, Llama 3 70B has 64 heads of 128. In newer models several query heads share one head
# of keys and values (*grouped-query attention*). This makes the cache of lesson 25 smaller.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 15 --check my_answer.py`.
#
# 1. `merge(y)` is the inverse of `split`: it returns `[B, T, H D]` for every y of shape `[B, H, T, D]`, also for one
#    that is not contiguous.
# 2. `share(k, H)` prepares grouped-query attention: k has fewer heads than the queries, `[B, G, T, D]`, and H is a
#    multiple of G. It returns `[B, H, T, D]`: the first H / G query heads get head 0 of k, the next H / G get head 1,
#    and so on.
#
# Next: `glassgpt doctor --break heads-by-view` trains a GPT with this lesson's bug beside the right one. Then lesson
# 16: the block.
