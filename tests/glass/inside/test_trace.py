"""A trace says of every tensor what torch and `transformers` say of it."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.glass.inside.prompt import read_prompt
from glassgpt.glass.inside.trace import TensorFacts, Trace, trace
from glassgpt.model import GPT
from glassgpt.recording import AXES, record
from published_models import FAMILIES, TOKENIZER, make

TEXT = "to be, or not to be"
SMALL = {"vocab_size": TOKENIZER.vocab_size, "block_size": 32, "n_layer": 3, "n_embd": 24, "n_head": 4}
LLAMA = {"position": "rope", "norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "n_kv_head": 2}
MODELS = {
    "gpt2": ModelConfig(**SMALL),
    "llama": ModelConfig(**SMALL, **LLAMA, tie_embeddings=False),
    "window and normed queries": ModelConfig(**SMALL, **LLAMA, qk_norm=True, sliding_window=5, first_window_layer=1),
    "learned, grouped and normed": ModelConfig(**SMALL, n_kv_head=1, qk_norm=True, mlp="gelu", head_dim=8),
}


def build(config: ModelConfig) -> GPT:
    model = GPT(config)
    model.init_weights(1)
    return model


def find(found: Trace, name: str, layer: int | None = None) -> TensorFacts:
    return next(facts for facts in found.tensors if (facts.name, facts.layer) == (name, layer))


@pytest.mark.parametrize("text", [TEXT, "a"])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_storages_and_numbers_are_those_of_tensors_that_are_all_alive(config: ModelConfig, text: str) -> None:
    model = build(config)
    found = trace(model, TOKENIZER, text)
    kept = record(model, read_prompt(model, TOKENIZER, text).idx(model))
    owners: dict[int, tuple[str, Tensor]] = {
        weight.untyped_storage().data_ptr(): (name, weight) for name, weight in model.named_parameters()
    }
    assert [(facts.name, facts.layer) for facts in found.tensors] == list(kept.tensors)
    for facts, ((name, layer), tensor) in zip(found.tensors, kept.tensors.items(), strict=True):
        place = tensor.untyped_storage().data_ptr()
        if place in owners:
            owner, first = owners[place]
            same = (tensor.data_ptr(), tensor.shape, tensor.stride()) == (first.data_ptr(), first.shape, first.stride())
            assert facts.storage == f"{'same as' if same else 'view of'} {owner}", (name, layer)
        else:
            assert facts.storage == "new", (name, layer)
            owners[place] = (name, tensor)
        assert facts.sizes == list(tensor.shape) and facts.dtype == str(tensor.dtype)[6:] and facts.device == "cpu"
        values = tensor[tensor.isfinite()].double()
        assert facts.mean == pytest.approx(values.mean().item(), rel=1e-5, abs=1e-6)
        assert facts.std == pytest.approx(values.std(correction=0).item(), rel=1e-5, abs=1e-6)
        assert (facts.smallest, facts.largest) == (values.min().item(), values.max().item())
        assert facts.not_finite == 0 and facts.masked == tensor.numel() - values.numel()
    assert found.first_not_finite is None


def test_views_of_a_model_by_hand() -> None:
    found = trace(build(MODELS["gpt2"]), TOKENIZER, TEXT)
    for name, storage in {"q": "view of qkv", "k": "view of qkv", "v": "view of qkv", "scores": "new"}.items():
        assert [facts.storage for facts in found.tensors if facts.name == name] == [storage] * 3
    assert find(found, "position embedding").storage == "view of position_embedding.weight"
    assert find(found, "embeddings").storage == "new"
    assert find(trace(build(MODELS["llama"]), TOKENIZER, TEXT), "embeddings").storage == "same as token embedding"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_has_the_numbers_of_transformers(family: str, tmp_path: Path) -> None:
    theirs, ours = make(family, tmp_path)
    found = trace(ours, TOKENIZER, TEXT)
    with torch.no_grad():
        output = theirs(torch.tensor([found.prompt.ids]), output_hidden_states=True)
    *stream, final = output.hidden_states  # the last one is after the final norm
    facts = [find(found, "embeddings"), *(find(found, "residual after mlp", layer) for layer in range(2))]
    facts += [find(found, "final norm"), find(found, "logits")]
    for one, tensor in zip(facts, [*stream, final, output.logits], strict=True):
        expected = [tensor.mean(), tensor.std(correction=0), tensor.min(), tensor.max()]
        assert [one.mean, one.std, one.smallest, one.largest] == pytest.approx([float(x) for x in expected], abs=1e-4)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_sizes_in_formulas_are_those_of_the_tensors(config: ModelConfig) -> None:
    found = trace(build(config), TOKENIZER, TEXT)
    sizes: dict[str, list[int]] = {}
    products = 0
    for facts in found.tensors:
        own = facts.sizes[1:] if facts.axes[0] == "B" else facts.sizes
        if arrow := re.search(r"  (\[.*\]) -> (\[.*\])$", facts.formula):
            assert arrow[2] == str(own), facts.name
            if product := re.fullmatch(r"(\[.*\]) @ (\[.*\])", arrow[1]):
                left, right = (torch.empty([int(n) for n in side[1:-1].split(", ")]) for side in product.groups())
                assert list((left @ right).shape) == own
                assert list(left.shape) == sizes[facts.formula.split(" @ ")[0]]
                products += 1
        named = [name for name in sizes if re.search(rf"(^|\W){name}($|\W)", facts.formula)]
        assert named or facts.name in ("idx", "token embedding", "position embedding"), facts
        sizes[facts.name] = own
    assert products == 3 * (7 if config.mlp == "swiglu" else 6) + 1


def test_formulas_name_what_the_configuration_says() -> None:
    found = trace(build(MODELS["window and normed queries"]), TOKENIZER, TEXT)
    formulas = {(facts.name, facts.layer): facts.formula for facts in found.tensors}
    assert formulas["norm 1", 0] == "rmsnorm(embeddings) * weight, eps 1e-05"
    assert formulas["norm 1", 2] == "rmsnorm(residual after mlp of layer 1) * weight, eps 1e-05"
    assert formulas["scores", 0] == "rotated q @ k per query head^T  [4, 19, 6] @ [4, 6, 19] -> [4, 19, 19]"
    assert formulas["scaled scores", 0] == "scores / sqrt(6)"
    assert formulas["masked scores", 0] == "scaled scores where key <= query, else -inf"
    assert formulas["masked scores", 1] == "scaled scores where query - 5 < key <= query, else -inf"
    assert formulas["hidden", 0] == "silu(gate) * up"
    assert find(found, "masked scores", 0).masked == 4 * 19 * 18 // 2
    assert find(found, "masked scores", 1).masked == 4 * (19 * 19 - sum(min(t + 1, 5) for t in range(19)))


@pytest.mark.parametrize(
    ("weight", "name", "layer", "value"),
    [
        ("blocks.1.mlp.up.weight", "up", 1, math.nan),
        ("blocks.1.attention.qkv.weight", "qkv", 1, math.inf),
        ("blocks.1.norm_2.bias", "norm 2", 1, math.nan),
        ("token_embedding.weight", "token embedding", None, math.nan),
        ("final_norm.weight", "final norm", None, -math.inf),
    ],
)
def test_the_first_number_that_is_not_finite_is_found(weight: str, name: str, layer: int | None, value: float) -> None:
    model = build(dataclasses.replace(MODELS["gpt2"], tie_embeddings=False))
    model.get_parameter(weight).data[..., 3] = value
    found = trace(model, TOKENIZER, TEXT).first_not_finite
    assert found is not None and (found.name, found.layer) == (name, layer)
    assert found.not_finite > 0 and found.name in AXES


def test_numbers_too_large_for_squares_in_float32_have_a_finite_spread() -> None:
    model = build(MODELS["gpt2"])
    model.token_embedding.weight.data.mul_(1e30)
    facts = find(trace(model, TOKENIZER, TEXT), "token embedding")
    assert facts.std == pytest.approx(2e28, rel=0.2) and facts.not_finite == 0
