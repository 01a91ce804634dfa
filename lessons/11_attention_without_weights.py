# %% [markdown]
# # Lesson 11: attention without weights
#
# You will know at the end: how a token collects information from other tokens, step by step, with nothing but dot
# products and a softmax; and what this cannot do.
#
# Time: 7 minutes. Before: lesson 10 (embeddings). The picture needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## The problem
#
# An embedding gives each token one vector. But a word has no meaning by itself: a *bank* can be at a river, or keep
# money. Its vector should depend on the words around it. *Attention* makes such a vector: a weighted average of the
# vectors of all tokens, with large weights for those that matter.
#
# The title says *without weights*: nothing here is learned. The weights of the average are computed anew for each text.
#
# In a model, vectors have hundreds of numbers that nobody chose. Ours have three, with a meaning: nature, money, and
# grammar.

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
print(x)

# %% [markdown]
# ## Step 1: how similar are two tokens?
#
# The *dot product* of two vectors multiplies them number by number and adds up. It is large if both are large in the
# same places, and 0 if they have nothing in common. Here it is called a *score*. We compute the scores of "bank" with
# each word.

# %%
query = x[1]  # "bank"
scores = torch.stack([sum(query[i] * other[i] for i in range(3)) for other in x])
for word, score in zip(words.split(), scores, strict=True):
    print(f"{word:6} {score:5.2f}")

# %% [markdown]
# ## Step 2: from scores to weights
#
# Weights should be positive and sum to 1. Dividing the scores by their sum does not do it, since scores can be
# negative. The *softmax* takes `exp` of each score, which is always positive, and then divides by the sum.

# %%
guess = predict('Which word gets the largest weight from "bank", and how much?')
weights = scores.exp() / scores.exp().sum()
guess.measured(f"{words.split()[int(weights.argmax())]}, {weights.max():.3f}")
for word, weight in zip(words.split(), weights, strict=True):
    print(f"{word:6} {weight:.3f}")
equal(weights, scores.softmax(dim=0), "our softmax, and PyTorch's")
assert torch.isclose(weights.sum(), torch.tensor(1.0))

# %% [markdown]
# ## Step 3: the weighted average
#
# The new vector of "bank" is called its *context vector*: each word's vector times its weight, added up.

# %%
context = sum(weight * vector for weight, vector in zip(weights, x, strict=True))
print("bank alone:     ", query.tolist())
print("bank in context:", [round(number, 2) for number in context.tolist()])
assert context[0] > context[1], "beside a river, a bank is more nature than money"

# %% [markdown]
# ## All tokens at once
#
# Each token does the same. With matrix products there is no loop left: `x @ x.T` has all scores, row t those of token
# t. The softmax goes along each row (`dim=-1`). A second product makes the averages.


# %%
def attention(x: Tensor) -> Tensor:
    """Vectors [T, C] -> context vectors [T, C]."""
    weights = (x @ x.mT).softmax(dim=-1)  # [T, T]
    return weights @ x


equal(attention(x)[1], context, "the row of 'bank', and the one computed by steps")
guess = predict('In "my money the bank opens": is the vector of "bank" more nature or more money?')
other = attention(embed("my money the bank opens"))[3]
guess.measured(f"nature {other[0]:.2f}, money {other[1]:.2f}")
assert other[1] > other[0]

# %% [markdown]
# The same word, the same vector, and after attention two different vectors.
#
# PyTorch has a function for this. It takes three tensors, since in the next lesson they will differ. Here all are x.

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
    place.set(xlabel="looked at", title="each row sums to 1")
    for row in range(5):
        for column in range(5):
            weight = weights[row, column].item()
            place.text(
                column, row, f"{weight:.2f}", ha="center", va="center", color="white" if weight > 0.6 else "black"
            )
axes[0].set(ylabel="who looks")
figure.tight_layout()
picture(figure, "11-weights")

# %% [markdown]
# ## The usual bug: the softmax along the wrong dimension
#
# `softmax(dim=0)` divides each *column* by its sum. The shape is right, and no error comes. But a row does not sum to 1
# any more: a context vector is no average, it is too long or too short. In a batch `[B, T, T]`, `dim=1` is this bug.
# There `dim=0` is a worse one: it mixes the texts of the batch. With `dim=-1` both are avoided.

# %%
wrong = (x @ x.mT).softmax(dim=0)
guess = predict("The sums of the 5 rows, with the wrong dimension? (what is their total?)")
guess.measured([round(number, 2) for number in wrong.sum(dim=-1).tolist()])
print(f"longest context vector {(wrong @ x).norm(dim=-1).max():.2f}, longest word {x.norm(dim=-1).max():.2f}")
assert torch.isclose(wrong.sum(), torch.tensor(5.0)) and (wrong.sum(dim=-1) - 1).abs().max() > 0.1

# %% [markdown]
# ## What this attention cannot do
#
# 1. It cannot learn: there is no parameter in it.
# 2. Scores are symmetric: "bank" looks for "river" as much as "river" for "bank".
# 3. A token looks at itself: no other vector of the same length has a larger product with it.
# 4. It does not know the order. If the words change places, the context vectors change places with them, and are the
#    same vectors.

# %%
seed(0)
order = torch.randperm(5)
scores = x @ x.mT
assert torch.equal(scores, scores.mT), "symmetric"
equal(attention(x[order]), attention(x)[order], "shuffled before, and shuffled after")

# %% [markdown]
# The next lesson repairs the first three, with three matrices. The fourth is what position embeddings are for (lesson
# 10): they make the vectors of two equal words different.
#
# ## In real systems
#
# The two products and the softmax are the same in every Transformer since 2017. On a GPU they run in one step
# (FlashAttention) that never stores the `[T, T]` weights: for 100,000 tokens these would be 40 GB per head.
#
# ## Exercises
#
# 1. `softmax(scores)` returns the softmax along the last dimension, for any shape, without PyTorch's own. It must
#    survive scores of 1,000, for which `exp` is infinite.
# 2. `context(x, t)` returns the context vector `[C]` of token t in x `[T, C]`, as above, without parameters.
#
# Check them with `glassgpt learn 11 --check my_answer.py`.
#
# Next: `glassgpt doctor --break softmax-over-queries` trains a GPT with this lesson's bug. Then lesson 12: queries,
# keys and values.
