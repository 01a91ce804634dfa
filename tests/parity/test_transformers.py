"""Model folders, both ways: ours opened by `transformers`, theirs by us; and refusals."""

import dataclasses
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here has a reason to ask

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import load_config, load_model, thread_count
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN, PRESETS
from glassgpt.errors import CheckpointError, ConfigError, TokenizerError
from glassgpt.inference.decode import generate
from glassgpt.model import GPT
from glassgpt.runtime import Runtime
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import CharTokenizer
from glassgpt.tokenizer import load as load_tokenizer
from glassgpt.tokenizer import save as save_tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.folder import CHECKSUMS, load_weights, save_model, verify, write_folder

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ALPHABET = "\t\n\r !'<>?abcdeknu|~\xa0é\u0301ß\u200d漢\U0001f98a"
TOKENIZER = CharTokenizer.train(ALPHABET)
CPU = Runtime(torch.device("cpu"), torch.float32, 1, compile=False, reason="test")

CLASSIC = ModelConfig(vocab_size=len(ALPHABET), block_size=16, n_layer=2, n_head=4, n_embd=32)
QWEN = dataclasses.replace(CLASSIC, **MODERN, intermediate_size=48)
LLAMA = dataclasses.replace(QWEN, qk_norm=False)
BIASED = {"qkv_bias": True, "attention_out_bias": True}
#: Epsilons, thetas and widths unlike any default, so that none can be lost unseen.
CONFIGS = {
    "gpt2": CLASSIC,
    "gpt2-gelu": dataclasses.replace(CLASSIC, mlp="gelu", norm_eps=0.03, intermediate_size=40),
    "gpt2-untied": dataclasses.replace(CLASSIC, tie_embeddings=False, dropout=0.1),
    "qwen3": QWEN,
    "qwen3-gqa": dataclasses.replace(QWEN, n_kv_head=2, head_dim=12, rope_theta=77.0, norm_eps=0.03),
    "qwen3-biased-tied": dataclasses.replace(QWEN, **BIASED, tie_embeddings=True, n_kv_head=1),
    "llama": LLAMA,
    "llama-gqa": dataclasses.replace(LLAMA, n_kv_head=2, head_dim=12, rope_theta=77.0, norm_eps=0.03),
    "llama-biased-tied": dataclasses.replace(LLAMA, **BIASED, mlp_bias=True, tie_embeddings=True),
    "preset-tiny": dataclasses.replace(PRESETS["tiny"].model, vocab_size=len(ALPHABET)),
    "preset-tiny-modern": dataclasses.replace(PRESETS["tiny-modern"].model, vocab_size=len(ALPHABET)),
}
everywhere = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
each_family = pytest.mark.parametrize(
    "config", [CLASSIC, CONFIGS["qwen3-gqa"], CONFIGS["llama-gqa"]], ids=lambda c: c.norm
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1), torch.no_grad():
        yield


def randomise(model: torch.nn.Module) -> Any:
    """Nothing at zero, nothing at one: every bias and norm takes part."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.3 * noise if p.dim() == 1 and name.endswith("weight") else 0.2 * noise)
    return model.eval()


def saved(folder: Path, model: GPT, **how: Any) -> Path:
    with write_folder(folder) as temporary:
        save_model(temporary, model, TOKENIZER, **how)
    return folder


def ours(config: ModelConfig) -> GPT:
    return randomise(GPT(config))


def tokens(config: ModelConfig, B: int = 3, T: int | None = None) -> Tensor:
    T = T or config.block_size
    return torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


def opened_by_transformers(folder: Path) -> Any:
    """The model, strictly: nothing missing, nothing left over, nothing of another shape."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1, "logits this flat would prove little"
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


# --- ours, opened by transformers


@everywhere
def test_transformers_computes_the_same_from_our_folder(config: ModelConfig, tmp_path: Path) -> None:
    model, idx = ours(config), tokens(config)
    theirs = opened_by_transformers(saved(tmp_path / "m", model))
    assert type(theirs).__name__ == mapping.family_of(config).architecture
    assert theirs.dtype == torch.float32
    close(theirs(idx).logits, model(idx))
    steps = generate(model, tokens(config, 2, 5).tolist(), 11, SamplingConfig(0.0))
    greedy = theirs.generate(tokens(config, 2, 5), max_new_tokens=11, do_sample=False)
    assert greedy[:, 5:].T.tolist() == [step.tokens for step in steps]


@everywhere
def test_saved_loaded_and_saved_again_is_the_same_folder(config: ModelConfig, tmp_path: Path) -> None:
    model = ours(config)
    first = saved(tmp_path / "a", model)
    loaded, tokenizer = load_model(first)
    assert not loaded.training
    assert tokenizer.encode(ALPHABET) == TOKENIZER.encode(ALPHABET)
    assert torch.equal(loaded(tokens(config)), model(tokens(config)))
    assert (loaded.head.weight is loaded.token_embedding.weight) == config.tie_embeddings
    second = saved(tmp_path / "b", loaded)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", CHECKSUMS} <= set(names)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    verify(first)


def test_strides_and_modes_do_not_change_the_saved_file(tmp_path: Path) -> None:
    """Not contiguous, in training, requiring no gradients: the file holds the weights alone."""
    model = ours(CONFIGS["qwen3-gqa"])
    expected = saved(tmp_path / "a", model)
    model.train().requires_grad_(False)
    for p in model.parameters():
        p.data = p.data.t().contiguous().t()
    assert (saved(tmp_path / "b", model) / "model.safetensors").read_bytes() == (
        expected / "model.safetensors"
    ).read_bytes()


# --- theirs, opened by us


def theirs_gpt2(**changes: Any) -> Any:
    config = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": None, "eos_token_id": None}
    return transformers.GPT2Config(vocab_size=len(ALPHABET), **config | changes)


def theirs_llama(kind: str, **changes: Any) -> Any:
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"head_dim": 12, "intermediate_size": 40, "max_position_embeddings": 16}
    config |= {"bos_token_id": None, "eos_token_id": None}
    return getattr(transformers, kind)(vocab_size=len(ALPHABET), **config | changes)


THEIRS: dict[str, Callable[[], Any]] = {
    "gpt2": theirs_gpt2,
    "gpt2-gelu": lambda: theirs_gpt2(activation_function="gelu", n_inner=40, layer_norm_epsilon=0.03),
    "gpt2-untied": lambda: theirs_gpt2(tie_word_embeddings=False),
    "qwen3": lambda: theirs_llama("Qwen3Config"),
    "qwen3-other": lambda: theirs_llama(
        "Qwen3Config", attention_bias=True, tie_word_embeddings=True, rms_norm_eps=0.03, num_key_value_heads=4
    ),
    "qwen3-theta": lambda: theirs_llama("Qwen3Config", rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
    "llama": lambda: theirs_llama("LlamaConfig"),
    "llama-other": lambda: theirs_llama(
        "LlamaConfig", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rms_norm_eps=0.03
    ),
    "llama-theta": lambda: theirs_llama("LlamaConfig", rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
}


def published(folder: Path, config: Any) -> Any:
    """A random model of theirs in a folder, with a tokenizer of ours."""
    model = randomise(transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder)
    save_tokenizer(TOKENIZER, folder, 16)
    return model


@pytest.mark.parametrize("which", THEIRS)
def test_we_compute_the_same_from_their_folder(which: str, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs", THEIRS[which]())
    model, _ = load_model(tmp_path / "theirs")
    idx = tokens(model.config)
    close(model(idx), theirs(idx).logits)
    again = saved(tmp_path / "again", model)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    close(opened_by_transformers(again)(idx).logits, theirs(idx).logits)


def test_weights_in_bfloat16_are_read_as_they_are(tmp_path: Path) -> None:
    published(tmp_path, theirs_llama("LlamaConfig")).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    model, _ = load_model(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    close(model(tokens(model.config)), theirs(tokens(model.config)).logits)


def test_gpt2_as_it_was_first_published(tmp_path: Path) -> None:
    """The weights of the base model, whose names lack `transformer.`, with causal masks among them."""
    theirs = published(tmp_path, theirs_gpt2())
    theirs.transformer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in weights
    weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_model(tmp_path)
    close(model(tokens(model.config)), theirs(tokens(model.config)).logits)


LEFT_OUT = {
    "gpt2": ("n_inner", "layer_norm_epsilon", "activation_function", "tie_word_embeddings"),
    "qwen3": ("attention_bias", "tie_word_embeddings", "rms_norm_eps", "rope_parameters", "head_dim"),
    "llama": (
        *("attention_bias", "tie_word_embeddings", "rms_norm_eps", "rope_parameters", "head_dim"),
        *("mlp_bias", "num_key_value_heads"),
    ),
}


@pytest.mark.parametrize(("which", "key"), [(which, key) for which, keys in LEFT_OUT.items() for key in keys])
def test_a_key_left_out_of_config_json_has_the_familys_default(which: str, key: str, tmp_path: Path) -> None:
    """Published files leave keys out, early Llamas `attention_bias` and `mlp_bias`; `transformers` fills them in."""
    THEIRS[which]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text("utf-8"))
    del content[key]
    path.write_text(json.dumps(content), "utf-8")
    theirs, found = transformers.AutoConfig.from_pretrained(tmp_path), load_config(tmp_path)
    for name, their_name in mapping.FAMILIES[content["model_type"]].keys.items():
        theta = name == "rope_theta"
        expected = theirs.rope_parameters["rope_theta"] if theta else getattr(theirs, their_name)
        if their_name == "n_inner" and expected is None:
            expected = 4 * theirs.n_embd
        assert getattr(found, name) == expected, name


def test_rope_theta_is_found_in_either_place(tmp_path: Path) -> None:
    for kind in ("LlamaConfig", "Qwen3Config"):
        theirs_llama(kind, rope_parameters={"rope_type": "default", "rope_theta": 77.0}).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        content = json.loads(path.read_text("utf-8"))
        assert load_config(tmp_path).rope_theta == 77
        del content["rope_parameters"]
        path.write_text(json.dumps(content | {"rope_theta": 55.0, "rope_scaling": None}), "utf-8")
        assert load_config(tmp_path).rope_theta == 55


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "mamba"}, "mamba"),
    ("llama", {"model_type": None}, "None"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 8.0, "rope_theta": 1e4}}, "longrope"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "mrope", "factor": 2.0}}, "mrope"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "linear without a factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen3", {"hidden_act": "relu"}, "hidden_act"),
    ("qwen3", {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True}, "layer_types"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("qwen3", {"layer_types": ["linear_attention", "full_attention"]}, "layer_types"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
]


@pytest.mark.parametrize(
    ("which", "change", "named"), REFUSED, ids=[f"{row[0]}-{next(iter(row[1]))}" for row in REFUSED]
)
def test_unsupported_settings_are_refused(which: str, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    published(tmp_path, THEIRS[which]())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(CheckpointError, match=named):
        load_model(tmp_path)


# --- tokenizers


def test_transformers_opens_the_tokenizer_with_the_same_ids(tmp_path: Path) -> None:
    saved(tmp_path / "m", ours(CLASSIC))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "m", local_files_only=True)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "m")
    rng = random.Random(0)
    texts = [ALPHABET, "", " ", "\n", "\r\n", "  \n\n  ", "<unk>", "a\u0301e\u0301", "n ' d ?", "\t\xa0 \t"]
    texts += ["".join(rng.choices(ALPHABET, k=rng.randrange(60))) for _ in range(200)]
    for text in texts:
        ids = TOKENIZER.encode(text)
        assert again.encode(text) == auto(text)["input_ids"] == plain.encode(text).ids == ids
        assert again.decode(ids) == auto.decode(ids) == plain.decode(ids) == TOKENIZER.decode(ids) == text
    assert len(auto) == TOKENIZER.vocab_size == again.vocab_size
    assert auto.model_max_length == CLASSIC.block_size
    assert (auto.bos_token, auto.eos_token, auto.pad_token, auto.unk_token) == (None, None, None, None)
    with pytest.raises(TokenizerError, match="'Z'"):
        again.encode("aZ")
    with pytest.raises(Exception, match="UNK"):
        plain.encode("aZ")


# --- what no family can express


INEXPRESSIBLE: list[tuple[ModelConfig, dict[str, Any]]] = [
    (CLASSIC, {"norm_bias": False}),
    (CLASSIC, {"mlp_bias": False}),
    (CLASSIC, {"position": "rope"}),
    (CLASSIC, {"qk_norm": True}),
    (CLASSIC, {"n_kv_head": 2}),
    (CLASSIC, {"head_dim": 12}),
    (CLASSIC, {"mlp": "swiglu"}),
    (QWEN, {"mlp": "gelu"}),
    (QWEN, {"position": "learned"}),
    (LLAMA, {"qkv_bias": True, "mlp_bias": True}),
    (LLAMA, {"attention_out_bias": True}),
]


@pytest.mark.parametrize(
    ("base", "change"), INEXPRESSIBLE, ids=lambda v: v.norm if isinstance(v, ModelConfig) else str(v)
)
def test_the_unsupported_field_is_named_and_the_native_format_has_it(
    base: ModelConfig, change: dict[str, Any], tmp_path: Path
) -> None:
    config, field = dataclasses.replace(base, **change), next(iter(change))
    model, idx = ours(config), tokens(config)
    with pytest.raises(ConfigError) as refusal:
        saved(tmp_path / "m", model)
    assert f"{field}=" in str(refusal.value)
    assert "native" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    first = saved(tmp_path / "a", model, native=True)
    loaded, _ = load_model(first)
    assert loaded.config == config
    assert torch.equal(loaded(idx), model(idx))
    second = saved(tmp_path / "b", loaded, native=True)
    assert all(path.read_bytes() == (second / path.name).read_bytes() for path in first.iterdir())


def test_every_configuration_is_refused_by_name_or_expressed_to_the_last_weight() -> None:
    """All combinations of the choices: config.json says it all, and the table has a place for each weight."""
    choices: dict[str, tuple[Any, ...]] = {
        "norm": ("layernorm", "rmsnorm"),
        "mlp": ("gelu", "gelu_tanh", "swiglu"),
        "position": ("learned", "rope"),
        "n_kv_head": (0, 2),
        "head_dim": (0, 10),
    }
    switches = ("qk_norm", "qkv_bias", "attention_out_bias", "mlp_bias", "norm_bias", "tie_embeddings")
    choices |= dict.fromkeys(switches, (False, True))
    expressed = dict.fromkeys(mapping.FAMILIES, 0)
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        if changes["norm"] == "rmsnorm" and changes["norm_bias"]:
            continue  # no such model
        config = ModelConfig(vocab_size=7, block_size=4, n_layer=1, n_head=4, n_embd=16, norm_eps=0.5, **changes)
        try:
            family = mapping.family_of(config)
        except ConfigError as error:
            assert any(f"{name}=" in str(error) for name in choices)
            continue
        content = json.loads(json.dumps(mapping.to_hf_config(config, family)))
        assert mapping.from_hf_config(content) == (config, family)
        with torch.device("meta"):
            model = GPT(config)
        state = model.state_dict()
        places = {place.published: place for place in mapping.placements(config, family) if not place.tied}
        published = mapping.to_published(state, config, family)
        assert {k: tuple(v.shape) for k, v in published.items()} == {k: p.published_shape for k, p in places.items()}
        assert sum(v.numel() for v in published.values()) == model.num_parameters()
        assert {p.ours for p in places.values()} | {"head.weight"} == set(state)
        expressed[family.model_type] += 1
    # gpt2: 2 activations, tied or not; the others: key/value heads, head_dim, biases, tied or not
    assert expressed == {"gpt2": 4, "qwen3": 16, "llama": 32, "mistral": 0, "qwen2": 8}


def test_every_preset_is_expressible() -> None:
    for preset in PRESETS.values():
        mapping.family_of(preset.model)


# --- damage


Weights = dict[str, Tensor]


def tampered(folder: Path, config: ModelConfig, change: Callable[[Weights], Any]) -> Path:
    """A folder from elsewhere (it has no checksums) whose weights were changed."""
    saved(folder, ours(config))
    (folder / CHECKSUMS).unlink()
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


@each_family
def test_each_weight_must_be_there_and_fit(config: ModelConfig, tmp_path: Path) -> None:
    folder = tampered(tmp_path / "m", config, lambda weights: None)
    path = folder / "model.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped: the file is overwritten
    for name, tensor in whole.items():
        save_file({key: value for key, value in whole.items() if key != name}, path)
        with pytest.raises(CheckpointError, match=rf"1 missing\n  missing  {re.escape(name)}  \[[\d, ]+\]  our "):
            load_model(folder)
        for dim in range(tensor.dim()):
            wider = torch.cat((tensor, tensor.narrow(dim, 0, 1)), dim=dim).contiguous()
            save_file(whole | {name: wider}, path)
            with pytest.raises(CheckpointError, match=rf"1 of another shape\n  shape  {re.escape(name)}  "):
                load_model(folder)


def test_parts_of_a_fused_weight_must_each_fit(tmp_path: Path) -> None:
    """With grouped queries, q and k have different heights; exchanged, they still add up."""
    config, attention = CONFIGS["qwen3-gqa"], "model.layers.1.self_attn"

    def exchange(weights: Weights) -> None:
        q, k = f"{attention}.q_proj.weight", f"{attention}.k_proj.weight"
        weights[q], weights[k] = weights[k], weights[q]

    with pytest.raises(CheckpointError, match=r"q_proj|attention\.qkv"):
        load_model(tampered(tmp_path / "m", config, exchange))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
@each_family
def test_prefixed_names_are_an_error_and_change_nothing(config: ModelConfig, prefix: str, tmp_path: Path) -> None:
    def rename(weights: Weights) -> None:
        for name in list(weights):
            weights[prefix + name] = weights.pop(name)

    folder, model = tampered(tmp_path / "m", config, rename), GPT(config)
    model.init_weights(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing .*our token_embedding\.weight") as caught:
        load_weights(folder, model)
    assert "more" in str(caught.value) and len(str(caught.value).splitlines()) < 25, "a short list, that says it is cut"
    assert str(caught.value).endswith(
        f"The names have the prefix {prefix!r} (from a wrapper: DDP, torch.compile, PEFT); strip it."
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("native", [False, True])
def test_all_mismatches_are_reported_together(native: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", ours(CLASSIC), native=native)
    (folder / CHECKSUMS).unlink()
    weights = load_file(folder / "model.safetensors")
    table = "position_embedding.weight" if native else "transformer.wpe.weight"
    bias = "blocks.1.mlp.up.bias" if native else "transformer.h.1.mlp.c_fc.bias"
    weights[table] = weights[table][:9].contiguous()
    weights["something.else"] = weights.pop(bias)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    first, *lines = str(caught.value).splitlines()
    assert str(folder) in first
    assert first.endswith("1 missing, 1 unexpected, 1 of another shape")
    missing = "blocks.1.mlp.up.bias" if native else "transformer.h.1.mlp.c_fc.bias"
    assert [line.split() for line in sorted(lines)] == [
        ["missing", missing, "[128]", "our", "blocks.1.mlp.up.bias"],
        ["shape", table, "[9,", "32],", "expected", "[16,", "32]", "our", "position_embedding.weight"],
        ["unexpected", "something.else", "[128]"],
    ]


@pytest.mark.parametrize("checksums", [True, False])
def test_damaged_files_are_an_error(checksums: bool, tmp_path: Path) -> None:
    """Cut at any length, or overwritten at the start; with our checksums and without."""
    folder = saved(tmp_path / "m", ours(CLASSIC))
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    if not checksums:
        (folder / CHECKSUMS).unlink()
    cuts = [whole[:n] for n in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1)]
    for damaged in [*cuts, whole + b"x", b"\xff" * 200, b"{}" + whole[2:], whole[:8] + b"[" + whole[9:]]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_model(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(folder)


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", ours(CLASSIC))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was saved \(its SHA-256 differs\)"):
        load_model(folder)
    (folder / CHECKSUMS).unlink()
    load_model(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"garbage\n", b"0 model.safetensors\n"])
def test_damaged_checksums_are_an_error(content: bytes, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", ours(CLASSIC))
    (folder / CHECKSUMS).write_bytes(content)
    with pytest.raises(CheckpointError):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"model_type": "gpt2", "n_layer": 0}',
        b'{"model_type": "gpt2", "n_embd": 30, "n_head": 4}',
        b'{"model_type": "llama", "hidden_size": "wide"}',
        b'{"model_type": "glassgpt", "n_layer": 0}',
    ],
    ids=str,
)
def test_an_invalid_config_json_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", ours(CLASSIC))
    path = folder / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_model(folder)
