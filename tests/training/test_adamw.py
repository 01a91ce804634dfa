"""AdamW is torch's, bit for bit, without torch's compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glassgpt.training.adamw import AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_updates_are_those_of_torch(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mine = [torch.randn(shape, generator=generator) for shape in ((7, 5), (40, 30), (9,))]
    theirs = [tensor.clone().requires_grad_() for tensor in mine]
    settings = {"lr": 0.01, "betas": (0.9, 0.98)}

    def groups(tensors: list[torch.Tensor]) -> list[dict[str, object]]:
        return [
            {"params": tensors[:2], "weight_decay": weight_decay}, {"params": tensors[2:], "weight_decay": 0.0},
        ]  # fmt: skip

    ours, reference = AdamW(groups(mine), **settings), torch.optim.AdamW(groups(theirs), **settings, fused=True)  # type: ignore[arg-type]
    for step in range(6):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator) if step != 2 or one is not mine[1] else None
            other.grad = None if one.grad is None else one.grad.clone()
        for group in (*ours.param_groups, *reference.param_groups):
            group["lr"] = 0.01 / (step + 1)
        ours.step()
        reference.step()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)
        assert ours.state[one].keys() == reference.state[other].keys()
        assert all(torch.equal(value, reference.state[other][key]) for key, value in ours.state[one].items())


def test_training_without_compiling_does_not_import_the_compiler(text_file: Path, tmp_path: Path) -> None:
    """It takes a second, at every start."""
    code = (
        "import sys\n"
        "import glassgpt\n"
        f"glassgpt.train('tiny', data={str(text_file)!r}, overrides={{'steps': 1, 'n_layer': 1, 'compile': 'false'}})\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
