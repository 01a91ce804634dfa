# %% [markdown]
# # Lesson 5: the training loop
#
# You will know at the end: the steps of a training loop and their order, what happens if one is left out, how to add up
# gradients of small batches, and how to validate.
#
# Time: 9 minutes to read, 7 seconds to compute. Before: lessons 2 (gradients), 3 (`DataLoader`) and 4 (a multilayer
# perceptron). The picture needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## The loop
#
# Training, of a small or of a very large model, repeats the same six lines:
#
# 1. take a batch,
# 2. the forward pass: compute the outputs, and the loss,
# 3. `optimizer.zero_grad()`: clear the old gradients,
# 4. `loss.backward()`: compute the new ones, into `.grad` of every parameter,
# 5. *clipping* (optional): make the gradients shorter if all together are longer than a limit,
# 6. `optimizer.step()`: change the weights a little, against the gradient.
#
# Our task: a spiral has three arms. Which arm does a point belong to?

# %%
import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from glassgpt.learn import equal, picture, predict, seed, short


def spiral(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    arm, radius = torch.randint(3, (number,)), torch.rand(number)
    angle = 2.1 * arm + 4 * radius + 0.1 * torch.randn(number)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), arm  # [N, 2], [N]


def new_model(dropout: float = 0.0) -> nn.Module:
    seed(1)
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )


seed(0)
x, y = spiral(600)
validation_x, validation_y = spiral(300)
guess = predict("An untrained model with 3 classes guesses. Its loss is about ln 3 = ?")
guess.measured(cross_entropy(new_model()(x), y).item())

# %% [markdown]
# The simplest *optimizer* subtracts the gradient times the *learning rate* from each weight. This is SGD (stochastic
# gradient descent).

# %%
mine, theirs = new_model(), new_model()
optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
for _ in range(10):
    gradients = torch.autograd.grad(cross_entropy(mine(x), y), list(mine.parameters()))
    with torch.no_grad():  # the update itself is not a part of the model
        for parameter, gradient in zip(mine.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient

    optimizer.zero_grad()
    cross_entropy(theirs(x), y).backward()
    optimizer.step()
equal(mine[0].weight, theirs[0].weight, "weights after 10 steps by hand, and with torch.optim.SGD")

# %% [markdown]
# ## Leave one line out
#
# The same loop with one mistake at a time. None raises an error.


# %%
def train(mistake: str, steps: int) -> list[float]:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)  # 1
        loss = cross_entropy(model(x[rows]), y[rows])  # 2
        if mistake != "no zero_grad":
            optimizer.zero_grad()  # 3
        if mistake != "no backward":
            loss.backward()  # 4
        if mistake == "zero_grad after backward":
            optimizer.zero_grad()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0 if mistake != "clipped to nearly 0" else 1e-3)  # 5
        if mistake != "no step":
            optimizer.step()  # 6
        losses.append(loss.item())
    return losses


steps = short(full=600, quick=300)
mistakes = ("nothing", "no zero_grad", "no backward", "zero_grad after backward", "no step", "clipped to nearly 0")
guess = predict("Which of these loops learn anything: " + ", ".join(mistakes[1:]) + "?")
curves = {mistake: train(mistake, steps) for mistake in mistakes}
final = {mistake: sum(losses[-50:]) / 50 for mistake, losses in curves.items()}
guess.measured(f"{sum(final[mistake] < 0.5 for mistake in mistakes[1:])} of 5; the mean loss of the last 50 steps:")
print("\n".join(f"  {mistake:25} {loss:.3f}" for mistake, loss in final.items()))

# %%
assert final["nothing"] < 0.4, "the right loop learns"
assert all(loss > final["nothing"] + 0.3 for mistake, loss in final.items() if mistake != "nothing")

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
for mistake in ("nothing", "no zero_grad", "no step", "clipped to nearly 0"):
    axes.plot(curves[mistake], label=f"wrong: {mistake}", linewidth=1)
axes.set(xlabel="step", ylabel="loss", ylim=(0, 2.5), title="The same loop with one mistake")
axes.legend(fontsize=8)
picture(figure, "05-omissions")

# %% [markdown]
# * Without `backward`, or without `step`, or with `zero_grad` between the two, the weights never change. The loss stays
#   at ln 3 = 1.10.
# * Without `zero_grad`, each gradient is added to all before it, and the weights move on in old directions. The loss
#   falls at first, so this mistake is hard to find.
# * A gradient that is clipped too much makes learning very slow, like a learning rate that is too small.
#
# ## Gradients that add up on purpose
#
# `backward` adds to `.grad`. This helps if a batch does not fit into memory: several small batches (*micro-batches*),
# then one step. The gradient must be that of the mean over *all* examples. So divide the sum of the losses by the
# number of all examples. A mean of the micro-batches' means is wrong if their sizes differ.

# %%
whole, parts, means = new_model(), new_model(), new_model()
cross_entropy(whole(x), y).backward()
for piece_x, piece_y in zip(x.split(250), y.split(250), strict=True):  # 250, 250 and 100 rows
    (cross_entropy(parts(piece_x), piece_y, reduction="sum") / len(x)).backward()
    (cross_entropy(means(piece_x), piece_y) / 3).backward()
equal(parts[0].weight.grad, whole[0].weight.grad, "the gradient of three micro-batches, and of the whole batch")
difference = (means[0].weight.grad - whole[0].weight.grad).norm() / whole[0].weight.grad.norm()
print(f"with the mean of three means, the gradient is wrong by {difference:.1%} of its length")

# %% [markdown]
# ## Validation
#
# Every few steps we measure the loss on examples that are not trained on. This needs three calls:
#
# * `model.eval()` turns dropout off, and `model.train()` turns it on again. (*Dropout* replaces random activations by 0
#   during training: lesson 21.)
# * `torch.no_grad()` computes without a graph, and needs less memory.
# * `.item()` makes a plain number of a loss. A loss *tensor* would keep its graph in memory.
#
# *AdamW* is the usual optimizer for Transformers. It divides each step by the usual size of that weight's gradient, and
# makes the weights a little smaller each time (*weight decay*).


# %%
def validate(model: nn.Module, use_eval: bool = True) -> torch.Tensor:
    model.train(not use_eval)
    with torch.no_grad():
        loss = cross_entropy(model(validation_x), validation_y)
    model.train()
    return loss


model = new_model(dropout=0.5)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(80):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
guess = predict("We validate twice with eval(), and twice without. Are the two numbers equal? Which are lower?")
right, wrong = [[validate(model, use).item() for _ in range(2)] for use in (True, False)]
guess.measured(f"with eval(): {right[0]:.3f} and {right[1]:.3f}; without: {wrong[0]:.3f} and {wrong[1]:.3f}")

# %%
assert right[0] == right[1] and wrong[0] != wrong[1] and max(right) < min(wrong)

# %% [markdown]
# ## The package's step
#
# `train_step` in `glassgpt/training/step.py` does one step, for any number of micro-batches and processes. We train a
# small GPT with it, and a copy with our six lines. Only matrices get weight decay.

# %%
from glassgpt.config import ModelConfig, OptimConfig
from glassgpt.data.batch import random_batch
from glassgpt.model import GPT
from glassgpt.training.objective import ModelWithLoss, next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.step import train_step

theirs = GPT(ModelConfig(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=32))
theirs.init_weights(seed=0)
mine, batch = copy.deepcopy(theirs), random_batch(vocab_size=50, rows=8, block_size=16)

optimizers = Optimizers(theirs, OptimConfig(optimizer="adamw", adamw_learning_rate=0.01))
module = ModelWithLoss(theirs, next_token_loss)
matrices, vectors = ([p for p in mine.parameters() if (p.dim() >= 2) == wide] for wide in (True, False))
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))
for _ in range(3):
    train_step(module, optimizers, batch, batch.num_loss_tokens(), micro_batch_size=3, lr_multiplier=1.0,
               grad_clip=1.0, device=torch.device("cpu"))  # fmt: skip
    optimizer.zero_grad()
    cross_entropy(mine(batch.idx).flatten(0, 1), batch.targets.flatten()).backward()
    nn.utils.clip_grad_norm_(mine.parameters(), 1.0)
    optimizer.step()
equal(mine.head.weight, theirs.head.weight, "the head after 3 steps: six lines, and the package", tolerance=1e-3)

# %% [markdown]
# ## In real systems
#
# The loop is the same. Around it are a schedule of the learning rate (lesson 20), 16-bit arithmetic, checkpoints (the
# state of the training, saved to disk), and gradients that are summed over many GPUs. The optimizer is mostly AdamW; a
# newer one is Muon.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 5 --check my_answer.py`.
#
# 1. `train_steps(model, optimizer, batches)` does one step for each (x, y) of `batches`, with `cross_entropy` and
#    without clipping. It returns the list of losses as floats, each from before its step. The model may come in
#    evaluation mode and with old gradients; train it in training mode.
# 2. `validate(model, batches)` returns the mean loss over all examples as a float. Batches have different sizes. The
#    model is afterwards as before, also in training mode or not, as it was. No graph is built.
#
# Next: `glassgpt doctor --break no-zero-grad` trains a GPT with this mistake; also try `zero-grad-before-step` and
# `mean-of-means`. Then lesson 6: the accelerator.
