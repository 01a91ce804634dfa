"""What a module or its configuration declares."""

from torch import nn


def padding_ids(module: nn.Module) -> set[int]:
    """Token ids that a module or its configuration declares as padding, or to be ignored."""
    names = ("pad_token_id", "pad_id", "pad_idx", "padding_idx", "pad_index", "pad_token", "pad", "ignore_index", "PAD")
    found = set()
    for part in module.modules():
        for holder in (part, *(getattr(part, h, None) for h in ("config", "cfg", "args", "params", "hparams"))):
            for name in names:
                value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
                if isinstance(value, int):
                    found.add(value)
    return found
