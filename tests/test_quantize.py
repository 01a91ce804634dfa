"""Quantised layers, models and folders: error bounds, the packed layout, and that everything reloads equal."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import Cli, thread_count
from glassgpt import api, assets
from glassgpt.assets import tutor
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError, GenerationError
from glassgpt.evaluation.answers import text_loss
from glassgpt.model import GPT
from glassgpt.model.quantized import (
    Quantization,
    QuantizedLinear,
    dequantize_rows,
    is_quantized,
    pack_nibbles,
    quantized_layers,
    replace_layer,
    unpack_nibbles,
)
from glassgpt.tokenizer import CharTokenizer
from glassgpt.transforms.gptq import over_blocks, own_text, quantize_with_inputs
from glassgpt.transforms.quantize import choose_kind, dequantize, find_scales, quantize, quantize_matrix
from glassgpt.weights.loading import load_source
from glassgpt.weights.quantized import QuantizedFolderSource
from glassgpt.weights.resolve import open_folder

TOKENIZER = CharTokenizer.train("abcdefgh\n")
GPT2: dict[str, Any] = {"vocab_size": 9, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA = GPT2 | {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope", "intermediate_size": 48}
LLAMA |= {"n_kv_head": 2, "qkv_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_embeddings": False}
#: One model of each family, and shapes that groups do not divide.
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA | {"sliding_window": 8},
    "qwen2": LLAMA | {"qkv_bias": True, "tie_embeddings": True},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 16},
    "odd": LLAMA | {"n_embd": 36, "head_dim": 10, "intermediate_size": 51, "tie_embeddings": True, "mlp_bias": True},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    with thread_count(1), torch.no_grad():
        yield


def model_of(which: str) -> GPT:
    model = GPT(ModelConfig(**MODELS[which])).eval()
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.3 * noise if p.dim() == 1 and name.endswith("weight") else 0.2 * noise)
    return model


def ids() -> torch.Tensor:
    return torch.randint(9, (2, 12), generator=torch.Generator().manual_seed(1))


def saved(folder: Path, which: str, bits: int) -> GPT:
    model = model_of(which)
    quantize(model, bits)
    api.save(model, TOKENIZER, folder)
    return model


# --- matrices


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.sampled_from([2, 6, 32, 64, 96]), st.integers(1, 3), st.integers(0, 2**31), st.floats(-9, 9)
)
def test_errors_are_bounded_by_half_a_step(rows: int, size: int, groups: int, seed: int, magnitude: float) -> None:
    weight = torch.randn(rows, size * groups, generator=torch.Generator().manual_seed(seed)) * 10**magnitude
    weight[0] = 0
    for kind in (Quantization(8, size), Quantization(8, size * groups), Quantization(4, size)):
        values, scales = quantize_matrix(weight, kind)
        assert scales.shape == (rows, size * groups // kind.group_size) and scales.dtype == torch.float32
        error = (dequantize_rows(values, scales, kind) - weight).unflatten(1, (-1, kind.group_size))
        step = scales.abs().unsqueeze(-1)
        steps = weight.unflatten(1, (-1, kind.group_size)) / torch.where(scales == 0, 1, scales).unsqueeze(-1)
        clipped = (steps > 7.5) | (steps < -8.5) if kind.bits == 4 else torch.zeros_like(steps, dtype=torch.bool)
        assert (error.abs() <= step * 0.50001)[~clipped].all()
        assert not error[0].any()
        if kind.bits == 4:  # never worse than the plain choice of GGUF's Q4_0
            grouped = weight.unflatten(1, (-1, size))
            plain = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)) / -8
            rounded = (grouped / torch.where(plain == 0, 1, plain)).round().clamp(-8, 7) * plain
            assert (error.square().sum(-1) <= (rounded - grouped).square().sum(-1) * 1.0001).all()


def test_nibbles_lie_where_ggufs_blocks_have_them() -> None:
    values = torch.randint(-8, 8, (3, 24), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = pack_nibbles(values, 8)
    assert packed.shape == (3, 12) and packed.dtype == torch.uint8
    for row, group, i in itertools.product(range(3), range(3), range(4)):
        byte = int(packed[row, group * 4 + i])
        assert byte & 15 == int(values[row, group * 8 + i]) + 8
        assert byte >> 4 == int(values[row, group * 8 + i + 4]) + 8
    assert torch.equal(unpack_nibbles(packed, 8), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Quantization(8, 96), Quantization(8, 32), Quantization(4, 32), Quantization(4, 6)])
def test_a_layer_computes_with_the_dequantised_weight(kind: Quantization, dtype: torch.dtype) -> None:
    weight, bias = torch.randn(10, 96), torch.nn.Parameter(torch.randn(10, dtype=dtype))
    values, scales = quantize_matrix(weight, kind)
    layer = QuantizedLinear(values, scales, kind, dtype, bias)
    by_hand = unpack_nibbles(values, kind.group_size) if kind.bits == 4 else values
    dequantised = (by_hand * scales.repeat_interleave(kind.group_size, 1)).to(dtype)
    x = torch.randn(2, 3, 96, dtype=dtype)
    rounding = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(layer(x), F.linear(x, dequantised, bias), rtol=rounding, atol=rounding)
    assert torch.equal(layer.weight, dequantised) and layer.weight.dtype == dtype


def test_groups_are_chosen_that_divide_the_inputs() -> None:
    chosen = {inputs: choose_kind(4, inputs) for inputs in (576, 96, 100, 34, 51, 2)}
    assert chosen == {
        576: (4, 64), 96: (4, 32), 100: (4, 50), 34: (4, 34), 51: (8, 51), 2: (4, 2)
    }  # fmt: skip
    assert choose_kind(8, 51) == (8, 51) and choose_kind(8, 96, 32) == (8, 32) and choose_kind(4, 96, 48) == (4, 48)


def test_compensation_without_correlation_is_plain_rounding_and_with_it_better() -> None:
    weight, kind = torch.randn(12, 96), Quantization(4, 32)
    plain = quantize_matrix(weight, kind)
    compensated = quantize_with_inputs(weight, torch.eye(96), kind, find_scales)
    assert all(torch.equal(a, b) for a, b in zip(plain, compensated, strict=True))
    x = torch.randn(400, 20) @ torch.randn(20, 96) + 0.1 * torch.randn(400, 96)  # inputs that correlate
    compensated = quantize_with_inputs(weight, x.T @ x, kind, find_scales)
    errors = [(x @ (dequantize_rows(*pair, kind) - weight).T).norm() for pair in (plain, compensated)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("which", ["gpt2", "mistral"])
def test_every_layer_is_visited_with_the_products_of_its_inputs(which: str) -> None:
    model, read, seen = model_of(which), dict[str, Any](), dict[str, Any]()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("blocks.")}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, x, name=name: read.update({name: x[0].flatten(0, 1)}))
    model(ids())
    expected = {name: x.T @ x for name, x in read.items()}
    over_blocks(model, ids(), lambda name, layer, H: seen.update({name: H}))
    assert set(seen) == set(layers)
    for name, H in seen.items():
        torch.testing.assert_close(H, expected[name], rtol=1e-4, atol=1e-4)


def test_the_text_to_calibrate_on_is_a_function_of_the_model_and_the_seed() -> None:
    model = model_of("llama")
    text = own_text(model, rows=3, length=99)
    assert text.shape == (3, 16) and int(text.min()) >= 0 and int(text.max()) < 9
    assert torch.equal(text, own_text(model, rows=3, length=99)) and not torch.equal(
        text, own_text(model, 3, 99, seed=1)
    )


# --- models


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("which", MODELS)
def test_dequantising_gives_a_plain_model_with_the_same_logits(which: str, bits: int) -> None:
    model = model_of(which)
    before = model(ids())
    errors = quantize(model, bits)
    assert is_quantized(model) and set(errors) == set(quantized_layers(model))
    assert (model.head.values is model.token_embedding.values) == model.config.tie_embeddings
    logits = model(ids())
    assert not torch.equal(logits, before)
    assert (logits - before).norm() < (0.05 if bits == 8 else 0.5) * before.norm()
    dequantize(model)
    assert not is_quantized(model)
    torch.testing.assert_close(model(ids()), logits, atol=2e-5, rtol=1e-4)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in model_of(which).named_parameters()
    }
    assert all(p.requires_grad for p in model.parameters())


def test_scales_stay_exact_when_the_model_changes_its_dtype() -> None:
    model = model_of("llama")
    quantize(model, 8)
    scales = model.head.scales.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.head.scales, scales) and model.head.weight.dtype == torch.bfloat16
    assert model(ids()).dtype == torch.bfloat16


# --- folders


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("which", MODELS)
def test_a_folder_reloads_bit_for_bit_and_opens_in_transformers_when_dequantised(
    which: str, bits: int, tmp_path: Path, cli: Cli
) -> None:
    model = saved(tmp_path / "q", which, bits)
    source = open_folder(tmp_path / "q")
    assert isinstance(source, QuantizedFolderSource)
    kept, _ = load_source(source, keep_quantized=True)
    state = kept.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert (kept.head.values is kept.token_embedding.values) == kept.config.tie_embeddings
    assert torch.equal(kept(ids()), model(ids()))
    float_model, _ = load_source(open_folder(tmp_path / "q"))
    torch.testing.assert_close(float_model(ids()), model(ids()), atol=2e-5, rtol=1e-4)
    code, _, err = cli("quantize", tmp_path / "q", "--to", "float32", "-o", tmp_path / "plain")
    assert code == 0, err
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=2e-5, rtol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text(encoding="utf-8"))


def test_a_quantised_folder_in_bfloat16_keeps_its_integers(tmp_path: Path) -> None:
    model = saved(tmp_path / "q", "qwen2", 8)
    loaded, _ = load_source(open_folder(tmp_path / "q"), dtype=torch.bfloat16, keep_quantized=True)
    assert loaded.dtype == torch.bfloat16 and loaded.blocks[0].attention.qkv.bias.dtype == torch.bfloat16
    assert torch.equal(loaded.head.values, model.head.values) and torch.equal(loaded.head.scales, model.head.scales)
    assert loaded(ids()).dtype == torch.bfloat16


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        change(content["quantization_config"])
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")

    return damage


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")

    return damage


def _plain_and_tied(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        del tensors["lm_head.weight.values"], tensors["lm_head.weight.scales"]
        tensors |= {name: torch.ones(9, 32) for name in ("lm_head.weight", "model.embed_tokens.weight")}

    _tensors(change)(folder)
    content = json.loads((folder / "config.json").read_text())
    del content["quantization_config"]["modules"]["lm_head"]
    (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))


UP = "model.layers.0.mlp.up_proj"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bits": (_config(lambda q: q.update(bits=3)), "bits=3 of model"),
    "bits as text": (_config(lambda q: q.update(bits="4")), "bits='4' of model"),
    "other bits": (_config(lambda q: q.update(bits=8)), "expected I8 [48, 32]"),
    **{
        f"group size {size}": (_config(lambda q, size=size: q["modules"].update({UP: {"group_size": size}})), message)
        for size, message in (
            (0, "group_size=0 of model.layers.0.mlp.up_proj is not an even divisor of its 32 inputs"),
            (-32, "group_size=-32"), (10**30, "group_size=1000"), (5, "group_size=5"), (1, "group_size=1 "),
            (1.5, "group_size=1.5"), (True, "group_size=True"), (16, "scales is F32 [48, 1], expected F32 [48, 2]"),
        )
    },
    "no modules": (_config(lambda q: q.pop("modules")), "modules=None"),
    "a list of modules": (_config(lambda q: q.update(modules=[UP])), "modules=["),
    "a module too many": (_config(lambda q: q["modules"].update({"model.norm": {}})), "'model.norm' is no matrix"),
    "a module too few": (_config(lambda q: q["modules"].pop(UP)), "unexpected"),
    "a module that is no object": (_config(lambda q: q["modules"].update({UP: 4})), "has 4, which is not an object"),
    "plain weights as well": (_tensors(lambda t: t.update({f"{UP}.weight": torch.zeros(48, 32)})), "is there twice"),
    "plain head and embedding, tied by config.json": (
        _plain_and_tied, "model.embed_tokens.weight is there twice"
    ),
    "no scales": (_tensors(lambda t: t.pop(f"{UP}.weight.scales")), "scales is missing, expected F32 [48, 1]"),
    "no values": (_tensors(lambda t: t.pop(f"{UP}.weight.values")), "values is missing, expected U8 [48, 16]"),
    "shape": (_tensors(lambda t: t.update({f"{UP}.weight.values": t[f"{UP}.weight.values"][:9]})), "U8 [9, 16]"),
    "half scales": (
        _tensors(lambda t: t.update({f"{UP}.weight.scales": t[f"{UP}.weight.scales"].half()})), "is F16 [48, 1]"
    ),
    "signed": (
        _tensors(lambda t: t.update({f"{UP}.weight.values": t[f"{UP}.weight.values"].view(torch.int8)})), "is I8"
    ),
    "nan": (_tensors(lambda t: t[f"{UP}.weight.scales"].fill_(float("nan"))), "NaN or infinite"),
    "inf": (_tensors(lambda t: t[f"{UP}.weight.scales"].fill_(float("inf"))), "NaN or infinite"),
    "truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "is damaged",
    ),
    "gptq": (_config(lambda q: q.update(quant_method="gptq")), "quant_method='gptq'"),
    "bitsandbytes": (_config(lambda q: q.update(quant_method="bitsandbytes")), "quant_method='bitsandbytes'"),
    "no method": (_config(lambda q: q.pop("quant_method")), "quant_method=None"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "q"
    saved(folder, "llama", 4)
    (folder / "SHA256SUMS").unlink()
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_gives_one_message(damage: str, whole: Path, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    shutil.copytree(whole, tmp_path / "q")
    change(tmp_path / "q")
    for keep in (True, False):
        with pytest.raises(CheckpointError) as raised:
            load_source(open_folder(tmp_path / "q"), keep_quantized=keep)
        assert message in str(raised.value)


def test_a_layer_that_is_stored_differently_in_one_block_is_dequantised_in_all(tmp_path: Path) -> None:
    model = model_of("llama")
    quantize(model, 4)
    other = choose_kind(8, 48)
    down = QuantizedLinear(*quantize_matrix(model.blocks[1].mlp.down.weight, other), other, torch.float32)
    replace_layer(model, "blocks.1.mlp.down", down)
    api.save(model, TOKENIZER, tmp_path / "m")
    loaded, _ = load_source(open_folder(tmp_path / "m"), keep_quantized=True)
    assert quantized_layers(model).keys() - quantized_layers(loaded).keys() == {
        "blocks.0.mlp.down", "blocks.1.mlp.down",
    }  # fmt: skip
    idx = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded(idx), model(idx))


# --- the verb, and training


def test_the_verb_writes_a_folder_and_says_what_it_cost(tmp_path: Path, cli: Cli) -> None:
    api.save(model_of("llama"), TOKENIZER, tmp_path / "m")
    (tmp_path / "text.txt").write_text("abcdefgh" * 20, encoding="utf-8")
    for to in ("int8", "int4"):
        code, out, err = cli("quantize", "m", "--to", to, "--text", "text.txt", "--json")
        assert code == 0 and ("fitted to a text" in err) == (to == "int4"), err
        report = json.loads(out)
        assert report["path"] == f"m-{to}" and report["bytes_after"] < report["bytes_before"] / 2
        assert report["perplexity"]["change"] == pytest.approx(
            report["perplexity"]["after"] / report["perplexity"]["before"] - 1
        )
        assert set(report["layers"]) == set(quantized_layers(api.load("m-" + to, keep_quantized=True)[0]))
        code, out, err = cli("score", f"m-{to}", "text.txt", "--json")
        assert code == 0, err
    code, _, err = cli("quantize", "m", "--to", "int8", "--text", "text.txt")
    assert code == 2 and "m-int8 exists" in err
    code, _, err = cli("quantize", "m-int8", "--to", "int4", "-o", "n")
    assert code == 2 and "is quantised already" in err and not (tmp_path / "n").exists()
    code, _, err = cli("quantize", "m", "--to", "float32", "-o", "n")
    assert code == 2 and "is not a folder of quantised weights" in err
    code, out, err = cli("quantize", "m", "--to", "int8", "-o", "n")  # most characters of the built-in text are unknown
    assert code == 0 and "perplexity on the built-in text" in out and "decoding 128 tokens here is" in out, err


def test_verbs_that_train_all_weights_refuse_quantised_ones(tmp_path: Path, cli: Cli) -> None:
    saved(tmp_path / "q", "llama", 8)
    (tmp_path / "text.txt").write_text("abcdefgh\n" * 200, encoding="utf-8")
    row = {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "def"}]}
    (tmp_path / "chats.jsonl").write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    for arguments in (("train", "text.txt", "init_from=q"), ("tune", "sft", "q", "chats.jsonl")):
        code, _, err = cli(*arguments, "steps=1", "--dry-run")
        assert code == 2 and "quantised weights, which have no gradients" in err and err.count("\n") <= 2, err


@pytest.mark.parametrize("factor", [math.nan, 1e20])
def test_weights_that_are_not_numbers_are_one_error_and_huge_ones_are_only_rounded(factor: float) -> None:
    model = model_of("llama")
    model.blocks[0].mlp.up.weight *= factor
    if math.isnan(factor):
        with pytest.raises(GenerationError, match="nothing to calibrate on"):
            api.quantize(model, 4)
    else:
        api.quantize(model, 4)
        assert all(layer.weight.isfinite().all() for layer in quantized_layers(model).values())


def test_the_python_function_refuses_what_it_cannot_do() -> None:
    model = model_of("gpt2")
    for arguments in ((3,), (8, 0), (4, -2), (4, 1.5)):
        with pytest.raises(ConfigError):
            api.quantize(model, *arguments)
    api.quantize(model, 4)
    with pytest.raises(ConfigError, match="already"):
        api.quantize(model, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "limit"), [(8, 0.01), (4, 0.08)])
def test_the_perplexity_of_a_published_model_stays_close(bits: int, limit: float) -> None:
    if assets.available("smollm2-135m-instruct") is None:
        pytest.skip("SmolLM2 is not here")
    model, tokenizer = api.load("smollm2-135m-instruct", keep_quantized=False)
    texts = [tutor.general_path().read_text(encoding="utf-8"), tutor.questions_path().read_text(encoding="utf-8")]
    text = "\n\n".join(texts)  # 48 kB
    before = text_loss(model, tokenizer, text)
    api.quantize(model, bits)
    assert math.expm1(text_loss(model, tokenizer, text) - before) < limit
