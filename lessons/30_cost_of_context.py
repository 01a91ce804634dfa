# %% [markdown]
# # Lesson 30: the cost of context
#
# You will know at the end: how time and memory of attention grow with the length of the text, when attention costs more
# than everything else, and how to find out where time and memory are spent.
#
# Time: 8 minutes to read, about 5 seconds to compute. Before: lessons 14 (the causal mask) and 17 (the whole GPT). The
# picture needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## On paper
#
# Attention compares every token with every token: `[T, T]` scores for each head. Twice the text, four times the scores.
# All other parts of a block treat each token alone.
#
# Count the multiplications and additions (FLOPs) of one block with width C. A matrix of `[C, C]` costs `2 C C` per
# token. Attention has 4 such matrices, the MLP has 8. The scores cost `2 T C` per token, the average of the values as
# much again.
#
#     matrices: 24 C C per token        scores and averages: 4 T C per token

# %%
import time
import weakref

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.model.attention import ExplicitAttention, FusedAttention

seed(0)
C, H, T = 64, 4, 256
config = ModelConfig(vocab_size=10, block_size=4096, n_layer=1, n_head=H, n_embd=C)
model = GPT(config)
model.init_weights(seed=0)
model.blocks[0].attention.attend = ExplicitAttention()
with FlopCounterMode(display=False) as counter, torch.no_grad():
    model(torch.randint(10, (1, T)), apply_head=False)
guess = predict(f"C = {C}, T = {T}: how many FLOPs has one block, by the formula?")
formula = T * (24 * C * C + 4 * T * C)
guess.measured(f"{formula:,}; torch counts {counter.get_total_flops():,}")
assert counter.get_total_flops() == formula

guess = predict("At which T do scores and averages cost as much as the matrices, in GPT-2 (C = 768)?")
guess.measured(24 * 768 * 768 // (4 * 768))

# %% [markdown]
# It is T = 6 C. Below it, the matrices cost more.
#
# ## Time, measured
#
# Attention in two forms: explicit, with all scores in memory, and fused (FlashAttention's method): the scores are
# computed block by block, and never stored.
#
# **The usual bug** of measuring is to time the first call, which also loads libraries; or, on a GPU, to stop the clock
# before the work is done: call `torch.cuda.synchronize()` first.


# %%
def seconds(attention: torch.nn.Module, T: int, device: str = "cpu") -> float:
    """The fastest of several runs: other programs can make a run slower, but not faster."""
    q, k, v = torch.randn(3, 1, H, T, 16, device=device)
    times = []
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            attention(q, k, v, None)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return min(times)


q, k, v = torch.randn(3, 1, H, 50, 16)
equal(ExplicitAttention()(q, k, v, None)[0], FusedAttention()(q, k, v, None)[0], "explicit and fused attention")

lengths = [128, 256, 512, 1024, 2048][: short(full=5, quick=3)]
kinds = {"explicit": ExplicitAttention(), "fused": FusedAttention()}
guess = predict(f"How many times longer does explicit attention take at T = {lengths[-1]} than at T = {lengths[-2]}?")
times = {name: [seconds(attention, T) for T in lengths] for name, attention in kinds.items()}
guess.measured(times["explicit"][-1] / times["explicit"][-2])
for name, values in times.items():
    print(f"{name:<9}", ", ".join(f"T = {T}: {1000 * s:.2f} ms" for T, s in zip(lengths, values, strict=True)))

# %% [markdown]
# Both grow with the square of T: fused attention computes scores, too. It is faster because it skips the hidden half,
# and moves less memory. Explicit attention slows down further once its scores outgrow the processor's caches.
#
# ## Memory, counted exactly
#
# In training, the forward pass keeps tensors for the backward pass. A pair of autograd's hooks sees every tensor that
# is kept. We count the bytes that are alive, each piece of memory once.


# %%
class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()
        alive.add(self)


alive = weakref.WeakSet[Kept]()  # what is freed leaves this set by itself


def alive_bytes() -> int:
    storages = [kept.tensor.untyped_storage() for kept in alive]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def kept_bytes(attention: torch.nn.Module, T: int) -> int:
    q, k, v = torch.randn(3, 1, H, T, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        y, _ = attention(q, k, v, None)
        size = alive_bytes()  # y is alive here, and with it everything that it keeps
    del y
    return size


guess = predict("One head's scores at T = 1024 in float32: how many MiB? (1 MiB = 1024 x 1024 bytes)")
guess.measured(1024 * 1024 * 4 / 2**20)
memory = {name: [kept_bytes(attention, T) for T in lengths] for name, attention in kinds.items()}


growth = {name: values[-1] / values[-2] for name, values in memory.items()}
print(f"Twice the length keeps {growth['explicit']:.2f} times as much explicitly, {growth['fused']:.2f} times fused.")
assert growth["explicit"] > 3.5, "the square of T"
assert growth["fused"] < 2.3, "T"

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name in kinds:
    axes[0].loglog(lengths, [1000 * s for s in times[name]], marker="o", label=name, base=2)
    axes[1].loglog(lengths, [m / 2**20 for m in memory[name]], marker="o", label=name, base=2)
axes[0].set(xlabel="tokens", ylabel="milliseconds", title="time: both the square of T")
axes[1].set(xlabel="tokens", ylabel="MiB kept for backward", title="memory: the square of T, and T")
axes[0].legend()
picture(figure, "30-context")

# %% [markdown]
# ## Where does the time go? The profiler
#
# Do not guess which part is slow. The profiler lists each operation with its time and memory.

# %%
from torch.profiler import ProfilerActivity, profile

idx = torch.randint(10, (1, lengths[-1]))
with torch.no_grad():
    model(idx)  # the first call is not measured
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(idx)
events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)[:6]
guess = predict(f"One block, explicit attention, T = {lengths[-1]}: which operation takes the most time?")
guess.measured(events[0].key)
for event in events:
    print(f"{event.key:<28}{event.self_cpu_time_total / 1000:8.2f} ms {event.self_cpu_memory_usage / 2**20:8.1f} MiB")

# %% [markdown]
# On a GPU, PyTorch counts the memory: `max_memory_allocated` is the largest sum so far, and `memory_summary` prints a
# table.

# %%
if torch.cuda.is_available():
    for name, attention in kinds.items():
        torch.cuda.reset_peak_memory_stats()
        took, peak = seconds(attention, 4096, "cuda"), torch.cuda.max_memory_allocated() / 2**20
        print(f"T = 4096: {name:<9}{1000 * took:8.3f} ms {peak:8.1f} MiB")
    print(torch.cuda.memory_summary(abbreviated=True))
else:
    print("There is no CUDA device on this machine, so there is nothing to print.")

# %% [markdown]
# ## Another usual bug: memory that grows with every step
#
# `losses.append(loss)` keeps a tensor, and with it everything that was stored for its backward pass. Write
# `loss.item()`. (`backward()` frees the graph, so you find the bug in evaluation loops.)

# %%
guess = predict("Five losses of a validation loop are kept as tensors: how many times the memory of one?")
losses, history = [], []
with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
    for _ in range(5):
        losses.append(model(idx[:, :128]).logsumexp(-1).mean())
        history.append(alive_bytes())
guess.measured(history[-1] / history[0])
losses = [loss.item() for loss in losses]
print(f"kept as tensors: {history[-1] / 2**20:.2f} MiB; as numbers: {alive_bytes()} bytes of them are left")
assert history[-1] > 3 * history[0] and alive_bytes() == 0

# %% [markdown]
# ## In real systems
#
# For very long texts, several GPUs share the keys and values of a text (ring attention). Other models compute less:
# sliding windows in most layers, or layers with a state of fixed size (Mamba). *Activation checkpointing* computes
# again what was not kept: about a third more time, and much less memory.
#
# ## Exercises
#
# 1. `block_flops(T, C, hidden)`: FLOPs of one block for T tokens, when its MLP has `hidden` channels (4 C above).
# 2. `blockwise(q, k, v, block)`: causal attention, `[T, D] -> [T, D]`, for `block` queries at a time, so that no more
#    than `block` x T scores exist at once.
#
# Check them with `glassgpt learn 30 --check my_answer.py`.
#
# Next: `glassgpt plan my.txt` shows FLOPs and memory before a training; `glassgpt bench attention` measures it.
# Then lesson 31: from toy to real.
