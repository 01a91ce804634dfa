"""Whether a model can be moved: a pass on an imagined GPU, whose tensors have shapes and a device, but no numbers.

Every operation on two devices fails there as it does on a GPU, so no GPU is needed.
"""

import linecache
import traceback
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, fixed_random_state
from glassgpt.errors import first_line

GPU = "cuda"
#: What operations on two devices say, imagined or real.
MISMATCH = ("found two different devices", "on the same device", "different from other tensors", "device mismatch")


class _DeviceVariables(TorchFunctionMode):
    """Lets `device=device` mean the GPU, as it would where there is one.

    Scripts set `device = "cuda" if torch.cuda.is_available() else "cpu"`: here that became "cpu". A device that the
    line itself calls "cpu" stays.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _is_cpu(kwargs.get("device")) and not _line_says_cpu():
            kwargs["device"] = GPU
        if getattr(func, "__name__", "") == "to" and len(args) > 1 and _is_cpu(args[1]) and not _line_says_cpu():
            args = (args[0], GPU, *args[2:])
        if func is Tensor.__getitem__ and _is_imagined(args[0]):
            return _index(args[0], args[1])
        if func is Tensor.__setitem__ and _is_imagined(args[0]):
            _write(args[0], args[1], args[2])
            return None
        if func is Tensor.contiguous and _is_imagined(args[0]):
            return args[0] if args[0].is_contiguous() else args[0].clone(memory_format=torch.contiguous_format)
        if getattr(func, "__name__", "") == "repeat_interleave" and _is_imagined(args[0]) and len(args) > 1:
            return _repeat(*args, **kwargs)
        return func(*args, **kwargs)


def _repeat(tensor: Tensor, repeats: Any, dim: int | None = None, **_: Any) -> Tensor:
    """What `repeat_interleave` gives, but for the numbers."""
    if isinstance(repeats, Tensor):
        return torch.repeat_interleave(tensor, repeats, dim)
    tensor, dim = (tensor.flatten(), 0) if dim is None else (tensor, dim)
    return tensor.index_select(dim, torch.zeros(tensor.size(dim) * repeats, dtype=torch.int64, device=GPU))


def _is_imagined(tensor: Tensor) -> bool:
    return tensor.device.type == GPU


def _index(tensor: Tensor, key: Any) -> Tensor:
    """`tensor[key]` by single operations: PyTorch's own indexing asks a GPU's driver, which is not here."""
    view, indices = _basic(tensor, key)
    return torch.ops.aten.index.Tensor(view, indices) if indices else view


def _write(tensor: Tensor, key: Any, value: Any) -> None:
    """`tensor[key] = value`."""
    view, indices = _basic(tensor, key)
    value = value if isinstance(value, Tensor) else torch.tensor(value)
    if indices:
        torch.ops.aten.index_put_(view, indices, value.to(view.dtype))
    else:
        view.copy_(value)


def _basic(tensor: Tensor, key: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Apply the numbers, slices, None and ... of a key; return the view, and the tensors that index it further."""
    items = list(key) if isinstance(key, tuple) else [key]
    used = sum(item.dim() if _is_mask(item) else item is not None and item is not ... for item in items)
    fill = [slice(None)] * (tensor.dim() - used)
    places = [i for i, item in enumerate(items) if item is ...]
    items = items[: places[0]] + fill + items[places[0] + 1 :] if places else items + fill
    indices: list[Tensor | None] = []
    for item in items:
        dim = len(indices)
        if item is None:
            tensor = tensor.unsqueeze(dim)
            indices.append(None)
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, item.start, item.stop, item.step or 1)
            indices.append(None)
        elif isinstance(item, int):
            tensor = tensor.select(dim, item)
        else:
            indices += [torch.as_tensor(item)] + [None] * (item.dim() - 1 if _is_mask(item) else 0)
    return tensor, indices if any(index is not None for index in indices) else []


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype == torch.bool


def _is_cpu(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and str(device) == "cpu"


def _line_says_cpu() -> bool:
    """Whether the line of the model's code that is running names the CPU."""
    for frame in reversed(traceback.extract_stack(limit=12)[:-2]):
        if _is_foreign(frame.filename):
            return "cpu" in (frame.line or linecache.getline(frame.filename, frame.lineno or 0))
    return False


def _is_foreign(filename: str) -> bool:
    """Whether a file is neither PyTorch's nor this one."""
    return "/torch/" not in filename.replace("\\", "/") and filename != __file__


def _move(module: nn.Module, fake: FakeTensorMode) -> None:
    """Put the parameters and buffers of a copy on the imagined GPU, as `.to("cuda")` would; nothing else."""
    moved: dict[int, Tensor] = {}

    def on_gpu(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            with fake:
                twin = torch.empty_like(tensor, device=GPU)
            moved[id(tensor)] = nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin
        return moved[id(tensor)]

    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = on_gpu(tensor)  # type: ignore[assignment]
        if isinstance(part, nn.RNNBase):
            part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]


def check_device(subject: Subject) -> list[Result] | Result:
    """A pass on an imagined GPU, with and without targets."""
    messages = []
    for with_targets in (False, True) if subject.targets else (False,):
        result = _one_pass(subject, with_targets)
        if result.status == "FAIL":
            return result
        messages.append(result)
    return messages[0]


def _one_pass(subject: Subject, with_targets: bool) -> Result:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    module = subject.copy()
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())  # sizes may depend on numbers: experts
    path: list[str] = []
    _move(module, fake)
    for name, part in module.named_modules():
        part.register_forward_pre_hook(lambda _, __, name=name: path.append(name))
        part.register_forward_hook(lambda _, __, ___: path.pop() and None)
    B, T = subject.batch, subject.length
    with fixed_random_state(), torch.no_grad(), fake:
        idx = torch.zeros(B, T, dtype=torch.int64, device=GPU)
        given = torch.zeros_like(idx) if with_targets or subject._needs_targets else None
        try:
            with _DeviceVariables(), patch.object(transformer, "_detect_is_causal_mask", lambda mask, causal, size: False):
                raw = subject.call(module, idx, given)
        except Exception as error:
            return _explain(error, path[-1] if path else "")
    for leaf in tree_leaves(_plain(raw)):
        if isinstance(leaf, Tensor) and leaf.dim() >= 2 and leaf.is_floating_point() and leaf.device.type != GPU:
            return failed("device", "the logits come back on the CPU, though weights and ids are on the GPU")
    return passed("a pass on an imagined GPU mixes no devices")


def _plain(raw: Any) -> Any:
    """The logits of an object, or the parts of what was returned."""
    logits = getattr(raw, "logits", None)
    return raw if logits is None else logits


def _explain(error: Exception, module: str) -> Result:
    text = " ".join(str(error).split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    frames = [frame for frame in frames if "/glassgpt/doctor/" not in frame.filename.replace("\\", "/")] or frames
    where = f"line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    if any(words in text for words in MISMATCH) or ".numpy()" in text or "to numpy" in text:
        if "numpy" in text and frames and "cpu" in (frames[-1].line or ""):
            raise NotRun(f"the pass goes through numpy, which cannot be followed ({where})")
        message = f"with the weights on a GPU, a pass mixes devices: {first_line(error)[:160]}"
        return failed("device", f"{message} ({where})" if where else message, module or None, line=where)
    raise NotRun(f"the pass cannot be followed without numbers: {type(error).__name__}: {first_line(error)[:160]}")


DEVICE_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "device",
        "Moves parameters and buffers to an imagined GPU and runs a pass: no operation may see two devices.",
        "2 passes without numbers",
        "any operation on two devices; numbers (0-dimensional tensors) may stay on the CPU",
        ("device",),
        check_device,
    ),
)
