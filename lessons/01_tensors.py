# %% [markdown]
# # Lesson 1: tensors
#
# You will know at the end: what a tensor stores, why `view`, `transpose` and slices move no numbers, when data is
# copied, what "contiguous" means, and how two arrays can share memory.
#
# Time: 7 minutes to read, 2 seconds to compute. Before: Python. You need to know no PyTorch.
#
# All lessons work in the same way. `predict(...)` asks you for a number before it is measured. A wrong guess shows
# where your picture is not right yet. `equal(a, b, ...)` stops with an error if two tensors differ, and prints their
# largest difference. `seed(0)` fixes the random numbers. `short(full=..., quick=...)` returns its first number; the
# project's tests use the second.

# %% [markdown]
# ## Shape and dtype
#
# A *tensor* is a block of numbers of one type, with a shape. The *shape* says how many numbers there are along each
# dimension. The *dtype* is their type. Language models mostly use these:
#
# * `int64`: token ids,
# * `float32`: weights, 4 bytes each,
# * `bfloat16`: weights in half the memory, with fewer digits.
#
# Three letters name the dimensions in all lessons: B texts in a batch, T tokens (words or parts of words) in each text,
# and C numbers for each token. So `[B, T, C]` is a shape.

# %%
import numpy as np
import torch

from glassgpt.learn import equal, predict, seed, short

seed(0)
ids = torch.tensor([[5, 3, 9], [1, 1, 4]])  # 2 texts of 3 tokens
x = torch.randn(2, 3, 4)  # [B, T, C]: 4 random numbers for each of these tokens
print("ids:", ids.shape, ids.dtype)
print("x:  ", x.shape, x.dtype, "on", x.device)

guess = predict("GPT-2 has 124 million weights. How many megabytes are they in float32? And in bfloat16?")
sizes = [124e6 * torch.tensor(0, dtype=dtype).element_size() / 1e6 for dtype in (torch.float32, torch.bfloat16)]
guess.measured(f"{sizes[0]:.0f} and {sizes[1]:.0f} megabytes")

# %% [markdown]
# The *device* says where the numbers are stored and computed: `cpu`, `cuda` (NVIDIA) or `mps` (Apple). All tensors of
# an operation must be on one device. `x.to(...)` copies a tensor to another device or dtype. It returns x itself if
# nothing has to change.

# %%
assert x.to("cpu") is x and x.to(torch.float64) is not x

# %% [markdown]
# ## One row of numbers, and a way to walk through it
#
# Memory is one long line of numbers. A tensor stores that line (its *storage*), the shape, and the *strides*: how many
# places to go forward in that line to reach the next element of each dimension.

# %%
a = torch.arange(12)
b = a.view(3, 4)  # the same 12 numbers, walked through as 3 rows of 4
print(b)
print("shape", tuple(b.shape), "strides", b.stride())

guess = predict("b.t() exchanges rows and columns: shape [4, 3]. Its strides?")
guess.measured(b.t().stride())

# %% [markdown]
# So element `[i, j]` is number `i * stride[0] + j * stride[1]` of the storage:
#
# ```text
# storage      0  1  2  3  4  5  6  7  8  9 10 11      strides of b: (4, 1), of b.t(): (1, 4)
# b[1, 2]      1 * 4 + 2 * 1 = 6
# b.t()[2, 1]  2 * 1 + 1 * 4 = 6                       the same number, at the same place
# ```


# %%
def element(storage: torch.Tensor, strides: tuple[int, ...], index: tuple[int, ...]) -> torch.Tensor:
    return storage[sum(step * place for step, place in zip(strides, index, strict=True))]


by_hand = torch.stack([element(a, b.t().stride(), (i, j)) for i in range(4) for j in range(3)])
equal(by_hand.view(4, 3), b.t(), "the transpose, read through its strides")

# %% [markdown]
# ## View or copy
#
# A *view* is a new tensor over the same storage. If you write into it, the first tensor changes too. These write:
# `x[0] = 1`, `x += 1`, and all operations whose names end in `_`, such as `x.add_(1)`, `x.fill_(0)`, `x.copy_(y)`. But
# `x = x + 1` makes a new tensor.
#
# * Views: `view`, `transpose`, `t`, `permute`, a slice such as `x[:, 1:]`, `squeeze`, `expand`.
# * Copies: `clone`, `x[[0, 2]]` (a list or a tensor as index), and results of computations.
# * `reshape`: a view where that is possible, otherwise a copy.

# %%
b = torch.arange(12).view(3, 4)
row, chosen = b[0], b[[0]]
b[0, 0] = 100
guess = predict("b[0, 0] became 100 after we made row and chosen. What is row[0], and what is chosen[0, 0]?")
guess.measured(f"row[0] = {row[0]}, chosen[0, 0] = {chosen[0, 0]}")

# %%
assert row.data_ptr() == b.data_ptr() != chosen.data_ptr(), "a view has the same address, a copy has its own"

# %% [markdown]
# ## Contiguous
#
# Go through a tensor row by row. If you meet the storage in its order, from one number to the next, the tensor is
# *contiguous*. A transposed matrix is not. `view` cannot make one line of it, because no single stride leads through
# its numbers in the right order; so it raises an error. `reshape` copies in this case, and so does `x.contiguous()`.

# %%
t = b.t()
print("b contiguous:", b.is_contiguous(), "   b.t() contiguous:", t.is_contiguous())
try:
    t.view(12)
except RuntimeError as error:
    print("RuntimeError:", str(error).split(".")[0])
print("reshape copies:", t.reshape(12))
equal(t.reshape(12), t.contiguous().view(12), "reshape, and contiguous then view")

# %% [markdown]
# Is a copy expensive? A transpose only changes the strides.

# %%
import timeit

big = torch.randn(short(full=4000, quick=1000), 1000)
guess = predict(f"How many times longer does a copy of the transpose of {len(big)} x 1000 take than the transpose?")
view, copy = (1e3 * min(timeit.repeat(run, number=1)) for run in (big.t, lambda: big.t().contiguous()))
guess.measured(f"{view:.4f} ms for the view, {copy:.2f} ms for the copy: {copy / view:,.0f} times")
assert copy > view, "a view moves no numbers"

# %% [markdown]
# ## Memory shared with NumPy
#
# `torch.from_numpy(array)` and `tensor.numpy()` do not copy: both sides share one memory. `torch.tensor(array)` copies.

# %%
array = np.zeros(3, dtype=np.int64)
shared, own = torch.from_numpy(array), torch.tensor(array)
array[0] = 7
guess = predict("array[0] became 7. What is in the tensor of from_numpy, and in that of torch.tensor?")
guess.measured(f"from_numpy: {shared.tolist()}, torch.tensor: {own.tolist()}")

# %%
assert shared[0] == 7 and own[0] == 0

# %% [markdown]
# ## The usual bug: `view` where `transpose` is meant
#
# A batch has 2 texts of 3 tokens, and we want the token dimension first: `[3, 2]`. Both `view` and `transpose` give
# that shape, without an error. Only one is right.

# %%
texts = torch.tensor([[1, 2, 3], [10, 20, 30]])  # the tokens of text 1, and those of text 2
print("texts:\n", texts)
print("transpose(0, 1): token by token\n", texts.transpose(0, 1))
print("view(3, 2): the two texts are mixed\n", texts.view(3, 2))
assert not torch.equal(texts.view(3, 2), texts.transpose(0, 1))

# %% [markdown]
# A right shape proves nothing. In a Transformer (the network inside a GPT), this mistake mixes the tokens of a text.
# The model then sees the words that it should predict, and is useless. `glassgpt doctor --break heads-by-view` trains
# such a model beside the right one.
#
# A second trap is *broadcasting*: where a dimension has size 1, or is missing on the left, torch repeats the numbers
# along it, and prints no warning.

# %%
prediction, target = torch.ones(3), torch.ones(3, 1)
guess = predict("What is the shape of prediction [3] minus target [3, 1]?")
guess.measured(tuple((prediction - target).shape))

# %%
assert (prediction - target).shape == (3, 3), "[3] becomes [1, 3], and both are repeated to [3, 3]"

# %% [markdown]
# ## In real systems
#
# The attention of this package changes `[B, T, H D]` to `[B, H, T, D]` with `view` and `transpose`: no number moves.
# See `Attention.forward` in `glassgpt/model/gpt.py`, and lesson 15. Training texts of many gigabytes are opened as a
# *memory map*: a NumPy array over a file. Only the parts that are used come into memory.
#
# ## Exercises
#
# Write functions with these names into a file of your own, such as `my_answer.py`. Check it with
# `glassgpt learn 1 --check my_answer.py`. The file may also contain only one answer.
#
# 1. `shares_memory(a, b)` receives two tensors of float32 with at least one element, and returns True if writing into
#    one can change the other. They may be slices or transposes of one tensor. You may write into them, but must put the
#    numbers back.
# 2. `split_heads(x, heads)` turns `[B, T, C]` into `[B, heads, T, C / heads]`: head h of a token gets the h-th part of
#    that token's C numbers.
#
# Next: lesson 2, where tensors remember how they were computed: `glassgpt learn 2`.
