"""Training by several processes."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights are divided among processes, as FSDP does: each process holds a part of every tensor."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def wrap_for_gradient_sync(module: nn.Module) -> nn.Module:
    """Wrap a module in DDP, which averages gradients over ranks. FSDP averages those of a sharded module itself."""
    return module if is_sharded(module) else DistributedDataParallel(module)
