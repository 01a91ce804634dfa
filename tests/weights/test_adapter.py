"""LoRA adapters in PEFT's format: `peft` computes with ours what we compute, and we with `peft`'s what it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import FAMILIES, TOKENIZER, make
from torch import Tensor

from conftest import load_model
from glassgpt.config import TuneConfig
from glassgpt.model import GPT
from glassgpt.transforms.lora import adapters, add_lora
from glassgpt.weights.adapter import Base, save_adapter
from glassgpt.weights.folder import write_folder
from glassgpt.weights.resolve import open_folder

IDX = torch.arange(3, 43).view(2, 20)


def draw(model: GPT) -> None:
    """B's that are not zero."""
    generator = torch.Generator().manual_seed(1)
    for name, matrix in adapters(model).items():
        if "lora_B" in name:
            matrix.copy_(0.3 * torch.randn(matrix.shape, generator=generator))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out = model(IDX)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_what_we_compute_with_our_adapter(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs, ours = make(family, tmp_path / "base")
    config = TuneConfig(method="lora", lora_rank=4, lora_alpha=7.0, rslora=family == "Qwen3")
    base = Base.of(str(tmp_path / "base"), open_folder(tmp_path / "base"))
    before = logits(ours)
    add_lora(ours, config, seed=0)
    assert torch.equal(logits(ours), before)
    draw(ours)
    with write_folder(tmp_path / "adapter") as folder:
        save_adapter(folder, ours, TOKENIZER, config, base)
    merged, tokenizer = load_model(tmp_path / "adapter")
    assert tokenizer.vocab_size == TOKENIZER.vocab_size
    with_peft = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    print(
        family,
        (logits(with_peft) - logits(ours)).abs().max(),
        (logits(merged) - logits(ours)).abs().max(),
        before.std(),
    )
    torch.testing.assert_close(logits(with_peft), logits(ours), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits(merged), logits(ours), rtol=1e-5, atol=2e-5)
