# %% [markdown]
# # Lesson 22: what a trained head looks at
#
# You will know at the end: how to read an attention map, two patterns that are found in almost every language model,
# how to measure them, and how to prove that a head does what it seems to do.
#
# Time: 7 minutes to read, about 25 seconds to compute. Before: lessons 15 (many heads) and 18 (training). The picture
# needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## A text with one regularity
#
# We need a text whose regularities we know. Ours has one: a piece of 12 to 30 random tokens is repeated until 64 tokens
# are full. Within the first piece nothing can be predicted. After it, everything can: find where the current token
# stood before, and see what followed.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.glass.inside.heads import head_statistics
from glassgpt.learn import equal, picture, predict, short
from glassgpt.model import GPT
from glassgpt.model.attention import ExplicitAttention

V, T = 32, 64


def repeated(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts [rows, T + 1], and where the next token can be known, bool [rows, T]."""
    texts, known = torch.empty(rows, T + 1, dtype=torch.long), torch.zeros(rows, T, dtype=torch.bool)
    for row in range(rows):
        length = int(torch.randint(12, 31, (1,), generator=generator))
        piece = torch.randint(V, (length,), generator=generator)
        texts[row] = piece.repeat(T // length + 2)[: T + 1]
        known[row, length:] = True  # position t predicts token t + 1: it needs one repeated token to begin with
    return texts, known


# %% [markdown]
# ## A small model learns it
#
# We watch only the loss where the next token can be known.

# %%
config = ModelConfig(V, block_size=T, n_layer=2, n_head=2, n_embd=48, position="rope", tie_embeddings=False)
model = GPT(config)
model.init_weights(seed=0)
for parameter in model.parameters():
    if parameter.dim() > 1:
        parameter.data *= 3.5  # larger weights at first: so small a model learns faster
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0, betas=(0.9, 0.98))
generator, curve, steps = torch.Generator().manual_seed(0), [], short(full=1500, quick=25)

guess = predict("Does the loss fall evenly, or suddenly? And at which step?")
while len(curve) < steps and (len(curve) < 10 or sum(curve[-10:]) > 1.5):
    texts, known = repeated(16, generator)
    losses = F.cross_entropy(model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten(), reduction="none").view(16, T)
    optimizer.zero_grad()
    losses.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    curve.append(losses[known].mean().item())
model.eval()
trained = sum(curve[-10:]) <= 1.5
steepest = max(range(len(curve) - 20), key=lambda i: curve[i] - curve[i + 20])
guess.measured(f"{curve[0]:.2f} at first, {curve[-1]:.2f} after {len(curve)} steps; steepest near {steepest + 10}")

# %% [markdown]
# The loss falls slowly for a long time, because two layers must learn to work together.
#
# ## Reading the maps
#
# Fused attention never stores its weights. We put the package's explicit attention in its place (same output). A *hook*
# is a function that PyTorch calls after a module; ours keeps what the attention returns. The text repeats a piece of 20
# tokens.

# %%
import matplotlib.pyplot as plt

maps: list[Tensor] = []
for block in model.blocks:
    block.attention.attend = ExplicitAttention()
    block.attention.attend.register_forward_hook(lambda module, inputs, output: maps.append(output[1].detach()))
piece = torch.randint(V, (20,), generator=torch.Generator().manual_seed(5))
text = piece.repeat(4)[:T]
with torch.no_grad():
    model(text[None])
weights = torch.cat(maps)  # [layers, heads, T, T]: rows are queries, columns are keys

figure, axes = plt.subplots(2, 2, figsize=(7, 7), layout="constrained")
for layer in range(2):
    for head in range(2):
        axes[layer, head].imshow(weights[layer, head].numpy(), cmap="viridis", vmin=0, vmax=0.6)
        axes[layer, head].set(title=f"head {layer}.{head}", xlabel="key (looked at)", ylabel="query (looks)")
picture(figure, "22-maps")

# %% [markdown]
# In the first layer, both heads look at the last few tokens, with about 0.3 of their attention on *the token before*.
# In the second layer there are lines 19 and 39 below the diagonal: every token looks at *the token after its last
# appearance*. The piece has 20 tokens, so that is 19 back.
#
# **The usual bug** of reading maps is to mix up rows and columns. A row says where one token looks, and sums to 1. A
# column says who looks at a token, and may sum to anything.
#
# ## Numbers instead of pictures
#
# A model with 30 layers has hundreds of maps. So we measure which share of its attention a head gives to the token
# before, and to the token after an earlier appearance of the current one.


# %%
def share(weights: Tensor, mask: Tensor) -> Tensor:
    """The attention on the places of a mask [T, T], mean over the queries that have one: [layers, heads]."""
    return (weights * mask).sum((-2, -1)) / mask.any(dim=1).sum()


t = torch.arange(T)
previous = t[None, :] == t[:, None] - 1  # key = query - 1
seen = torch.cat([torch.full((1,), -1), text[:-1]])  # the token before each key
induction = (seen[None, :] == text[:, None]) & (t[None, :] < t[:, None])
ours = {"previous": share(weights, previous), "induction": share(weights, induction)}
theirs = head_statistics(weights, text.tolist())
for name, values in ours.items():
    equal(values, torch.from_numpy(theirs[name]).float(), f"the share of {name!r}, mine and the package's")
    print([[round(v, 2) for v in layer] for layer in values.tolist()], "by layer and head")

# %% [markdown]
# This is an *induction circuit*. The first layer writes into each position "the token before me was X". The second
# layer asks "who has my token before it?", and copies what stands there.
#
# ## Does it do what it seems to do?
#
# A map shows where a head looks, not whether the model needs it. So take the head away (*ablation*): we set its
# channels in the input of the matrix `out` to zero.


# %%
@torch.no_grad()
def loss_without(layer: int | None, head: int = 0) -> float:
    """The loss where the next token can be known, with one head set to zero."""

    def remove(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y = inputs[0].clone()
        y[..., head * 24 : (head + 1) * 24] = 0  # D = 48 / 2
        return (y,)

    handle = model.blocks[layer].attention.out.register_forward_pre_hook(remove) if layer is not None else None
    texts, known = repeated(64, torch.Generator().manual_seed(9))
    losses = F.cross_entropy(model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten(), reduction="none").view(64, T)
    if handle:
        handle.remove()
    return float(losses[known].mean())


best = divmod(int(ours["induction"].argmax()), 2)
guess = predict(f"The loss is {loss_without(None):.2f}. What is it without head {best[0]}.{best[1]}? (ln 32 = 3.47)")
guess.measured(loss_without(*best))
print("without each head:", [round(loss_without(layer, head), 2) for layer in range(2) for head in range(2)])
if trained:  # not in the short form of the tests
    assert float(ours["previous"][0].max()) > 0.15, "a head of the first layer looks at the token before"
    assert best[0] == 1 and float(ours["induction"][1].max()) > 0.3, "a head of the second layer does induction"
    assert loss_without(*best) > loss_without(None) + 0.5, "and the model needs it"

# %% [markdown]
# Without this head the loss is *above* ln 32: the model is sure, and wrong.
#
# ## In real systems
#
# Induction heads were found in models of many sizes (Olsson and others, 2022). They appear suddenly in training, and
# then the model begins to use earlier parts of its prompt. Other heads put nearly all attention on the first token (an
# *attention sink*), because a softmax must sum to 1 even if nothing is of use.
#
# ## Exercises
#
# 1. `previous_share(weights)`: of one map `[T, T]`, the mean attention that queries 1 to T - 1 give to the token
#    before them.
# 2. `induction_target(ids)`: for each position, the list of the positions that an induction head should look at: those
#    *after* an earlier appearance of the same token, up to and without the position itself.
#
# Check them with `glassgpt learn 22 --check my_answer.py`.
#
# Next: `glassgpt attention MODEL --find induction` measures every head of a model, and `glassgpt ablate MODEL TEXTFILE`
# takes each head away. Then lesson 23: characters against BPE.
