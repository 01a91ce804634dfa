# %% [markdown]
# # Lesson 29: the debugging clinic
#
# You will know at the end: eight questions that find most bugs of a language model in seconds, why the loss is not one
# of them, and how to get from a symptom to the line.
#
# Time: 10 minutes to read, about 22 seconds to compute. Before: lessons 17 (the whole GPT) and 5 (the training loop).
# The picture needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## Ten patients
#
# The doctor has a gallery of small GPT programs, and of bugs that can be put into them. Each of our ten patients is the
# program below with one bug. None of them crashes.

# %%
import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.gallery.bug import import_program, program_source
from glassgpt.doctor.gallery.model_bugs import MODEL_BUGS
from glassgpt.doctor.report import run_checks
from glassgpt.doctor.subject import Subject
from glassgpt.learn import picture, predict, short

NAMES = (
    "state-between-calls", "output-of-mlp-thrown-away", "targets-shifted-by-two", "mean-of-the-batch",
    "logits-too-large", "no-causal-mask", "softmax-in-the-model", "positions-not-added", "dropout-always-on",
    "blocks-in-a-list",
)  # fmt: skip
bugs = {bug.name: bug for bug in MODEL_BUGS}
patients = {"healthy": None} | {
    f"patient {letter}": bugs[name] for letter, name in zip("ABCDEFGHIJ", NAMES, strict=True)
}


def build(patient: str) -> nn.Module:
    """A new model of this patient, with the same random weights each time: model(idx, targets) -> logits, loss."""
    return import_program("lecture", patients[patient]).model(seed=0)


print("class LectureGPT" + program_source("lecture").split("class LectureGPT")[1])

# %% [markdown]
# ## What the loss says
#
# We train each one for a few steps.

# %%
text = topics["if"] + topics["while"] + topics["for"]
numbers = {c: i for i, c in enumerate(sorted(set(text), key=lambda c: (-text.count(c), c)))}
ids = torch.tensor([min(numbers[c], 64) for c in text])  # V = 65


def train(model: nn.Module, steps: int) -> tuple[float, float]:
    """The first loss, and the mean of the last ten."""
    optimizer, generator, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        starts = torch.randint(len(ids) - 17, (16,), generator=generator)
        rows = ids[starts[:, None] + torch.arange(17)]
        loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], sum(losses[-10:]) / 10


steps = short(full=80, quick=6)
guess = predict(f"Eleven programs, {steps} steps: for how many does the loss fall?")
losses = {patient: train(build(patient), steps) for patient in patients}
guess.measured(sum(last < first for first, last in losses.values()))
for patient, (first, last) in losses.items():
    print(f"{patient:<10} loss {first:6.3f} -> {last:6.3f}")

# %% [markdown]
# The loss falls everywhere: a model with a bug still learns which letters are frequent. F, which sees the answers, and
# H, which does not use positions, even end below the healthy program. **Ask questions whose right answer you know.**
#
# ## Eight questions
#
# Every correct GPT passes them, also untrained.

# %%
V, T = 65, 16


def logits_of(model: nn.Module, idx: Tensor) -> Tensor:
    with torch.no_grad():
        return model(idx)[0]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def first_loss(model: nn.Module, idx: Tensor) -> bool:
    """Untrained, it knows nothing: the loss is near ln V."""
    return abs(float(F.cross_entropy(logits_of(model, idx).flatten(0, 1), idx.flatten())) - math.log(V)) < 1.0


def past_stays(model: nn.Module, idx: Tensor) -> bool:
    """Another last token: everything before it stays."""
    other = idx.clone()
    other[:, -1] = (other[:, -1] + 1) % V
    return same(logits_of(model, idx)[:, :-1], logits_of(model, other)[:, :-1])


def positions_differ(model: nn.Module, idx: Tensor) -> bool:
    """One token again and again: only the positions differ, so the logits must."""
    logits = logits_of(model, torch.full_like(idx, 7))
    return not same(logits[:, 3], logits[:, 9])


def rows_are_alone(model: nn.Module, idx: Tensor) -> bool:
    """A row alone gives what it gives among others."""
    return same(logits_of(model, idx)[:1], logits_of(model, idx[:1]))


def repeatable(model: nn.Module, idx: Tensor) -> bool:
    """The same text, twice, with another text between: the same logits."""
    first = logits_of(model, idx)
    logits_of(model, idx.flip(1))
    return same(first, logits_of(model, idx))


def scores_not_probabilities(model: nn.Module, idx: Tensor) -> bool:
    """Logits can be any numbers; probabilities sum to 1."""
    return not same(logits_of(model, idx).sum(-1), torch.ones(idx.shape))


def all_parameters_learn(model: nn.Module, idx: Tensor) -> bool:
    """Every parameter that is counted on paper is there, and gets a gradient."""
    C, layers = 32, 2
    block = 2 * 2 * C + 4 * C * C + C + 8 * C * C + 5 * C  # two norms, attention, MLP
    paper = V * C + T * C + layers * block + 2 * C + C * V + V
    model(idx, idx.roll(-1, 1))[1].backward()
    gradients = [p.grad is not None and bool(p.grad.any()) for p in model.parameters()]
    return all(gradients) and sum(p.numel() for p in model.parameters()) == paper


def own_loss_is_mine(model: nn.Module, idx: Tensor) -> bool:
    """The loss that it returns is cross-entropy with exactly my targets."""
    targets = idx.roll(-1, 1)
    logits, loss = model(idx, targets)
    n = min(targets.numel(), logits.numel() // V)
    return same(F.cross_entropy(logits.reshape(-1, V)[:n], targets.flatten()[:n]), loss)


QUESTIONS = (
    first_loss, past_stays, positions_differ, rows_are_alone, repeatable, scores_not_probabilities,
    all_parameters_learn, own_loss_is_mine,
)  # fmt: skip
idx = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(3))
guess = predict("How many of the ten patients fail at least one question?")
failed = {
    patient: [question.__name__ for question in QUESTIONS if not question(build(patient).eval(), idx)]
    for patient in patients
}
guess.measured(sum(bool(names) for names in failed.values()))
for patient, names in failed.items():
    print(f"{patient:<10} {', '.join(names) or 'all right'}")
assert not failed["healthy"]
assert all(failed[patient] for patient in patients if patient != "healthy")

# %%
import matplotlib.pyplot as plt

found = torch.tensor([[question.__name__ in failed[patient] for question in QUESTIONS] for patient in patients])
figure, axes = plt.subplots(figsize=(6, 4.5))
axes.imshow(found.numpy(), cmap="Reds", vmin=0, vmax=1.5)
axes.set_xticks(range(len(QUESTIONS)), [q.__name__.replace("_", " ") for q in QUESTIONS], rotation=40, ha="right")
axes.set_yticks(range(len(patients)), patients)
axes.set_title("Which question finds which patient")
picture(figure, "29-clinic")

# %% [markdown]
# One bug may fail several questions: A keeps a state, I and J draw random numbers, so no two passes are equal. Begin
# with the question that the others depend on: `repeatable`. A symptom is not a cause: J is not repeatable because its
# blocks are not registered, so `eval()` does not reach their dropout.
#
# ## From the symptom to the line
#
# *Where* is it wrong? Forward hooks keep the output of every module for two inputs that differ in the last token only.
# Find the first module whose output differs *before* it.

# %%
leaking = next(patient for patient, names in failed.items() if names == ["past_stays"])
model, kept = build(leaking).eval(), []
for name, module in model.named_modules():
    module.register_forward_hook(lambda m, i, output, name=name: kept.append((name, output)))
runs = []
for given in (idx, torch.cat([idx[:, :-1], (idx[:, -1:] + 1) % V], dim=1)):
    kept.clear()
    logits_of(model, given)
    runs.append([(name, y) for name, y in kept if isinstance(y, Tensor) and y.shape[:2] == idx.shape])
place = next(a for (a, x), (_, y) in zip(*runs, strict=True) if not same(x[:, :-1], y[:, :-1]))
guess = predict(f"{leaking}: in which module does the past move first?")
guess.measured(place)

# %% [markdown]
# That module gets the attention weights of a head of block 0. So look for the mask in the lines just before it.
#
# ## The doctor
#
# The doctor asks such questions, and more, of any `nn.Module`. A FAIL names the class of the bug. Here is the first of
# each patient.

# %%
wanted = {bug.finding for bug in patients.values() if bug}
ill = [patient for patient in patients if patient != "healthy"][: short(full=10, quick=1)]
for patient in ill:
    subject = Subject(build(patient), patient)
    outcomes = run_checks(MODEL_CHECKS, subject, only=wanted)
    result = next(o.result for o in outcomes if o.result.status == "FAIL")
    bug = patients[patient]
    print(f"{patient}: {result.finding}\n    it says: {result.message[:110]}\n    the bug: {bug.story}")
    assert result.finding == bug.finding

# %% [markdown]
# ## How to think
#
# - **Before training**, look at the first loss, the shapes of the first batch, and the decoded text of its first input
#   and target. If you train on one batch alone, its loss must go to 0.
# - **Make it small**: two layers, 16 tokens, float32, the CPU, no compile, no dropout.
# - **Compare with something right**: a plain loop, a library, an older version.
# - **One change at a time**, and write down what you expect *before* you run it.
# - **NaN**: `torch.autograd.set_detect_anomaly(True)` names the operation whose gradient is NaN first.
# - **When it is found**, write the question as a test.
#
# **The usual bug of debugging** is to change several things until the loss looks better: one of the changes hides the
# bug.
#
# ## In real systems
#
# Large runs also have bugs of their own: a GPU that computes a little wrong, one process with other data, a loss spike
# late in training. So they compare processes bit by bit, log the norms of gradients and activations, and return to a
# checkpoint before a spike and skip its batches (PaLM did).
#
# ## Exercises
#
# 1. `repeatable(model, idx)`: True if the model in evaluation mode gives the same logits for `idx` whenever it is
#    asked, also after other texts. The mode must be afterwards what it was. `model(idx)` gives logits.
# 2. `first_leak(logits_of, T, V)`: the smallest position whose logits change when a later token changes, or None.
#    `logits_of` maps ids `[1, T]` to logits `[1, T, V]`.
#
# Check them with `glassgpt learn 29 --check my_answer.py`.
#
# Next: `glassgpt doctor --quiz` hands you a broken program, and `glassgpt doctor model.py:make` examines your own. Then
# lesson 30: the cost of context.
