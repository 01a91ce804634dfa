"""Diagrams of the data: the pipeline from text to text, and windows of inputs and targets."""

import math

import numpy as np

from drawn import tiny
from drawn.canvas import Canvas
from glassgpt.data import Batches, SlidingWindowDataset
from glassgpt.tokenizer import CharTokenizer

TEXT = "To be, or not to be"
LEFT, CARD = 64, 384  # the left edge and the width of a card of the pipeline

#: A step of a chain: what happens before it, then kind, title, lines and right-hand text of its card.
Link = tuple[str, str, str, list[str], str]


def pipeline() -> str:
    """From text to text, with the verb of each part."""
    ids = CharTokenizer.train(TEXT).encode(TEXT)
    some, later = (" ".join(map(str, ids[i : i + 8])) for i in (0, 1))
    shape, gpt = tiny.shapes(), tiny.model().num_parameters()
    initial = f"at first near ln {tiny.CONFIG.vocab_size} = {math.log(tiny.CONFIG.vocab_size):.2f}"
    c = Canvas(
        "From text to text",
        "A text becomes ids, windows and batches. The GPT turns a batch into logits; the loss compares them with the "
        "targets, and the optimiser changes the weights. A checkpoint keeps them. Sampling turns logits into new text.",
    )
    y, _ = _chain(c, 12, "glassgpt data, tokenizer", "once", [
        ("", "file", "text", [TEXT], f"{len(TEXT)} characters"),
        ("the tokenizer encodes", "token", "ids", [f"{some} ..."], "[N]"),
    ])  # fmt: skip
    y, boxes = _chain(c, y, "glassgpt train", "for every step", [
        ("cut into windows, and shift by one", "token", "inputs and targets",
         [f"inputs   {some}", f"targets  {later}"], "[T] each"),
        ("take B windows", "token", "batch", [f"each {shape['idx']}"], ""),
        ("forward", "weight", "GPT", [f"preset tiny: {gpt:,} parameters"], ""),
        ("", "activation", "logits", [shape["logits"]], ""),
        ("cross-entropy with the targets", "loss", "loss", [initial], "a number"),
        ("backward: a gradient for each weight", "weight", "optimiser", ["changes the weights"], ""),
    ])  # fmt: skip
    _back(c, boxes[5], boxes[2])
    y, _ = _chain(c, y, "runs/NAME/", "now and then", [
        ("save", "file", "checkpoint", ["best/  last/"], ""),
    ])  # fmt: skip
    y, boxes = _chain(c, y, "glassgpt sample, chat", "for every token", [
        ("load", "weight", "GPT", ["reads the ids so far"], ""),
        ("", "activation", "logits of the last token", [], "[V]"),
        ("temperature, top-k, top-p; draw one", "token", "next id", ["added to the ids"], ""),
        ("the tokenizer decodes", "file", "text", ["the prompt and the new tokens"], ""),
    ])  # fmt: skip
    _back(c, boxes[2], boxes[0])
    return c.svg(c.legend(y) + 6)


def _chain(c: Canvas, y: float, title: str, often: str, links: list[Link]) -> tuple[float, list[float]]:
    """A frame with cards below each other; gives the y after it, and the middle of each card."""
    top, first = y, bool(links[0][0])
    c.text(LEFT + 34, y + 24, title, "mono bold")
    c.text(LEFT + CARD, y + 24, often, "soft small end")
    y += 36
    middles = []
    for i, (action, kind, name, lines, right) in enumerate(links):
        if i or first:
            height = 36 if action else 18
            c.arrow((LEFT + 20, y if i else top - 32), (LEFT + 20, y + height))
            c.text(LEFT + 34, y + height / 2 + 4, action, "soft small")
            y += height
        middles.append(y + 17)
        y = c.card(LEFT, y, CARD, kind, name, lines, right)
    c.rect(8, top, 464, y + 12 - top, "plain", "none dashed", r=10)
    return y + 32, middles


def _back(c: Canvas, start: float, end: float) -> None:
    """A loop at the left, from a card back to an earlier one."""
    c.arrow((LEFT, start), (28, start), (28, end), (LEFT, end))


CELL, EDGE = 24, 12
CONTEXT = 6


def window() -> str:
    """Inputs and targets of one window; windows of two strides; the cuts of two epochs of training."""
    tokens = np.array(CharTokenizer.train(TEXT).encode(TEXT))
    c = Canvas(
        "Windows of inputs and targets",
        f"The text {TEXT!r} as {len(tokens)} tokens. Targets are the inputs shifted by one. With a stride as long as "
        "the window, windows do not overlap; with a shorter one they do. Training shifts the cuts in each epoch.",
    )
    c.text(EDGE, 24, f"A text of {len(tokens)} tokens, here characters, and their ids", "bold")
    _stream(c, 36, 0, TEXT, "token")
    for i, token in enumerate(tokens):
        c.text(EDGE + (i + 0.5) * CELL, 82, str(token), "mono middle soft")
    y = _one_window(c, 120, SlidingWindowDataset(tokens, CONTEXT, CONTEXT))
    for stride, remark in ((CONTEXT, "no overlap"), (CONTEXT // 2, "windows overlap")):
        data = SlidingWindowDataset(tokens, CONTEXT, stride)
        y = _title(c, y + 44, f"stride {stride}: {len(data)} windows", remark)
        y = _windows(c, y, [stride * i for i in range(len(data))])
    y = _title(c, y + 44, "In training: Batches", "each epoch, a new offset and order")
    batches = Batches(tokens, CONTEXT, batch_size=1, seed=0)
    per_epoch = batches.windows
    for epoch in range(3):
        starts = [int(batches.starts(k)[0]) for k in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
        y = _epoch(c, y, epoch, starts) + 10
    y = c.paragraph(EDGE, y + 18, [
        "A label names the batch, here of one row, that takes the window.",
        "The red frame is the last target of a window: it is not an input",
        "of this window. A long text has many more windows.",
    ], "soft small")  # fmt: skip
    return c.svg(c.legend(y - 2) + 6)


def _title(c: Canvas, y: float, title: str, remark: str) -> float:
    c.text(EDGE, y, title, "bold")
    c.text(EDGE + 19 * CELL, y, remark, "soft small end")
    return y + 12


def _stream(c: Canvas, y: float, start: int, text: str, kind: str) -> None:
    c.row(EDGE + start * CELL, y, [character.replace(" ", "␣") for character in text], CELL, kind, 26)


def _one_window(c: Canvas, y: float, data: SlidingWindowDataset) -> float:
    """One window, enlarged: below each input its target."""
    idx, targets = data[0]
    c.text(EDGE, y, f"One window: T = {CONTEXT} inputs and targets (token, id)", "bold")
    for row, (name, ids, first) in enumerate((("inputs", idx, 0), ("targets", targets, 1))):
        c.text(EDGE, y + 36 + 62 * row, name, "small")
        for i, token in enumerate(ids.tolist()):
            x = EDGE + 76 + i * 62
            c.rect(x, y + 16 + 62 * row, 50, 30, "token", r=3)
            c.text(x + 25, y + 36 + 62 * row, f"{TEXT[i + first].replace(' ', '␣')} {token}", "mono middle")
            if not row:
                c.arrow((x + 25, y + 46), (x + 25, y + 78))
    c.marked(EDGE + 76 + 5 * 62 - 2, y + 76, 54, 34)
    c.text(EDGE, y + 130, "At each position the model has seen this input and all before it.", "small")
    return y + 130


def _windows(c: Canvas, y: float, starts: list[int]) -> float:
    for start in starts:
        _stream(c, y, start, TEXT[start : start + CONTEXT], "token")
        _last_target(c, y, start)
        y += 32
    return y - 6


def _last_target(c: Canvas, y: float, start: int) -> None:
    x = EDGE + (start + CONTEXT) * CELL
    c.text(x + CELL / 2, y + 18, TEXT[start + CONTEXT].replace(" ", "␣"), "mono middle")
    c.marked(x + 2, y + 2, CELL - 4, 22)


def _epoch(c: Canvas, y: float, epoch: int, starts: list[int]) -> float:
    """The windows of an epoch in one row, each with its place in the order."""
    for i, start in enumerate(starts):
        _stream(c, y + 22, start, TEXT[start : start + CONTEXT], "token")
        c.rect(EDGE + start * CELL, y + 22, CONTEXT * CELL, 26, "token", "none strong", r=3)
        c.text(
            EDGE + (start + CONTEXT / 2) * CELL,
            y + 16,
            f"epoch {epoch}, batch {epoch * len(starts) + i}",
            "soft small middle",
        )
    _last_target(c, y + 22, max(starts))
    return y + 48
