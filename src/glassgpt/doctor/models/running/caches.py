"""Caches and hidden states: pieces of a text, one after the other, must give the logits of the whole text.

The interface is found by the names of forward's arguments and by what it returns: a cache that is returned and passed
in again, a cache inside the module, switched on by an argument, or a cache addressed by a position.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glassgpt.doctor.models.probing import difference, quiet, quiet_logits, rounding, sharpened, size_of
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, read_output
from glassgpt.errors import first_line
from glassgpt.model import GPT, KVCache

PASSED_IN = (
    "past_key_values", "past_key_value", "past_kv", "past_kvs", "past", "pasts", "layer_past", "kv_cache", "kv_caches",
    "cache", "caches", "kv", "state", "states", "hidden", "hidden_state", "hidden_states", "hx", "h", "h0", "mems",
)  # fmt: skip
SWITCHES = ("use_cache", "use_kv_cache", "use_past", "return_cache", "return_state", "return_kv", "return_past")
POSITIONS = (
    "start_pos", "input_pos", "cache_position", "start", "offset", "pos_offset", "past_len", "past_length", "pos",
)  # fmt: skip
MAKERS = (
    "init_cache", "make_cache", "new_cache", "create_cache", "make_kv_cache", "init_kv_cache", "init_hidden",
    "init_state",
)  # fmt: skip
RESETS = (
    "reset_cache", "reset_kv_cache", "reset_caches", "clear_cache", "clear_kv_cache", "reset_state", "reset_hidden",
    "reset",
)  # fmt: skip


class Cached:
    """A copy that reads a text piece by piece."""

    def __init__(self, subject: Subject):
        """Find the interface. Raises NotRun if there is none."""
        self.subject, self.module = subject, sharpened(subject.copy(), subject)
        try:
            self.arguments = dict(inspect.signature(self.module.forward).parameters)
        except (TypeError, ValueError) as error:
            raise NotRun("the arguments of forward cannot be read") from error
        names = list(self.arguments)[1:]
        self.passed_in = next((name for name in PASSED_IN if name in names), None)
        self.switches = [name for name in SWITCHES if name in names]
        self.position = next((name for name in POSITIONS if name in names), None)
        if not (self.passed_in or self.switches or self.position):
            raise NotRun("forward has no argument for a cache or a state")
        self.reset = next((name for name in RESETS if callable(getattr(self.module, name, None))), None)
        self.inside = self.passed_in is None  # the cache is kept by the module

    @property
    def how(self) -> str:
        """The arguments used."""
        return ", ".join(filter(None, (self.passed_in, *self.switches, self.position)))

    def begin(self, rows: int) -> None:
        """Start a new text."""
        self.read, self.cache = 0, None
        if self.inside and self.reset:
            getattr(self.module, self.reset)()
        if self.passed_in:
            self.cache = self._new_cache(rows)

    def _new_cache(self, rows: int) -> Any:
        if isinstance(self.module, GPT):
            return KVCache(self.module.config, rows)
        makers: list[Any] = [getattr(self.module, name, None) for name in MAKERS]
        for maker in filter(callable, makers):
            for arguments in ((rows,), (), (rows, self.subject.context)):
                try:
                    return maker(*arguments)
                except TypeError:
                    continue
        return None

    def feed(self, piece: Tensor) -> Tensor:
        """Read the next tokens ``[B, n]``; logits ``[B, n, V]`` or of the last, ``[B, 1, V]``."""
        options: dict[str, Any] = dict.fromkeys(self.switches, True)
        if self.position:
            options[self.position] = self._position(piece.size(1))
        if self.passed_in and self.cache is not None:
            options[self.passed_in] = self.cache
        with quiet():
            raw = self.module(piece, **options)
        self.read += piece.size(1)
        if self.passed_in:
            returned = _cache_in(raw, self.passed_in, len(piece), piece.size(1), self.subject.vocab)
            self.cache = self.cache if returned is None else returned
        return read_output(raw, len(piece), piece.size(1), self.subject.vocab)[0].float()

    def _position(self, n: int) -> Any:
        name = str(self.position)
        if "Tensor" in str(self.arguments[name].annotation) or name in ("input_pos", "cache_position"):
            return torch.arange(self.read, self.read + n)
        return self.read


def _cache_in(raw: Any, name: str, B: int, T: int, vocab: int) -> Any:
    """What a forward returned to be passed in again."""
    if isinstance(raw, Mapping) and raw.get(name) is not None:
        return raw[name]
    if getattr(raw, name, None) is not None:
        return getattr(raw, name)
    if not isinstance(raw, (tuple, list)):
        return None
    logits, _ = read_output(raw, B, T, vocab)
    rest = [part for part in raw if part is not None and not _is_logits_or_loss(part, logits)]
    return rest[-1] if rest else None


def _is_logits_or_loss(part: Any, logits: Tensor) -> bool:
    if not isinstance(part, Tensor):
        return isinstance(part, (int, float))
    same = part.numel() == logits.numel() and part.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    return same or part.numel() <= 1


def _pieces(T: int) -> list[int]:
    """A prompt, single tokens, and several at once."""
    pieces = [max(1, T // 2 - 1), 1, 1, 1]
    return [*pieces, T - sum(pieces)] if sum(pieces) < T else pieces[: max(1, T - T // 2)]


def check_cache(subject: Subject) -> Result:
    """Pieces give the logits of the whole text, twice, the second time after a reset."""
    cached, T = Cached(subject), min(12, subject.context)
    compared, note = 0, ""
    for text in range(2):
        idx, start = subject.ids(2, T, seed=20 + text), 0
        full = quiet_logits(subject, sharpened(subject.copy(), subject), idx)
        if text and cached.inside and not cached.reset and not cached.position:
            cached = Cached(subject)  # no way to begin a second text is known
        try:
            cached.begin(2)
            for n in _pieces(T):
                logits = cached.feed(idx[:, start : start + n].contiguous())
                expected = full[:, start : start + n][:, -logits.size(1) :]
                apart = float(difference(logits, expected).max()) / max(size_of(full), 1e-30)
                if apart > rounding(subject) and start and n > 1:
                    note = f"; a piece of {n} tokens after the first one does not, by {apart:.1e} of the largest"
                elif apart > rounding(subject):
                    return _verdict(cached, start, n, apart, text, subject)
                start, compared = start + n, compared + 1
        except Exception as error:
            if start == 0 and compared:
                message = f"a second text fails after the first, read with {cached.how}: {first_line(error)}"
                return failed("cache", message)
            if start == 0:
                raise NotRun(
                    f"reading with {cached.how} ended with {type(error).__name__}: {first_line(error)}"
                ) from error
            if n > 1:
                continue  # single tokens work; several at once are refused
            raise NotRun(
                f"the token at {start} with {cached.how}: {type(error).__name__}: {first_line(error)}"
            ) from error
    return passed(f"{compared} pieces of two texts, read with {cached.how}, give the logits of the whole text{note}")


def _verdict(cached: Cached, start: int, n: int, apart: float, text: int, subject: Subject) -> Result:
    if start and not _remembers(subject):
        raise NotRun(f"{cached.how} changes what is computed, but no cache was found behind it")
    if start == 0 and text:
        where = "the second text, after the cache was reset"
    elif start == 0:
        where = "the first piece of a text"
    else:
        where = f"a piece of {n} token{'s' * (n > 1)} at position {start}"
    message = f"{where}, read with {cached.how}, gives other logits than the whole text, by {apart:.1e} of the largest"
    return failed("cache", message, relative=apart, position=start, tokens=n, threshold=rounding(subject))


def _remembers(subject: Subject) -> bool:
    """Whether there is a cache at all: a program may take an offset of positions, and keep nothing."""
    cached = Cached(subject)
    if cached.passed_in or cached.switches:
        return True
    parts = list(cached.module.modules())
    if any("cache" in name for part in parts for name in (*vars(part), *part._buffers, *part._modules)):
        return True
    idx, seen = subject.ids(1, min(6, subject.context)), []
    for prompt in (idx[:, :-1], subject.ids(1, idx.size(1) - 1, seed=9)):
        cached = Cached(subject)
        cached.begin(1)
        cached.feed(prompt.contiguous())
        seen.append(cached.feed(idx[:, -1:]))
    return not torch.equal(*seen)


CACHE_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "cache",
        "Reads a text in pieces with the cache or the state that forward takes, and compares with the whole text.",
        "12 short passes",
        "rounding: 1e-4 of the largest logit in float32",
        ("cache",),
        check_cache,
    ),
)
