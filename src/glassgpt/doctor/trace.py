"""Every operation of one forward pass, with its inputs and outputs and the module it ran in.

PyTorch's dispatcher sees the operations of any program, however it is written: `aten.bmm`, `aten._softmax`,
`aten.native_layer_norm`. Fused attention is replaced by its arithmetic, so that queries, keys, scores, attention
weights and values can be found in every style.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Origin = Literal["input", "parameter", "buffer", "constant"]


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: such as "aten.bmm"; an operation that writes into its input ends with "_" ("aten.masked_fill_").
        args: the arguments as they were given, with tensors (later changed in place, perhaps: see Trace.tensors).
        inputs, outputs: the numbers of the values it read and made. After a write in place, the tensor and all
            tensors that share its memory are new values.
        module: the dotted name of the innermost module that was running ("" for the model itself).
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str


@dataclass
class Trace:
    """The operations of one pass, as a graph of values.

    Attributes:
        ops: in the order in which they ran.
        tensors: the tensor of each value, as it was when the value was made.
        producer: for each value that was computed: the index of its operation.
        origins: for each value that was not computed: where it came from, and the dotted name of a parameter or buffer.
            A "constant" is a tensor that the model holds elsewhere: a plain attribute, a global, a closure.
        output: what the module returned.
    """

    ops: list[Op] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    producer: dict[int, int] = field(default_factory=dict)
    origins: dict[int, tuple[Origin, str]] = field(default_factory=dict)
    output: Any = None
    current: dict[int, int] = field(default_factory=dict)  # id of a tensor object -> its newest value

    def value_of(self, tensor: Tensor) -> int | None:
        """The newest value of a tensor object that occurred in the pass."""
        return self.current.get(id(tensor))

    def made_by(self, value: int) -> Op | None:
        """The operation that computed a value; None for inputs, parameters, buffers, constants."""
        index = self.producer.get(value)
        return None if index is None else self.ops[index]

    def consumers(self) -> dict[int, list[int]]:
        """For each value: the indices of the operations that read it."""
        readers: dict[int, list[int]] = {}
        for index, op in enumerate(self.ops):
            for value in op.inputs:
                readers.setdefault(value, []).append(index)
        return readers

    def ancestors(self, value: int) -> set[int]:
        """Every value that a value was computed from, with itself."""
        found, todo = {value}, [value]
        while todo:
            op = self.made_by(todo.pop())
            for earlier in op.inputs if op else ():
                if earlier not in found:
                    found.add(earlier)
                    todo.append(earlier)
        return found


class _Recorder(TorchDispatchMode):
    """Writes each operation into a trace."""

    def __init__(self, trace: Trace, path: list[str]):
        super().__init__()
        self.trace, self.path = trace, path
        self.kept: list[Tensor] = []  # so that an id() is never used again during the pass
        self.sharing: dict[int, list[Tensor]] = {}  # address of the memory -> the tensor objects on it

    def value(self, tensor: Tensor) -> int:
        """The newest value of a tensor; one that was never seen is a constant."""
        if id(tensor) not in self.trace.current:
            self.new_value(tensor)
            self.trace.origins[self.trace.current[id(tensor)]] = ("constant", "")
        return self.trace.current[id(tensor)]

    def new_value(self, tensor: Tensor) -> int:
        number = len(self.trace.tensors)
        if id(tensor) not in self.trace.current:
            self.kept.append(tensor)
            if tensor.layout == torch.strided:
                self.sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self.trace.current[id(tensor)] = number
        self.trace.tensors[number] = tensor
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = tuple(self.value(tensor) for tensor in given)
        written = [given[i] for i in range(len(given)) if _writes(func, args, kwargs, given[i])]
        for tensor in written:
            self.keep_old_values(tensor)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        changed = {id(t): t for w in written for t in self.sharing.get(w.untyped_storage().data_ptr(), [w])}
        fresh = {id(t): t for t in made} | changed
        outputs = tuple(self.new_value(tensor) for tensor in fresh.values())
        for number in outputs:
            self.trace.producer[number] = len(self.trace.ops)
        name = str(func).rsplit(".", 1)[0]
        self.trace.ops.append(Op(name, args, kwargs, inputs, outputs, self.path[-1] if self.path else ""))
        return out

    def keep_old_values(self, tensor: Tensor) -> None:
        """Copy the values on a memory that is about to be written."""
        objects = self.sharing.get(tensor.untyped_storage().data_ptr(), ())
        newest = {self.trace.current[id(shared)] for shared in objects}
        with torch.utils._python_dispatch._disable_current_modes():
            for number in newest:
                self.trace.tensors[number] = self.trace.tensors[number].detach().clone()


def _writes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], tensor: Tensor) -> bool:
    """Whether an operation writes into this argument."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name, args[position] if position < len(args) else None)
            if given is tensor:
                return True
    return False


@contextmanager
def module_path(module: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the names of the running modules in ``path``, the innermost last."""

    def leave(*_: Any) -> None:  # what a hook returns takes the place of the output
        path.pop()

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            hooks.callback(part.register_forward_pre_hook(lambda _, __, name=name: path.append(name)).remove)
            hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield


def trace(module: nn.Module, *inputs: Tensor, **options: Any) -> Trace:
    """Run a module once, without gradients, and return what it did. The module is used as it is: pass a copy."""
    result, path = Trace(), list[str]()
    recorder = _Recorder(result, path)

    def know(tensor: Tensor, origin: Origin, name: str) -> None:
        if id(tensor) not in result.current:
            result.origins[recorder.new_value(tensor)] = (origin, name)

    for name, parameter in module.named_parameters():
        know(parameter, "parameter", name)
    for name, buffer in module.named_buffers():
        know(buffer, "buffer", name)
    for tensor in inputs:
        know(tensor, "input", "ids")
    for key, value in options.items():
        if isinstance(value, Tensor):
            know(value, "input", key)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's own encoder layers have a fused way, too
    try:
        with torch.no_grad(), module_path(module, path), recorder, sdpa_kernel(SDPBackend.MATH):
            result.output = module(*inputs, **options)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return result
