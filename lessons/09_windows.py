# %% [markdown]
# # Lesson 9: windows of inputs and targets
#
# You will know at the end: how one long text becomes training examples, what stride, batch size, `shuffle`, `drop_last`
# and workers do, and two mistakes that make the loss look wonderful.
#
# Time: 9 minutes. Before: lessons 3 (`Dataset` and `DataLoader`) and 8 (tokens).
# The picture needs matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Inputs and targets
#
# A language model predicts the next token. So the *target* of each token is simply the token after it. Nobody has to
# write labels: the text is its own answer. We cut a *window* of T + 1 tokens. The first T are the inputs, and the last
# T are the targets: the same tokens, shifted by one.

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
print(f"{len(tokens)} tokens, {len(characters)} different ones")

T = 8
window = tokens[: T + 1]
inputs, targets = window[:-1], window[1:]
for t in range(T):
    print(repr(text[: t + 1]), "->", repr(characters[targets[t]]))

# %% [markdown]
# One window of T tokens has T predictions, from 1, 2, ... T tokens. A Transformer makes all of them at once.
#
# ## A Dataset of windows
#
# *Stride* is the distance between the starts of two windows. Its usual values: T, then no token is an input twice; or
# less, then windows overlap.


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
# The package has such a Dataset for those who know it from textbooks. We compare every window.

# %%
for size, length, stride in ((101, 8, 8), (101, 8, 3), (100, 9, 20), (9, 8, 8)):
    mine, theirs = Windows(tokens[:size], length, stride), SlidingWindowDataset(tokens[:size], length, stride)
    assert len(mine) == len(theirs)
    pairs = [torch.stack([torch.stack(d[i]) for i in range(len(d))]) for d in (mine, theirs)]
    equal(*pairs, f"{size} tokens, length {length}, stride {stride}")

# %% [markdown]
# ## What the stride does
#
# We count how often each of the first 60 tokens is a target in one epoch (one pass over all windows).

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
for stride, count in counts.items():
    axes.step(range(60), count[:60], where="mid", label=f"stride {stride}")
axes.set(
    xlabel="token",
    ylabel="times a target",
    yticks=[0, 1, 2],
    ylim=(-0.1, 3.2),
    title="One epoch of windows of length 16",
)
axes.legend(loc="upper right")
picture(figure, "09-stride")

# %% [markdown]
# A stride larger than T leaves tokens out. A smaller one repeats them: with stride 1, an "epoch" is T epochs, and a
# model overfits before the first one ends. The first token is never a target; nothing stands before it.
#
# ## Batches
#
# `DataLoader` stacks windows to batches `[B, T]`. With `shuffle=True`, each epoch has a new random order; a `generator`
# with a seed makes it repeatable. `drop_last=True` leaves out the last batch if it is not full. Otherwise a batch of
# one window may have as much influence on the weights as a batch of 32.

# %%
windows = Windows(tokens[:1001], 10, 10)  # 100 windows
guess = predict("100 windows in batches of 32: how many batches with drop_last=True, and without? The last one's size?")
full = [x for x, _ in DataLoader(windows, batch_size=32, drop_last=True)]
every = [x for x, _ in DataLoader(windows, batch_size=32)]
guess.measured(f"{len(full)} and {len(every)}; the last has {len(every[-1])} windows")


def first_batch(seed: int) -> torch.Tensor:
    loader = DataLoader(windows, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return next(iter(loader))[0]


print("the same seed, the same order:", torch.equal(first_batch(1), first_batch(1)))
print("another seed, the same order: ", torch.equal(first_batch(1), first_batch(2)))
assert not torch.equal(first_batch(1), first_batch(2))

# %% [markdown]
# ## Workers
#
# `num_workers=2` starts two processes that prepare batches while the model computes. The batches are the same. It pays
# where an example is slow to make: images to decode, text to tokenize. Cutting slices from memory is not.

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
    equal(together, alone, "batches with and without workers")

# %% [markdown]
# ## The usual bug: targets that are not shifted
#
# If the targets are the inputs themselves, the model has to copy what it sees, and learns that at once. We train the
# smallest model there is: for each token, a row with the logits of the next one.


# %%
def train(shifted: bool, steps: int) -> float:
    seed(0)
    table = nn.Embedding(len(characters), len(characters))
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.1)
    loader = DataLoader(Windows(tokens, 32, 32), batch_size=16, shuffle=True, drop_last=True)
    done, total = 0, 0.0
    while done < steps:
        for x, y in loader:
            loss = nn.functional.cross_entropy(table(x).flatten(0, 1), (y if shifted else x).flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done, total = done + 1, loss.item()
    return total


steps = short(full=300, quick=120)
guess = predict(f"The loss after about {steps} steps: with shifted targets, and without the shift?")
right, wrong = train(True, steps), train(False, steps)
guess.measured(f"shifted: {right:.2f}, not shifted: {wrong:.3f}")
assert right > 1.5, "the next character cannot be known from one character"
assert wrong < 0.5, "copying is easy"

# %% [markdown]
# ## The second bug: windows first, split afterwards
#
# To validate, we need text that the model has not trained on. If windows overlap, and are divided at random into
# training and validation windows, then the neighbours of each validation window are in training, with the same tokens.

# %%
every_window = Windows(torch.arange(len(tokens)), 32, 4)
order = torch.randperm(len(every_window), generator=torch.Generator().manual_seed(0)).tolist()
cut = len(order) * 9 // 10
training = set(torch.cat([every_window[i][1] for i in order[:cut]]).tolist())
guess = predict("Stride 4, length 32, 90 % for training: which share of the validation targets is also trained on?")
validation = torch.cat([every_window[i][1] for i in order[cut:]]).tolist()
share = sum(position in training for position in validation) / len(validation)
guess.measured(f"{share:.1%}")
assert share > 0.95

# %% [markdown]
# So: split the text first, then cut windows. `glassgpt doctor --data TEXT` looks for validation text in training.
#
# ## In real systems
#
# The package trains with `glassgpt.data.Batches`. It cuts with stride T, but moves all cuts by another offset each
# epoch, so that a token is not always at the same place of its window. Batch k is computed from a seed and k alone. So
# a run that was stopped resumes with exactly the next batch, on any number of workers and GPUs:

# %%
from glassgpt.data import Batches

batches = Batches(tokens.numpy(), block_size=32, batch_size=4, seed=0)
first, again = (torch.from_numpy(batches.get(1000)[0]) for _ in range(2))
equal(first, again, "batch 1000, read twice")
print("windows in an epoch:", batches.windows, "  first tokens in epochs 0 and 1:", batches.starts(0)[0],
      batches.starts(batches.windows // 4 + 1)[0])  # fmt: skip

# %% [markdown]
# Large corpora are stored as one long row of tokens, with documents joined by `<|endoftext|>`, in files that are mapped
# into memory. Nobody pads: every position of every batch is trained on.
#
# ## Exercises
#
# Write your answers into a file of your own, and check it with `glassgpt learn 9 --check my_answer.py`.
#
# 1. `count_windows(tokens, length, stride)` receives a number of tokens, and returns how many windows with targets fit;
#    0 if none does.
# 2. `batch(tokens, starts, length)` receives a tensor `[N]` and a tensor of starts `[B]`. It returns (inputs, targets),
#    each `[B, length]`. Can you do it without a loop?
#
# Next: `glassgpt doctor --break labels-not-shifted` trains a GPT with this bug beside the right one. Then lesson 10:
# embeddings.
