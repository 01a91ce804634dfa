"""Whether a model can be moved: a pass in which every tensor carries the device that it would be on.

The pass runs on the CPU with real numbers. Weights, buffers and ids are marked as on the GPU, what the program makes
without a device as on the CPU; an operation on both fails, as it does on a GPU. So no GPU is needed.
"""

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.models.probing import quiet
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject
from glassgpt.doctor.trace import module_path
from glassgpt.errors import first_line

GPU = torch.device("cuda", 0)
#: Operations that take tensors of both devices: copies, and indices on the CPU.
BETWEEN_DEVICES = ("aten.copy_", "aten._to_copy", "aten.index.", "aten.index_put", "aten.set_")


class _TwoDevices(Exception):
    """An operation on tensors of two devices, in a module of this name."""

    def __init__(self, message: str, module: str):
        super().__init__(message)
        self.module = module


class _Marks(TorchDispatchMode):
    """Marks the results of operations, and fails where devices mix."""

    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self.path = path  # of the modules that are running
        self.on_gpu: dict[int, Tensor] = {}  # by id; the tensor is kept, so that no id is used twice
        self.kept: list[Any] = []
        self.inside_gpu_call = False  # a function of tensors on the GPU makes its own there, too

    @property
    def running(self) -> str:
        """The innermost module."""
        return self.path[-1] if self.path else ""

    def mark(self, tensor: Tensor, gpu: bool = True) -> Tensor:
        """Put a tensor on the GPU, or take it off."""
        self.kept.append(tensor)
        if gpu:
            self.on_gpu[id(tensor)] = tensor
        else:
            self.on_gpu.pop(id(tensor), None)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **(kwargs or {}))
        sides = {id(t) in self.on_gpu for t in given if t.dim() > 0}
        if len(sides) == 2 and not str(func).startswith(BETWEEN_DEVICES):
            shapes = [f"{list(t.shape)} on the {'GPU' if id(t) in self.on_gpu else 'CPU'}" for t in given]
            raise _TwoDevices(f"{str(func).rsplit('.', 1)[0]} gets {', '.join(shapes)}", self.running)
        first_on_gpu = bool(given) and id(given[0]) in self.on_gpu
        gpu = first_on_gpu if str(func).startswith(BETWEEN_DEVICES) else any(id(t) in self.on_gpu for t in given)
        gpu = gpu or (not given and self.inside_gpu_call)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and not any(leaf is t for t in given):
                self.mark(leaf, gpu)
        return out


class _Devices(TorchFunctionMode):
    """Answers `x.device`, and follows `device=`, `.to()`, `.cuda()` and `.cpu()`."""

    def __init__(self, marks: _Marks):
        super().__init__()
        self.marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return GPU if id(args[0]) in self.marks.on_gpu else func(*args)
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return id(args[0]) in self.marks.on_gpu
        if name == "get_device":
            return 0 if id(args[0]) in self.marks.on_gpu else -1
        if name == "numpy" and id(args[0]) in self.marks.on_gpu:
            raise _TwoDevices("numpy() is called on a tensor there", self.marks.running)
        if name in ("cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self.marks.mark(args[0].clone(), name == "cuda")
        device, args = _take_device(name, args, kwargs)
        if device is None:
            self.marks.inside_gpu_call = any(id(leaf) in self.marks.on_gpu for leaf in tree_leaves((args, kwargs)))
            try:
                return func(*args, **kwargs)
            finally:
                self.marks.inside_gpu_call = False
        gpu = id(device) in self.marks.on_gpu if isinstance(device, Tensor) else _means_gpu(device)
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or (id(out) in self.marks.on_gpu) == gpu:
            return out
        return self.marks.mark(out.detach().clone() if any(out is a for a in args) else out, gpu)


def _take_device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Take the device (or the tensor whose device is meant) out of a call."""
    if kwargs.get("device") is not None:
        return kwargs.pop("device"), args
    if name == "to" and len(args) > 1:
        target = args[1]
        if isinstance(target, Tensor):
            return target, (args[0], target.dtype, *args[2:])
        if isinstance(target, (str, torch.device, int)) and not isinstance(target, bool):
            return target, (args[0], *args[2:]) if len(args) > 2 or kwargs else (args[0], args[0].dtype)
    if name == "to" and isinstance(kwargs.get("other"), Tensor):
        other = kwargs.pop("other")
        return other, (*args, other.dtype)
    return None, args


def _means_gpu(device: Any) -> bool:
    """Whether a device would be the GPU where there is one.

    Scripts set `device = "cuda" if torch.cuda.is_available() else "cpu"`; here that became "cpu". Only a line that
    itself names the CPU means it.
    """
    if str(device) != "cpu":
        return True
    for frame in reversed(traceback.extract_stack(limit=12)):
        if _is_foreign(frame.filename):
            return "cpu" not in (frame.line or "")
    return True


def _is_foreign(filename: str) -> bool:
    """Whether a file is neither PyTorch's nor the doctor's."""
    name = filename.replace("\\", "/")
    return "/torch/" not in name and "/glassgpt/doctor/models/" not in name and not name.endswith("doctor/subject.py")


def check_device(subject: Subject) -> Result:
    """A pass with marked tensors, and one with targets."""
    for with_targets in (False, True) if subject.targets else (False,):
        wrong = _one_pass(subject, with_targets)
        if wrong:
            return wrong
    return passed("with weights and ids on a GPU, no operation mixes devices")


def _one_pass(subject: Subject, with_targets: bool) -> Result | None:
    module, idx, path = subject.copy(), subject.ids(), list[str]()
    marks = _Marks(path)
    targets = subject.ids(seed=1) if with_targets or subject._needs_targets else None
    for tensor in (*module.parameters(), *module.buffers(), idx, *([] if targets is None else [targets])):
        marks.mark(tensor)
    try:
        with quiet(), module_path(module, path), marks, _Devices(marks):
            raw = subject.call(module, idx, targets)
    except _TwoDevices as error:
        return _verdict(error)
    except Exception as error:
        raise NotRun(f"the pass cannot be followed: {type(error).__name__}: {first_line(error)}") from error
    logits = getattr(raw, "logits", raw)
    for leaf in tree_leaves(logits):
        full = isinstance(leaf, Tensor) and leaf.dim() >= 2 and leaf.numel() == idx.numel() * subject.outputs
        if full and id(leaf) not in marks.on_gpu:
            return failed("device", "the logits come back on the CPU, though weights and ids are on the GPU")
    return None


def _verdict(error: _TwoDevices) -> Result:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    where = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return failed("device", f"with weights and ids on a GPU, {error}{where}", error.module or None)


DEVICE_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "device",
        "Marks weights, buffers and ids as on a GPU and runs a pass: no operation may get tensors of two devices.",
        "2 passes",
        "any operation on two devices; numbers (0-dimensional tensors) and indices may stay on the CPU",
        ("device",),
        check_device,
    ),
)
