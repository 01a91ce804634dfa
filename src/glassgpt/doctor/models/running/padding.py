"""Rows of unequal length: with the padding hidden, every row gives the logits that it gives alone."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glassgpt.doctor.models.probing import (
    difference,
    other_tokens,
    quiet,
    quiet_logits,
    rounding,
    sharpened,
    size_of,
)
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject, read_output
from glassgpt.errors import first_line
from glassgpt.inference.decode import generate
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig

ONE_IS_TOKEN = ("attention_mask", "attn_mask", "input_mask")
ONE_IS_PADDING = ("key_padding_mask", "src_key_padding_mask")
UNSAID = ("padding_mask", "pad_mask", "mask")
LENGTHS = ("lengths", "seq_lens", "seq_lengths", "seqlens", "input_lengths")


class _Padded:
    """A copy that takes ragged rows, by the argument that forward has for it."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.module = sharpened(subject.copy(), subject)
        try:
            names = list(inspect.signature(self.module.forward).parameters)[1:]
        except (TypeError, ValueError) as error:
            raise NotRun("the arguments of forward cannot be read") from error
        known = (*ONE_IS_TOKEN, *ONE_IS_PADDING, *UNSAID, *LENGTHS)
        found = next((name for name in known if name in names), None)
        if found is None:
            raise NotRun("forward has no argument for padding")
        self.name, self.has_positions = found, "position_ids" in names
        self.encode = self._encoding()

    def logits(self, idx: Tensor, here: Tensor, positions: bool = False) -> Tensor:
        """Logits of ids ``[B, T]``, of which those marked in ``here`` are tokens."""
        return self._call(idx, self.encode(here), here if positions else None)

    def _call(self, idx: Tensor, mask: Tensor, here: Tensor | None = None) -> Tensor:
        options: dict[str, Any] = {self.name: mask}
        if here is not None:
            options["position_ids"] = (here.long().cumsum(1) - 1).clamp(min=0)
        with quiet():
            raw = self.module(idx.clone(), **options)
        logits = read_output(raw, idx.size(0), idx.size(1), self.subject.vocab)[0].float()
        if logits.size(1) != idx.size(1):
            raise NotRun("only the logits of the last position are returned")
        return logits

    def _encoding(self) -> Callable[[Tensor], Tensor]:
        """How this program wants its mask: which kind of numbers, and what 1 means."""
        subject, error = self.subject, "no form of it was accepted"
        idx = subject.ids(3)
        here = torch.ones_like(idx, dtype=torch.bool)
        plain = quiet_logits(subject, self.module, idx)
        if self.name in LENGTHS:
            return lambda here: here.sum(1)
        for kind in (torch.int64, torch.bool, torch.float32):
            try:
                masks = {one: torch.full_like(here, one).to(kind) for one in (True, False)}
                same = {one: self._agrees(self._call(idx, mask), plain) for one, mask in masks.items()}
            except NotRun:
                raise
            except Exception as problem:
                error = first_line(problem)
                continue
            if self.name in UNSAID:
                if same[True] == same[False]:
                    raise NotRun(f"what {self.name} means was not found out: it changes nothing, or every pass")
                token = same[True]
            else:
                token = self.name in ONE_IS_TOKEN
            if token and not same[True] and same[False]:
                self.inverted = True
            return lambda here, token=token, kind=kind: (here if token else ~here).to(kind)  # type: ignore[misc]
        raise NotRun(f"a mask [B, T] as {self.name} is refused: {error}")

    inverted = False

    def _agrees(self, one: Tensor, other: Tensor) -> bool:
        return float(difference(one, other).max()) <= rounding(self.subject) * max(size_of(other), 1e-30)


def check_padding(subject: Subject) -> Result:
    """Ragged rows give the logits of single rows, and what is under the padding changes nothing."""
    if isinstance(subject.module, GPT):
        return _ragged_generation(subject)
    padded = _Padded(subject)
    T = min(subject.length, subject.context)
    if T < 4:
        raise NotRun("the context is too short for padding")
    if padded.inverted:
        return failed("padding", f"{padded.name} of ones hides the tokens, and of zeros hides nothing: inverted")
    idx, sizes = subject.ids(3, T), torch.tensor([T, T - 1, T // 2 + 1])
    single = [quiet_logits(subject, padded.module, idx[r : r + 1, : sizes[r]].contiguous())[0] for r in range(3)]
    size = max(map(size_of, single))
    right = torch.arange(T) < sizes[:, None]
    result = _compare(padded, idx, right, single, size, "right")
    if result or padded.name in LENGTHS:
        return result or passed(f"rows padded on the right give the logits of single rows ({padded.name})")
    left = right.flip(1)
    moved = torch.stack([row.roll(T - int(n)) for row, n in zip(idx, sizes, strict=True)])
    return _compare_left(padded, moved, left, single, size)


def _compare(
    padded: _Padded, idx: Tensor, here: Tensor, single: list[Tensor], size: float, side: str, positions: bool = False
) -> Result | None:
    """FAIL if what is under the padding matters, or a row differs from the row alone."""
    allowed = rounding(padded.subject)
    one = padded.logits(idx, here, positions)
    other = padded.logits(torch.where(here, idx, other_tokens(padded.subject, idx)), here, positions)
    apart = float(difference(one, other)[here].nan_to_num(posinf=torch.inf).max()) / max(size, 1e-30)
    if apart > allowed:
        message = f"other ids under the padding on the {side} change the logits, by {apart:.1e} of the largest"
        return failed("padding", message, relative=apart, side=side, argument=padded.name)
    apart = max(float(difference(one[r : r + 1, here[r]], single[r][None]).max()) for r in range(3)) / max(size, 1e-30)
    if apart > allowed:
        message = f"rows padded on the {side} give other logits than alone, by {apart:.1e} of the largest"
        return failed("padding", message, relative=apart, side=side, argument=padded.name)
    return None


def _compare_left(padded: _Padded, idx: Tensor, here: Tensor, single: list[Tensor], size: float) -> Result:
    """Padding on the left also moves positions, unless the program counts them from the mask."""
    name, plain = padded.name, _compare(padded, idx, here, single, size, "left")
    if plain is None:
        return passed(f"rows padded on either side give the logits of single rows ({name})")
    if "under the padding" in plain.message:
        return plain
    if broken := _nan_of_masked_rows(padded, idx, here, single, size):
        return broken
    if not padded.has_positions:
        return passed(f"rows padded on the right give the logits of single rows; on the left, positions move ({name})")
    explicit = _compare(padded, idx, here, single, size, "left", positions=True)
    if explicit is not None:
        return explicit
    if type(padded.subject.module).__module__.startswith("transformers."):
        return passed(f"rows padded on either side give the logits of single rows ({name}, position_ids)")
    return warned(
        "padding", f"with padding on the left, positions count the padding unless position_ids are given ({name})"
    )


class _EmptyRowsAreZero(TorchFunctionMode):
    """Makes the softmax of a row without a finite score zeros, as fused attention does, instead of NaN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        empty = "softmax" in getattr(func, "__name__", "") and isinstance(out, Tensor)
        return out.masked_fill((args[0] == -torch.inf).all(-1, keepdim=True), 0.0) if empty else out


def _nan_of_masked_rows(padded: _Padded, idx: Tensor, here: Tensor, single: list[Tensor], size: float) -> Result | None:
    """FAIL if padding on the left gives NaN and would be right without it; WARN if positions would move as well."""
    if bool(padded.logits(idx, here)[here].isfinite().all()):
        return None
    with _EmptyRowsAreZero():
        otherwise = _compare(padded, idx, here, single, size, "left")
    message = f"with padding on the left, the logits of tokens are not finite: rows without a key ({padded.name})"
    if otherwise is None:
        return failed("non-finite", message, argument=padded.name)
    if padded.name in ONE_IS_TOKEN:
        return warned("non-finite", message, argument=padded.name)
    return passed(f"rows padded on the right give the logits of single rows ({padded.name}); on the left, NaN")


def _ragged_generation(subject: Subject) -> Result:
    """Our own decoding of rows of unequal length, against each row alone."""
    model = sharpened(subject.copy(), subject)
    assert isinstance(model, GPT)
    sizes = [n for n in (1, 3, 6) if n < subject.context]
    prompts, greedy = [subject.ids(1, n, seed=n)[0].tolist() for n in sizes], SamplingConfig(temperature=0.0)
    together = [step.tokens for step in generate(model, prompts, 3, greedy)]
    for row, prompt in enumerate(prompts):
        alone = [step.tokens[0] for step in generate(model, [prompt], 3, greedy)]
        if [tokens[row] for tokens in together] != alone:
            return failed("padding", f"a row of {sizes[row]} tokens gives other tokens among others than alone")
    return passed(f"rows of {', '.join(map(str, sizes))} tokens, decoded together, give the tokens of each row alone")


PADDING_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "padding",
        "Pads rows of unequal length on the right and on the left, and compares them with each row alone.",
        "10 passes",
        "rounding: 1e-4 of the largest logit in float32",
        ("padding", "non-finite"),
        check_padding,
    ),
)
