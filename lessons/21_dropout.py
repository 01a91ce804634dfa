# %% [markdown]
# # Lesson 21: dropout
#
# You will know at the end: what dropout does, why it is off in evaluation, and how it changes the gap between training
# and validation loss.
#
# Time: 7 minutes to read, about 50 seconds to compute. Before: lesson 18 (training). The picture needs `pip install
# glassgpt[plot]`.

# %% [markdown]
# ## The problem
#
# A model can memorise a small text. Then the training loss keeps falling, and the validation loss rises: *overfitting*.
# The difference between the two losses is the *generalisation gap*.
#
# *Dropout* makes it harder to memorise. In each training step, each number of some tensors is set to 0 with probability
# p. So the model cannot rely on any single number.
#
# ## Dropout by hand
#
# The other numbers are divided by 1 - p, so that the mean stays the same. In evaluation, nothing is dropped and nothing
# is divided.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.assets.tutor import general_path
from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer

torch.set_num_threads(1)  # for so small a model, one thread is faster than several


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    if not training:
        return x
    kept = torch.empty_like(x).bernoulli_(1 - p)  # 1 with probability 1 - p, else 0
    return x * kept / (1 - p)


seed(0)
x = torch.ones(100_000)
guess = predict("100,000 ones, p = 0.3. How many different numbers come out, how many are 0, and what is the mean?")
y = dropout(x, 0.3)
guess.measured(f"{[round(value, 3) for value in y.unique().tolist()]}, {(y == 0).sum():,} zeros, mean {y.mean():.3f}")

seed(1)
mine = dropout(x, 0.3)
seed(1)
equal(mine, F.dropout(x, 0.3), "our dropout, and PyTorch's with the same random numbers")

# %% [markdown]
# ## Where it is in a GPT
#
# In the package it is on the sum of the embeddings, and in each block on what attention and MLP add to the residual
# stream (lesson 16).
#
# ## Measure the gap
#
# We train the same model on 6,000 characters with p = 0, 0.1 and 0.3. Both losses are measured with dropout off, so
# that they can be compared.

# %%
text = general_path().read_text(encoding="utf-8")
tokenizer = CharTokenizer.train(text)
ids = torch.from_numpy(tokenizer.encode_array(text))  # [N]
train_ids, val_ids, T = ids[:6000], ids[6000:], 32


def loss_on(model: GPT, part: Tensor) -> float:
    n = (len(part) - 1) // T * T
    with torch.no_grad():
        return F.cross_entropy(model(part[:n].view(-1, T)).flatten(0, 1), part[1 : n + 1]).item()


def train(p: float, steps: int) -> tuple[GPT, dict[int, tuple[float, float]]]:
    """The model, and (training loss, validation loss) by step."""
    model = GPT(ModelConfig(tokenizer.vocab_size, block_size=T, n_layer=2, n_head=4, n_embd=64, dropout=p))
    model.init_weights(seed=0)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=4e-3), {}
    seed(0)
    for step in range(1, steps + 1):
        windows = train_ids[torch.randint(len(train_ids) - T, (16, 1)) + torch.arange(T + 1)]  # [B, T + 1]
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            model.eval()
            losses[step] = loss_on(model, train_ids), loss_on(model, val_ids)
            model.train()
    return model, losses


steps, every = short(full=1000, quick=40), short(full=50, quick=20)
guess = predict(f"After {steps} steps, the gap (validation loss minus training loss) for p = 0, 0.1 and 0.3?")
found = {p: train(p, steps) for p in (0.0, 0.1, 0.3)}
gaps = {p: round(losses[steps][1] - losses[steps][0], 3) for p, (_, losses) in found.items()}
guess.measured(gaps)
for p, (_, losses) in found.items():
    best = min(losses, key=lambda step: losses[step][1])
    print(f"p = {p}: best validation loss {losses[best][1]:.3f} at step {best}, at the end {losses[steps][1]:.3f}")
assert steps < 1000 or gaps[0.0] > gaps[0.1] > gaps[0.3], "the more dropout, the smaller the gap"

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(7, 4.5))
for place, (p, (_, losses)) in enumerate(found.items()):
    (training, validation), color = zip(*losses.values(), strict=True), f"C{place}"
    axes.plot(list(losses), training, color=color, linestyle="--")
    axes.plot(list(losses), validation, color=color, label=f"p = {p}: gap {gaps[p]:.2f}")
    ends = [(steps * (1.01 + 0.03 * place), side[-1]) for side in (training, validation)]
    axes.annotate("", *ends, arrowprops={"arrowstyle": "<->", "color": color})
axes.plot([], [], color="grey", linestyle="--", label="dashed: training")
axes.plot([], [], color="grey", label="solid: validation")
axes.set(xlabel="step", ylabel="loss (nats per character)", title="Dropout and the generalisation gap")
axes.set_xlim(0, steps * 1.1)
axes.legend()
picture(figure, "21-dropout")

# %% [markdown]
# The gap is the arrow between a dashed line and the solid one of its colour. Without dropout, the validation loss rises
# after about 600 steps. With p = 0.1 the gap is about a third. With p = 0.3 the gap is the smallest, but both losses
# are higher: so small a model cannot spare so many numbers. The aim is a low validation loss, not a small gap.
#
# Stopping at step 600 without dropout is about as good as p = 0.1.
#
# ## The usual bug: dropout is on while you measure
#
# A new module is in training mode. `model.eval()` switches dropout off, and `model.train()` on again. If the first is
# forgotten, the loss is too high, and another one each time.

# %%
model = found[0.3][0]
model.eval()
right = [loss_on(model, val_ids) for _ in range(2)]
model.train()  # as if eval() had been forgotten
guess = predict(f"The validation loss of the model with p = 0.3 is {right[0]:.3f}. With dropout on?")
wrong = [loss_on(model, val_ids) for _ in range(2)]
guess.measured(f"{wrong[0]:.3f}, and once more {wrong[1]:.3f}")
assert right[0] == right[1], "without dropout, the same each time"
assert wrong[0] != wrong[1] and (steps < 1000 or min(wrong) > right[0])

# %% [markdown]
# The opposite bug: `train()` is forgotten after the validation. Then the model trains without dropout.
#
# ## In real systems
#
# GPT-2 has dropout of 0.1. Most large models of today are pre-trained without it: they see each text once or a few
# times, and can hardly memorise it. Fine-tuning on a small text (lesson 27) uses it again. More text, a smaller model,
# weight decay and stopping early also help.
#
# ## Exercises
#
# 1. `dropout(x, p, numbers, training)` returns x after dropout. `numbers` has the shape of x, with random numbers from
#    0 to 1: an element is dropped if its number is less than p. It must work for p = 0 and for p = 1.
# 2. `measure(model, x)` returns `model(x)` without dropout and without a gradient. After it, every part of the model is
#    in the mode in which it was before, also if some parts were in training mode and others not.
#
# Check them with `glassgpt learn 21 --check my_answer.py`.
#
# Next: `glassgpt doctor --break dropout-always-on` trains a GPT with this lesson's bug, and `glassgpt train my.txt
# dropout=0.1` uses it. Then lesson 22: what do the heads of a trained model look at?
