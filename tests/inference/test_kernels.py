"""The compiled decode step, against the model in PyTorch."""

import copy
import dataclasses
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import thread_count
from glassgpt.config import ModelConfig, TuneConfig
from glassgpt.inference.kernel_decoder import KernelDecoder, start_threads, unsupported
from glassgpt.model import GPT, ExplicitAttention, KVCache
from glassgpt.model.quantized import QuantizedEmbedding, QuantizedLinear, replace_layer
from glassgpt.transforms.lora import add_lora
from glassgpt.transforms.quantize import choose_kind, quantize, quantize_matrix

pytest.importorskip("numba")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1), torch.inference_mode():
        yield


SCALINGS: list[dict[str, Any]] = [
    {}, {"rope_scaling": "linear", "rope_factor": 4.0}, {"rope_scaling": "dynamic", "rope_factor": 4.0},
    {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_context": 32},
    {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 32},
]  # fmt: skip


def random_config(seed: int) -> ModelConfig:
    """A point in the whole space of models."""
    choose = random.Random(seed)
    kv, group = choose.choice([1, 2, 3]), choose.choice([1, 2, 3])
    rope = choose.choice([True, False])
    settings: dict[str, Any] = {
        "vocab_size": choose.choice([50, 97]), "block_size": 700, "n_layer": 2, "n_head": kv * group, "n_kv_head": kv,
        "head_dim": choose.choice([4, 12, 16]), "n_embd": choose.choice([24, 40]),
        "intermediate_size": choose.choice([28, 44, 64]), "norm": choose.choice(["layernorm", "rmsnorm"]),
        "norm_eps": choose.choice([1e-5, 1e-6]), "mlp": choose.choice(["gelu", "gelu_tanh", "swiglu"]),
        "position": "rope" if rope else "learned", "sliding_window": choose.choice([0, 0, 9, 300]),
        **(choose.choice(SCALINGS) if rope else {}),
    }  # fmt: skip
    for flag in ("qk_norm", "qkv_bias", "attention_out_bias", "mlp_bias", "tie_embeddings"):
        settings[flag] = choose.random() < 0.5
    settings["norm_bias"] = settings["norm"] == "layernorm" and choose.random() < 0.5
    return ModelConfig(**settings)


def random_model(which: int | ModelConfig) -> GPT:
    """Nothing at zero, nothing at one: every weight takes part."""
    model = GPT(random_config(which) if isinstance(which, int) else which)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.25 * noise
    model.tie_weights_and_build_rope()
    return model.eval()


def logits_of_both(
    model: GPT, kernels: KernelDecoder, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths; one token, then five at a time, with rows rolled back, copied and evicted between.

    The model's cache is in float32; ``dtype`` is that of the kernels' cache.
    """
    choose = torch.Generator().manual_seed(7)
    V = model.config.vocab_size
    caches = [KVCache(model.config, 6, rows=3, capacity=700, dtype=its) for its in (torch.float32, dtype)]
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    prompt = torch.randint(V, (3, 600), generator=choose)
    model(prompt, cache=caches[0], apply_head=False)
    caches[1].keys.copy_(caches[0].keys)
    caches[1].values.copy_(caches[0].values)
    caches[1].advance(600)
    for cache in caches:
        for row, length in enumerate((600, 3, 257)):
            cache.roll_back(row, length)
    for T in (1, 5, 1):
        idx = torch.randint(V, (len(caches[0].lengths), T), generator=choose)
        found[0].append(model(idx, cache=caches[0]).float().flatten())
        found[1].append(kernels(idx, caches[1]).flatten())
        assert caches[0].lengths == caches[1].lengths
        for cache in caches:
            cache.roll_back(0, cache.lengths[0] - 1)
            if T == 1:
                cache.copy_rows([0, 1, 1, 2, 2])
            else:
                cache.evict([1, 3])
    return torch.cat(found[0]), torch.cat(found[1])


def assert_equal(expected: torch.Tensor, got: torch.Tensor) -> None:
    assert (expected - got).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_logits_are_those_of_the_model(seed: int, threads: int) -> None:
    model = random_model(seed)
    assert_equal(*logits_of_both(model, KernelDecoder(model, threads)))


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (8, 4), (4, None), (4, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_quantised_logits_are_those_of_the_plain_modules(seed: int, bits: int, group_size: int | None) -> None:
    model = random_model(seed)
    quantize(model, bits, group_size)
    assert_equal(*logits_of_both(model, KernelDecoder(model, 2)))


def test_int4_in_groups_of_64() -> None:
    config = dataclasses.replace(random_config(0), n_embd=128, intermediate_size=192)
    model = random_model(config)
    quantize(model, 4)
    assert_equal(*logits_of_both(model, KernelDecoder(model, 2)))


@pytest.mark.parametrize("seed", range(4))
def test_bfloat16_weights_are_read_exactly(seed: int) -> None:
    """As a float32 model with the same, rounded weights; keys and values in bfloat16 add rounding of their own."""
    stored = random_model(seed).bfloat16()
    same = copy.deepcopy(stored).float()
    same.tie_weights_and_build_rope()
    kernels = KernelDecoder(stored, 2)
    expected, got = logits_of_both(same, kernels)
    assert_equal(expected, got)
    rounded = logits_of_both(same, kernels, torch.bfloat16)[1]
    assert 0 < (rounded - got).abs().max() < 0.05 * float(expected.abs().max())


# --- where they can be used -------------------------------------------------------------------------------------------


def test_starting_the_threads_leaves_the_number_of_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba and torch share OpenMP, numba's start sets torch's number."""
    before = torch.get_num_threads()
    monkeypatch.setattr("numba.set_num_threads", lambda number: torch.set_num_threads(before + 1))
    start_threads()
    assert torch.get_num_threads() == before


def test_why_a_model_cannot_be_run_is_said() -> None:
    model = random_model(0)
    assert unsupported(model) is None
    hook = model.blocks[1].mlp.register_forward_hook(lambda *arguments: None)
    assert unsupported(model) == "blocks.1.mlp has hooks, which they do not call"
    hook.remove()
    model.blocks[0].attention.attend = ExplicitAttention()
    assert unsupported(model) == "blocks.0.attention.attend is ExplicitAttention, which they do not call"
    assert unsupported(random_model(0).half()) == "they cannot read a layer of float16"
    assert unsupported(GPT(random_config(0)).to("meta")) == "they run on the CPU, and the model is on meta"
    mixed = random_model(0)
    mixed.blocks[1].mlp.up.bfloat16()
    assert unsupported(mixed) == "the same layer has different types in different blocks"
    half = random_model(0)
    quantize(half, 8)
    assert unsupported(half.half()) == "they cannot read norms of float16"
    with_lora = random_model(0)
    add_lora(with_lora, TuneConfig(method="lora"), 0)
    assert "LoRA" in (unsupported(with_lora) or "")


@pytest.mark.slow  # compiles
def test_an_int4_embedding_and_head_as_in_some_gguf_files() -> None:
    model = random_model(
        next(i for i in range(99) if not random_config(i).tie_embeddings and random_config(i).sliding_window)
    )
    for name, layer, kind in (
        ("token_embedding", model.token_embedding, QuantizedEmbedding), ("head", model.head, QuantizedLinear),
    ):  # fmt: skip
        size = choose_kind(4, layer.weight.size(1))
        replace_layer(model, name, kind(*quantize_matrix(layer.weight, size), size, torch.float32))
    assert_equal(*logits_of_both(model, KernelDecoder(model)))


def test_a_cache_with_other_rows_is_refused_and_inference_tensors_are_left_in_place() -> None:
    model = random_model(0)  # its tensors are inference tensors, as those of a model loaded in inference mode
    where = model.head.weight.data_ptr()
    decoder = KernelDecoder(model)
    assert model.head.weight.data_ptr() == where
    with pytest.raises(ValueError, match="2 rows of tokens, and 1 in the cache"):
        decoder(torch.zeros(2, 1, dtype=torch.int64), KVCache(model.config, 1))


RUN = """
    import sys, torch
    sys.path[:0] = sys.argv[1:]
    from test_kernels import *
    model = random_model(1)
    with torch.inference_mode():
        expected, got = logits_of_both(model, KernelDecoder(model))
    assert_equal(expected, got)
    from glassgpt.inference import kernels
    print("compiled", sum(kernels.step.stats.cache_misses.values()) if hasattr(kernels.step, "stats") else "")
"""


def start(folder: str, before: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", before + textwrap.dedent(RUN), *sys.path]
    environment = os.environ | {"NUMBA_CACHE_DIR": folder}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_two_processes_that_compile_at_once_and_a_third_that_does_not(tmp_path: Path) -> None:
    both = [start(str(tmp_path)) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["compiled 1\n"] * 2
    assert start(str(tmp_path)).communicate()[0] == "compiled 0\n"


NO_FOLDER = """
from numba.core.caching import _CacheLocator
def fails(self): raise PermissionError
_CacheLocator.ensure_cache_path = fails
"""


@pytest.mark.slow
def test_without_a_folder_that_can_be_written(tmp_path: Path) -> None:
    """numba then refuses to keep what it compiles."""
    assert start(str(tmp_path), NO_FOLDER).communicate()[0] == "compiled 1\n"
    assert not [*tmp_path.iterdir()]
