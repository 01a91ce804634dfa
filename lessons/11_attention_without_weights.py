# %% [markdown]
# # Lesson 11: attention without weights
#
# You will know at the end: how a token collects information from other tokens, step by step, with nothing but dot
# products and a softmax; and what this cannot do.
#
# Time: 6 minutes to read, 2 seconds to compute. Before: lessons 2 (softmax) and 10 (embeddings). The picture needs
# matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## The problem
#
# An embedding gives each token one vector. But many words have several meanings: a *bank* can be the side of a river,
# or keep money. The vector should depend on the words around it. *Attention* makes such a vector: a weighted average of
# the vectors of all tokens, with large weights for those that matter.
#
# The title says *without weights*: nothing here is learned. The weights of the average are computed again for each
# text. Our vectors have three numbers, which we choose: one for nature, one for money, one for grammar.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.learn import equal, picture, predict, seed

vectors = {
    "the": [0.0, 0.0, 2.0], "of": [0.0, 0.0, 2.0], "river": [3.0, 0.0, 0.0], "bank": [1.4, 1.4, 0.0],
    "opens": [0.2, 1.0, 1.0], "my": [0.0, 0.5, 2.0], "money": [0.0, 3.0, 0.0],
}  # fmt: skip


def embed(text: str) -> Tensor:
    return torch.tensor([vectors[word] for word in text.split()])


words = "the bank of the river"
x = embed(words)  # [T, C] = [5, 3]

# %% [markdown]
# ## Step 1: how similar are two tokens?
#
# The *dot product* of two vectors multiplies them number by number and adds up the products. It is large if both
# vectors have large numbers in the same places. In attention it is called a *score*. We compute the scores of "bank"
# with each word.

# %%
query = x[1]  # "bank"
scores = torch.stack([sum(query[i] * other[i] for i in range(3)) for other in x])
print(scores)

# %% [markdown]
# ## Step 2: from scores to weights
#
# Weights should be positive, and their sum should be 1. But scores can be negative. The *softmax* takes `exp` of each
# score, which is always positive, and then divides by the sum.

# %%
guess = predict('Which word gets the largest weight from "bank", and how much?')
weights = scores.exp() / scores.exp().sum()
guess.measured(f"{words.split()[int(weights.argmax())]}, {weights.max():.3f}")
print(weights)
equal(weights, scores.softmax(dim=0), "our softmax, and PyTorch's")

# %% [markdown]
# ## Step 3: the weighted average
#
# Multiply each word's vector by its weight, and add them up. The result is the new vector of "bank", its *context
# vector*.

# %%
context = sum(weight * vector for weight, vector in zip(weights, x, strict=True))
print("bank alone:", query, "  in context:", context)
assert context[0] > context[1], "beside a river, a bank is more nature than money"

# %% [markdown]
# ## All tokens at once
#
# Each token does the same. With matrix products we need no loop: `x @ x.mT` contains all scores; row t has those of
# token t. (`mT` exchanges the last two dimensions.) The softmax goes along each row (`dim=-1`). A second product makes
# the averages.


# %%
def attention(x: Tensor) -> Tensor:
    """Vectors [T, C] -> context vectors [T, C]."""
    weights = (x @ x.mT).softmax(dim=-1)  # [T, T]
    return weights @ x


equal(attention(x)[1], context, "the row of 'bank', and the one computed by steps")
guess = predict('In "my money the bank opens": is the vector of "bank" more nature or more money?')
other = attention(embed("my money the bank opens"))[3]
guess.measured(f"nature {other[0]:.2f}, money {other[1]:.2f}")

# %%
assert other[1] > other[0]

# %% [markdown]
# "bank" has the same embedding in both texts. After attention, its vectors differ.
#
# PyTorch's function takes three tensors. In the next lesson these will differ; here all three are x.

# %%
equal(attention(x), F.scaled_dot_product_attention(x[None], x[None], x[None], scale=1.0)[0], "ours, and PyTorch's")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 4))
for place, text in zip(axes, (words, "my money the bank opens"), strict=True):
    values = embed(text)
    weights = (values @ values.mT).softmax(dim=-1)
    place.imshow(weights.numpy(), vmin=0, vmax=1, cmap="Blues")
    place.set_xticks(range(5), text.split(), rotation=45)
    place.set_yticks(range(5), text.split())
    place.set(xlabel="token that it looks at", title="each row sums to 1")
    for row in range(5):
        for column in range(5):
            ink = "white" if weights[row, column] > 0.6 else "black"
            place.text(column, row, f"{weights[row, column]:.2f}", ha="center", va="center", color=ink)
axes[0].set(ylabel="token that looks")
figure.tight_layout()
picture(figure, "11-weights")

# %% [markdown]
# ## The usual bug: the softmax along the wrong dimension
#
# `softmax(dim=0)` divides each *column* by its sum. The shape is right, and there is no error.

# %%
wrong = (x @ x.mT).softmax(dim=0)
guess = predict("Every column sums to 1. What do the 5 rows sum to, all together? And each of them?")
guess.measured([round(number, 2) for number in wrong.sum(dim=-1).tolist()])
print(f"longest context vector {(wrong @ x).norm(dim=-1).max():.2f}, longest word {x.norm(dim=-1).max():.2f}")

# %%
assert torch.isclose(wrong.sum(), torch.tensor(5.0)) and (wrong.sum(dim=-1) - 1).abs().max() > 0.1

# %% [markdown]
# The rows do not sum to 1 any more. So a context vector is not an average: it is too long or too short. In a batch
# `[B, T, T]`, `dim=1` is this bug, and `dim=0` mixes the texts. `dim=-1` is always right.
#
# ## What this attention cannot do
#
# 1. It cannot learn: it has no parameters.
# 2. Scores are symmetric: the score of "bank" with "river" is that of "river" with "bank".
# 3. A token looks mostly at itself, and at tokens with similar or longer vectors: no other vector of the same length
#    has a larger dot product with it.
# 4. The order has no effect. If the words change places, so do their context vectors.

# %%
seed(0)
order = torch.randperm(5)
scores = x @ x.mT
assert torch.allclose(scores, scores.mT), "symmetric"
equal(attention(x[order]), attention(x)[order], "shuffled before, and shuffled after")

# %% [markdown]
# The next lesson repairs the first three, with three matrices. Position embeddings repair the fourth (lesson 10): they
# make the vectors of two equal words different.
#
# ## In real systems
#
# Every Transformer computes these two products and the softmax. On a GPU they run in one step (FlashAttention), which
# never stores the `[T, T]` weights: for 100,000 tokens these would be 40 GB in float32, for each text and each head
# (lesson 15).
#
# ## Exercises
#
# Check your answers with `glassgpt learn 11 --check my_answer.py`.
#
# 1. `softmax(scores)` returns the softmax along the last dimension, for any shape, written with `exp` and sums. It must
#    also be right for scores of 1,000, for which `exp` is infinite. It does not change `scores`.
# 2. `context(x, t)` returns the context vector `[C]` of token t in x `[T, C]`, as above, without parameters.
#
# Next: `glassgpt doctor --break softmax-over-queries` trains a GPT with this lesson's bug. Then lesson 12: queries,
# keys and values.
