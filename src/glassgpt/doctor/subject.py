"""Anybody's language model behind one interface: token ids in, logits of every position out.

People write `forward` in many ways: it returns logits, (logits, loss), or an object with `.logits`; it takes targets or
not; without targets it may return the last position only; with targets it may flatten the logits. The subject finds
out how this one works, by calling a copy. The module itself is never run and never changed.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.freshness import looks_untrained
from glassgpt.doctor.report import NotRun
from glassgpt.errors import SubjectError, first_line

VOCAB_NAMES = (
    "vocab_size", "n_vocab", "padded_vocab_size", "vocabulary_size", "num_tokens", "n_tokens", "ntoken", "ntokens",
    "vocab",
)  # fmt: skip
CONTEXT_NAMES = (
    "block_size", "context_length", "context_size", "n_ctx", "n_positions", "max_seq_len", "max_seq_length",
    "max_position_embeddings", "sequence_len", "sequence_length", "seq_len", "seq_length", "max_len", "max_length",
    "context", "ctx_len",
)  # fmt: skip
HOLDERS = ("config", "cfg", "args", "params", "hparams", "hyperparameters", "opt")
TARGET_NAMES = ("targets", "target", "labels", "label", "y", "tgt", "targ", "yb")
#: The longest text examined where the context is not known.
UNKNOWN_CONTEXT = 64


@dataclass(frozen=True)
class Output:
    """What one call returned: logits ``[B, T, V]``, the module's own loss if it gave one, and all as it came."""

    logits: Tensor
    loss: Tensor | None
    raw: Any


class Subject:
    """A model under examination.

    Attributes:
        module: the module as it was given, never run. Take :meth:`copy` to run it.
        name: how the user named it.
        vocab: number of token ids. context: longest input that it claims to take (``context_known`` tells whether it
            says so itself). window: if given, a position needs to see only so many tokens, its own included.
        fresh: whether the weights are untrained.
        targets: the name of the forward's argument for targets, or None.
        computes_loss: whether it returns a loss when it is given targets.
        targets_error: what a call with targets ended with, if it failed; then ``targets`` is None.
        dtype: of its floating-point weights, before a copy converts them.
        outputs: size of the last dimension of its logits, which should be ``vocab``.
        factory: makes another one, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str = "model",
        vocab: int | None = None,
        context: int | None = None,
        window: int | None = None,
        factory: Callable[[], nn.Module] | None = None,
        fresh: bool | None = None,
    ):
        """Find out how a module is called. Raises SubjectError if it is no model over token ids."""
        self.module = by_position(getattr(module, "_orig_mod", module))  # what torch.compile wraps
        self.name, self.window, self.factory = name, window, factory
        floating = [p.dtype for p in self.module.parameters() if p.is_floating_point()]
        self.dtype = max(set(floating), key=floating.count) if floating else torch.float32
        self.fresh = looks_untrained(self.module) if fresh is None else fresh
        self.targets = target_name(self.module)
        self.vocab = vocab or find_vocab(self.module)
        self.targets_error: str | None = None  # what a call with targets ended with, if it did
        self._exact = True  # whether copies can run in float32
        self._only_length: int | None = None  # of a model that takes no other
        found = context or find_context(self.module)
        self.context_known = found is not None
        self.context = found or UNKNOWN_CONTEXT
        self._find_form()

    def copy(self, train: bool = False, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """Return a copy to experiment with, in evaluation mode (or training mode).

        Args:
            train: training mode.
            dtype: of the floating-point weights; None keeps the model's own; so does a model that runs in
                nothing else.

        Raises:
            NotRun: if it can be neither copied nor made anew.
        """
        try:
            twin = deep_copy(self.module)
        except Exception as error:
            if self.factory is None:
                raise NotRun(f"the module cannot be copied: {first_line(error)}") from error
            with torch.random.fork_rng(devices=[]):
                twin = self.factory()
            twin.load_state_dict(self.module.state_dict())
        if dtype is not None and self._exact and self.dtype != dtype:
            twin = twin.to(dtype)
        return twin.train(train)

    def ids(self, batch: int | None = None, length: int | None = None, seed: int = 0) -> Tensor:
        """Random token ids ``[batch, length]``, int64: neighbours differ, and ids that often pad (0) do not occur."""
        batch, length = batch or self.batch, length or self.length
        generator = torch.Generator().manual_seed(1000 + seed)
        low = 1 if self.vocab > 3 else 0
        steps = torch.randint(1, self.vocab - low, (batch, length), generator=generator)  # never 0: neighbours differ
        return low + steps.cumsum(1) % (self.vocab - low)

    @property
    def length(self) -> int:
        """A length for probing (at most 13), which no size of a weight is equal to, if there is such a one."""
        if self._only_length:
            return self._only_length
        sizes = self._sizes()
        lengths = [n for n in (13, 11, 12, 10, 9, 7, 8, 6, 5, 4, 3, 2) if n <= self.context]
        return next((n for n in lengths if n not in sizes), lengths[0] if lengths else 1)

    @property
    def few(self) -> int:
        """A few tokens, for passes whose results do not matter."""
        return self._only_length or min(self.context, 4)

    @property
    def batch(self) -> int:
        """A batch size for probing, which no size of a weight is equal to, if there is such a one."""
        return next(n for n in (3, 5, 2, 3) if n not in self._sizes() or n == 2)

    def _sizes(self) -> set[int]:
        return {size for parameter in self.module.parameters() for size in parameter.shape}

    def forward(self, module: nn.Module, idx: Tensor, targets: Tensor | None = None) -> Output:
        """Call a copy with ids ``[B, T]``; logits of every position. What the forward raises comes out as it is.

        Where the forward gives only the last position without targets, ids are passed as targets; where it has no
        targets, either, it is called with every prefix.
        """
        if targets is None and self._needs_targets:
            targets = idx
        raw = self.call(module, idx.clone(), targets)  # programs that write into their ids must not spoil the next call
        logits, loss = read_output(raw, len(idx), idx.size(1), self.vocab)
        if logits.size(1) != idx.size(1):
            if targets is not None or logits.size(1) != 1:
                raise NotRun(f"logits of shape {tuple(logits.shape)} for ids of shape {tuple(idx.shape)}")
            earlier = [
                read_output(self.call(module, idx[:, :n].clone()), len(idx), n, self.vocab)[0]
                for n in range(1, idx.size(1))
            ]
            logits = torch.cat([part[:, -1:] for part in earlier] + [logits], 1)
        return Output(logits, loss, raw)

    def call(self, module: nn.Module, idx: Tensor, targets: Tensor | None = None) -> Any:
        """Call a copy as its own code would: with ids alone, or with targets, too. Returns what it returns."""
        if targets is None or self.targets is None:
            return module(idx)
        return module(idx, **{self.targets: targets})

    def logits(self, module: nn.Module, idx: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` of every position."""
        return self.forward(module, idx).logits

    def _find_form(self) -> None:
        """Call a copy twice, and learn what it returns."""
        self._needs_targets, self.computes_loss, self.last_only = False, False, False
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            idx, output = self._first_output()
            self.outputs = output.logits.size(-1)
            plain = read_output(output.raw, len(idx), idx.size(1), self.vocab)[0]
            self.last_only = plain.size(1) != idx.size(1)
            if self.targets is None:
                return
            try:
                with_targets = self.forward(self.copy(), idx, idx)
            except Exception as error:
                if self.last_only:
                    return
                self.targets_error = first_line(error)
                self.targets = None
                return
            self.computes_loss = with_targets.loss is not None
            self._needs_targets = self.last_only and with_targets.logits.size(1) == idx.size(1)

    def _first_output(self) -> tuple[Tensor, Output]:
        """Run a few tokens in float32; in the model's own type if it must be; the whole context if it must be."""
        errors = []
        for length in (min(self.context, 5), self.context):
            idx = self.ids(2, length)
            for exact in (True, False):
                self._exact = exact or self.dtype == torch.float32
                try:
                    output = self.forward(self.copy(), idx)
                    self._only_length = length if length > 5 else None
                    return idx, output
                except Exception as error:
                    errors.append((idx, error))
            if not self.context_known:
                break
        raise self._cannot_run(*errors[0]) from errors[0][1]

    def _cannot_run(self, idx: Tensor, error: Exception) -> SubjectError:
        what = f"{self.name} cannot be run on token ids of shape {list(idx.shape)} (vocabulary {self.vocab})"
        if "CUDA" in str(error) or "cuda" in str(error):
            return SubjectError(f"{what}: its code asks for CUDA, which is not here: {first_line(error)}")
        return SubjectError(
            f"{what}: {type(error).__name__}: {first_line(error)}. "
            "It has to be a module whose forward takes int64 ids [B, T], and targets if it likes. If vocabulary or "
            "context are wrong, give --vocab and --context; if forward needs more arguments, wrap it."
        )


def read_output(raw: Any, B: int, T: int, vocab: int) -> tuple[Tensor, Tensor | None]:
    """Find logits ``[B, T, V]`` (or ``[B, 1, V]``) and the loss in whatever a forward returned.

    Raises:
        NotRun: if there are no logits in it.
    """
    loss = getattr(raw, "loss", None)
    if isinstance(raw, Mapping):
        loss = raw.get("loss", loss)
        parts = [raw["logits"]] if "logits" in raw else list(raw.values())
    elif isinstance(raw, Tensor):
        parts = [raw]
    elif getattr(raw, "logits", None) is not None:
        parts = [raw.logits]
    elif isinstance(raw, (tuple, list)):
        parts = list(raw)
    else:
        raise NotRun(f"forward returned {type(raw).__name__}, in which no logits were found")
    tensors = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    scalars = [part for part in tensors if part.numel() == 1 and part.dim() <= 1]
    shaped = [
        (part.size(-1) == vocab, logits) for part in tensors if (logits := _as_btv(part, B, T, vocab)) is not None
    ]
    if not shaped:
        shapes = [tuple(part.shape) for part in tensors]
        raise NotRun(f"no logits were found in what forward returned: floating-point tensors of shapes {shapes}")
    best = max(shaped, key=lambda pair: pair[0])[1]
    return best, loss if isinstance(loss, Tensor) else (scalars[0] if scalars else None)


def _as_btv(part: Tensor, B: int, T: int, vocab: int) -> Tensor | None:
    """Logits of all positions, or of the last; flattened or with the vocabulary in the middle; None for others."""
    if part.dim() == 3 and part.shape[:2] in ((B, T), (B, 1)) and (part.size(1) != vocab or part.size(2) == vocab):
        return part
    if part.dim() == 3 and part.shape == (B, vocab, T):
        return part.transpose(1, 2)
    if part.dim() == 2 and len(part) == B * T:
        return part.view(B, T, -1)
    if part.dim() == 2 and len(part) == B:
        return part[:, None]
    return None


class InputGradient(TorchFunctionMode):
    """Adds zeros, which require gradients, to every lookup of the token ids; so d logits / d token can be computed.

    It finds `nn.Embedding`, `F.embedding`, `weight[ids]`, `index_select` and one-hot products. ``leaves`` are the
    zeros; none: the model looks its tokens up in another way.
    """

    def __init__(self, idx: Tensor):
        super().__init__()
        self.idx = idx
        self.leaves: list[tuple[Tensor, bool]] = []  # with whether time comes first

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in ("embedding", "__getitem__", "index_select", "one_hot"):
            return out
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        ids = next((a for a in tensors if not a.is_floating_point() and a.numel() == self.idx.numel()), None)
        if ids is None or (name != "one_hot" and len(tensors) < 2):
            return out
        time_first = ids.dim() == 2 and ids.shape != self.idx.shape
        if not torch.equal(ids.reshape(-1), (self.idx.t() if time_first else self.idx).reshape(-1)):
            return out
        zeros = torch.zeros(
            out.shape, dtype=out.dtype if out.is_floating_point() else torch.float32, requires_grad=True
        )
        self.leaves.append((zeros, time_first))
        return out + zeros

    def gradient(self, scalar: Tensor) -> Tensor:
        """The largest |d scalar / d token| of each token: ``[B, T]``; the graph is kept."""
        B, T = self.idx.shape
        total = torch.zeros(B, T)
        gradients = torch.autograd.grad(scalar, [leaf for leaf, _ in self.leaves], retain_graph=True, allow_unused=True)
        for grad, (_, time_first) in zip(gradients, self.leaves, strict=True):
            if grad is not None:
                size = grad.detach().abs().float().reshape((T, B, -1) if time_first else (B, T, -1)).amax(-1)
                total = torch.maximum(total, size.t() if time_first else size)
        return total


@contextmanager
def fixed_random_state(seed: int = 0) -> Iterator[None]:
    """Run the same random numbers inside, and put the random state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def deep_copy(module: nn.Module) -> nn.Module:
    """Copy a module, also one that holds results of computations (``self.gain = nn.Parameter(ones) * 0.5``).

    `copy.deepcopy` refuses those. Their copies stay in the graph of the original, which is how they show up. It keeps
    functions as they are, too: those that modules hold, and that close over parts of the model, are made anew.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in tree_leaves([v for v in vars(part).values() if isinstance(v, (Tensor, list, tuple, dict))]):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.clone()
    twin = copy.deepcopy(module, memo)
    _rebind_closures(twin, memo)
    return twin


def _rebind_closures(twin: nn.Module, copies: dict[int, Any]) -> None:
    """Let functions kept as attributes of a copy (`self.f = lambda x: part(x)`) use the parts of the copy."""
    for part in twin.modules():
        for key, value in vars(part).items():
            if isinstance(value, FunctionType) and value.__closure__:
                held = [cell.cell_contents for cell in value.__closure__]
                cells = tuple(CellType(copies.get(id(thing), thing)) for thing in held)
                again = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
                again.__kwdefaults__ = value.__kwdefaults__
                vars(part)[key] = again


def _attributes(module: nn.Module, names: tuple[str, ...]) -> Iterator[int]:
    """Whole numbers with these names: on the module, in its configuration, then on its parts."""
    for part in module.modules():
        holders = [part, *(getattr(part, holder, None) for holder in HOLDERS)]
        for name in names:
            for holder in holders:
                value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    yield value


def find_vocab(module: nn.Module) -> int:
    """Find the number of token ids: by name, by the first embedding, or by calling.

    Raises:
        SubjectError: if it is nowhere to be found.
    """
    named = next(_attributes(module, VOCAB_NAMES), None)
    tables = {name: part for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    rows = [part.num_embeddings for name, part in tables.items() if "pos" not in name.lower()]
    if named is not None and (not rows or named <= max(rows)):
        return named
    if rows:
        return rows[0]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            output = deep_copy(module).eval()(torch.zeros(1, 2, dtype=torch.int64))
            return read_output(output, 1, 2, -1)[0].size(-1)
        except Exception as error:
            raise SubjectError(
                f"the size of the vocabulary was not found (no attribute such as vocab_size, no nn.Embedding; "
                f"a call with two ids ended with {first_line(error)}). Give it with --vocab"
            ) from error


def find_context(module: nn.Module) -> int | None:
    """Find the longest input: by name, by the rows of a table of positions, or by a square mask; None if not there."""
    named = next(_attributes(module, CONTEXT_NAMES), None)
    if named is not None:
        return named
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if "pos" in name.lower() and tensor.dim() >= 2:
            return int(max(tensor.shape[:-1]))
    for _, buffer in module.named_buffers():
        if buffer.dim() >= 2 and buffer.size(-1) == buffer.size(-2) > 1:
            return buffer.size(-1)
    return None


class _ByKeyword(nn.Module):
    """A model whose forward takes its ids by keyword only, called by position."""

    def __init__(self, model: nn.Module, ids: str):
        super().__init__()
        self.model, self.ids, self.target_name = model, ids, target_name(model)

    def forward(self, idx: Tensor, **others: Any) -> Any:
        """Pass the ids by their name."""
        return self.model(**{self.ids: idx}, **others)


def by_position(module: nn.Module) -> nn.Module:
    """A module that can be called with the ids as its first argument: the module itself, or a shell around it."""
    try:
        arguments = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return module
    by_name = bool(arguments) and arguments[0].kind is inspect.Parameter.KEYWORD_ONLY
    return _ByKeyword(module, arguments[0].name) if by_name else module


def target_name(module: nn.Module) -> str | None:
    """Find the argument of forward that takes targets; None if there is none."""
    if isinstance(module, _ByKeyword):
        return module.target_name
    try:
        arguments = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return None
    if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments.values()):
        parts = list(module.children())
        if len(parts) == 1 and not any(name in TARGET_NAMES for name in arguments):  # a wrapper
            return target_name(parts[0])
    return next((name for name in TARGET_NAMES if name in list(arguments)[1:]), None)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of logits ``[B, T, V]`` on targets ``[B, T]``, in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
