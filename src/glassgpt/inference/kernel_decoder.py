"""A Decoder that runs a model's own weights through the compiled functions of ``kernels.py``."""

import importlib.util
import itertools
import math
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from glassgpt.errors import install_extra
from glassgpt.model import GPT, KVCache
from glassgpt.model.attention import FusedAttention, UnfusedAttention
from glassgpt.model.rope import rotary_tables
from glassgpt.weights.folder import dtype_name

if TYPE_CHECKING:
    from glassgpt.inference.kernels import Layer, Matrix


def numba_found() -> bool:
    """Whether numba is installed; it is not imported."""
    return importlib.util.find_spec("numba") is not None


def unsupported(model: GPT) -> str | None:
    """Say why the kernels cannot run this model; None if they can."""
    if not numba_found():
        return f"numba is not installed: {install_extra('numba')}"
    if model.device.type != "cpu":
        return f"they run on the CPU, and the model is on {model.device.type}"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has hooks, which they do not call"
        if name.endswith("attend") and type(module) not in (FusedAttention, UnfusedAttention):
            return f"{name} is {type(module).__name__}, which they do not call"
    kinds = {tuple(_kind(matrix) for matrix in block_matrices(block)) for block in model.blocks}
    if wrong := {*itertools.chain(*kinds), _kind(model.head), _kind(model.token_embedding)} - KINDS:
        return f"they cannot read a layer of {min(wrong)}"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"they cannot read norms of {dtype_name(model.dtype)}"
    return "the same layer has different types in different blocks" if len(kinds) > 1 else None


#: What the kernels read: nn.Linear by its dtype, quantised layers by that of their values.
KINDS = {"float32", "bfloat16", "int8", "uint8"}


def _kind(linear: Any) -> str:
    if type(linear) in (nn.Linear, nn.Embedding):
        return dtype_name(linear.weight.dtype)
    return dtype_name(linear.values.dtype) if hasattr(linear, "values") else type(linear).__name__


def block_matrices(block: Any) -> list[nn.Module]:
    """Return the linear layers of a block: qkv, out, gate (or up again, where there is none), up, down."""
    attention, mlp = block.attention, block.mlp
    return [attention.qkv, attention.out, mlp.gate or mlp.up, mlp.up, mlp.down]


#: One step at a time: numba's simplest threading layer ends the process if two Python threads use it at once.
_ONE_AT_A_TIME = threading.Lock()


class KernelDecoder:
    """A decode step by numba: see :mod:`glassgpt.inference.kernels`.

    Args:
        model: on the CPU; nn.Linear in float32 or bfloat16, or quantised layers. Its weights are moved, see
            :func:`into_one_block`, and read there; norms are copied. After a change of the model, make a new decoder.
        threads: among which the work is shared; by default as many as PyTorch uses.
    """

    name = "kernels"

    def __init__(self, model: GPT, threads: int | None = None):
        import numba

        from glassgpt.inference import kernels

        assert unsupported(model) is None
        start_threads()
        into_one_block(model)
        self.config, self.dtype, self._step = model.config, model.dtype, kernels.step
        self.threads = threads or torch.get_num_threads()
        config = model.config
        mlp = {"gelu": kernels.GELU, "gelu_tanh": kernels.GELU_TANH, "swiglu": kernels.SWIGLU}[config.mlp]
        rms, rope = config.norm == "rmsnorm", config.position == "rope"
        table = torch.empty(0, config.n_embd, dtype=model.dtype)
        if model.position_embedding is not None:
            table = model.position_embedding.weight
        self.model = kernels.Model(
            numba.typed.List([_layer(block) for block in model.blocks]),
            np.array(config.windows),
            _norm(model.final_norm),
            _matrix(model.head),
            _matrix(model.token_embedding),
            _bits(table),
            kernels.Shape(config.n_head, config.n_kv_head, config.head_dim, rms, config.norm_eps, mlp, rope),
        )
        self._build_rope(0)

    def _build_rope(self, positions: int) -> None:
        cos, sin = rotary_tables(self.config, positions=positions)
        half = self.config.head_dim // 2
        self.cos, self.sin = cos[:, :half].contiguous().numpy(), sin[:, :half].contiguous().numpy()

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits after each new token."""
        import numba

        B, T = idx.shape
        if len(cache.lengths) != B:  # the kernels check no index
            raise ValueError(f"{B} rows of tokens, and {len(cache.lengths)} in the cache")
        end, V = cache.longest + T, self.config.vocab_size
        if end > min(cache.capacity, self.config.block_size):
            raise ValueError(f"{end} tokens do not fit {min(cache.capacity, self.config.block_size)}")
        if idx.min() < 0 or idx.max() >= V:
            raise ValueError(f"tokens from {idx.min()} to {idx.max()} are not all in the vocabulary of {V}")
        if self.model.shape.rope and end > len(self.cos):
            self._build_rope(cache.capacity)
        logits = torch.empty(B * T, V)
        with _ONE_AT_A_TIME:
            numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
            self._step(*self._arguments(idx, cache, logits))
        cache.advance(T)
        return logits.view(B, T, -1)

    def _arguments(self, idx: Tensor, cache: KVCache, logits: Tensor) -> tuple[Any, ...]:
        """The arguments of ``kernels.step``."""
        B, T = idx.shape
        rows = np.arange(B).repeat(T)
        positions = np.array(cache.lengths).repeat(T) + np.tile(np.arange(T), B)
        return (
            *self.model, idx.flatten().numpy(), rows, positions, self.cos, self.sin,
            _bits(cache.keys), _bits(cache.values), logits.numpy(), self.threads,
        )  # fmt: skip

    def is_compiled(self) -> bool:
        """Whether numba has compiled the step for these types of weights, in this process or in its cache on disk.

        Numba has no public function for it. If its private ones have changed, the answer is False.
        """
        cache = KVCache(self.config, 1, capacity=1, dtype=self.dtype)
        arguments = self._arguments(torch.zeros(1, 1, dtype=torch.int64), cache, torch.empty(1, self.config.vocab_size))
        types = tuple(map(self._step.typeof_pyval, arguments))
        if types in self._step.overloads:
            return True
        try:
            on_disk = self._step._cache
            return on_disk._index_key(types, self._step.targetctx.codegen()) in on_disk._cache_file._load_index()
        except (AttributeError, TypeError, OSError):
            return False

    def keeps_compiled(self) -> bool:
        """Whether numba has a folder to keep what it compiles."""
        return type(self._step._cache).__name__ != "NullCache"


def start_threads() -> None:
    """Start numba's threads, so that they wait in vain for 10 microseconds only, and then let other programs run.

    By default GNU OpenMP's threads wait for milliseconds. A step has hundreds of places where threads wait for each
    other: beside two busy programs on two cores, it then took thirteen times as long. Starting them also sets the
    number of threads of torch, where the two share OpenMP; it is set back.
    """
    import numba

    name, torch_threads = "GOMP_SPINCOUNT", torch.get_num_threads()
    waits = name not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    if waits:
        os.environ[name] = "1000"  # read once, when the threads start
    numba.set_num_threads(numba.get_num_threads())
    if waits:
        del os.environ[name]
    torch.set_num_threads(torch_threads)


#: Bytes of a large page.
PAGE = 2**21


@torch.no_grad()
def into_one_block(model: GPT) -> None:
    """Move the weights of a model into one block of memory, in the order in which a step reads them.

    Pages of such a block can be large. The CPU then looks up fewer addresses, and reads ahead across the borders of
    matrices: with 2 threads, a step of a model of 135 million parameters takes three quarters of the time.
    """
    matrices = [matrix for block in model.blocks for matrix in block_matrices(block)] + [model.head]
    tensors = {}
    for tensor in (t for m in matrices for t in (*m.parameters(), *m.buffers()) if t.dim() == 2):
        tensors[tensor.data_ptr()] = tensor
    sizes = [math.ceil(tensor.nbytes / 64) * 64 for tensor in tensors.values()]
    if [*tensors] == list(itertools.accumulate(sizes[:-1], initial=next(iter(tensors)))):
        return  # it has been done
    if any(tensor.is_inference() for tensor in tensors.values()):
        return  # such a tensor cannot be moved; it is read where it is
    memory = np.empty(sum(sizes) + PAGE, np.uint8)  # numpy asks for large pages
    block = torch.from_numpy(memory[-memory.ctypes.data % PAGE :][: sum(sizes)])
    for tensor, place in zip(tensors.values(), block.split(sizes), strict=True):
        moved = place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.set_(moved.copy_(tensor))


def _bits(tensor: Tensor) -> np.ndarray:
    """Return the memory of a tensor as an array; bfloat16 as uint16."""
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _norm(norm: Any) -> np.ndarray:
    """Return weight and bias of a norm: ``[2, C]``."""
    weight = norm.weight.detach().float()
    return torch.stack([weight, weight * 0 if norm.bias is None else norm.bias.detach().float()]).numpy()


def _matrix(linear: Any) -> "Matrix":
    from glassgpt.inference.kernels import Matrix

    bias = getattr(linear, "bias", None)
    bias = torch.empty(0) if bias is None else bias.detach().float()
    if isinstance(linear, nn.Linear | nn.Embedding):
        values = _bits(linear.weight)
        return Matrix(values[:, None], np.ones((len(values), 1), np.float32), bias.numpy())
    values, scales = _bits(linear.values), _bits(linear.scales)
    return Matrix(values.reshape(*scales.shape, -1), scales, bias.numpy())


def _layer(block: Any) -> "Layer":
    from glassgpt.inference.kernels import Layer

    attention = block.attention
    D = attention.head_dim
    qk_norm = np.empty((0, 2, D), np.float32)
    if not isinstance(attention.q_norm, nn.Identity):
        qk_norm = np.stack([_norm(attention.q_norm), _norm(attention.k_norm)])
    qkv, out, gate, up, down = map(_matrix, block_matrices(block))
    return Layer(_norm(block.norm_1), qkv, qk_norm, out, _norm(block.norm_2), gate, up, down)
