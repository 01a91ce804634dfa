# %% [markdown]
# # Lesson 6: the accelerator
#
# You will know at the end: which devices this machine has, how to measure their speed rightly, what limits it, and why
# the same computation gives slightly different numbers on another device.
#
# Time: 8 minutes. Before: lesson 1 (tensors).
# The picture needs matplotlib (`pip install 'glassgpt[plot]'`). It runs on any machine, and says which devices are not
# there.

# %% [markdown]
# ## What is here?
#
# PyTorch computes on several kinds of devices. `cpu` is always there. `cuda` is a GPU by NVIDIA (or by AMD, under the
# same name). `mps` is the GPU of an Apple computer. We ask for each.

# %%
import time
from collections.abc import Callable

import torch

from glassgpt.learn import equal, picture, predict, seed, short

seed(0)
devices = [torch.device("cpu")]
print(f"cpu:  here, torch uses {torch.get_num_threads()} threads")
if torch.cuda.is_available():
    devices.append(torch.device("cuda"))
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    print(f"cuda: here, {torch.cuda.get_device_name(0)}, {memory:.0f} GB, {torch.cuda.device_count()} in all")
else:
    print("cuda: not here (no NVIDIA or AMD GPU, or a PyTorch that was built without it)")
if torch.backends.mps.is_available():
    devices.append(torch.device("mps"))
    print("mps:  here")
else:
    print("mps:  not here (it is on Apple computers only)")

# %% [markdown]
# A program should choose by itself, and let the user overrule it. The package has the same rule: CUDA, else MPS, else
# the CPU.

# %%
from glassgpt.config import RuntimeConfig
from glassgpt.runtime import resolve, synchronise

best = devices[-1]
assert resolve(RuntimeConfig()).device.type == best.type
print("the package would use:", best)


# %% [markdown]
# ## The usual bug: a clock that stops too early
#
# A GPU works on its own. PyTorch only puts the work into a queue and continues, before anything is computed. A clock
# that is read then measures how long the *asking* took. So wait with `torch.cuda.synchronize()` before you read it. (On
# a CPU there is no queue, and no difference.) Also: the first call is slower, because it loads code and takes memory;
# and one call alone is often disturbed. So we run once before, and take the best of several.


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
# operations in all. Nearly all of the work of a Transformer is matrix products. So this number, operations per second
# (FLOP/s), tells how long training will take.

# %%
guess = predict(f"How many billion operations is a product of two {n} x {n} matrices?")
guess.measured(2 * n**3 / 1e9)

import matplotlib.pyplot as plt

sizes = [16, 32, 64, 128, 256, 512, 1024][: short(full=7, quick=6)]
guess = predict(f"How many times more operations per second at n = {sizes[-1]} than at n = 16?")
speeds = {}
for device in devices:
    matrices = {n: torch.randn(n, n, device=device) for n in sizes}
    speeds[device.type] = [2 * n**3 / seconds(lambda: m @ m, device) / 1e9 for n, m in matrices.items()]  # noqa: B023
guess.measured(f"{speeds['cpu'][-1] / speeds['cpu'][0]:.0f} times on the CPU ({speeds['cpu'][-1]:.1f} GFLOP/s)")

figure, axes = plt.subplots(figsize=(6, 3.5))
for name, values in speeds.items():
    axes.loglog(sizes, values, marker="o", label=name)
axes.set(xlabel="n", ylabel="GFLOP/s", title="Products of n x n matrices: small ones waste the machine")
axes.legend()
axes.grid(alpha=0.3)
picture(figure, "06-speed")

# %% [markdown]
# Starting an operation takes some microseconds, on a GPU more than on a CPU. For small matrices that is all you
# measure. That is why a tiny model trains no faster on a large GPU, and why batches should be large.
#
# ## Computing or moving?
#
# An addition `x + 1` does one operation for each number that it reads and writes. It waits for the memory. A large
# matrix product uses each number n times, and waits for the arithmetic.

# %%
size = short(full=16_000_000, quick=4_000_000)
guess = predict("How many times fewer operations per second does x + 1 reach than the large matrix product?")
for device in devices:
    x = torch.zeros(size, device=device)
    out = torch.empty_like(x)
    taken = seconds(lambda: torch.add(x, 1, out=out), device)  # noqa: B023
    ratio = speeds[device.type][-1] / (size / taken / 1e9)
    print(f"{device}: x + 1 reaches {size / taken / 1e9:.2f} GFLOP/s and moves {8 * size / taken / 1e9:.1f} GB/s")
    if device.type == "cpu":
        guess.measured(f"{ratio:.0f} times on the CPU")

# %% [markdown]
# ## The same on every device?
#
# Nearly. A sum of floating-point numbers depends on the order in which they are added, and every device has another
# order. So results differ in the last digits. Compare with a tolerance, never with `==`. We compare each device in
# float32 with float64 on the CPU, and look at bfloat16, which keeps only 8 binary digits.

# %%
exact = (a.double() @ b.double()).float()
for device in devices:
    product = (a.to(device) @ b.to(device)).cpu()
    equal(product, exact, f"{device}, float32 against float64", tolerance=1e-2 if device.type == "cuda" else 1e-4)
guess = predict("The largest error of the product in bfloat16, relative to the largest number: 1e-6, 1e-4 or 1e-2?")
rounded = (a.bfloat16() @ b.bfloat16()).float()
error = ((rounded - exact).abs().max() / exact.abs().max()).item()
guess.measured(error)
assert 1e-4 < error < 0.1

print("0.1 + 0.2 + 0.3:", (0.1 + 0.2) + 0.3, "and", 0.1 + (0.2 + 0.3))

# %% [markdown]
# ## A second bug: tensors on two devices
#
# All tensors of an operation must be on one device. A tensor that a model makes for itself, such as `torch.arange(T)`,
# is on the CPU, unless you say where. On a CPU nobody notices. We try it with the device `meta`, which every machine
# has: its tensors have shapes, but no numbers.

# %%
x = torch.ones(3, device="meta")
for name, make in (("torch.arange(3)", lambda: torch.arange(3)),
                   ("torch.arange(3, device=x.device)", lambda: torch.arange(3, device=x.device))):  # fmt: skip
    try:
        x + make()
        print(f"x + {name}: works")
    except RuntimeError as error:
        print(f"x + {name}: RuntimeError: {str(error).splitlines()[0][:90]}")

# %% [markdown]
# ## In real systems
#
# Large models train in bfloat16, with float32 copies of the weights. One H100 computes up to about 1,000 TFLOP/s in
# bfloat16. The training of Llama 3 used about 40 % of that peak (*MFU*, model FLOP utilisation). `torch.compile`
# joins small operations, so that numbers travel less often between memory and arithmetic.
#
# The package measures before it chooses: `glassgpt doctor` compares this machine's devices and number types, and
# `glassgpt bench train` measures training.
#
# ## Exercises
#
# Write your answers into a file of your own, and check it with `glassgpt learn 6 --check my_answer.py`.
#
# 1. `choose(wanted, available)` receives "auto" or the name of a device, and the set of those that are there. For
#    "auto" it prefers "cuda", then "mps", then "cpu". It raises a ValueError if the wanted one is not there.
# 2. `gflops(B, T, C, hidden)` returns the billions of operations of one forward pass of a GPT-2 MLP (C to hidden to C),
#    for `[B, T, C]`. Count a multiplication and an addition as two, and matrix products only.
#
# Next: `glassgpt doctor --only machine` names what your machine has. `glassgpt doctor --break arange-on-the-cpu` trains
# a GPT with the second bug; without a GPU, the losses are the same. Then lesson 7: word tokenizers.
