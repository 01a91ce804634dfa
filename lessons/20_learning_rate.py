# %% [markdown]
# # Lesson 20: warmup and cosine
#
# You will know at the end: why the learning rate begins small and ends small, how the two parts of the usual schedule
# are computed, and what they gain over a constant rate.
#
# Time: 7 minutes to read, about 40 seconds to compute. Before: lesson 18 (training). The picture needs `pip install
# glassgpt[plot]`.

# %% [markdown]
# ## The schedule
#
# A *schedule* says how the learning rate changes during a training. The most common one has two parts:
#
# - *Warmup*: in the first steps, the rate grows from nearly 0 to its *peak*, in a straight line.
# - *Cosine*: then it falls along half a cosine, slowly, then fast, then slowly, to a tenth of the peak.
#
# We write it as a *multiplier* of the peak, between 0 and 1. Step 0 is the first.

# %%
import math

import torch
import torch.nn.functional as F

from glassgpt import assets
from glassgpt.config import ModelConfig, OptimConfig
from glassgpt.learn import picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.training.optim import lr_multiplier

torch.set_num_threads(1)  # for so small a model, one thread is faster than several


def multiplier(step: int, steps: int, warmup: int, low: float = 0.1) -> float:
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)  # from 0 to 1
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


guess = predict("1,000 steps, 100 of warmup. At which step has the multiplier fallen to a half for the first time?")
guess.measured(next(step for step in range(100, 1000) if multiplier(step, 1000, 100) <= 0.5))

# %% [markdown]
# The package computes the same.

# %%
config = OptimConfig(warmup_steps=100, min_lr_ratio=0.1, schedule="cosine")
for step in range(1000):
    assert math.isclose(multiplier(step, 1000, 100), lr_multiplier(step, 1000, config)), "as the package"

# %% [markdown]
# ## Why a warmup?
#
# AdamW divides the gradient by an average of its own size. In the first step, this average is the gradient itself. So
# *every* weight moves by the learning rate, whether its gradient is large or almost only noise.

# %%
weights = torch.zeros(3, requires_grad=True)
adam = torch.optim.AdamW([weights], lr=0.01, weight_decay=0.0)
weights.grad = torch.tensor([100.0, 1.0, 0.0001])
guess = predict("Gradients of 100, 1 and 0.0001, a learning rate of 0.01. How far does each weight move?")
adam.step()
guess.measured([round(number, 4) for number in weights.tolist()])
assert torch.allclose(weights, torch.full((3,), -0.01), rtol=1e-3)

# %% [markdown]
# With a small rate such steps do no harm, and after some of them the averages are good.
#
# ## Why does the rate fall at the end?
#
# Each gradient is of another batch, and differs from the gradient of the whole text. With a constant rate, the weights
# jump around a good place and never reach it. With a falling rate, the jumps get smaller.
#
# ## Measure it
#
# The same model, batches and peak: constant, with warmup only, and with warmup and cosine.

# %%
name = "shakespeare" if assets.available("shakespeare") else "python"  # the second is always there
text = assets.path(name).read_text(encoding="utf-8")[:200_000]
tokenizer = CharTokenizer.train(text)
ids = torch.from_numpy(tokenizer.encode_array(text))  # [N]
train_ids, val_ids, T = ids[:180_000], ids[180_000:190_000], 32
schedules = {
    "constant": lambda step, steps: 1.0,
    "warmup": lambda step, steps: min(1.0, (step + 1) / (steps // 10)),
    "warmup and cosine": lambda step, steps: multiplier(step, steps, steps // 10),
}


def validate(model: GPT) -> float:
    n = (len(val_ids) - 1) // T * T
    with torch.no_grad():
        logits = model(val_ids[:n].view(-1, T))
    return F.cross_entropy(logits.flatten(0, 1), val_ids[1 : n + 1]).item()


def train(schedule: str, steps: int, peak: float = 6e-3) -> dict[int, float]:
    """The validation losses, by step."""
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=T, n_layer=2, n_head=4, n_embd=64))
    model.init_weights(seed=0)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99)), {}
    seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedules[schedule](step, steps)
        windows = train_ids[torch.randint(len(train_ids) - T, (16, 1)) + torch.arange(T + 1)]  # [B, T + 1]
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % every == 0:
            losses[step + 1] = validate(model)
    return losses


steps, every = short(full=1000, quick=40), short(full=50, quick=20)
guess = predict(f"The validation losses after {steps} steps: which is the lowest, and how far apart are they?")
curves = {schedule: train(schedule, steps) for schedule in schedules}
guess.measured({schedule: round(curve[steps], 3) for schedule, curve in curves.items()})
assert steps < 1000 or curves["warmup and cosine"][steps] < curves["constant"][steps] - 0.05

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for schedule, curve in curves.items():
    axes[0].plot([6e-3 * schedules[schedule](step, steps) for step in range(steps)], label=schedule)
    axes[1].plot(list(curve), list(curve.values()), label=schedule)
axes[0].set(xlabel="step", ylabel="learning rate", title="the schedule")
axes[1].set(xlabel="step", ylabel="validation loss (nats)", title="what it does")
axes[1].legend()
picture(figure, "20-schedules")

# %% [markdown]
# Without a warmup, the first steps move the weights to a bad place, and 1,000 steps do not make up for it. The cosine
# gains its part towards the end, when the rate is small.
#
# With a peak of 0.001 there is less to gain, and training is slow. A schedule makes higher peaks possible.
#
# ## The usual bug: a schedule of the wrong length
#
# `T_max` of PyTorch's cosine has to be the number of calls of `scheduler.step()`, usually one for each update. People
# give it the number of epochs, or train longer than planned.

# %%
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
rates = []
for _ in range(200):
    optimizer.step()
    rates.append(scheduler.get_last_lr()[0])
    scheduler.step()
guess = predict("T_max = 100. The rate at step 100, and at step 199? (the peak is 1)")
guess.measured([round(rates[100], 3), round(rates[199], 3)])
assert rates[100] < 0.01 < 0.99 < rates[199]
print("PyTorch's cosine does not stop at its end: it goes up again.")

# %% [markdown]
# ## In real systems
#
# GPT-3 had a warmup over 375 million tokens, then a cosine down to a tenth. A cosine needs to know the end from the
# beginning. *Warmup-stable-decay* (trapezoid) does not: it stays at the peak as long as you like, and then falls in a
# straight line over the last tenth or fifth. `glassgpt train` has both.
#
# ## Exercises
#
# 1. `cosine(step, steps, warmup, low)` returns the multiplier, as above; `warmup` may be 0, and at `step = steps` and
#    later the multiplier is `low`.
# 2. `stable(step, steps, warmup, decay)` returns the multiplier of warmup-stable-decay: in the last `decay` steps it
#    falls in a straight line, and would be 0 at `step = steps`.
#
# Check them with `glassgpt learn 20 --check my_answer.py`.
#
# Next: `glassgpt train my.txt optim.schedule=trapezoid` uses the other schedule. Then lesson 21: dropout.
