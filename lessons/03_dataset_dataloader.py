# %% [markdown]
# # Lesson 3: Dataset and DataLoader
#
# You will know at the end: the two methods of a `Dataset`, what a `DataLoader` does with it, how texts of different
# lengths become a batch, and how workers can give you every example twice.
#
# Time: 7 minutes to read, 2 seconds to compute. Before: lessons 1 (tensors) and 2 (`cross_entropy`).

# %% [markdown]
# ## A Dataset: how many, and which
#
# A `Dataset` answers two questions: how many examples are there, and what is example i? Example i can be computed, or
# read from a file, when it is needed. So a dataset can be larger than the memory.

# %%
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset

from glassgpt.learn import equal, predict, seed


class Squares(Dataset):
    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(i), torch.tensor(i * i)


squares = Squares(10)

# %% [markdown]
# ## A DataLoader, by hand
#
# A `DataLoader` chooses an order, takes `batch_size` examples at a time, and stacks them: a list of B examples of shape
# `[...]` becomes one tensor `[B, ...]`. The stacking is called *collate*.


# %%
def load(dataset: Dataset, batch_size: int, order: list[int]) -> list[tuple[torch.Tensor, ...]]:
    batches = []
    for start in range(0, len(order), batch_size):
        examples = [dataset[i] for i in order[start : start + batch_size]]
        batches.append(tuple(torch.stack(part) for part in zip(*examples, strict=True)))
    return batches


theirs = DataLoader(squares, batch_size=4)
for mine, batch in zip(load(squares, 4, list(range(10))), theirs, strict=True):
    equal(torch.stack(mine), torch.stack(batch), "a batch by hand, and of the DataLoader")

# %% [markdown]
# With `shuffle=True` the order is random, and a new one in each *epoch* (one pass over all examples). Why shuffle? Here
# are 300 examples in the order of their labels, as they are often stored:

# %%
labels = torch.arange(300) // 100  # 100 of label 0, then 100 of label 1, then 100 of label 2
generator = torch.Generator().manual_seed(0)
guess = predict("Batches of 50: how many different labels has the first batch, not shuffled and shuffled?")
plain = next(iter(DataLoader(labels, batch_size=50)))
shuffled = next(iter(DataLoader(labels, batch_size=50, shuffle=True, generator=generator)))
guess.measured(f"{len(plain.unique())} and {len(shuffled.unique())}")

# %% [markdown]
# A batch of one label teaches the model to answer always with that label. (`DataLoader` accepted a tensor here:
# everything that has `len()` and `[i]` is a dataset.)
#
# ## Examples of different lengths
#
# Texts are not equally long, so `torch.stack` cannot stack them. A `collate_fn` of our own fills them up (*padding*).
#
# A language model predicts the next token. So the *inputs* of a text are its tokens without the last one, and the
# *targets* are its tokens without the first one: each target is the token after its input. In the padding, the targets
# are -100: `cross_entropy` ignores that value.

# %%
texts = [torch.tensor(ids) for ids in ([5, 3, 9], [1, 1, 4, 8, 2], [7, 6])]


def pad(texts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, texts)) - 1  # the last token is only a target
    inputs = torch.zeros(len(texts), longest, dtype=torch.long)
    targets = torch.full_like(inputs, -100)
    for row, text in enumerate(texts):
        inputs[row, : len(text) - 1] = text[:-1]
        targets[row, : len(text) - 1] = text[1:]
    return inputs, targets


inputs, targets = next(iter(DataLoader(texts, batch_size=3, collate_fn=pad)))
print("inputs:\n", inputs, "\ntargets:\n", targets)

seed(0)
table = torch.randn(10, 10)  # the simplest model: row i has the logits of the token after token i
together = cross_entropy(table[inputs].flatten(0, 1), targets.flatten())  # [B T, V] and [B T]
alone = [cross_entropy(table[text[:-1]], text[1:], reduction="sum") for text in texts]
equal(together, sum(alone) / sum(len(text) - 1 for text in texts), "the loss with padding, and without")

guess = predict("And if the targets of the padding were 0 instead of -100: is the loss the same?")
counted = cross_entropy(table[inputs].flatten(0, 1), targets.clamp(min=0).flatten())
guess.measured(f"{together:.3f} with -100, {counted:.3f} with 0")

# %% [markdown]
# With 0, the model would learn to predict padding. That is easy, so its loss would look better than it is.
#
# ## Training and validation
#
# A model is *validated*: its loss is measured on examples that it was not trained on. `torch.utils.data.random_split`
# divides a dataset for this. Give it a generator with a seed. Otherwise a training that is continued tomorrow is
# validated on examples that it was trained on today.
#
# ## The usual bug: inputs with the targets of other examples
#
# An input and its target belong together in *one* example. If they are shuffled separately, every shape is right, and
# the pairs are wrong.

# %%
x, y = torch.arange(300), torch.arange(300)  # y belongs to x where they are equal
wrong = torch.cat([a == b for a, b in zip(*(DataLoader(t, batch_size=50, shuffle=True) for t in (x, y)), strict=True)])
pairs = list(zip(x, y, strict=True))
right = torch.cat([a == b for a, b in DataLoader(pairs, batch_size=50, shuffle=True)])
guess = predict("How many of 300 pairs are still right if x and y are shuffled separately?")
guess.measured(f"{int(wrong.sum())} (shuffled together: {int(right.sum())})")
assert right.all() and wrong.sum() < 30

# %% [markdown]
# ## Workers, and a stream that comes twice
#
# With `num_workers=2`, two processes prepare batches ahead of time. For a `Dataset`, the loader sends each worker the
# numbers i that it should read. An `IterableDataset` has no `[i]`: it is a stream, and yields one example after
# another. Each worker has its own copy of the stream.

# %%
import sys


class Stream(IterableDataset):
    def __init__(self, divide: bool):
        self.divide = divide

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()  # None in the main process
        place, workers = (worker.id, worker.num_workers) if worker and self.divide else (0, 1)
        yield from range(place, 10, workers)


if sys.platform == "linux":  # elsewhere, processes cannot begin in the middle of a lesson
    guess = predict("A stream of 10 numbers with 2 workers: how many numbers come, undivided and divided?")
    lists = [
        [int(i) for i in DataLoader(Stream(divide), batch_size=None, num_workers=2, multiprocessing_context="fork")]
        for divide in (False, True)
    ]
    guess.measured(f"{len(lists[0])} and {len(lists[1])}")
    print("undivided:", lists[0])
    assert sorted(lists[1]) == list(range(10))
else:
    print("skipped: this needs Linux")

# %% [markdown]
# Undivided, each worker yields all examples, so each comes twice. `get_worker_info()` says which worker this is, and
# how many there are; with it, a stream can be divided.
#
# ## In real systems
#
# In this package, a number k stands for *batch* k, not for one example (`glassgpt/data/batches/loader.py`). A run that
# was stopped continues with the next k, and the number of workers does not change what is read:

# %%
from glassgpt.data import Batches, Loader

batches = Batches(torch.arange(500).numpy(), block_size=8, batch_size=4, seed=0)


class NumberedBatches(Dataset):
    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.from_numpy(batches.get(k)[0])


mine = DataLoader(NumberedBatches(), batch_size=None, sampler=[100, 101])
for k, batch in zip((100, 101), mine, strict=True):
    equal(batch, Loader(batches).get(k).idx, f"batch {k}")

# %% [markdown]
# `pin_memory=True` keeps batches in memory that a GPU can copy from while it computes. Very large training texts are
# many files (*shards*), and their order is shuffled too.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 3 --check my_answer.py`.
#
# 1. `collate(texts, pad)` receives a list of 1-dimensional tensors of ids, each of 2 or more. It returns inputs and
#    targets, each `[B, T]`. It does the same as our function `pad`, but fills up on the *left*, so that all texts end
#    in the last column; and it fills up the inputs with the id `pad` (which may also occur in a text).
# 2. `share(stream, worker, workers)` receives an iterator, perhaps an endless one. It yields the items of one worker
#    (`worker` is 0, 1, ... `workers` - 1). All workers together yield every item once, and their numbers of items
#    differ by 1 at most. Each call gets its own copy of the stream.
#
# Next: `glassgpt data show TEXT` prints a batch of your own text. Then lesson 4: a multilayer perceptron.
