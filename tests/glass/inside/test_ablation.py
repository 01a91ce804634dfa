"""Ablation equals the loss of a model whose weights were edited by hand, whichever blocks are run again."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glassgpt.errors import ConfigError, DataError
from glassgpt.glass.inside import ablate
from glassgpt.glass.inside.ablation import _Pass
from glassgpt.loss import evaluate, subset
from glassgpt.model import GPT, Block
from published_models import FAMILIES, TOKENIZER, make

TEXT = "A text of some length, whose loss is measured without each of the parts. " * 2


class Constant(nn.Module):
    """In place of an MLP."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


def loss(model: GPT, tokens: int) -> float:
    ids = TOKENIZER.encode_array(TEXT)
    starts = subset(ids, 64, tokens)
    return evaluate(model, ids, 64, torch.device("cpu"), starts=starts).loss


def means(model: GPT, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Of each layer: the mean input of the output projection, and the mean output of the MLP, over all windows."""
    seen: list[list[list[Tensor]]] = [[[], []] for _ in model.blocks]
    hooks = []
    for (mixed, mlp), block in zip(seen, model.blocks, strict=True):
        hooks.append(block.attention.out.register_forward_hook(lambda _, i, o, to=mixed: to.append(i[0].flatten(0, 1))))
        hooks.append(block.mlp.register_forward_hook(lambda _, i, o, to=mlp: to.append(o.flatten(0, 1))))
    loss(model, tokens)
    for hook in hooks:
        hook.remove()
    return [(torch.cat(mixed).mean(0), torch.cat(mlp).mean(0)) for mixed, mlp in seen]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "by"), [*((family, "mean") for family in FAMILIES), ("GPT2", "zero"), ("Qwen3", "zero")]
)
def test_each_loss_is_that_of_a_model_edited_by_hand(family: str, by: Any, tmp_path: Path) -> None:
    model = make(family, tmp_path)[1]
    found = ablate(model, TOKENIZER, TEXT, by, tokens=1000)
    assert found.loss == loss(model, 1000)
    assert found.tokens == len(TEXT) - 1
    D, losses = model.config.head_dim, []
    for layer, (mixed, mlp) in enumerate(means(model, 1000)):
        for head in range(model.config.n_head):
            edited, part = copy.deepcopy(model), slice(head * D, (head + 1) * D)
            block = edited.blocks[layer]
            assert isinstance(block, Block)
            out = block.attention.out
            if by == "mean":
                out.bias = nn.Parameter(out.weight[:, part] @ mixed[part] + (0 if out.bias is None else out.bias))
            out.weight[:, part] = 0
            losses.append(loss(edited, 1000))
            assert found.heads[layer, head] == pytest.approx(losses[-1], abs=1e-5)
        edited = copy.deepcopy(model)
        edited.blocks[layer].mlp = Constant(mlp if by == "mean" else torch.zeros(()))
        losses.append(loss(edited, 1000))
        assert found.mlps[layer] == pytest.approx(losses[-1], abs=1e-5)
    assert np.ptp(losses) > 0.05, "losses this close would prove little"
    assert [value for _, value in found.components()] == sorted([*found.heads.ravel(), *found.mlps], reverse=True)


def test_passes_from_kept_residuals_have_the_very_logits_of_whole_ones(tmp_path: Path) -> None:
    model = make("Qwen2", tmp_path)[1]
    batches = [torch.randint(TOKENIZER.vocab_size, (2, T)) for T in (30, 7)]
    whole = [model(idx) for idx in batches]
    run, blocks = _Pass(model), model.blocks
    for layer in range(3):
        assert all(torch.equal(run(idx), logits) for idx, logits in zip(batches, whole, strict=True))
        with run.keeping_output_of(layer):
            assert all(torch.equal(run(idx), logits) for idx, logits in zip(batches, whole, strict=True))
    assert model.blocks is blocks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_layer_is_the_row_of_all_and_the_progress_is_complete(tmp_path: Path) -> None:
    model = make("GPT2", tmp_path)[1]
    seen: list[tuple[str, int, int]] = []
    everything = ablate(model, TOKENIZER, TEXT, tokens=64, progress=lambda *report: seen.append(report))
    assert seen == [("ablating", done, 18) for done in range(18)]
    one = ablate(model, TOKENIZER, TEXT, tokens=64, layer=2)
    assert (one.layers, one.loss, one.tokens) == ([2], everything.loss, 64)
    assert np.array_equal(one.heads[0], everything.heads[2])
    assert one.mlps[0] == everything.mlps[2]


def test_mistakes_are_errors(tmp_path: Path) -> None:
    model = make("Llama", tmp_path)[1]
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"layer": 3}, "--layer 3: the model has the layers 0 to 2"),
        ({"layer": -1}, "--layer -1"),
        ({"by": "median"}, "--by 'median' is not one of zero, mean"),
        ({"tokens": 0}, "--tokens 0"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(ConfigError, match=message):
            ablate(model, TOKENIZER, TEXT, **arguments)
    for text in ("", "x"):
        with pytest.raises(DataError, match="at least 2"):
            ablate(model, TOKENIZER, text)
    assert ablate(model, TOKENIZER, "xy").tokens == 1
