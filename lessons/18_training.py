# %% [markdown]
# # Lesson 18: train it
#
# You will know at the end: how to train a GPT on a text, which losses to compare yours with, and what has to be in a
# checkpoint.
#
# Time: 8 minutes to read, about 30 seconds to compute. Before: lesson 17 (the whole GPT). The picture needs `pip
# install glassgpt[plot]`.

# %% [markdown]
# ## A text in two parts
#
# We train on the first nine tenths of a text, and keep the last tenth for *validation*: only an unseen text shows
# whether the model has learned the language or memorised the text.
#
# The text is cut at one place: with sentences drawn at random, the neighbours of each validation sentence would be in
# the training part.

# %%
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt import assets, generate
from glassgpt.config import ModelConfig
from glassgpt.learn import picture, predict, seed, short
from glassgpt.loss import counting_baselines, evaluate
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer

torch.set_num_threads(1)  # for so small a model, one thread is faster than several

name = "shakespeare" if assets.available("shakespeare") else "python"  # the second is always there
text = assets.path(name).read_text(encoding="utf-8")[:400_000]
tokenizer = CharTokenizer.train(text)
ids = tokenizer.encode_array(text)  # [N], one id per character
cut = len(ids) * 9 // 10
train_ids, val_ids, V = ids[:cut], ids[cut:], tokenizer.vocab_size
print(f"{name}: {len(train_ids):,} characters to train on, {len(val_ids):,} for validation, V = {V}")

# %% [markdown]
# ## What is a good loss?
#
# Three simple models give a loss its meaning:
#
# - *uniform*: every character is equally likely. Its loss is ln V.
# - *unigram*: it knows how often each character occurs.
# - *bigram*: it also knows the character before.
#
# A GPT that does not get below the bigram model has a bug, or was not trained enough. We count the second by hand.

# %%
counts = np.bincount(train_ids, minlength=V) + 1  # one more of each: no probability is 0
unigram = -np.log(counts / counts.sum())[val_ids].mean()
baselines = counting_baselines(train_ids, val_ids, V)  # all three, by the package
print(baselines)
assert math.isclose(unigram, baselines.unigram, rel_tol=1e-9) and math.isclose(math.log(V), baselines.uniform)

# %% [markdown]
# ## Batches
#
# A row is a window of T + 1 characters: T inputs and their targets (lesson 9). Batch k is a function of k alone, so a
# training that continues gets the right batches.

# %%
B, T = 16, 64
stream = torch.from_numpy(train_ids)


def batch(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    starts = torch.randint(len(stream) - T, (B,), generator=generator)  # [B]
    windows = stream[starts[:, None] + torch.arange(T + 1)]  # [B, T + 1]
    return windows[:, :-1], windows[:, 1:]


# %% [markdown]
# ## Validation
#
# Always the same windows, so that two measurements can be compared.

# %%
n = short(full=100, quick=20) * T
val_windows = torch.from_numpy(val_ids[:n]).view(-1, T), torch.from_numpy(val_ids[1 : n + 1]).view(-1, T)


def validate(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(val_windows[0]).flatten(0, 1), val_windows[1].flatten()).item()
    model.train()
    return loss


def new_model() -> tuple[GPT, torch.optim.Optimizer]:
    model = GPT(ModelConfig(vocab_size=V, block_size=T, n_layer=2, n_head=4, n_embd=64))
    model.init_weights(seed=0)
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)


model, optimizer = new_model()
guess = predict("The validation loss before the first step?")
first = validate(model)
guess.measured(first)
theirs = evaluate(model.eval(), val_ids[: n + 1], T, torch.device("cpu")).loss
assert abs(first - theirs) < 1e-5, "the package measures the same"

# %% [markdown]
# ## The loop
#
# The loop of lesson 5, with one new line: *clipping* makes the gradient shorter if its norm is above 1, so that one
# strange batch cannot throw the weights far away.
#
# At half time we write a checkpoint: the weights, the optimiser's state and the step. The file is written under another
# name, then renamed: if the power fails while writing, the file before is kept.


# %%
def train(model: GPT, optimizer: torch.optim.Optimizer, start: int, stop: int, save_at: int = -1) -> list[float]:
    losses = []
    for step in range(start, stop):
        if step == save_at:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
        x, y = batch(step)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % every == 0:
            validation.append((step + 1, validate(model)))
    return losses


steps = short(full=1200, quick=40)
every, checkpoint = steps // short(full=12, quick=4), Path("lesson-18.pt")
seed(0)
validation = [(0, first)]  # pairs (step, loss)
guess = predict(f"The validation loss after {steps} steps? (uniform, unigram, bigram are above)")
losses = train(model, optimizer, 0, steps, save_at=steps // 2)
last = validation[-1][1]
guess.measured(last)
assert last < first - 0.5, "it has learned something"
assert last < baselines.bigram or steps < 1000, "it uses more than one character"

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(7, 4))
axes.plot(losses, alpha=0.4, label="training (each batch)")
axes.plot(*zip(*validation, strict=True), marker="o", markersize=3, label="validation")
for kind, value in vars(baselines).items():
    axes.axhline(value, color="grey", linestyle=":")
    axes.annotate(kind, (steps, value), va="bottom", ha="right", color="grey")
axes.set(xlabel="step", ylabel="loss (nats per character)", title="Both losses, and three baselines")
axes.legend()
picture(figure, "18-training")
print(generate(model, tokenizer, text[:8], max_new_tokens=short(full=200, quick=20)))

# %% [markdown]
# The training loss jumps, since each batch is another text. As long as both losses fall, the model learns the language.
# When only the training loss falls, it memorises the text (*overfitting*, lesson 21).
#
# ## Continue from the checkpoint
#
# We pretend that the machine was switched off at half time. A new model and a new optimiser read the file. The losses
# must be those of the first training, to the last bit.

# %%
resumed, fresh = new_model()
state = torch.load(checkpoint, weights_only=True)
resumed.load_state_dict(state["model"])
fresh.load_state_dict(state["optimizer"])
again = train(resumed, fresh, state["step"], state["step"] + 20)
assert again == losses[state["step"] :][:20], "resumed is the same as never interrupted"
print(f"from step {state['step']} on, 20 losses are equal to the last bit")

# %% [markdown]
# ## The usual bug: only the weights are saved
#
# AdamW keeps two averages for each weight: of the gradient, and of its square. A new optimiser begins with none. Its
# first steps then have nearly the full learning rate in every weight, whatever the gradient's size.

# %%
forgetful, empty = new_model()
forgetful.load_state_dict(state["model"])
guess = predict("Without the optimiser's state: by how much is the mean loss of the next 20 steps higher?")
worse = train(forgetful, empty, state["step"], state["step"] + 20)
guess.measured(float(np.mean(worse) - np.mean(again)))
assert worse[0] == again[0] and worse[1:] != again[1:], "the same weights, then another way"
checkpoint.unlink()

# %% [markdown]
# The loss has a small peak after every such restart.
#
# ## In real systems
#
# A checkpoint also has the learning-rate schedule, the random state, the position in the data and the configuration.
# `glassgpt train` keeps the best and the last checkpoint in `runs/NAME`, with checksums, and `glassgpt train --resume
# NAME` continues bit by bit.
#
# ## Exercises
#
# 1. `unigram_loss(train, val, V)` returns the loss (in nats) on `val` of a model that knows only the frequencies in
#    `train` (both arrays of ids), each count plus one.
# 2. `stop_at(losses, patience)` receives the validation losses in order. Training stops when `patience` of them in a
#    row were not below the best before. It returns the index of the best loss until then: the checkpoint to keep.
#
# Check them with `glassgpt learn 18 --check my_answer.py`.
#
# Next: `glassgpt train my.txt` does all this for your own text, and `glassgpt plot` draws the curves. Then lesson 19:
# how to choose the next token.
