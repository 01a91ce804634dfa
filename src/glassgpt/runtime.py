"""Device, compute type, threads and seeds. Nothing happens at import; torch is imported when first needed."""

import contextlib
import hashlib
import os
import platform
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassgpt.config import RuntimeConfig
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    """A resolved place to compute: what ``auto`` turned out to be, and why."""

    device: "torch.device"
    dtype: "torch.dtype"
    threads: int
    compile: bool
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision around a forward pass; a null context in float32."""
        import torch

        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def resolved(self) -> dict[str, Any]:
        """The choices as configuration values, to be saved with a run and reused on resume."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "compile": self.compile,
        }


def resolve(config: RuntimeConfig) -> Runtime:
    """Choose the device and compute type, and set the number of CPU threads for this process.

    Raises:
        ConfigError: if the device asked for is not there, or cannot compute in the type asked for.
    """
    import torch

    device = torch.device(_best_device() if config.device == "auto" else config.device)
    _require(device)
    if config.threads:
        torch.set_num_threads(config.threads)
    reason = "asked for"
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    elif device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype, reason = torch.bfloat16, "this GPU computes in bfloat16"
    else:
        dtype, reason = torch.float32, f"the default on {device.type}"
    compile = config.compile and _compiler_found(device)
    if config.compile and not compile:
        reason += "; not compiled: no C++ compiler was found"
    return Runtime(device, dtype, torch.get_num_threads(), compile, reason)


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _require(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"runtime.device: {device} was asked for, and torch finds {count} CUDA devices here; use device=cpu"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runtime.device: mps was asked for, and this is no Apple GPU; use device=cpu")


def _compiler_found(device: "torch.device") -> bool:
    if device.type != "cpu":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of its parts, independent for different parts."""
    digest = hashlib.sha256(repr(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def versions() -> dict[str, str]:
    """Versions and machine, for the provenance of a run."""
    import numpy
    import torch

    from glassgpt import __version__

    return {
        "glassgpt": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
