# %% [markdown]
# # Lesson 10: token and position embeddings
#
# You will know at the end: how token ids become vectors `[B, T, C]`, why the order of the tokens is lost without
# positions, how positions are added, and which position mistakes raise no error.
#
# Time: 8 minutes to read, 6 seconds to compute. Before: lessons 5 (the training loop) and 9 (windows). The picture
# needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## From ids to vectors
#
# A token id is a name, not a quantity: token 7 is not more than token 3. So the model keeps a table with one row of C
# numbers for each of the V tokens of the vocabulary. The row of a token is its *embedding*. At first it is random;
# training changes it. So B texts of T ids, `[B, T]`, become `[B, T, C]`.

# %%
import torch
from torch import nn

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT

seed(0)
V, C, block_size = 50, 16, 12
tokens = nn.Embedding(V, C)  # its weight is the table [V, C]
ids = torch.randint(V, (2, 8))  # [B, T]
guess = predict("ids has the shape [2, 8] and C is 16. What is the shape of tokens(ids)?")
guess.measured(tuple(tokens(ids).shape))

# %% [markdown]
# An embedding is the same as a matrix product with *one-hot* rows: 0 everywhere, and 1 at the id. Nobody computes that
# product. But it explains the gradient: the row of a token that is not in the batch is multiplied by 0 only.

# %%
one_hot = nn.functional.one_hot(ids, V).float()  # [B, T, V]
equal(one_hot @ tokens.weight, tokens(ids), "one-hot rows times the table")

guess = predict(f"How many of the {V} rows get a gradient from these {ids.numel()} tokens?")
tokens(ids).sum().backward()
guess.measured(f"{int((tokens.weight.grad != 0).any(dim=1).sum())} (there are {len(ids.unique())} different tokens)")

# %% [markdown]
# ## Without positions, the order is lost
#
# Attention (lesson 11) gives each token a weighted average of the vectors of all tokens. The weights depend on the
# vectors only, and not on their order. For the full stop, "dog bites man ." and "man bites dog ." contain the same
# vectors.

# %%
attention = nn.MultiheadAttention(C, num_heads=2, batch_first=True)


def last_output(x: torch.Tensor) -> torch.Tensor:  # [B, T, C] -> [B, C]
    return attention(x, x, x, need_weights=False)[0][:, -1]


one, other = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[5, 4, 3, 6]])  # the first and third exchanged
guess = predict("By how much do the two outputs differ at the last token?")
difference = (last_output(tokens(one)) - last_output(tokens(other))).abs().max().item()
guess.measured(difference)

# %%
assert difference < 1e-5

# %% [markdown]
# ## A second table, for positions
#
# GPT-2 adds another embedding: one row for each position, from 0 to the end of the longest text that it can read
# (`block_size`). Every text of the batch gets the same rows (*broadcasting*, lesson 1).

# %%
positions = nn.Embedding(block_size, C)


def embed(ids: torch.Tensor) -> torch.Tensor:
    T = ids.size(1)
    return tokens(ids) + positions(torch.arange(T))  # [B, T, C] + [T, C]


assert (last_output(embed(one)) - last_output(embed(other))).abs().max() > 1e-3, "with positions, the outputs differ"

# %% [markdown]
# The package's GPT does the same. We give it our tables, and look at what enters its first block.

# %%
config = ModelConfig(vocab_size=V, block_size=block_size, n_layer=1, n_head=2, n_embd=C, position="learned")
gpt = GPT(config)
gpt.init_weights(seed=0)
gpt.token_embedding.load_state_dict(tokens.state_dict())
gpt.position_embedding.load_state_dict(positions.state_dict())
entering = []
gpt.blocks[0].register_forward_pre_hook(lambda block, given: entering.append(given[0]))
gpt(ids)
equal(embed(ids), entering[0], "what enters the first block of the package's GPT")

guess = predict("GPT-2 has V = 50,257, C = 768 and 1,024 positions. How many million numbers do its two tables have?")
guess.measured(f"{50257 * 768 / 1e6:.1f} for tokens, {1024 * 768 / 1e6:.1f} for positions (of 124 in all)")

# %% [markdown]
# ## A task that needs the order
#
# The model gets eight random tokens, and has to name the first one. It has one layer of attention and a linear layer
# for the answer. Without positions it can at best guess one of the eight.

# %%
import matplotlib.pyplot as plt


def train(steps: int, with_positions: bool) -> list[float]:
    seed(1)
    V, T, C = 20, 8, 32
    tokens, positions, head = nn.Embedding(V, C), nn.Embedding(T, C), nn.Linear(C, V)
    attention = nn.MultiheadAttention(C, num_heads=2, batch_first=True)
    parameters = [p for part in (tokens, positions, head, attention) for p in part.parameters()]
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for _ in range(steps):
        ids = torch.randint(V, (64, T))
        x = tokens(ids)
        if with_positions:
            x = x + positions(torch.arange(T))
        y = attention(x[:, -1:], x, x, need_weights=False)[0][:, 0]  # [B, C]: the last token looks at all
        loss = nn.functional.cross_entropy(head(y), ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


steps = short(full=400, quick=250)
guess = predict("The last loss without positions? (a guess among all 20 tokens: ln 20 = 3.0; among 8: ln 8 = 2.1)")
without, with_them = train(steps, False), train(steps, True)
guess.measured(f"{without[-1]:.3f}; with positions: {with_them[-1]:.3f}")
assert without[-1] > 1.5 and with_them[-1] < 0.5

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(without, label="without positions")
axes.plot(with_them, label="with positions")
axes.axhline(torch.tensor(8.0).log().item(), color="grey", linestyle=":", label="ln 8")
axes.set(xlabel="step", ylabel="loss", title="Which token came first?")
axes.legend()
picture(figure, "10-positions")

# %% [markdown]
# ## The usual bug: positions along the wrong dimension
#
# With `arange(B)` instead of `arange(T)`, and a dimension in the wrong place, there is no error. But all tokens of a
# text get the same row.

# %%
same = torch.full((3, 4), 7)  # token 7, in 3 texts of 4 tokens
B, T = same.shape
wrong = tokens(same) + positions(torch.arange(B))[:, None]  # [B, T, C] + [B, 1, C]
right = embed(same)
guess = predict("Token 7 is at 12 places. How many different vectors does it get there: right, and wrong?")
counts = [len(x.detach().flatten(0, 1).unique(dim=0)) for x in (right, wrong)]
guess.measured(f"right: {counts[0]}, wrong: {counts[1]}")

# %%
assert torch.equal(wrong[:, 0], wrong[:, 1]), "the wrong positions do not see the order"
assert not torch.equal(wrong[0], wrong[1]), "and they depend on the row"

# %% [markdown]
# The wrong sum gives one vector for each row of the batch. The order is lost again, and the same text gives other
# results at another place of the batch. `glassgpt doctor --break positions-of-the-batch-row` trains a GPT with this
# bug. Its loss still falls, and is only a little higher.
#
# Two mistakes do raise errors: an id that is not below V (a tokenizer that does not belong to the model), and a text
# that is longer than the table of positions. On a GPU, the first is a "device-side assert" far from its cause, so look
# at `ids.max()` first.
#
# ## In real systems
#
# The output of a GPT needs a table in the other direction, from C numbers to V logits. GPT-2 uses the token table for
# both ("tied embeddings"), which saves 38.6 million weights. Many larger models have two tables.
#
# Learned positions end with the table: GPT-2 cannot read 1,025 tokens. Llama-class models add no positions to the
# embeddings. Inside attention, they rotate vectors by angles that grow with the position (*rotary embeddings*,
# `position="rope"` in this package). Then attention depends on the distance of two tokens, and there is no table. But a
# model is still reliable only up to the length of its training texts.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 10 --check my_answer.py`.
#
# 1. `embed(ids, tokens, positions, start)` receives ids `[B, T]`, the tables `[V, C]` and `[block_size, C]` as tensors,
#    and the position of the first token (while a text is generated, it is not 0). It returns `[B, T, C]`.
# 2. `sinusoids(T, C)` returns the table `[T, C]` of the first Transformer (C is even), which was not learned: for i =
#    0, 1, ... column 2i of position t is `sin(t / 10000 ** (2i / C))`, and column 2i + 1 is the cosine of the same
#    angle.
#
# Next: `glassgpt train TEXT preset=tiny-modern` trains a GPT with rotary positions. Then lesson 11: attention.
