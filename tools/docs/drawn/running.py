"""Diagrams of a run: the order of a training step, and the files of a run."""

import inspect
from collections.abc import Callable

from drawn.canvas import Canvas
from glassgpt.training.loop import Trainer
from glassgpt.training.step import train_step

#: A line of the program, what it does, and the colour of its box.
Line = tuple[str, str, str]
BEFORE: list[Line] = [
    ("batch = self._batch(state.step)", "batch k: input ids and targets", "token"),
    ("torch.manual_seed(", "the seed of dropout for this step", "plain"),
    ("self.model.train()", "dropout on", "plain"),
]
ZERO: list[Line] = [("weights.zero_grad()", "no gradient of the step before", "weight")]
MICRO: list[Line] = [
    ("loss = loss_module(", "forward: logits, then the summed loss", "loss"),
    ("(loss * weight).backward()", "backward: gradients add up", "weight"),
]
UPDATE: list[Line] = [
    ("while_computing()", "read the next batch meanwhile", "token"),
    ("gradient.mul_(1 / loss_scale.value)", "float16 only: undo the loss scale", "weight"),
    ("norm = full_tensor(", "the norm of the whole gradient", "weight"),
    ("if (result := ", "not finite: the next two are skipped", "plain"),
    ("clip_grads_with_norm_(", "clip: norm at most grad_clip", "weight"),
    ("optimizers.step(lr_multiplier)", "update the weights", "weight"),
]
AFTER: list[Line] = [
    ("self.optimizers.zero_grad()", "free the gradients", "weight"),
    ("state.step += 1", "the step is done", "plain"),
    ("self._report_step(", "log: display, metrics.jsonl", "file"),
]
BETWEEN: list[Line] = [
    ("self._validate()", "validate every eval_interval steps; best/", "loss"),
    ("self._save_kept()", "keep every keep_every steps: kept/", "file"),
    ("self._save_last()", "save every save_interval steps: last/", "file"),
    ("self._sample()", "sample every sample_interval steps", "token"),
]
RATE: list[Line] = [("multiplier = lr_multiplier(", "learning rate of this step", "weight")]


def training_step() -> str:
    """The order of a step, each line found in the program in this order."""
    for function, lines in (
        (Trainer._train_step, BEFORE),
        (train_step, ZERO + MICRO + UPDATE),
        (Trainer._step, RATE + AFTER),
        (Trainer._train, BETWEEN),
    ):
        _require_order(function, [line for line, _, _ in lines])
    c = Canvas(
        "One training step, in order",
        "Learning rate, batch, zero the gradients, forward and backward for each micro-batch, clip, update, log; now "
        "and then validate and save. Each box has a line of the program.",
    )
    outer = 12.0
    y = _lines(c, _heading(c, outer, "training/loop.py", "Trainer._step"), RATE + BEFORE)
    inner = y + 4
    y = _lines(c, _heading(c, inner, "training/step.py", "train_step"), ZERO)
    loop = y + 4
    y = _lines(c, _heading(c, loop, "for each micro-batch", ""), MICRO)
    c.rect(32, loop, 416, y - loop, "plain", "none dashed", r=10)
    y = _lines(c, y + 12, UPDATE)
    c.rect(20, inner, 440, y - inner, "plain", "none", r=10)
    y = _lines(c, y + 12, AFTER)
    c.rect(8, outer, 464, y - outer, "plain", "none", r=10)
    c.arrow((240, y), (240, y + 22))
    outer = y + 22
    y = _lines(c, _heading(c, outer, "training/loop.py", "Trainer._train"), BETWEEN)
    c.rect(8, outer, 464, y - outer, "plain", "none", r=10)
    y = c.paragraph(16, y + 26, [
        "Then step k + 1. The loop also validates before the first step,", "and validates and saves after the last.",
    ], "soft small")  # fmt: skip
    return c.svg(c.legend(y) + 6)


def _heading(c: Canvas, y: float, left: str, right: str) -> float:
    """The heading of a frame at y; gives the y below it."""
    c.text(44, y + 24, left, "mono soft" if "/" in left else "soft small")
    c.text(436, y + 24, right, "mono bold end")
    return y + 36


def _lines(c: Canvas, y: float, lines: list[Line]) -> float:
    """A box for each line; gives the y below them."""
    for line, meaning, kind in lines:
        c.rect(44, y, 392, 48, kind)
        c.text(56, y + 20, meaning)
        c.text(56, y + 39, line + ("...)" if line.endswith(("(", "= ")) else ""), "mono soft")
        y += 56
    return y + 4


def _require_order(function: Callable, lines: list[str]) -> None:
    """Fail if the program does not have these lines in this order."""
    source, place = inspect.getsource(function), 0
    for line in lines:
        place = source.find(line, place)
        assert place >= 0, f"{function.__qualname__} has no {line!r} after the lines before: the diagram is wrong"


#: The files of a run, their bytes, and what is in them; listed on Linux with torch 2.13 after COMMAND. Folders have no
#: size here. In ``last/`` and ``kept/``, files that ``best/`` has, too, are left out.
COMMAND = "glassgpt train shakespeare preset=tiny steps=100 keep_every=50 compile=false --name small"
RUN = "runs/small"
FILES: dict[str, tuple[int | None, str, str]] = {
    "run.toml": (2087, "settings, versions", "file"),
    "metrics.jsonl": (25309, "losses, speed", "loss"),
    "best/": (None, "the lowest validation loss: a model folder", "file"),
    "best/model.safetensors": (839712, "weights, float32", "weight"),
    "best/config.json": (512, "shape of the model", "file"),
    "best/generation_config.json": (75, "end tokens", "file"),
    "best/tokenizer.json": (1466, "the tokenizer", "token"),
    "best/tokenizer_config.json": (118, "its settings", "token"),
    "best/validation.json": (46, "step and loss", "loss"),
    "best/README.md": (180, "model card", "file"),
    "best/SHA256SUMS": (502, "checksums", "file"),
    "last/": (None, "the newest step: the run resumes from it", "file"),
    "last/model.safetensors": (839712, "weights, float32", "weight"),
    "last/trainer/": (None, "the state of the training", "file"),
    "last/trainer/optimizer.safetensors": (894968, "the optimiser", "weight"),
    "last/trainer/state.json": (222, "step, best loss", "file"),
    "last/SHA256SUMS": (601, "checksums", "file"),
    "step-000100/": (None, "the same files as in last/", "file"),
    "step-000090/": (None, "the one before; used if last/ is damaged", "file"),
    "kept/": (None, "with keep_every=50: models that stay", "file"),
    "kept/step-000000/": (None, "the files of best/ but validation.json", "file"),
    "kept/step-000050/": (None, "", "file"),
    "kept/step-000100/": (None, "", "file"),
}
#: Files of ``last/`` and ``kept/...`` that ``best/`` has, too.
SHARED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"]


def checkpoint() -> str:
    """The folder of a run, with the files and the sizes of a real one."""
    c = Canvas(
        "The files of a run",
        "A run folder has run.toml, metrics.jsonl, best/ with a model folder, last/ with the state of the training "
        "beside the model, the newest two steps, and with keep_every also kept/. Sizes are in bytes.",
    )
    c.text(16, 26, f"{RUN}/", "mono bold")
    c.text(464, 26, "bytes", "soft small end")
    y = 40.0
    for path, entry in FILES.items():
        y = _file(c, y, path, *entry)
        if path == "last/model.safetensors":
            lines = ["and as in best/:", ", ".join(SHARED[:2]) + ",", ", ".join(SHARED[2:])]
            y = c.paragraph(62, y + 16, lines, "soft small") - 10
    words, half = COMMAND.split(), 5
    c.text(16, y + 28, "Sizes are those after", "soft small")
    c.paragraph(16, y + 50, [" ".join(words[:half]), "  " + " ".join(words[half:])], "mono")
    return c.svg(c.legend(y + 90) + 6)


def _file(c: Canvas, y: float, path: str, size: int | None, meaning: str, kind: str) -> float:
    """One line of the tree; gives the y of the next."""
    folders, _, name = path.removesuffix("/").rpartition("/")
    x = 16.0 + 24 * (len(folders.split("/")) if folders else 0)
    is_folder = path.endswith("/")
    if is_folder:
        y += 0 if "step-" in path and path != "step-000100/" else 6
        c.text(x, y + 16, f"{name}/", "mono bold")
        c.text(x + 8.5 * len(name) + 24, y + 16, meaning, "soft small")
        return y + 26
    c.rect(x, y + 4, 14, 14, kind, r=3)
    c.text(x + 22, y + 16, name, "mono")
    c.text(276, y + 16, meaning, "soft small")
    c.text(464, y + 16, f"{size:,}", "mono end")
    return y + 26
