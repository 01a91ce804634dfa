# %% [markdown]
# # Lesson 9: windows of inputs and targets
#
# You will know at the end: how a text becomes training examples, what stride, batch size, `shuffle`, `drop_last` and
# workers do, and two mistakes that make the loss look too good.
#
# Time: 8 minutes to read, 5 seconds to compute. Before: lessons 3 (`Dataset` and `DataLoader`) and 8 (tokens). The
# picture needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Inputs and targets
#
# A language model predicts the next token. So the *target* of each token is the token after it: the text contains the
# answers. We cut a *window* of T + 1 tokens. The first T are the inputs, and the last T are the targets: the same
# tokens, shifted by one.

# %%
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from glassgpt.assets import tutor
from glassgpt.data import SlidingWindowDataset
from glassgpt.learn import equal, picture, predict, seed, short

text = tutor.general_path().read_text(encoding="utf-8")
characters = sorted(set(text))
tokens = torch.tensor([characters.index(c) for c in text])  # one token per character, [N]
T = 8
window = tokens[: T + 1]
inputs, targets = window[:-1], window[1:]
for t in range(T):
    print(repr(text[: t + 1]), "->", repr(characters[targets[t]]))

# %% [markdown]
# In one window, the model makes T predictions: from 1, 2, ... T tokens. A Transformer makes all of them at once.
#
# ## A Dataset of windows
#
# The *length* of a window is T. The *stride* is the distance between the starts of two windows. With stride T, no token
# is an input twice. With a smaller stride, windows overlap.


# %%
class Windows(Dataset):
    def __init__(self, tokens: torch.Tensor, length: int, stride: int):
        self.tokens, self.length, self.stride = tokens, length, stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.length - 1) // self.stride + 1  # the last token is only a target

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * self.stride
        window = self.tokens[start : start + self.length + 1]
        return window[:-1], window[1:]


guess = predict("1,001 tokens, windows of 100. How many windows with stride 100? With 50? With 1?")
guess.measured([len(Windows(tokens[:1001], 100, stride)) for stride in (100, 50, 1)])

# %% [markdown]
# The package has such a Dataset, too.

# %%
for size, length, stride in ((101, 8, 8), (101, 8, 3), (100, 9, 20)):
    mine, theirs = Windows(tokens[:size], length, stride), SlidingWindowDataset(tokens[:size], length, stride)
    assert len(mine) == len(theirs)
    pairs = [torch.stack([torch.stack(d[i]) for i in range(len(d))]) for d in (mine, theirs)]
    equal(*pairs, f"all windows with length {length}, stride {stride}")

# %% [markdown]
# ## What the stride does
#
# How often is each token a target in one epoch (one pass over all windows)?

# %%
import matplotlib.pyplot as plt


def times_a_target(number: int, length: int, stride: int) -> torch.Tensor:
    positions = Windows(torch.arange(number), length, stride)  # the tokens are their own positions
    targets = torch.stack([positions[i][1] for i in range(len(positions))])
    return targets.flatten().bincount(minlength=number)


guess = predict("length 16: how often is token 45 a target with stride 16, 8, and 24?")
counts = {stride: times_a_target(200, 16, stride) for stride in (16, 8, 24)}
guess.measured([int(count[45]) for count in counts.values()])

figure, axes = plt.subplots(figsize=(6, 3))
for (stride, count), style in zip(counts.items(), ("-", "-", "--"), strict=True):
    axes.step(range(60), count[:60], style, where="mid", label=f"stride {stride}")
axes.set(xlabel="token", ylabel="times a target", yticks=[0, 1, 2], ylim=(-0.1, 3.2), title="Windows of length 16")
axes.legend(loc="upper right")
picture(figure, "09-stride")

# %% [markdown]
# A stride larger than T leaves tokens out. A smaller one repeats them: with stride 1, T times. The first token is never
# a target, because there is no token before it.
#
# ## Batches
#
# `DataLoader` stacks windows to batches `[B, T]`. With `shuffle=True`, each epoch has a new random order; a `generator`
# with a seed makes it repeatable. `drop_last=True` leaves out the last batch if it is not full: a small one would have
# as much influence on the weights as a full one.

# %%
windows = Windows(tokens[:1001], 10, 10)  # 100 windows
guess = predict("100 windows in batches of 32: how many batches with drop_last=True, and without? The last one's size?")
full = [x for x, _ in DataLoader(windows, batch_size=32, drop_last=True)]
every = [x for x, _ in DataLoader(windows, batch_size=32)]
guess.measured(f"{len(full)} and {len(every)}; the last has {len(every[-1])} windows")


# %% [markdown]
# ## Workers
#
# `num_workers=2` starts two processes that prepare batches while the model computes.

# %%
import sys
import time

if sys.platform == "linux":  # elsewhere, processes cannot begin in the middle of a lesson
    dataset = SlidingWindowDataset(tokens, 32, 8)

    def epoch(workers: int) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        loader = DataLoader(
            dataset, batch_size=32, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0),
            num_workers=workers, multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        return torch.stack([x for x, _ in loader]), time.perf_counter() - start

    guess = predict("Is an epoch of our small windows faster with 2 workers?")
    (alone, seconds), (together, seconds_2) = epoch(0), epoch(2)
    guess.measured(f"{seconds:.3f} s without, {seconds_2:.3f} s with 2 workers")
    equal(together, alone, "batches of the same seed, with and without workers")
else:
    print("skipped: this needs Linux")

# %% [markdown]
# To start processes takes time, and so does sending batches between them. Workers help if an example is slow to make:
# an image to decode, a text to tokenize.
#
# ## The usual bug: targets that are not shifted
#
# If the targets are the inputs, the model only has to copy. We train the smallest model: for each token, a row with the
# logits of the next one (`nn.Embedding` is such a table, lesson 10).


# %%
def train(shifted: bool, epochs: int) -> float:
    seed(0)
    table = nn.Embedding(len(characters), len(characters))
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.1)
    loader = DataLoader(Windows(tokens, 32, 32), batch_size=16, shuffle=True, drop_last=True)
    for _ in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(table(x).flatten(0, 1), (y if shifted else x).flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


epochs = short(full=16, quick=7)
guess = predict(f"The loss after {epochs} epochs: with shifted targets, and without the shift?")
right, wrong = train(True, epochs), train(False, epochs)
guess.measured(f"shifted: {right:.2f}, not shifted: {wrong:.3f}")

# %%
assert right > 1.5 and wrong < 0.5, "copying is easy"

# %% [markdown]
# ## The second bug: windows first, split afterwards
#
# To validate, we need text that the model was not trained on. Suppose that windows overlap, and we divide them at
# random. The neighbours of a validation window are then in training, and they contain the same tokens.

# %%
every_window = Windows(torch.arange(len(tokens)), 32, 4)
order = torch.randperm(len(every_window), generator=torch.Generator().manual_seed(0)).tolist()
cut = len(order) * 9 // 10
training = set(torch.cat([every_window[i][1] for i in order[:cut]]).tolist())
guess = predict("Stride 4, length 32, 90 % for training: which share of the validation targets is also trained on?")
validation = torch.cat([every_window[i][1] for i in order[cut:]]).tolist()
share = sum(position in training for position in validation) / len(validation)
guess.measured(f"{share:.1%}")

# %%
assert share > 0.95

# %% [markdown]
# So: split the text first, then cut windows. `glassgpt doctor --data TEXT` looks for validation text in training.
#
# ## In real systems
#
# The package trains with `glassgpt.data.Batches`. It cuts with stride T, and moves all cuts by another random offset in
# each epoch. Batch k depends only on a seed and on k. So a run that was stopped resumes with exactly the next batch,
# with any number of workers and GPUs:

# %%
from glassgpt.data import Batches

first, again = (Batches(tokens.numpy(), block_size=32, batch_size=4, seed=0).get(1000)[0] for _ in range(2))
equal(torch.from_numpy(first), torch.from_numpy(again), "batch 1000 of two runs")

# %% [markdown]
# Large training texts are one long row of tokens, with documents joined by `<|endoftext|>`. No padding is needed: every
# position of every batch is trained on.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 9 --check my_answer.py`.
#
# 1. `count_windows(tokens, length, stride)` receives the number of tokens of a text, and returns how many windows of
#    `length` inputs and as many targets fit, the first at token 0; 0 if none fits.
# 2. `batch(tokens, starts, length)` receives a tensor of ids `[N]` and a tensor `[B]`: where each window starts. It
#    returns inputs and targets, each `[B, length]`. Can you do it without a loop?
#
# Next: `glassgpt doctor --break labels-not-shifted` trains a GPT with this bug beside the right one. Then lesson 10:
# embeddings.
