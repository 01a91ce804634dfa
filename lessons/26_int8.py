# %% [markdown]
# # Lesson 26: a model in 8 bits
#
# You will know at the end: how a weight becomes a small whole number, why each row has its own scale, how large the
# error is, and what it costs in loss.
#
# Time: 7 minutes to read, about 12 seconds to compute. Before: lessons 17 (the whole GPT) and 1 (dtypes). The picture
# needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## The problem
#
# To write one token, a model reads all of its weights once. On most machines, reading them takes longer than computing
# with them. A weight takes 4 bytes in float32, and one in INT8: a quarter of the memory, and at best a quarter of the
# time.
#
# INT8 is a whole number from -128 to 127. So we choose a *scale* s, and keep `round(w / s)`. To use the weight, we
# multiply by s again.

# %%
import copy
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.transforms.quantize import Quantization, quantize, quantize_matrix

seed(0)
w = torch.tensor([0.31, -0.02, 0.11, -0.27])
scale = w.abs().max() / 127  # the largest weight becomes 127
q = (w / scale).round().to(torch.int8)
print("whole numbers:", q, "back:", q * scale)

guess = predict("What is the largest error that rounding can make here? (the scale is 0.31 / 127 = 0.00244)")
guess.measured(f"half a scale, {scale / 2:.5f}; the largest of these four: {(q * scale - w).abs().max():.5f}")

# %% [markdown]
# ## One scale per row
#
# If all rows of a matrix `[out, in]` share one scale, the row with the largest weight decides for all of them. With one
# scale per row, each row uses its full range.


# %%
def by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values [out, in] and float32 scales [out, 1]."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scales).round().to(torch.int8), scales


weight = torch.randn(64, 256) * 0.02
values, scales = by_row(weight)
their_values, their_scales = quantize_matrix(weight, Quantization(bits=8, group_size=256))
equal(values.float(), their_values.float(), "my whole numbers and the package's", tolerance=0.01)
equal(scales, their_scales, "my scales and the package's")

# %% [markdown]
# ## The error, on paper first
#
# Rounding moves a number by anything between -1/2 and 1/2 of a scale, all equally likely. The root mean square of such
# a number is s / sqrt(12), about 0.29 s. The largest of 256 normal random numbers is about 3 times their root mean
# square, so s is about 3 / 127 = 0.024 of it. Multiply.


# %%
def error(weight: Tensor, quantized: tuple[Tensor, Tensor]) -> float:
    """Root mean square of the error, relative to that of the weights, in percent."""
    values, scales = quantized
    return 100 * float((values * scales - weight).norm() / weight.norm())


guess = predict("So how many % of the weights' size is the error?")
guess.measured(error(weight, by_row(weight)))

guess = predict(
    "One weight becomes 3, the others stay near 0.02. The error of the other rows, with a scale per row, and with one?"
)
outlier = weight.clone()
outlier[63, 5] = 3.0
one = outlier.abs().max() / 127  # one scale for the whole matrix
row_error = error(outlier[:63], by_row(outlier[:63]))
whole_error = error(outlier[:63], ((outlier[:63] / one).round(), one))
guess.measured(f"{row_error:.1f} % and {whole_error:.1f} % in the 63 other rows")
assert whole_error > 10 * row_error

# %% [markdown]
# Trained models have such *outliers*. So weights get a scale per row, or for even fewer numbers.
#
# ## The usual bug
#
# A conversion to int8 does not stop at 127: it wraps around, and a large positive weight becomes a large negative one.
# It happens when a scale is too small: it was rounded down, or it comes from other data.

# %%
guess = predict("The numbers 126, 127, 128, 130 as int8?")
guess.measured(torch.tensor([126.0, 127.0, 128.0, 130.0]).to(torch.int32).to(torch.int8).tolist())
small = scales * 0.95  # every scale 5 % too small
wrapped = (weight / small).round().to(torch.int32).to(torch.int8)
clamped = (weight / small).round().clamp(-127, 127).to(torch.int8)
print(f"error: wrapped around {error(weight, (wrapped, small)):.1f} %, clamped {error(weight, (clamped, small)):.2f} %")
assert error(weight, (wrapped, small)) > 5 * error(weight, (clamped, small))

# %% [markdown]
# ## What it costs a model
#
# The loss counts, not the error of the weights. We train a small GPT on Python's help texts, and quantise it in 8 bits,
# and in 4 bits: there, a whole number is -8 to 7, and 64 neighbouring weights share a scale.

# %%
text = "\n".join(topics[name] for name in sorted(topics))[:150_000]
to_ids = {character: i for i, character in enumerate(sorted(set(text)))}
ids = torch.tensor([to_ids[c] for c in text])
model = GPT(ModelConfig(vocab_size=len(to_ids), block_size=48, n_layer=2, n_head=4, n_embd=64))
model.init_weights(seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def loss_of(model: GPT, rows: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - 49, (rows,), generator=generator)
    batch = ids[starts[:, None] + torch.arange(49)]
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


generator = torch.Generator().manual_seed(1)
for _ in range(short(full=500, quick=30)):
    optimizer.zero_grad()
    loss_of(model, 16, generator).backward()
    optimizer.step()


def stored(model: GPT) -> int:  # bytes; a tied matrix once
    return sum({t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())


@torch.no_grad()
def test(model: GPT) -> float:
    return float(loss_of(model, 256, torch.Generator().manual_seed(2)))


models = {"float32": model, "INT8": copy.deepcopy(model), "INT4": copy.deepcopy(model)}
quantize(models["INT8"], bits=8)
quantize(models["INT4"], bits=4)
guess = predict("By how much does the loss change, in INT8 and in INT4?")
losses = {name: test(one) for name, one in models.items()}
guess.measured(", ".join(f"{name} {losses[name] - losses['float32']:+.4f}" for name in ("INT8", "INT4")))
for name, one in models.items():
    print(f"{name:<8} loss {losses[name]:.4f}, {stored(one):>9,} bytes")
assert abs(losses["INT8"] - losses["float32"]) < 0.01
assert stored(models["INT8"]) < 0.4 * stored(model)

# %%
import matplotlib.pyplot as plt

layer = "blocks.0.mlp.up"
before = model.get_submodule(layer).weight.detach()
figure, axes = plt.subplots(figsize=(6, 3.5))
bins = torch.linspace(-0.08, 0.08, 161).numpy()
axes.hist(before.flatten().numpy(), bins=bins, color="lightgrey", label="the weights", log=True)
for name in ("INT4", "INT8"):
    after = models[name].get_submodule(layer).weight
    axes.hist((after - before).flatten().numpy(), bins=bins, histtype="step", label=f"error of {name}", log=True)
axes.set(xlabel="value", ylabel="how many", title=f"Weights of {layer}, and their errors")
axes.legend()
picture(figure, "26-errors")

# %% [markdown]
# This model was trained for a short time: its loss hardly changes. A model that was trained for long needs more digits:
# with INT4, the perplexity of SmolLM2-135M rises by about 30 % with plain rounding, and by about 8 % with GPTQ (below).
# `glassgpt quantize` measures it for *your* model. The positions and norms stay in float32, so the file is a little
# larger than a quarter.
#
# ## In real systems
#
# LLM.int8() and SmoothQuant quantise the activations, too, so that the product itself runs on whole numbers; outliers
# in a few channels make that hard. GPTQ and AWQ fit 4-bit weights to the activations of a sample text. llama.cpp's GGUF
# files hold 2 to 8 bits. New GPUs compute in 8-bit and 4-bit floating point (FP8, NVFP4).
#
# ## Exercises
#
# 1. `quantize(weight)` returns int8 values `[out, in]` and scales `[out]`, as above. A row of zeros must stay zeros,
#    and no scale may be 0.
# 2. `bits_per_weight(bits, group_size, scale_bits)`: the memory of a weight when `group_size` weights share one scale.
#
# Check them with `glassgpt learn 26 --check my_answer.py`.
#
# Next: `glassgpt quantize MODEL --to int8` writes such a model and prints what it changes. Then lesson 27: LoRA.
