# %% [markdown]
# # Lesson 27: LoRA
#
# You will know at the end: how to teach a model something new by training a few thousand numbers beside frozen weights,
# why one of two matrices starts at zero, and how the result is added to the weights.
#
# Time: 8 minutes to read, about 18 seconds to compute. Before: lessons 18 (training) and 24 (published weights). The
# picture needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## The problem
#
# You have a trained model and a small text of another kind. If you train *all* weights, each also needs a gradient and
# two numbers of AdamW, and the result is a second model as large as the first.
#
# LoRA (low-rank adaptation) freezes the weights. Beside a matrix W `[out, in]` it puts two small ones, A `[r, in]` and
# B `[out, r]`. The number r is the *rank*, often 8 or 16. The layer then computes
#
#     y = W x + (alpha / r) B A x
#
# Only A and B are trained.

# %%
import argparse
import copy
import inspect
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import ModelConfig, TuneConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.transforms.lora import add_lora, lora_layers, merge

seed(0)


class LoRA(nn.Module):
    """A frozen linear layer with a small trained path beside it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.a.T) @ self.b.T


guess = predict("A matrix of 4096 x 4096 and rank 8: A and B have how many % of its numbers?")
guess.measured(100 * 2 * 8 * 4096 / 4096**2)

# %% [markdown]
# ## Why B starts at zero
#
# Then B A = 0, and training starts at the old model, not at a damaged one.

# %%
layer, x = LoRA(nn.Linear(16, 12), rank=2, alpha=4), torch.randn(5, 16)
with torch.no_grad():
    equal(layer(x), layer.base(x), "with B = 0, the layer is the old one", tolerance=0)

guess = predict("A random, B zero: is the gradient of A zero? And that of B? (yes/no)")
layer(x).square().sum().backward()
guess.measured(f"A: {'no' if layer.a.grad.any() else 'yes'}, B: {'no' if layer.b.grad.any() else 'yes'}")

# %% [markdown]
# A has no gradient in the first step, because its output is multiplied by B = 0. After one step B is not zero either,
# and both learn.
#
# **The usual bug**: both are set to zero. The gradient of A is B times something, that of B is A times something:
# always zero. The loss stays where it is, and there is no error message.

# %%
layer.zero_grad()
layer.a.data.zero_()
layer(x).square().sum().backward()
largest = max(float(layer.a.grad.abs().max()), float(layer.b.grad.abs().max()))
print("both zero: the largest gradient is", largest)
assert largest == 0

# %% [markdown]
# ## A model to adapt
#
# We train a small GPT on English: Python's own help texts. Then it learns Python code. The last fifth of the code is
# for the test.

# %%
english = "\n".join(topics[name] for name in sorted(topics))[:200_000]
code = inspect.getsource(argparse)
alphabet = sorted(set(english + code))
to_ids = {character: i for i, character in enumerate(alphabet)}
english_ids, code_ids = (torch.tensor([to_ids[c] for c in text]) for text in (english, code))
code_ids, code_test = code_ids.tensor_split([len(code_ids) * 4 // 5])
config = ModelConfig(vocab_size=len(alphabet), block_size=48, n_layer=2, n_head=4, n_embd=64)


def loss_of(model: nn.Module, ids: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - 49, (rows,), generator=generator)
    text = ids[starts[:, None] + torch.arange(49)]  # [B, T + 1]
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def train(model: nn.Module, ids: Tensor, steps: int, rate: float) -> nn.Module:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, generator = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0), torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, ids, 16, generator).backward()
        optimizer.step()
    model.optimizer_numbers = sum(s.numel() for state in optimizer.state.values() for s in state.values() if s.dim())
    return model


@torch.no_grad()
def test(model: nn.Module, ids: Tensor) -> float:
    return float(loss_of(model, ids, 64, torch.Generator().manual_seed(2)))


base = GPT(config)
base.init_weights(seed=0)
train(base, english_ids, short(full=500, quick=40), 3e-3)
print(f"loss on English {test(base, english_ids):.2f}, on code {test(base, code_test):.2f}")

# %% [markdown]
# ## LoRA on every matrix of the blocks
#
# Now replace each linear layer of the blocks by ours. Everything else is frozen.


# %%
def with_lora(model: GPT, rank: int, alpha: float) -> GPT:
    model = copy.deepcopy(model).requires_grad_(False)
    for name, layer in [*model.blocks.named_modules()]:
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.blocks.get_submodule(parent), own, LoRA(layer, rank, alpha))
    return model


small, full = with_lora(base, rank=4, alpha=8), copy.deepcopy(base)
guess = predict(f"The model has {base.num_parameters():,} parameters. How many % does LoRA of rank 4 train?")
count = sum(p.numel() for p in small.parameters() if p.requires_grad)
guess.measured(100 * count / base.num_parameters())

# %%
steps = short(full=200, quick=30)
guess = predict("After training on code: the loss on code, with LoRA and with all weights?")
train(small, code_ids, steps, 1e-2)
train(full, code_ids, steps, 1e-3)
guess.measured(f"LoRA {test(small, code_test):.2f}, all weights {test(full, code_test):.2f}")
english_losses = [round(test(model, english_ids), 2) for model in (base, small, full)]
print("loss on English: before, with LoRA, with all weights", english_losses)
print(f"numbers kept by AdamW: LoRA {small.optimizer_numbers:,}, all weights {full.optimizer_numbers:,}")
assert test(small, code_test) < test(base, code_test) - 0.05
assert small.optimizer_numbers == 2 * count, "two numbers for each trained one"

# %% [markdown]
# Both forget some English. Full training gets the lower loss on code. (LoRA usually takes a learning rate about ten
# times larger, as here.)
#
# ## Merge A and B into the weights
#
# B A has the shape of W. Add it to W (*merge*), and the model is an ordinary one again, as fast as before. The package
# does the same, with the same A and B:

# %%
package = copy.deepcopy(base)
add_lora(package, TuneConfig(lora_rank=4, lora_alpha=8, lora_targets="all"), seed=0)
ours = [layer for layer in small.modules() if isinstance(layer, LoRA)]
for theirs, mine in zip(lora_layers(package), ours, strict=True):
    (name,) = theirs.targets  # GPT-2 publishes q, k, v as one matrix: one pair
    for own, given in zip(theirs.pair(name), (mine.a, mine.b), strict=True):
        own.data.copy_(given)
idx = code_ids[None, :48]
with torch.no_grad():
    equal(small(idx), package(idx), "my LoRA and the package's")
    before = small(idx)
    merge(package)
    equal(before, package(idx), "beside the weights, and merged into them", tolerance=1e-4)

# %% [markdown]
# ## Is a low rank enough?
#
# What did *full* training change? The singular values of a matrix's change say how much it does in each direction. The
# sum of their squares is the whole change.

# %%
import matplotlib.pyplot as plt

pick = "blocks.0.mlp.up"
change = full.get_submodule(pick).weight - base.get_submodule(pick).weight
by_lora = small.get_submodule(pick).scale * small.get_submodule(pick).b @ small.get_submodule(pick).a
figure, axes = plt.subplots(figsize=(6, 3.5))
for matrix, label in ((change, "all weights trained"), (by_lora, "LoRA, rank 4")):
    axes.plot(torch.linalg.svdvals(matrix.detach()), marker=".", label=label)
axes.set(xlabel="direction", ylabel="singular value", title=f"The change of {pick}")
axes.legend()
picture(figure, "27-rank")
values = torch.linalg.svdvals(change.detach()).square()
guess = predict("All weights trained: how many % of the change do 4 of its 64 directions hold?")
guess.measured(100 * float(values[:4].sum() / values.sum()))
values = torch.linalg.svdvals(by_lora.detach())
assert float(values[4:].max()) < 1e-4 * float(values[0]), "LoRA's change has rank 4"

# %% [markdown]
# Only a part of the change fits into 4 directions. In large models, ranks of 8 to 64 often come close to the loss of
# full training.
#
# ## In real systems
#
# An *adapter* (all A and B) of a 7B model has some tens of MB, so a server keeps one base model and hundreds of
# adapters, and applies another one to each row of a batch (S-LoRA, vLLM). QLoRA freezes the weights in 4 bits: one GPU
# of 48 GB tunes a 65B model. `peft` is the usual library; this package reads and writes its format.
#
# ## Exercises
#
# 1. `merge(weight, a, b, alpha)` returns the merged weight `[out, in]`; `a` is `[r, in]`, `b` is `[out, r]`.
# 2. `freeze(model)` gets a module in which some parameters have names that end with `lora_a` or `lora_b`. Only these
#    may be trained afterwards. Return how many numbers are trained.
#
# Check them with `glassgpt learn 27 --check my_answer.py`.
#
# Next: `glassgpt tune lora smollm2-135m-instruct tutor` trains a tutor. Then lesson 28: what an assistant is trained
# on.
