"""GGUF files, read and written, compared with `transformers`, the `gguf` library, and our own round trip."""

import dataclasses
import math
import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here has a reason to ask

import gguf
import numpy as np
import pytest
import torch

from conftest import thread_count
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError, GlassError, MissingExtraError, TokenizerError
from glassgpt.gguf_header import read_header
from glassgpt.model import GPT
from glassgpt.model.quantized import dequantize_rows, quantized_layers
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from glassgpt.tokenizer.base import adds_bos_token, attach, bos_processor
from glassgpt.tokenizer.bpe.bytelevel import BPEModel, to_json
from glassgpt.tokenizer.gguf import tokenizer_from_metadata
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.published import PublishedSettings
from glassgpt.transforms.quantize import dequantize
from glassgpt.weights import mapping
from glassgpt.weights.gguf.export import write_gguf
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.gguf.tables import ARCHITECTURES, llama3_factors, llama3_scaling
from glassgpt.weights.loading import describe, load_source

CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
CONTEXT = 320
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": CONTEXT}
LLAMA = GPT2 | {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope", "intermediate_size": 64}
LLAMA |= {"n_kv_head": 2, "qkv_bias": False, "attention_out_bias": False, "mlp_bias": False, "norm_eps": 1e-6}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_context": 64, "rope_theta": 500.0}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 80}
BIASES = {"qkv_bias": True, "attention_out_bias": True}
#: What GGUF says in full, and `transformers` reads of it.
PLAIN: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"block_size": 1024},  # as `transformers` assumes
    "gpt2-untied": GPT2 | {"block_size": 1024, "tie_embeddings": False},
    "llama": LLAMA | {"rope_theta": 1234.5},
    "llama-untied": LLAMA | {"tie_embeddings": False, "n_kv_head": 4},
    "qwen2": LLAMA | {"qkv_bias": True, "rope_theta": 1e6},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 128},  # as `transformers` assumes
}
#: What takes more.
MORE: dict[str, dict[str, Any]] = {
    "gpt2-narrow": GPT2 | {"intermediate_size": 48},
    "llama-biased": LLAMA | BIASES | {"mlp_bias": True},
    "llama-wide-heads": LLAMA | {"head_dim": 16},
    "llama3": LLAMA | LLAMA3,
    "llama-linear": LLAMA | {"rope_scaling": "linear", "rope_factor": 2.5},
    "llama-dynamic": LLAMA | {"rope_scaling": "dynamic", "rope_factor": 2.5},
    "llama-yarn": LLAMA | YARN,
    "mistral": LLAMA | {"sliding_window": 24},
    "mistral-llama3": LLAMA | LLAMA3 | {"sliding_window": 24},
    "qwen2-window-above": LLAMA | {"qkv_bias": True, "sliding_window": 24, "first_window_layer": 1},
    "qwen3-yarn": LLAMA | YARN | {"qk_norm": True, "rope_attention_factor": 1.5},
}
CASES = PLAIN | MORE


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1), torch.no_grad():
        yield


@cache
def tokenizer() -> BPETokenizer:
    text = "the cat sat on the mat, and then the hat sat on the cat. " * 20
    special = ("<|endoftext|>", "<|im_start|>")
    return BPETokenizer.train(text, 300, special=special)


def chatting(**settings: Any) -> BPETokenizer:
    """The tokenizer of a chat model."""
    ours = BPETokenizer(tokenizer().model)
    attach(ours, PublishedSettings(chat_templates={"default": CHAT}, **settings))
    return ours


def model_of(which: str, **changes: Any) -> GPT:
    """A random model: nothing at zero, nothing at one, every bias and norm takes part."""
    model = GPT(ModelConfig(**{"vocab_size": tokenizer().vocab_size, **CASES[which], **changes})).eval()
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.3 * noise if p.dim() == 1 and name.endswith("weight") else 0.2 * noise)
    return model


def written(path: Path, model: GPT, **how: Any) -> GGUFSource:
    write_gguf(path, model, how.pop("tokenizer", tokenizer()), **{"dtype": "f32", **how})
    return GGUFSource(path)


def ids(T: int = 100) -> torch.Tensor:
    return torch.randint(tokenizer().vocab_size, (1, T), generator=torch.Generator().manual_seed(1))


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", CASES)
def test_a_written_file_loads_byte_for_byte(which: str, tmp_path: Path) -> None:
    model = model_of(which)
    source = written(tmp_path / "a.gguf", model, tokenizer=chatting())
    again, its_tokenizer = load_source(source)
    assert describe(source)[0] == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name].view(torch.int32), tensor.view(torch.int32)), name
    assert isinstance(its_tokenizer, BPETokenizer) and its_tokenizer.model == tokenizer().model
    assert its_tokenizer.published.chat_templates["default"] == CHAT
    assert its_tokenizer.published == chatting().published


def test_end_tokens_have_three_keys_and_names(tmp_path: Path) -> None:
    """As llama.cpp finds them: under the keys of eos, eot and eom, and control tokens with certain names."""
    path, model = tmp_path / "a.gguf", model_of("llama")
    ends = [tokenizer().eos_token_id, 7, 8, 9]
    ours = chatting(generation_config={"eos_token_id": ends, "temperature": 0.6}, roles={"pad_token": "<|im_start|>"})
    assert "at the ids 9" in write_gguf(path, model, ours, dtype="f32")[0]
    metadata = read_header(path, CheckpointError).metadata
    keys = ("eos_token_id", "eot_token_id", "eom_token_id", "padding_token_id")
    assert [metadata[f"tokenizer.ggml.{key}"] for key in keys] == [*ends[:3], ours.pad_token_id]
    assert tokenizer_from_metadata(path, metadata).end_token_ids == tuple(ends)
    del metadata["glassgpt.published"]  # as another program writes the file
    tokens = metadata["tokenizer.ggml.tokens"]
    for name, expected in (("<|eot_id|>", [*ends[:3], ours.pad_token_id]), ("<|other|>", ends[:3])):
        tokens[ours.pad_token_id] = name
        assert tokenizer_from_metadata(path, metadata).end_token_ids == tuple(expected)
        assert tokenizer_from_metadata(path, metadata).roles()["pad_token"] == name


@pytest.mark.parametrize("which", PLAIN)
def test_transformers_reads_the_same_model(which: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = model_of(which)
    written(tmp_path / "a.gguf", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    expected = theirs(ids()).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(model(ids()), expected, atol=1e-4, rtol=0)


def test_names_are_those_of_the_library() -> None:
    for architecture in ARCHITECTURES.values():
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
        names = gguf.get_tensor_name_map(kind, 3)
        for theirs, ours in architecture.names.items():
            assert names.get_name(ours.format(i=2)) == theirs.format(i=2)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_smaller_types_are_rounded_as_the_library_does(dtype: str, tmp_path: Path) -> None:
    for which in ("gpt2", "llama"):
        model = model_of(which, intermediate_size=40)  # a row of 40 takes no blocks of 32
        source = written(tmp_path / "a.gguf", model, dtype=dtype)
        again, _ = load_source(source)
        published = mapping.to_published(model.state_dict(), model.config, mapping.family_of(model.config))
        found = mapping.to_published(again.state_dict(), model.config, mapping.family_of(model.config))
        stored = set()
        for name, tensor in published.items():
            kind = gguf.GGMLQuantizationType[source.stored[name]]
            stored.add(kind.name)
            turned = which == "gpt2" and tensor.dim() == 2 and "h." in name  # Conv1D: quantised the other way round
            values = (tensor.T if turned else tensor).contiguous().numpy()
            expected = gguf.dequantize(gguf.quantize(values, kind), kind)
            assert np.array_equal(found[name].numpy(), expected.T if turned else expected), name
        others = {"q8_0": ["F16"], "q4_0": ["F16", "Q8_0"]}  # of the short rows, and of the embedding
        assert stored == {"F32", dtype.upper(), *others.get(dtype, [])}


def test_rows_and_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    for which in ("gpt2", "llama"):
        source = written(tmp_path / "a.gguf", model_of(which), dtype="q8_0")
        for name, shape in source.shapes.items():
            full = source.read(name)
            assert tuple(full.shape) == shape
            for start, stop in ((0, 1), (shape[0] // 3, shape[0] // 2 + 1), (shape[0] - 1, None), (1, 10**9)):
                assert torch.equal(source.read(name, start, stop), full[start:stop]), (name, start, stop)


# --- what others wrote -----------------------------------------------------------------------------------------------

NUMBERS = {"block_count": 1, "context_length": 64, "embedding_length": 256, "feed_forward_length": 256}
NUMBERS |= {"attention.head_count": 4, "attention.head_count_kv": 4, "attention.layer_norm_rms_epsilon": 1e-5}
SHAPES = {"token_embd": (512, 256), "output_norm": (256,), "output": (512, 256)}
SHAPES |= {f"blk.0.{name}": (256, 256) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
SHAPES |= {f"blk.0.ffn_{name}": (256, 256) for name in ("gate", "up", "down")}
SHAPES |= {"blk.0.attn_norm": (256,), "blk.0.ffn_norm": (256,)}


def llama_file(path: Path, kind: str = "F32", architecture: str = "llama", **changes: Any) -> Path:
    """A file as other programs write it, of one type; ``changes``: numbers of the header, None to omit one."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (NUMBERS | {key.replace("__", "."): value for key, value in changes.items()}).items():
        if value is not None and key != "tensors":
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
            add[type(value)](f"{architecture}.{key}", value)
    stored, draw = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    for name, shape in (SHAPES | changes.get("tensors", {})).items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
        elif stored in gguf.quants._type_traits and not kind.startswith("BF"):
            shape = gguf.quant_shape_to_byte_shape(shape, stored)
            writer.add_tensor(f"{name}.weight", draw.integers(0, 60, shape, dtype=np.uint8), raw_dtype=stored)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quantize(draw.normal(size=shape), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_dequantised_as_the_library_does(kind: str, tmp_path: Path) -> None:
    source = GGUFSource(llama_file(tmp_path / "a.gguf", kind))
    assert source.stored["lm_head.weight"] == kind and describe(source)[0].n_layer == 1
    by_name = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for theirs, ours in (("output", "lm_head"), ("blk.0.ffn_up", "model.layers.0.mlp.up_proj")):
        expected = gguf.dequantize(by_name[f"{theirs}.weight"].data, gguf.GGMLQuantizationType[kind])
        found = source.read(f"{ours}.weight")
        assert found.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
        assert np.array_equal(found.float().numpy(), expected, equal_nan=True)
    expected = gguf.dequantize(by_name["blk.0.attn_k.weight"].data, gguf.GGMLQuantizationType[kind])
    expected = expected.reshape(4, 32, 2, 256).swapaxes(1, 2).reshape(256, 256)
    found = source.read("model.layers.0.self_attn.k_proj.weight", 60, 200)
    assert np.array_equal(found.float().numpy(), expected[60:200], equal_nan=True)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_of_two_types_can_be_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    source = GGUFSource(llama_file(tmp_path / "a.gguf", kind))
    assert len(source.quantized) == 9 and set(source.quantized) == {n for n, s in source.stored.items() if s == kind}
    for name, stored in source.quantized.items():
        assert stored == ({"Q8_0": 8, "Q4_0": 4}[kind], 32)
        values, scales = source.read_quantized(name)
        assert torch.equal(
            dequantize_rows(values, scales, stored), source.read(name)
        )  # the library's, by the test above


@pytest.mark.parametrize("which", ["gpt2", "llama-untied", "qwen2", "qwen3"])
def test_a_model_of_kept_blocks_computes_as_the_dequantised_one(which: str, tmp_path: Path) -> None:
    source = written(tmp_path / "a.gguf", model_of(which), dtype="q8_0")
    kept, plain = (load_source(source, keep_quantized=keep)[0] for keep in (True, False))
    assert len(quantized_layers(kept)) == 2 + (8 if which == "gpt2" else 10) and not quantized_layers(plain)
    torch.testing.assert_close(kept(ids()), plain(ids()), atol=2e-5, rtol=1e-4)
    dequantize(kept)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), plain.parameters(), strict=True))


def test_rope_factors_are_converted_back_to_their_settings(tmp_path: Path) -> None:
    for factor, context, theta, head_dim in ((8.0, 8192, 500000.0, 128), (32.0, 8192, 500000.0, 64)):
        settings = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        settings |= {"original_max_position_embeddings": context}
        factors = llama3_factors(settings, theta, head_dim)
        assert llama3_scaling(factors, theta, head_dim) == settings
    for nonsense in (np.linspace(1, 8, 64), np.full(64, 2.0), np.ones(64), factors[:7]):
        with pytest.raises(ValueError, match="not Llama 3's"):
            llama3_scaling(nonsense.astype(np.float32), theta, 128)


def test_rope_factors_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(llama3_factors(rope, 500000.0, 128), (plain / scaled).numpy(), rtol=1e-4)


def test_numbers_are_read_in_their_decimal_form(tmp_path: Path) -> None:
    more = {"rope__freq_base": 1e6, "attention__layer_norm_rms_epsilon": 1e-6, "attention__head_count": [4]}
    config, family = describe(GGUFSource(llama_file(tmp_path / "a.gguf", **more, attention__sliding_window=16)))
    assert (config.norm_eps, config.rope_theta, config.n_head, config.sliding_window) == (1e-6, 1e6, 4, 16)
    assert family.model_type == "mistral" and not config.tie_embeddings
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 16}
    config, _ = describe(GGUFSource(llama_file(tmp_path / "b.gguf", **yarn, rope__scaling__attn_factor=2.0)))
    assert config.rope_scaling == "yarn" and config.rope_original_context == 16
    assert math.isclose(config.rope_attention_factor, 2 * (0.1 * math.log(4) + 1), rel_tol=1e-6)
    config, _ = describe(GGUFSource(llama_file(tmp_path / "c.gguf", rope__scale_linear=3.0)))
    assert (config.rope_scaling, config.rope_factor) == ("linear", 3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "phi3"}, "its architecture 'phi3' is not supported"),
        ({"expert_count": 8}, "mixture of experts"),
        ({"block_count": None}, "num_hidden_layers is missing"),
        ({"attention__head_count": [4, 8]}, "one number for all layers"),
        ({"rope__dimension_count": 32}, "rotates 32 of 64"),
        ({"attention__key_length": 64, "rope__dimension_count": 16}, "rotates 16 of 64"),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 2.0}, "'longrope' is not implemented"),
        ({"tensors": {"rope_freqs": (32,)}}, "not Llama 3's"),
        ({"tensors": {"token_embd": (2,)}}, "do not fit"),
        ({"tensors": {"blk.0.ffn_norm_2": (256,)}}, r"unexpected +blk.0.ffn_norm_2.weight"),
        ({"tensors": {"blk.1.attn_norm": (256,)}}, r"unexpected +model.layers.1.input_layernorm.weight"),
        ({"block_count": 2}, r"missing +model.layers.1.input_layernorm.weight"),
    ],
)
def test_unsupported_features_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    if changes.get("rope__dimension_count") == 32:
        changes = changes | {"attention__key_length": 64}
    with pytest.raises(CheckpointError, match=message):
        load_source(GGUFSource(llama_file(tmp_path / "a.gguf", **changes)))


def test_a_truncated_or_missing_file(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "a.gguf")
    content = path.read_bytes()
    for length, message in (
        (len(content) - 1, "is truncated: .* ends at byte"),
        (5000, "truncated"),
        (40, "not a readable GGUF file"),
    ):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=message):
            GGUFSource(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        GGUFSource(path)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_any_damage_gives_a_message(tmp_path: Path) -> None:
    draw, counts = random.Random(5), {True: 0, False: 0}
    write_gguf(tmp_path / "good.gguf", model_of("mistral-llama3"), tokenizer(), dtype="q8_0")
    good, path = (tmp_path / "good.gguf").read_bytes(), tmp_path / "a.gguf"
    header = min(place.offset for place in GGUFSource(tmp_path / "good.gguf").header.tensors.values())
    numbers = good.index(b"tokenizer.ggml.model")  # most of the rest is vocabulary
    names = good.rindex(b"token_embd.weight")
    for _ in range(400):
        changed = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            changed[draw.choice([draw.randrange(numbers), draw.randrange(header), draw.randrange(names, header)])] ^= (
                1 << draw.randrange(8)
            )
        path.write_bytes(changed[: draw.choice([len(changed), len(changed), draw.randrange(len(changed))])])
        try:
            load_source(GGUFSource(path))
            counts[True] += 1
        except GlassError as error:
            assert str(path) in str(error) or "a.gguf" in str(error)
            counts[False] += 1
    assert counts[True] > 20 and counts[False] > 200, counts


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama_file(tmp_path / "a.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"\[gguf\]"):
        GGUFSource(path)
    with pytest.raises(MissingExtraError, match=r"\[gguf\]"):
        write_gguf(tmp_path / "b.gguf", model_of("llama"), tokenizer())


# --- what cannot be written ------------------------------------------------------------------------------------------


def with_pattern(pattern: str, **more: Any) -> BPETokenizer:
    return BPETokenizer(dataclasses.replace(tokenizer().model, patterns=(pattern,), **more))


@pytest.mark.parametrize(
    ("changes", "how", "error", "message"),
    [
        (
            {},
            {"tokenizer": CharTokenizer.train("abc")},
            TokenizerError,
            r"of the kind 'char'\. Train with tokenizer=bpe",
        ),
        ({}, {"tokenizer": with_pattern(r"\S+|\s+")}, TokenizerError, "no name for this tokenizer's split pattern"),
        ({"vocab_size": 256}, {}, TokenizerError, r"has \d+ tokens, the model 256"),
        ({"mlp": "gelu"}, {}, ConfigError, "llama.cpp's gpt2 has mlp=gelu_tanh, not gelu"),
        (LLAMA | BIASES | {"qk_norm": True}, {}, ConfigError, "qwen3 has no bias on the attention's output"),
        (LLAMA | {"qkv_bias": True, "head_dim": 16}, {}, ConfigError, "qwen2 has heads that fill n_embd=32"),
        ({"n_kv_head": 2}, {}, ConfigError, "no published family"),
        ({}, {"dtype": "q5_0"}, ConfigError, "--dtype f32, f16, bf16, q8_0, q4_0; got 'q5_0'"),
    ],
)
def test_unsupported_models_and_tokenizers_are_not_written(
    changes: dict[str, Any], how: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    shape = {"vocab_size": tokenizer().vocab_size, **GPT2, **changes}
    with pytest.raises(error, match=message):
        write_gguf(tmp_path / "a.gguf", GPT(ModelConfig(**shape)), **{"tokenizer": tokenizer(), **how})
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_large_for_half_precision(tmp_path: Path) -> None:
    model = model_of("llama")
    for value, dtype, name in ((70000.0, "f16", "float16"), (1e7, "q8_0", "(q8_0|float16)")):
        model.head.weight[3, 3] = value
        with pytest.raises(CheckpointError, match=f"{name} cannot hold; use --dtype bf16"):
            write_gguf(tmp_path / "a.gguf", model, tokenizer(), dtype=dtype)
        assert list(tmp_path.iterdir()) == []
    write_gguf(tmp_path / "a.gguf", model, tokenizer(), dtype="bf16")


def test_differences_of_llama_cpp_are_noted(tmp_path: Path) -> None:
    notes = write_gguf(tmp_path / "a.gguf", model_of("mistral"), with_pattern(PATTERNS["qwen2"], normal_form="NFC"))
    assert "beyond 24 tokens" in notes[0] and "form NFC" in notes[1] and len(notes) == 2
    assert write_gguf(tmp_path / "a.gguf", model_of("llama"), tokenizer()) == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", [*PATTERNS, "smollm", "dbrx"])
def test_tokenizers_round_trip(name: str, first: bool, tmp_path: Path) -> None:
    patterns = {"smollm": (r"\p{N}", PATTERNS["gpt2"]), "dbrx": (PATTERNS["llama3"],)}.get(name) or (PATTERNS[name],)
    parts = tokenizer().model
    model = BPEModel(parts.vocab, parts.merges, patterns, parts.special, ignore_merges=name == "llama3", eos=parts.eos)
    model = dataclasses.replace(model, bos="<|im_start|>", added={"<x>": 305})
    processor = bos_processor("<|im_start|>", parts.special["<|im_start|>"]) if first else None
    content = to_json(model) | {"post_processor": processor}
    original = BPETokenizer(model, content)
    again: Tokenizer = written(tmp_path / "a.gguf", model_of("llama", vocab_size=310), tokenizer=original).tokenizer()
    assert isinstance(again, BPETokenizer) and again.model == model
    assert adds_bos_token(original) == adds_bos_token(again) == first
    assert again.to_json() == content
