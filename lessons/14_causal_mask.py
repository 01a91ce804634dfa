# %% [markdown]
# # Lesson 14: the causal mask
#
# You will know at the end: why a language model must not see later tokens, how a mask hides them, why the mask comes
# *before* the softmax, and how to find out that a mask leaks.
#
# Time: 6 minutes to read, 6 seconds to compute. Before: lesson 13 (query, key and value with `nn.Linear`). The picture
# needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## The problem
#
# The model reads T tokens at once and predicts, at every position, the token after it. In training, this next token is
# also in the input, one place to the right. If a position could look there, it would copy the answer and learn nothing
# else. When the model writes a text, later tokens do not exist yet.
#
# So position t may attend to positions 0 to t, and to no other. This is the *causal mask*.

# %%
import torch

from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import ExplicitAttention

seed(0)
T, D = 5, 8
q, k, v = torch.randn(3, T, D)  # queries, keys and values of 5 tokens, each [T, D]
scores = q @ k.T / D**0.5  # [T, T]: row t has the scores of query t with every key

# %% [markdown]
# ## The mask
#
# `torch.tril` keeps the lower triangle: row t is True up to column t. Where the mask is False, the score becomes minus
# infinity, and `exp(-inf)` is 0. The softmax then divides by the sum of the other powers, so each row still sums to 1.

# %%
mask = torch.ones(T, T, dtype=torch.bool).tril()
weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
guess = predict(f"How many of the {T} x {T} weights are exactly 0?")
guess.measured(int((weights == 0).sum()))
guess = predict("The weight of the first token for itself?")
guess.measured(float(weights[0, 0]))
print(weights)

# %% [markdown]
# The package's attention takes a batch of heads, `[B, H, T, D]`; ours is one head of one text.

# %%
theirs, their_weights = ExplicitAttention()(q[None, None], k[None, None], v[None, None], None)
equal(weights @ v, theirs[0, 0], "the averaged values")
equal(weights, their_weights[0, 0], "the attention weights")

# %% [markdown]
# ## The usual bug
#
# Some programs multiply by the mask *after* the softmax. The weights of later tokens are then 0, too.

# %%
wrong = scores.softmax(dim=-1) * mask
guess = predict("We change the last key. Does row 0 of the right weights change? And row 0 of the wrong ones? (yes/no)")
changed = torch.cat([k[:-1], torch.randn(1, D)])
scores_2 = q @ changed.T / D**0.5
right_2 = scores_2.masked_fill(~mask, float("-inf")).softmax(dim=-1)
wrong_2 = scores_2.softmax(dim=-1) * mask
guess.measured(f"right: {bool((right_2[0] != weights[0]).any())}, wrong: {bool((wrong_2[0] != wrong[0]).any())}")

# %%
assert torch.equal(right_2[:-1], weights[:-1]), "without a leak, earlier rows stay exactly the same"
print("sums of the wrong rows:", wrong.sum(dim=-1))

# %% [markdown]
# The softmax has divided by a sum that contains the later scores. So later tokens still have an influence (a *leak*),
# and the rows do not sum to 1. The doctor finds a leak in the same way: it changes one token, and looks whether the
# outputs at tokens *before* it change.
#
# ## What a leak does to the loss
#
# A model with one layer of attention predicts the next token in texts of random tokens, from a vocabulary of 20. The
# past says nothing about the next token. So without a leak, the loss cannot fall below ln 20 = 3.00.

# %%
import matplotlib.pyplot as plt
from torch import nn


def train(causal: bool, steps: int) -> list[float]:
    seed(1)
    V, C = 20, 32
    tokens, positions = nn.Embedding(V, C), nn.Embedding(17, C)
    project, head = nn.Linear(C, 3 * C), nn.Linear(C, V)
    parameters = [p for part in (tokens, positions, project, head) for p in part.parameters()]
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for _ in range(steps):
        text = torch.randint(V, (64, 17))  # [B, T + 1]
        x, y = text[:, :-1], text[:, 1:]
        q, k, v = project(tokens(x) + positions.weight[:16]).chunk(3, dim=-1)  # each [B, T, C]
        scores = q @ k.mT / C**0.5  # [B, T, T]
        if causal:
            scores = scores.masked_fill(~torch.ones(16, 16, dtype=torch.bool).tril(), float("-inf"))
        loss = nn.functional.cross_entropy(head(scores.softmax(-1) @ v).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


steps = short(full=500, quick=200)
guess = predict(f"The loss without a mask after {steps} steps? (with it: about 3.0)")
with_mask, without = train(True, steps), train(False, steps)
guess.measured(without[-1])
print(f"with the mask: {with_mask[-1]:.3f}")

# %%
assert with_mask[-1] > 2.9, "random tokens cannot be predicted"
assert without[-1] < 1.0, "with a leak, the loss falls below the possible value"

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(without, label="without a mask: it copies the answer")
axes.plot(with_mask, label="with the causal mask")
axes.axhline(torch.tensor(20.0).log().item(), color="grey", linestyle=":", label="ln 20")
axes.set(xlabel="step", ylabel="loss", title="A leak looks like a success")
axes.legend()
picture(figure, "14-leak")

# %% [markdown]
# If a loss is surprisingly good, look for a leak first.
#
# ## In real systems
#
# For long texts, no mask of `[T, T]` is stored: fused attention (FlashAttention) computes only the half of the scores
# that the triangle leaves. In some models, such as the first Mistral, a position sees only the last W tokens (a
# *sliding window*). Then the cost grows with T W instead of T squared.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 14 --check my_answer.py`.
#
# 1. `window_mask(T, window)` returns a mask `[T, T]` of the dtype bool, as our `mask`: row t is True at token t and at
#    the `window - 1` tokens before it (or fewer, at the beginning of the text).
# 2. `leaks(attention)` receives a function that computes outputs `[T, D]` from q, k, v (each `[T, D]`, float32; you
#    choose T and D). It returns True if an output depends on a later key or on a later value, else False.
#
# Next: `glassgpt doctor --break no-causal-mask` trains a GPT with this bug beside the right one. Then lesson 15: many
# heads.
