# %% [markdown]
# # Lesson 6: the accelerator
#
# You will know at the end: which devices this machine has, how to measure their speed correctly, what limits it, and
# why the same computation gives slightly different numbers on another device.
#
# Time: 8 minutes to read, 5 seconds to compute. Before: lesson 1 (tensors). The picture needs matplotlib
# (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## What is here?
#
# PyTorch computes on several kinds of devices. `cpu` is always there. `cuda` is a GPU by NVIDIA (or by AMD, under the
# same name). `mps` is the GPU of an Apple computer.

# %%
import time
from collections.abc import Callable

import torch

from glassgpt.learn import equal, picture, predict, seed, short

seed(0)
devices = [torch.device("cpu")]
print(f"cpu:  here; torch may use {torch.get_num_threads()} of its cores at once")
if torch.cuda.is_available():
    devices.append(torch.device("cuda"))
    print(f"cuda: here, {torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} in all")
else:
    print("cuda: not here (no NVIDIA or AMD GPU, or a PyTorch that was built without it)")
if torch.backends.mps.is_available():
    devices.append(torch.device("mps"))
    print("mps:  here")
else:
    print("mps:  not here (it is on Apple computers only)")

# %% [markdown]
# A program should choose a device by itself, and let the user choose another one. The package takes CUDA if it is
# there, else MPS, else the CPU.

# %%
from glassgpt.config import RuntimeConfig
from glassgpt.runtime import resolve, synchronise

assert resolve(RuntimeConfig()).device.type == devices[-1].type


# %% [markdown]
# ## The usual bug: a clock that stops too early
#
# A GPU works beside the CPU. PyTorch only puts the work into a queue and continues. If you read a clock then, the
# result is not yet computed. So call `torch.cuda.synchronize()` first: it waits until the queue is empty. (On a CPU
# there is no queue: the two numbers below are equal, but for chance.) Two more rules: do not count the first call,
# which also loads code and reserves memory. Take the best of several, because other programs disturb a single one.


# %%
def seconds(work: Callable[[], object], device: torch.device, wait: bool = True, times: int = 5) -> float:
    work()  # the first call does not count
    best = float("inf")
    for _ in range(times):
        synchronise(device)
        start = time.perf_counter()
        work()
        if wait:
            synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


n = short(full=1024, quick=512)
a, b = torch.randn(n, n), torch.randn(n, n)
for device in devices:
    left, right = a.to(device), b.to(device)
    times = [1e3 * seconds(lambda: left @ right, device, wait) for wait in (False, True)]  # noqa: B023
    print(f"{device}: {n} x {n} product, {times[0]:.3f} ms without waiting, {times[1]:.3f} ms with")

# %% [markdown]
# ## How fast is that?
#
# The product of two `[n, n]` matrices has n squared results. Each needs n multiplications and n additions: 2 n cubed
# operations in all. Nearly all of the work of a Transformer is matrix products. So operations per second (FLOP/s) tell
# how long training will take.

# %%
guess = predict(f"How many billion operations is a product of two {n} x {n} matrices?")
guess.measured(2 * n**3 / 1e9)

import matplotlib.pyplot as plt

sizes = [16, 32, 64, 128, 256, 512, 1024][: short(full=7, quick=6)]
guess = predict(f"How many times more operations per second at n = {sizes[-1]} than at n = 16?")
speeds = {}  # by device and n, in billions of operations per second
for device in devices:
    larger = [] if device.type == "cpu" else [2048, 4096]  # these take too long on a CPU
    matrices = {n: torch.randn(n, n, device=device) for n in sizes + larger}
    speeds[device.type] = {n: 2e-9 * n**3 / seconds(lambda: m @ m, device) for n, m in matrices.items()}  # noqa: B023
guess.measured(" and ".join(f"{speed[sizes[-1]] / speed[16]:.0f} times ({name})" for name, speed in speeds.items()))
for name, speed in speeds.items():
    print(f"{name}: n = 16: {speed[16]:.2f} GFLOP/s; n = {max(speed)}: {speed[max(speed)]:.0f} GFLOP/s")
    if name != "cpu":
        ratios = [f"{speed[n] / speeds['cpu'][n]:.1f} times at n = {n}" for n in (16, sizes[-1])]
        print(f"{name} against the CPU: {', '.join(ratios)}")

figure, axes = plt.subplots(figsize=(6, 3.5))
for name, speed in speeds.items():
    axes.loglog(list(speed), list(speed.values()), marker="o", label=name)
axes.set(xlabel="n", ylabel="GFLOP/s", title="Products of two n x n matrices")
axes.legend()
picture(figure, "06-speed")

# %% [markdown]
# To start an operation takes some microseconds, on a GPU more than on a CPU. For small matrices you measure little
# else. So a tiny model may train no faster on a large GPU, and batches should be large.
#
# ## Computing or moving?
#
# An addition `x + 1` does one operation for each number that it reads and writes. It waits for the memory. A large
# matrix product uses each number n times, and waits for the arithmetic.

# %%
size = short(full=16_000_000, quick=4_000_000)
guess = predict("How many times fewer operations per second does x + 1 reach than the large matrix product?")
ratios = []
for device in devices:
    x = torch.zeros(size, device=device)
    out = torch.empty_like(x)
    taken = seconds(lambda: torch.add(x, 1, out=out), device)  # noqa: B023
    ratios.append(f"{max(speeds[device.type].values()) / (size / taken / 1e9):.0f} times ({device})")
    print(f"{device}: x + 1 reaches {size / taken / 1e9:.2f} GFLOP/s and moves {8 * size / taken / 1e9:.1f} GB/s")
guess.measured(" and ".join(ratios))

# %% [markdown]
# ## The same on every device?
#
# Nearly. A sum of floating-point numbers depends on the order in which they are added, and each device adds in another
# order. So results differ in the last digits. Compare with a tolerance, never with `==`. bfloat16 keeps only 8 binary
# digits of each number, so its error is much larger.

# %%
print("0.1 + 0.2 + 0.3:", (0.1 + 0.2) + 0.3, "and", 0.1 + (0.2 + 0.3))
exact = (a.double() @ b.double()).float()
for device in devices:
    product = (a.to(device) @ b.to(device)).cpu()
    equal(product, exact, f"{device}, float32 against float64", tolerance=1e-2 if device.type == "cuda" else 1e-4)
guess = predict("The largest error of the product in bfloat16, relative to the largest number (1 / 2 ** 8 = 0.004)?")
rounded = (a.bfloat16() @ b.bfloat16()).float()
error = ((rounded - exact).abs().max() / exact.abs().max()).item()
guess.measured(error)
assert 1e-4 < error < 0.1

# %% [markdown]
# ## A second bug: tensors on two devices
#
# All tensors of an operation must be on one device. A tensor that a model makes for itself, such as `torch.arange(T)`,
# is on the CPU, unless you say where. On a CPU you never notice. We try it with the device `meta`, which every machine
# has: its tensors have shapes, but no numbers.

# %%
x = torch.ones(3, device="meta")
x + torch.arange(3, device=x.device)  # right
try:
    x + torch.arange(3)
except RuntimeError as error:
    print(f"RuntimeError: {str(error).splitlines()[0][:90]}")

# %% [markdown]
# ## In real systems
#
# Large models train mostly in bfloat16, with float32 copies of the weights: on newer GPUs its matrix products are much
# faster. Nobody reaches the peak that a maker names; the share that a training reaches is called *MFU* (model FLOP
# utilisation). `torch.compile` joins small operations, so that fewer numbers are moved.
#
# `glassgpt doctor` compares the devices and number types of your machine, and `glassgpt bench train` measures training.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 6 --check my_answer.py`.
#
# 1. `choose(wanted, available)` receives "auto" or the name of a device, and the set of the names that are there ("cpu"
#    always is). It returns a name: for "auto" it prefers "cuda", then "mps", then "cpu". It raises a ValueError if the
#    wanted device is not there.
# 2. `gflops(B, T, C, hidden)` returns the billions of operations of one forward pass of an MLP (a linear layer from C
#    to hidden, an activation function, and a linear layer from hidden to C) for x of shape `[B, T, C]`. Count only
#    matrix products, and a multiplication and an addition as two operations.
#
# Next: `glassgpt doctor --break arange-on-the-cpu` trains a GPT with the second bug. Then lesson 7: word tokenizers.
