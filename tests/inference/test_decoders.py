"""The ways to compute a decode step: each equals the model itself, and the choice between them says what it is."""

import dataclasses
import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_decode import build
from torch import Tensor

from glassgpt.config import ModelConfig, RuntimeConfig, TrainConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import ConfigError
from glassgpt.inference import compiled, decode, decoders, kernel_decoder
from glassgpt.inference.compiled import CompiledDecoder
from glassgpt.inference.decode import Request, Row, generate, generate_rows
from glassgpt.inference.decoders import Decoder, EagerDecoder, choose_decoder
from glassgpt.inference.kernel_decoder import KernelDecoder
from glassgpt.model import GPT, KVCache
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import CharTokenizer
from glassgpt.training.pretraining import Pretraining
from glassgpt.transforms.quantize import quantize
from talking import talker

GREEDY, SAMPLED = SamplingConfig(0.0), SamplingConfig(0.9, top_k=12, top_p=0.95)
CLASSIC = ModelConfig(vocab_size=19, block_size=24, n_layer=2, n_head=4, n_embd=32, tie_embeddings=False)
MODERN_CONFIG = dataclasses.replace(CLASSIC, **MODERN, n_kv_head=2, head_dim=12, intermediate_size=48)
CONFIGS = {
    "classic": CLASSIC, "modern": MODERN_CONFIG, "windows": dataclasses.replace(MODERN_CONFIG, sliding_window=5),
}  # fmt: skip
all_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
FAST: dict[str, Any] = {
    "static": lambda model: CompiledDecoder(model, compile=False),
    "kernels": pytest.param(KernelDecoder, marks=needs_numba),
}
both_ways = pytest.mark.parametrize("decoder_of", FAST.values(), ids=FAST)
Make = Callable[[GPT], Decoder]


def prompts(*lengths: int) -> list[list[int]]:
    return [torch.randint(19, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]


def generated(model: GPT, texts: list[list[int]], count: int, choice: SamplingConfig, decoder: Decoder | None) -> Any:
    steps = list(generate(model, texts, count, choice, seed=5, decoder=decoder))
    return [step.tokens for step in steps], torch.stack([step.logits for step in steps])


# --- equal to the model itself


@all_configs
@both_ways
def test_a_decoder_generates_the_tokens_of_the_model_far_past_the_context(
    decoder_of: Make, config: ModelConfig
) -> None:
    """Rows reach the end of the context, and are prefilled again, at different steps."""
    model, texts = build(config), prompts(3, 24, 1, 30)
    tokens, logits = generated(model, texts, 224, GREEDY, None)
    fast_tokens, fast_logits = generated(model, texts, 224, GREEDY, decoder_of(model))
    assert fast_tokens == tokens
    torch.testing.assert_close(fast_logits, logits, atol=2e-4, rtol=1e-4)


@all_configs
@both_ways
def test_rows_are_admitted_evicted_and_rolled_back_between_steps(decoder_of: Make, config: ModelConfig) -> None:
    model, choose = build(config), random.Random(3)
    fast, eager = decoder_of(model), EagerDecoder(model)

    def prefilled(rows: int, length: int) -> KVCache:
        cache = KVCache(config, rows)
        model(torch.randint(19, (rows, length), generator=torch.Generator().manual_seed(length)), cache=cache)
        return cache

    def step(decoder: Decoder, cache: KVCache, idx: Tensor) -> Tensor:
        return decoder(idx, cache)

    with torch.inference_mode():
        caches = [KVCache(config, 5, rows=0) for _ in range(2)]
        for number in range(30):
            change, rows = choose.choice(["admit", "evict", "roll back", "step", "step"]), len(caches[0].lengths)
            row, length, T = choose.randrange(max(rows, 1)), choose.randint(1, 6), choose.randint(1, 3)
            for cache in caches:
                if not rows or (change == "admit" and rows < 4):
                    cache.admit(prefilled(1, length))
                elif change == "evict" and rows > 1:
                    cache.evict([row])
                elif change == "roll back" or cache.longest + T > cache.capacity:
                    cache.roll_back(row, cache.lengths[row] // 2)
            if caches[0].longest + T > caches[0].capacity:
                continue
            idx = torch.randint(19, (len(caches[0].lengths), T), generator=torch.Generator().manual_seed(number))
            expected, found = eager(idx, caches[0]), fast(idx, caches[1])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert caches[0].lengths == caches[1].lengths


def test_two_caches_take_turns_with_one_static_decoder() -> None:
    model = build(MODERN_CONFIG)
    fast, eager = CompiledDecoder(model, compile=False), EagerDecoder(model)
    ours, theirs = [KVCache(MODERN_CONFIG, 2) for _ in range(2)], [KVCache(MODERN_CONFIG, 2) for _ in range(2)]
    for number in range(8):
        idx = torch.randint(19, (2, 2), generator=torch.Generator().manual_seed(number))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(fast(idx + 0, one), eager(idx, other), atol=1e-5, rtol=1e-5)
            idx = (idx + 1) % 19
    with pytest.raises(ValueError, match="do not fit"):
        fast(torch.zeros(2, 20, dtype=torch.int64), ours[0])


def test_the_rotary_tables_grow_with_a_static_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.model.gpt.ROPE_POSITIONS", 4)
    model = build(MODERN_CONFIG)
    tokens, _ = generated(model, prompts(2), 30, GREEDY, CompiledDecoder(model, compile=False))
    assert len(model.rope_cos) == 24 and tokens == generated(build(MODERN_CONFIG), prompts(2), 30, GREEDY, None)[0]


@pytest.mark.slow
@pytest.mark.skipif(not compiled.compiler_found(torch.device("cpu")), reason="no C++ compiler")
@all_configs
def test_the_compiled_step_generates_the_tokens_of_the_model(config: ModelConfig) -> None:
    model, texts = build(config), prompts(3, 24, 1)
    decoder = CompiledDecoder(model)
    tokens, logits = generated(model, texts, 60, SAMPLED, None)
    fast_tokens, fast_logits = generated(model, texts, 60, SAMPLED, decoder)
    assert fast_tokens == tokens
    torch.testing.assert_close(fast_logits, logits, atol=1e-4, rtol=1e-4)


# --- the prefill


@all_configs
@pytest.mark.parametrize("tokens", [1, 20])
def test_a_prefill_in_chunks_equals_one_pass(config: ModelConfig, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: ragged rows, equal rows, prompts beyond the context, and refills; no pass reads more tokens."""
    model, texts = build(config).double(), prompts(3, 24, 1, 30, 17, 3)
    expected, logits = generated(model, texts, 14, SAMPLED, None)
    passes: list[int] = []
    heads: list[tuple[int, ...]] = []
    monkeypatch.setattr(decode, "PREFILL_TOKENS", tokens)
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[:2].numel()))
    model.head.register_forward_pre_hook(lambda _, inputs: heads.append(tuple(inputs[0].shape)))
    found, chunked = generated(model, texts, 14, SAMPLED, None)
    assert found == expected
    torch.testing.assert_close(chunked, logits, atol=1e-6, rtol=1e-6)
    assert max(passes) <= max(tokens, len(texts)) and heads[0] == (5, 32), "one position of each different prompt"


@pytest.mark.parametrize("tokens", [3, 100])
def test_what_a_kept_cache_lacks_is_read_in_chunks_or_by_the_decoder(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PREFILL_TOKENS", tokens)
    model, (text,) = build(MODERN_CONFIG), prompts(22)
    read = []

    class Counting(EagerDecoder):
        def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
            read.append(idx.size(1))
            return super().__call__(idx, cache)

    expected, logits = generated(model, [text], 2, GREEDY, None)
    for known in (1, 20):
        cache = KVCache(MODERN_CONFIG, 1)
        model(torch.tensor([text[:known]]), cache=cache)
        rows = [Row(Request(text, 2, GREEDY, seed=5))]
        steps = list(generate_rows(model, rows, cache=cache, decoder=Counting(model)))
        assert [step.tokens for step in steps] == expected
        torch.testing.assert_close(torch.stack([step.logits for step in steps]), logits, atol=1e-5, rtol=1e-5)
    assert read == [1, 2, 1], "the prefill read 21 tokens, the decoder 2"


# --- the choice


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of a step of each decoder, in place of a measurement; kernels that can do without numba."""
    seconds = {"eager": 0.02, "kernels": 0.005}
    monkeypatch.setattr(decoders, "seconds_per_step", lambda decoder, *_: seconds[decoder.name])
    monkeypatch.setattr(kernel_decoder, "unsupported", lambda model: None)
    monkeypatch.setattr(kernel_decoder, "KernelDecoder", lambda model: fake_kernels(compiled=True))
    return seconds


def fake_kernels(*, compiled: bool) -> Any:
    return SimpleNamespace(name="kernels", is_compiled=lambda: compiled, keeps_compiled=lambda: True)


def test_the_faster_one_is_chosen_and_the_line_has_both_speeds(speeds: dict[str, float]) -> None:
    model = build(CLASSIC)
    decoder, line = choose_decoder(model, rows=4)
    assert (decoder.name, line) == ("kernels", "decode: kernels (numba), 800 tokens/s measured; eager 200")
    speeds["kernels"] = 0.04
    decoder, line = choose_decoder(model)
    assert (decoder.name, line) == ("eager", "decode: eager, 50 tokens/s measured; kernels 25")
    quantize(model, 8)
    decoder, line = choose_decoder(model)
    assert (decoder.name, line.partition(";")[0]) == ("kernels", "decode: kernels (numba), 25 tokens/s measured")


def test_nothing_is_measured_for_few_tokens_or_for_a_small_model(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(CLASSIC)
    assert choose_decoder(model, new_tokens=100)[0].name == "eager"
    assert choose_decoder(model, new_tokens=10**9)[0].name == "kernels"
    monkeypatch.setattr(decoders, "_eager_seconds", lambda model: 1.0)
    assert [choose_decoder(model, new_tokens=n)[0].name for n in (15, 16)] == ["eager", "kernels"]
    assert choose_decoder(model, new_tokens=15)[1] == ""


def test_kernels_are_compiled_only_for_many_tokens_and_that_is_said_before(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lines = build(CLASSIC), list[str]()
    monkeypatch.setattr(kernel_decoder, "KernelDecoder", lambda model: fake_kernels(compiled=False))
    monkeypatch.setattr(decoders, "_eager_seconds", lambda model: 0.1)
    decoder, line = choose_decoder(model, new_tokens=99, notify=lines.append)
    assert (decoder.name, lines) == ("eager", []) and "not compiled yet" in line
    for choice, tokens in (("auto", 101), ("auto", None), ("kernels", 1)):
        assert choose_decoder(model, choice, new_tokens=tokens, notify=lines.append)[0].name == "kernels"
        assert len(lines) == 1 and lines.pop().startswith("compiling the kernels")


@needs_numba
def test_kernels_know_whether_they_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """First by the functions in memory, then by the files on disk alone."""
    decoder = KernelDecoder(build(CLASSIC))
    generated(decoder_model := build(CLASSIC), prompts(3), 2, GREEDY, KernelDecoder(decoder_model))
    assert decoder.is_compiled()
    monkeypatch.setattr(decoder._step, "overloads", {})
    assert decoder.is_compiled() == decoder.keeps_compiled()
    monkeypatch.setattr(decoder._step, "_cache", None)
    assert not decoder.is_compiled()


def test_kernels_that_fail_to_compile_leave_the_model_itself(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: GPT) -> Decoder:
        raise RuntimeError("LLVM does not know this machine\nand more")

    monkeypatch.setattr(kernel_decoder, "KernelDecoder", fail)
    decoder, line = choose_decoder(build(CLASSIC))
    assert decoder.name == "eager" and line.endswith("the kernels failed: LLVM does not know this machine")


@pytest.mark.slow
@needs_numba
def test_kernels_work_where_no_cache_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import numba.core.caching as caching
for kind in (caching.CompileResultCacheImpl, caching.CodeLibraryCacheImpl, caching.CacheImpl):
    kind._locator_classes = []
from test_decoders import *
model = build(CLASSIC)
tokens = [generated(model, prompts(3), 9, GREEDY, way)[0] for way in (None, KernelDecoder(model))]
assert tokens[0] == tokens[1]
"""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


def test_without_numba_the_model_itself_decodes_and_the_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    model = build(CLASSIC)
    decoder, line = choose_decoder(model)
    assert decoder.name == "eager" and "pip install " in line and "[numba]" in line
    with pytest.raises(ConfigError, match=r"decode=kernels cannot .* pip install .*\[numba\]"):
        choose_decoder(model, "kernels")


def test_a_model_with_hooks_is_not_measured_and_not_given_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build(CLASSIC), []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    assert choose_decoder(model)[0].name == "eager" and not calls
    with pytest.raises(ConfigError, match="decode=kernels cannot run this model"):
        choose_decoder(model, "kernels")


def test_a_wrong_choice_and_a_missing_compiler_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from glassgpt import api

    model = build(CLASSIC)
    with pytest.raises(ConfigError, match="'fast' is not one of auto, eager, kernels, compiled"):
        choose_decoder(model, "fast")
    monkeypatch.setattr(compiled, "compiler_found", lambda device: False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        choose_decoder(model, "compiled")
    tokenizer = CharTokenizer("abc")
    with pytest.raises(ConfigError, match="3 problems") as error:
        api.generate(model, tokenizer, decode=3, seed="x", temperature=-1)  # type: ignore[arg-type]
    assert any(problem.startswith("decode: 3 is not one of") for problem in error.value.problems)


@needs_numba
def test_a_sample_in_training_is_of_the_current_weights_by_either_way() -> None:
    model, tokenizer = talker(ends=False)
    for seed in range(2):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
        texts = []
        for way in ("eager", "kernels"):
            config = SimpleNamespace(train=TrainConfig(sample_tokens=20), runtime=RuntimeConfig(decode=way))
            task = SimpleNamespace(config=config, tokenizer=tokenizer)
            texts.append(Pretraining.sample(task, model, seed=seed))
        assert texts[0] == texts[1] and texts[0]
    model.blocks[0].register_forward_hook(lambda *_: None)
    assert Pretraining.sample(task, model, seed=0).startswith("(no sample: decode=kernels cannot run this model")


# --- the command line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import glassgpt

    glassgpt.save(*talker(block_size=64), tmp_path / "talker")
    return tmp_path / "talker"


@needs_numba
def test_sample_and_chat_give_the_same_text_by_each_way_and_say_which(
    cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(CompiledDecoder, "__init__", lambda self, model: _init(self, model))
    for verb, options in {"sample": ["-p", "ab", "-n", 30], "chat": ["--greedy", "-n", 10]}.items():
        outputs = []
        for way in ("eager", "kernels", "compiled"):
            lines = b"Hello!\nWhy?\n" if verb == "chat" else b""
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
            code, out, err = cli(verb, folder, *options, "--decode", way)
            assert code == 0 and f"decode: {way}" in err, err
            outputs.append(out)
        assert len(set(outputs)) == 1 and outputs[0]
    code, out, err = cli("sample", folder, "-p", "ab", "-n", 3, "--decode", "kernels", "--json")
    assert (code, err) == (0, "") and out


_static = CompiledDecoder.__init__


def _init(self: CompiledDecoder, model: GPT) -> None:
    _static(self, model, compile=False)


def test_options_that_do_not_go_together_are_refused_before_anything_is_loaded(cli: Any, folder: Path) -> None:
    for options, message in {
        ("--decode", "fast"): "auto",
        ("--dtype", "int3"): "bfloat16",
        ("--decode", "eager", "--ledger", "l.json"): "a ledger is of eager PyTorch in float32",
        ("--dtype", "bfloat16", "--ledger", "l.json"): "leave out --dtype",
        ("--decode", "eager", "--compare"): "--compare and --decode do not go together",
        ("--decode", "eager", "--replay", "l.json"): "leave out --decode",
    }.items():
        code, out, err = cli("sample", folder, "-p", "ab", *options)
        assert (code, out) == (2, "") and message in err and "Traceback" not in err, err


def test_weights_stored_in_bfloat16_are_computed_in_it_where_that_is_faster(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glassgpt.planning import compute_dtype
    from glassgpt.weights.folder import save_model

    model, tokenizer = talker(block_size=64)
    for name, dtype in {"short": torch.bfloat16, "long": torch.float32}.items():
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, model, tokenizer, dtype=dtype)
    speed = {torch.float32: 1.0, torch.bfloat16: 3.0}
    monkeypatch.setattr(compute_dtype, "matrix_flops_per_second", lambda dtype, device: speed[dtype])
    options = ["-p", "ab", "-n", 5]
    said = "dtype: bfloat16, as the weights are stored; matrix products are 3.0x as fast"
    assert said in cli("sample", "short", *options)[2]
    assert said in cli("chat", "short", *options[2:])[2]
    assert "dtype" not in cli("sample", "long", *options)[2] + cli("sample", "short", *options, "--dtype", "float32")[2]
    assert "dtype" not in cli("sample", "short", *options, "--ledger", "l.json")[2]
    assert cli("sample", "short", *options, "--dtype", "float32")[1] == cli("sample", "short", "--replay", "l.json")[1]
    speed[torch.bfloat16] = 1.0
    assert "dtype" not in cli("sample", "short", *options)[2]
