# %% [markdown]
# # Lesson 12: queries, keys and values
#
# You will know at the end: what the three matrices of attention are for, how to set them by hand and how to learn them,
# and why scores are divided by the square root of D.
#
# Time: 7 minutes to read, 5 seconds to compute. Before: lesson 11 (attention without weights). The picture needs
# matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Three roles
#
# In lesson 11 a token looked at tokens that are similar to it, and nothing could be learned. But often a token needs
# tokens that are *different* from it: a verb needs its subject.
#
# So each token gets three vectors instead of one. Each is the token's vector times a matrix:
#
# - the *query*: what this token looks for;
# - the *key*: what this token can be found by;
# - the *value*: what this token gives to those that look at it.
#
# A score is the dot product of a query with a key. The result is the weighted average of the values.
#
# ## A task
#
# Each token is a vector of 6 numbers. The first 4 say which value it has, 0 to 3: one of them is 1. Number 5 is a flag:
# it is 1 for one token of the text, and 0 for all others. Number 6 is always 1. The task of every token: find the value
# of the token with the flag.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import ExplicitAttention


def texts(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Vectors [B, T, 6], and the value of the token with the flag, [B]."""
    values, flagged = torch.randint(4, (B, T)), torch.randint(T, (B,))
    flag = F.one_hot(flagged, T)[..., None]
    x = torch.cat([F.one_hot(values, 4), flag, torch.ones(B, T, 1)], dim=-1).float()
    return x, values[torch.arange(B), flagged]


seed(0)
x, answers = texts(B=1, T=5)
print(x[0])
print("the value to find:", answers.item())

# %% [markdown]
# ## The matrices, set by hand
#
# Three matrices `[C, D]` with C = 6 and D = 4:
#
# - Every token looks for the same thing. So `W_q` takes number 6, which is always 1, times 20: scores are then large,
#   and the softmax gives nearly all weight to one token.
# - A token can be found by its flag: `W_k` takes number 5.
# - A token gives its value: `W_v` takes the numbers 1 to 4.
#
# The scores are divided by the square root of D, for a reason that comes below.

# %%
C, D = 6, 4
W_q, W_k, W_v = torch.zeros(3, C, D)
W_q[5, 0], W_k[4, 0] = 20, 1
W_v[:4] = torch.eye(4)

q, k, v = x @ W_q, x @ W_k, x @ W_v  # each [B, T, D]
scores = q @ k.mT / D**0.5  # [B, T, T]
weights = scores.softmax(dim=-1)
guess = predict("Which of the 5 tokens gets nearly all weight from the first token? (counted from 1)")
guess.measured(int(weights[0, 0].argmax()) + 1)
print("what it gets:", (weights @ v)[0, 0])
assert (weights @ v)[0].argmax(dim=-1).eq(answers).all(), "every token found the value"

# %% [markdown]
# A token finds the one with the flag, also if the two are not similar. For the package, the mask (lesson 14) is True
# everywhere: every token may look at every other.

# %%
equal(weights @ v, F.scaled_dot_product_attention(q, k, v), "ours, and PyTorch's")
all_true = torch.ones(1, 1, 5, 5, dtype=torch.bool)
theirs, their_weights = ExplicitAttention()(q[None], k[None], v[None], all_true)  # [B, H, T, D]
equal(weights @ v, theirs[0], "ours, and the package's")
equal(weights, their_weights[0], "the weights")

# %% [markdown]
# ## The matrices, learned
#
# Now the matrices begin with random numbers. They are leaves with `requires_grad` (lesson 2), so `backward` gives each
# a gradient. The D = 4 numbers of a result are the logits of the four values.


# %%
def learn(steps: int) -> tuple[list[Tensor], float]:
    seed(1)
    matrices = [(torch.randn(C, D) / C**0.5).requires_grad_() for _ in range(3)]
    optimizer = torch.optim.AdamW(matrices, lr=3e-2, weight_decay=0.0)
    for _ in range(steps):
        x, answers = texts(B=64, T=5)
        q, k, v = (x @ matrix for matrix in matrices)
        y = (q @ k.mT / D**0.5).softmax(dim=-1) @ v  # [B, T, 4]
        loss = F.cross_entropy(y.flatten(0, 1), answers.repeat_interleave(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [matrix.detach() for matrix in matrices], loss.item()


guess = predict("The loss after training? (four equal guesses: ln 4 = 1.39)")
learned, loss = learn(short(full=600, quick=150))
guess.measured(loss)
q, k, _ = (x @ matrix for matrix in learned)
weights = (q @ k.mT / D**0.5).softmax(dim=-1)
assert (weights[0].argmax(dim=-1) == x[0, :, 4].argmax()).all(), "every token looks at the flag"

# %% [markdown]
# Training has found the solution that we set by hand: look at the flag, take the value.
#
# ## Why divide by the square root of D?
#
# Take queries and keys of D random numbers with mean 0 and variance 1. (The variance is the square of the standard
# deviation.) Their dot product is a sum of D terms, each with variance 1. So the variance of the sum is D, and its
# standard deviation is the square root of D.

# %%
guess = predict("D = 1024. The standard deviation of the scores?")
q, k = torch.randn(2, 2000, 1024)
guess.measured(float((q * k).sum(-1).std()))

# %% [markdown]
# Scores of 30 are too large for a softmax: `exp(30)` is about 10,000,000,000,000. One weight is then nearly 1, before
# anything was learned. Worse: the gradient of such a softmax is nearly 0, so training changes it only slowly. Divided
# by the square root of D, scores have a standard deviation of 1 for every D.
#
# ## The usual bug: no scale
#
# We measure the largest weight among 16 tokens, and the gradient that the scores get.


# %%
def saturation(width: int, scale: float) -> tuple[float, float]:
    """The mean of the largest weight, and the mean size of d weight / d score on the diagonal: w (1 - w)."""
    seed(0)
    q, k = torch.randn(2, 64, 16, width)
    weights = (q @ k.mT * scale).softmax(dim=-1)  # [64, 16, 16]
    return weights.amax(dim=-1).mean().item(), (weights * (1 - weights)).mean().item()


guess = predict("D = 256, 16 tokens. The largest weight of a row, without the scale? (equal weights would be 0.06)")
without, with_scale = saturation(256, 1.0), saturation(256, 256**-0.5)
guess.measured(without[0])
print(f"with the scale: {with_scale[0]:.2f}; gradient: {without[1]:.4f} without, {with_scale[1]:.4f} with the scale")

# %%
assert without[0] > 0.8 and with_scale[0] < 0.5 and with_scale[1] > 3 * without[1]

# %%
import matplotlib.pyplot as plt

widths = [2**power for power in range(11)]
figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(widths, [saturation(width, 1.0)[0] for width in widths], marker="o", label="no scale")
axes.plot(widths, [saturation(width, width**-0.5)[0] for width in widths], marker="o", label="divided by sqrt(D)")
axes.set(xlabel="D", ylabel="largest weight of a row, mean", title="Random queries and keys, 16 tokens")
axes.set_xscale("log", base=2)
axes.legend()
picture(figure, "12-scale")

# %% [markdown]
# ## In real systems
#
# All Transformers have these three matrices in every layer. Some also normalise queries and keys (*QK-norm*, Qwen-3),
# so that scores cannot grow too large. For translation, keys and values can come from another text (*cross-attention*).
#
# ## Exercises
#
# Check your answers with `glassgpt learn 12 --check my_answer.py`.
#
# 1. `attention(x, W_q, W_k, W_v)` returns the results `[T, E]` for x `[T, C]`, with the scale. `W_q` and `W_k` are
#    `[C, D]`, and `W_v` is `[C, E]`; E may differ from D.
# 2. `cross_attention(x, memory, W_q, W_k, W_v)`: the same, but the tokens of x `[T, C]` look at those of another text,
#    `memory` `[S, C]`. The result is `[T, E]`.
#
# Next: `glassgpt doctor --break no-scale` trains a GPT without the scale. Then lesson 13: the same with `nn.Linear`.
