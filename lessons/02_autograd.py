# %% [markdown]
# # Lesson 2: the computation graph and autograd
#
# You will know at the end: how PyTorch computes gradients (you write such an engine), what a leaf is, what `.grad`
# holds, what `detach` cuts, and why a gradient can be None.
#
# Time: 9 minutes to read, 2 seconds to compute. Before: lesson 1 (tensors). The picture needs matplotlib
# (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Gradients
#
# A model has *weights* (the numbers that it learns), and a *loss*: one number that says how wrong it is. If a weight
# grows a little, by how much does the loss grow? This is the *derivative* of the loss by that weight. All of them
# together are the *gradient*.
#
# PyTorch records every operation on tensors that have `requires_grad=True`: the *computation graph*. `backward()` walks
# through it from the loss to the weights, and multiplies the derivatives on the way (the *chain rule*).

# %%
import torch

from glassgpt.learn import equal, picture, predict, seed, short

w = torch.tensor(3.0, requires_grad=True)
loss = (w * w + 1) * 2
guess = predict("loss = 2 (w w + 1) and w = 3. The derivative of the loss by w?")
loss.backward()
guess.measured(w.grad.item())

# %% [markdown]
# ## An engine of our own
#
# Each number remembers from which numbers it was computed (its *parents*), and the derivative by each. For example, a
# product a b has the derivative b by a. `backward` goes through the numbers from the last to the first. Each number
# passes its gradient to its parents, times the derivative. In this order, its own gradient is complete by then.

# %%
import math


class Number:
    def __init__(self, value: float, parents: tuple = ()):
        self.value, self.parents, self.grad = value, parents, 0.0  # parents: (number, derivative by it)

    def __add__(self, other: "Number") -> "Number":
        return Number(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: "Number") -> "Number":
        return Number(self.value * other.value, ((self, other.value), (other, self.value)))

    def sigmoid(self) -> "Number":
        s = 1 / (1 + math.exp(-self.value))
        return Number(s, ((self, s * (1 - s)),))

    def log(self) -> "Number":
        return Number(math.log(self.value), ((self, 1 / self.value),))

    def backward(self) -> None:
        order, seen = [], set()

        def visit(number: Number) -> None:  # a number comes into the list after its parents
            if id(number) not in seen:
                seen.add(id(number))
                for parent, _ in number.parents:
                    visit(parent)
                order.append(number)

        visit(self)
        self.grad = 1.0
        for number in reversed(order):
            for parent, derivative in number.parents:
                parent.grad += derivative * number.grad  # the chain rule; several ways add up


a, b = Number(0.5), Number(-2.0)
((a * b + a).sigmoid().log() * a).backward()  # a occurs three times
ta, tb = torch.tensor(0.5, requires_grad=True), torch.tensor(-2.0, requires_grad=True)
((ta * tb + ta).sigmoid().log() * ta).backward()
equal(torch.tensor([a.grad, b.grad]), torch.stack([ta.grad, tb.grad]), "gradients of our engine, and of torch")

# %% [markdown]
# ## Logistic regression by hand
#
# The smallest classifier: points with two coordinates, and a label 0 or 1. The model computes a *logit* z = x w + b.
# The *sigmoid* turns it into the probability p that the label is 1. The loss is the mean of -log of the probability
# that the model gave to the right label (*cross-entropy*).
#
# The derivative of one point's loss by its logit is p - y. So the derivative by w is the mean of (p - y) x.

# %%
seed(0)
y = torch.arange(200) % 2  # [N]
x = torch.randn(200, 2) + torch.tensor([[-1.0, -0.5], [1.0, 1.0]])[y]  # two clouds, [N, 2]
y = y.float()
w, b = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)


def loss_of(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    p = (x @ w + b).sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


guess = predict("With w = 0 and b = 0 every p is 0.5. The loss is -ln 0.5 = ?")
loss = loss_of(w, b)
guess.measured(loss.item())
equal(loss, torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, y), "the loss, and torch's")

loss.backward()
with torch.no_grad():
    error = (x @ w + b).sigmoid() - y  # p - y, [N]
    equal(error @ x / len(x), w.grad, "the gradient by w: the formula, and autograd")
    equal(error.mean()[None], b.grad, "the gradient by b: the formula, and autograd")

# %% [markdown]
# Training means many small steps against the gradient. The steps must not become a part of the graph, so they stand
# under `torch.no_grad()`. `backward` *adds* to `.grad`, so we clear it each time.

# %%
steps, rate = short(full=200, quick=100), 0.5
for _ in range(steps):
    w.grad, b.grad = None, None
    loss = loss_of(w, b)
    loss.backward()
    with torch.no_grad():
        w -= rate * w.grad
        b -= rate * b.grad
guess = predict("Which share of the 200 points is now on the right side?")
accuracy = ((x @ w + b > 0) == (y > 0)).float().mean().item()
guess.measured(accuracy)
assert accuracy > 0.85

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 4))
axes.scatter(*x.T, c=y, cmap="coolwarm", s=12)
ends = torch.tensor([-3.5, 3.5])
axes.plot(ends, (-(w[0] * ends + b) / w[1]).detach(), "k--")
axes.set(xlabel="x1", ylabel="x2", ylim=(-3.5, 4), title="Blue: label 0, red: label 1, dashes: p = 0.5")
picture(figure, "02-logistic-regression")

# %% [markdown]
# ## More than two classes
#
# Then the model computes V logits for each point, one for each class. The *softmax* turns them into V probabilities: it
# takes `exp` of each logit, and divides by the sum of all. The loss is again the mean of -log of the probability of the
# right class. PyTorch's `cross_entropy` takes the logits, and the numbers of the right classes. The classes of a
# language model are the possible next tokens.

# %%
logits, targets = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])  # [N, V], [N]
p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
equal(p, logits.softmax(dim=1), "the softmax, and torch's")
by_hand = -(p[0, 0].log() + p[1, 2].log()) / 2
equal(by_hand, torch.nn.functional.cross_entropy(logits, targets), "the loss, and torch's cross_entropy")

# %% [markdown]
# ## Leaves, and `.grad`
#
# A *leaf* is a tensor that autograd has not computed from others: weights are leaves. `backward` stores `.grad` only in
# leaves with `requires_grad=True`. In all other tensors the gradient passes through and is forgotten. So here is the
# usual bug of this step:

# %%
import warnings

wrong = torch.randn(2, requires_grad=True) * 0.01  # the product is computed, so it is not a leaf
right = (torch.randn(2) * 0.01).requires_grad_()
for name, weight in (("wrong", wrong), ("right", right)):
    (x @ weight).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns when the .grad of a non-leaf is read
        print(f"{name}: is_leaf {weight.is_leaf}, grad {weight.grad}")
assert wrong.grad_fn is not None and right.grad is not None

# %%
v = torch.tensor(1.0, requires_grad=True)
guess = predict("The derivative of 3 v by v is 3. What is v.grad after two backward passes, without clearing?")
for _ in range(2):
    (3 * v).backward()
guess.measured(v.grad.item())

# %% [markdown]
# ## What `detach` cuts
#
# `t.detach()` is a tensor with the same numbers and without their history: a constant for autograd. It is right for
# targets and for numbers that you plot. In the middle of a model it is a bug: the layers before it stop learning, and
# there is no error.

# %%
first, second = torch.randn(2, 4, requires_grad=True), torch.randn(4, requires_grad=True)
hidden = (x @ first).relu()  # relu replaces negative numbers by 0
(hidden.detach() @ second).sum().backward()
print("with detach: first.grad is None:", first.grad is None, "  second.grad is None:", second.grad is None)
assert first.grad is None
(hidden @ second).sum().backward()
assert first.grad is not None, "without detach, the first layer learns"

# %% [markdown]
# In training, the loss would still fall, because the second layer learns alone. `.item()`, `argmax`, and a comparison
# such as `t > 0` cut the graph too.
#
# ## In real systems
#
# Until `backward`, the graph keeps the inputs of its operations (the *activations*). With large batches they need more
# memory than the weights. Some are then computed again during `backward` instead (*activation checkpointing*). When a
# text is generated, no graph is needed: `torch.inference_mode()` turns it off.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 2 --check my_answer.py`.
#
# 1. `numerical_gradient(f, w)` receives a function from a tensor to a number (a tensor with one element), and a float64
#    tensor w of any shape. It returns the gradient, a tensor of w's shape, without autograd: change one element by +h
#    and -h, and divide the difference of the two results by 2 h. Afterwards w must be as before.
# 2. `logit_gradient(logits, targets)` returns the gradient of `cross_entropy(logits, targets)` by the logits `[N, V]`;
#    `targets` are N class numbers. Use a formula, not autograd: it is the same as that of the logistic regression.
#
# Next: `glassgpt doctor --break detach-between-blocks` trains a GPT with this bug beside the right one. Then lesson 3:
# `Dataset` and `DataLoader`.
