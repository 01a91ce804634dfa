# %% [markdown]
# # Lesson 4: the forward pass of a multilayer perceptron
#
# You will know at the end: what a linear layer computes, why a network needs something between two of them, how numbers
# grow or vanish with depth, and how the MLP inside a Transformer works.
#
# A *multilayer perceptron* (MLP) is the simplest neural network: several layers in a row. Its *forward pass* computes
# the outputs from the inputs.
#
# Time: 7 minutes to read, 3 seconds to compute. Before: lessons 1 (tensors) and 2 (gradients). The pictures need
# matplotlib (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## A linear layer
#
# A *linear layer* multiplies by a matrix and adds a vector: `y = x W^T + b`. PyTorch stores W as `[out, in]`, so row i
# of W makes output i. The layer works on the last dimension, and keeps all before it.

# %%
import torch
from torch import nn
from torch.nn import functional as F

from glassgpt.learn import equal, picture, predict, seed

seed(0)
layer = nn.Linear(4, 3)
x = torch.randn(2, 5, 4)  # [B, T, 4]
guess = predict("nn.Linear(4, 3): the shape of its weight? Of layer(x), for x of shape [2, 5, 4]? Its parameters?")
count = sum(p.numel() for p in layer.parameters())
guess.measured(f"{tuple(layer.weight.shape)}, {tuple(layer(x).shape)}, {count} parameters")
equal(x @ layer.weight.T + layer.bias, layer(x), "x W^T + b by hand, and nn.Linear")

# %% [markdown]
# ## Why two linear layers are one
#
# `(x A) B = x (A B)`: two matrices in a row are one matrix. So a network of linear layers only, however deep, can do no
# more than one layer.

# %%
first, second = nn.Linear(4, 64), nn.Linear(64, 3)
folded_weight = second.weight @ first.weight  # [3, 64] @ [64, 4] = [3, 4]
folded_bias = second.weight @ first.bias + second.bias
equal(second(first(x)), x @ folded_weight.T + folded_bias, "two linear layers, and the one that equals them")

# %% [markdown]
# So something that is not linear must stand between them: the *activation function*. It works on each number alone.
# *ReLU* replaces negative numbers by 0. With it, a few weights that we choose by hand compute "exactly one of the two
# is 1" (XOR), which no single linear layer can.

# %%
inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
hidden = (inputs @ torch.ones(2, 2) + torch.tensor([0.0, -1.0])).relu()  # relu(x1 + x2), relu(x1 + x2 - 1)
output = hidden @ torch.tensor([1.0, -2.0])
guess = predict("The outputs for 00, 01, 10, 11?")
guess.measured(output.tolist())

# %%
assert output.tolist() == [0, 1, 1, 0]

# %% [markdown]
# ## GELU
#
# GPT-2 uses *GELU*: x times the probability that a normal random number is below x. It is a smooth ReLU. GPT-2 computes
# it by a formula with tanh, which is nearly the same. With published weights, use the formula that the model was
# trained with. The picture also shows *SiLU*, which Llama uses.

# %%
import math

import matplotlib.pyplot as plt


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


line = torch.linspace(-4, 4, 401)
equal(gelu(line), F.gelu(line), "GELU by hand, and torch's")
equal(gelu_tanh(line), F.gelu(line, approximate="tanh"), "GELU by tanh, and torch's")
print(f"the two differ by up to {(gelu(line) - gelu_tanh(line)).abs().max():.5f}")

figure, axes = plt.subplots(figsize=(5, 3.5))
for name, values in (("ReLU", line.relu()), ("GELU", gelu(line)), ("SiLU: x sigmoid(x)", F.silu(line))):
    axes.plot(line, values, label=name)
axes.set(xlabel="x", ylabel="activation(x)", title="Activation functions")
axes.legend()
picture(figure, "04-activations")

# %% [markdown]
# ## The MLP of a Transformer
#
# It has two linear layers: from C up to 4 C, GELU, and down to C again. Every token passes through it alone. The MLP of
# Llama, *SwiGLU*, has three matrices and no biases. One matrix makes a *gate*: numbers by which the outputs of another
# matrix are multiplied.

# %%
from glassgpt.config import ModelConfig
from glassgpt.model.gpt import MLP

C = 16
x = torch.randn(2, 5, C)
theirs = MLP(ModelConfig(n_embd=C, n_head=2, mlp="gelu_tanh"))
mine = gelu_tanh(x @ theirs.up.weight.T + theirs.up.bias) @ theirs.down.weight.T + theirs.down.bias
equal(mine, theirs(x), "the MLP of GPT-2")

theirs = MLP(ModelConfig(n_embd=C, n_head=2, mlp="swiglu", mlp_bias=False))
mine = (F.silu(x @ theirs.gate.weight.T) * (x @ theirs.up.weight.T)) @ theirs.down.weight.T
equal(mine, theirs(x), "the MLP of Llama")

guess = predict("C = 768: how many million parameters has one MLP of GPT-2, 768 to 3072 to 768? And all 12 together?")
one = sum(p.numel() for p in MLP(ModelConfig(n_embd=768, n_head=12)).parameters()) / 1e6
guess.measured(f"{one:.2f} and {12 * one:.1f}, of 124 in all")

# %% [markdown]
# ## How large should the weights be at first?
#
# Each output of a layer is a sum of `in` products. If the weights are random with the standard deviation s, the outputs
# are about `s sqrt(in)` times as large as the inputs, in every layer again. ReLU removes the negative half of the
# numbers. With `s = sqrt(2 / in)` the size stays about the same (*He initialisation*).

# %%
width, depth = 256, 30
guess = predict(f"30 layers of width {width} with ReLU, weights of standard deviation 0.02. The size of the output?")
sizes = {}
for name, s in (("0.02", 0.02), ("sqrt(2 / in)", math.sqrt(2 / width)), ("0.2", 0.2)):
    h, sizes[name] = torch.randn(64, width), []
    for _ in range(depth):
        h = (h @ (s * torch.randn(width, width))).relu()
        sizes[name].append(h.std().item())
guess.measured(f"{sizes['0.02'][-1]:.1e}   (with sqrt(2 / in): {sizes['sqrt(2 / in)'][-1]:.2f})")

# %%
assert sizes["0.02"][-1] < 1e-10
assert 0.05 < sizes["sqrt(2 / in)"][-1] < 20

figure, axes = plt.subplots(figsize=(5, 3.5))
for name, values in sizes.items():
    axes.semilogy(range(1, depth + 1), values, label=f"weights of deviation {name}")
axes.set(xlabel="layer", ylabel="standard deviation", title="Numbers vanish or explode with depth")
axes.legend(fontsize=8)
picture(figure, "04-depth")

# %% [markdown]
# GPT-2 begins with 0.02. That works, because layers called *norms* bring the numbers back to size 1 in each block
# (lesson 16).
#
# ## The usual bugs
#
# **Layers in a Python list.** An `nn.Module` finds its parameters in its attributes, and in an `nn.ModuleList`. It does
# not look into a list. The forward pass works. But the optimizer (the object that changes the weights, lesson 5) does
# not get these layers.

# %%
broken, right = nn.Module(), nn.Module()
broken.layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
right.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
guess = predict("How many parameters does torch find in each: with a list, and with a ModuleList?")
guess.measured([sum(p.numel() for p in module.parameters()) for module in (broken, right)])

# %% [markdown]
# **Softmax in the model.** `cross_entropy` expects logits: it computes the softmax itself (lesson 2). If the model ends
# with a softmax, it is computed twice.

# %%
perfect, target = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([0])
guess = predict("A model is sure of the right one of 3 classes. Its loss: with logits, and after a second softmax?")
once, twice = F.cross_entropy(perfect, target), F.cross_entropy(perfect.softmax(-1), target)
guess.measured(f"{once:.4f} and {twice:.4f}")

# %% [markdown]
# Even a perfect answer has a large loss.
#
# ## In real systems
#
# In GPT-2, the MLP has two thirds of the weights of each block: 8 C squared, and the attention has 4 C squared.
# Llama-class models use SwiGLU: with a hidden width of 8/3 C, it has as many weights. *Mixture-of-experts* models have
# many MLPs in each block, and send each token through only a few.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 4 --check my_answer.py`.
#
# 1. `mlp(x, weights, biases)` receives x `[..., in]`, a list of weights (each `[out, in]`, as in `nn.Linear`) and a
#    list of biases (each `[out]`). It returns the output of the network with ReLU between the layers, and none after
#    the last. It does not change x.
# 2. `count_parameters(sizes, bias)` returns the number of parameters of a network. `sizes` are the widths from the
#    input to the output: `[4, 64, 3]` means a layer from 4 to 64, and one from 64 to 3. `bias` says whether the layers
#    have biases.
#
# Next: `glassgpt doctor --break blocks-in-a-list` and `--break softmax-in-the-model` train a GPT with these bugs. Then
# lesson 5: the training loop.
