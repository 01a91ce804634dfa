# %% [markdown]
# # Lesson 14: the causal mask
#
# You will know at the end: why a language model must not see later tokens, how a mask hides them, why the mask comes
# *before* the softmax, and how to find out that a mask leaks.
#
# Time: 6 minutes. Before: lesson 13 (query, key and value with `nn.Linear`).

# %% [markdown]
# ## The problem
#
# The model reads T tokens at once and predicts, at every position, the token after it. While it is trained, that next
# token stands in the input, one place to the right. If a position could look there, it would copy the answer and learn
# nothing. While it writes a text, later tokens do not exist yet.
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
print(scores)

# %% [markdown]
# ## The mask
#
# `torch.tril` keeps the lower triangle: row t is True up to column t. Where the mask is False, the score becomes minus
# infinity, and `exp(-inf)` is 0. The softmax then divides by the sum of what is left, so each row still sums to 1.

# %%
mask = torch.ones(T, T, dtype=torch.bool).tril()
weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
print(mask.int())
print(weights)

# %%
guess = predict(f"How many of the {T} x {T} weights are exactly 0?")
guess.measured(int((weights == 0).sum()))
guess = predict("What is the attention of the first token to itself?")
guess.measured(float(weights[0, 0]))

# %% [markdown]
# The package does the same. Its attention takes a batch of heads, `[B, H, T, D]`; ours is one head of one text.

# %%
theirs, their_weights = ExplicitAttention()(q[None, None], k[None, None], v[None, None], None)
equal(weights @ v, theirs[0, 0], "the averaged values")
equal(weights, their_weights[0, 0], "the attention weights")

# %% [markdown]
# ## The usual bug
#
# It is tempting to multiply by the mask *after* the softmax. The weights of later tokens are 0, and it looks right. But
# the softmax has already divided by a sum that contains the later scores. So the later tokens still have an influence,
# and the rows do not sum to 1.

# %%
wrong = scores.softmax(dim=-1) * mask
print("sums of the rows:", wrong.sum(dim=-1))

guess = predict("We change the last key. Does row 0 of the right weights change? And row 0 of the wrong ones? (yes/no)")
changed = torch.cat([k[:-1], torch.randn(1, D)])
scores_2 = q @ changed.T / D**0.5
right_2 = scores_2.masked_fill(~mask, float("-inf")).softmax(dim=-1)
wrong_2 = scores_2.softmax(dim=-1) * mask
guess.measured(f"right: {bool((right_2[0] != weights[0]).any())}, wrong: {bool((wrong_2[0] != wrong[0]).any())}")
assert torch.equal(right_2[:-1], weights[:-1]), "without a leak, earlier rows stay the same to the last bit"

# %% [markdown]
# That is how the doctor finds a leak: it changes one token and looks whether anything *before* it moved.
#
# ## What a leak does to the loss
#
# One layer of attention predicts the next of 20 random tokens. Nothing can be learned from the past, so the loss cannot
# get below ln 20 = 3.00 honestly. We train it with the mask, and without.

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


steps = short(full=1500, quick=300)
guess = predict(f"The loss without a mask after {steps} steps? (with it: about 3.0)")
with_mask, without = train(True, steps), train(False, steps)
guess.measured(without[-1])
print(f"with the mask: {with_mask[-1]:.3f}")
assert with_mask[-1] > 2.9, "random tokens cannot be predicted"
assert without[-1] < with_mask[-1] - 0.05, "the leak lowers the loss below what is possible"

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(without, label="without a mask: it copies the answer")
axes.plot(with_mask, label="with the causal mask")
axes.axhline(torch.tensor(20.0).log().item(), color="grey", linestyle=":", label="ln 20")
axes.set(xlabel="step", ylabel="loss (nats)", title="A leak looks like a success")
axes.legend()
picture(figure, "14-leak")

# %% [markdown]
# A loss that is too good is a reason for suspicion.
#
# ## In real systems
#
# Nobody stores a mask of `[T, T]` for long texts: fused attention (FlashAttention) knows that the mask is a triangle
# and skips the half that is hidden. Some models let a position see only the last W tokens (a *sliding window*,
# Mistral), so that the cost grows with T W instead of T squared.
#
# ## Exercises
#
# Write your answers into a file of your own, and check it with `glassgpt learn 14 --check my_answer.py`.
#
# 1. `window_mask(T, window)` returns a bool mask `[T, T]`: True where a query may look. It may see itself and the
#    `window - 1` tokens before it.
# 2. `leaks(attention)` receives a function that maps q, k, v (each `[T, D]`) to outputs `[T, D]`, and returns True if
#    an output depends on a later key or value.
#
# Next: `glassgpt doctor --break no-causal-mask` trains a GPT with this bug beside the right one. Then lesson 15: many
# heads.
