"""Generation: the bytes that a step reads, measured by brute force; the order of rounds; peers in their processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glassgpt.bench import comparison, generation, peers, roofline
from glassgpt.bench.generation import Grid, bench_generation, cache_bytes, weight_bytes
from glassgpt.bench.peers import Generated
from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.model import GPT, KVCache
from glassgpt.tokenizer import BPETokenizer, Tokenizer
from glassgpt.transforms.quantize import quantize

GPT2 = {"vocab_size": 300, "block_size": 48, "n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA = GPT2 | {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope", "intermediate_size": 96}
LLAMA |= {"n_kv_head": 2, "qkv_bias": False, "attention_out_bias": False, "mlp_bias": False}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2, untied": GPT2 | {"tie_embeddings": False},
    "llama": LLAMA,
    "llama, untied": LLAMA | {"tie_embeddings": False},
    "mistral": LLAMA | {"sliding_window": 5},
    "qwen2": LLAMA | {"qkv_bias": True},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 16},
}


def model_of(which: str, bits: int = 0, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(ModelConfig(**MODELS[which])).eval()
    model.init_weights(0)
    if bits:
        quantize(model, bits)
    return model.to(dtype)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setattr(roofline, "fastest", lambda work, device, seconds: 0.5)
    monkeypatch.setattr(generation, "PAUSE", 0.0)
    monkeypatch.setattr(comparison, "PAUSE", 0.0)


class ReadWeights(TorchDispatchMode):
    """Sees every operation of a pass: which weights it reads, and whether all of one or only rows that it looks up."""

    def __init__(self, model: GPT):
        super().__init__()
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        weights = [tensor for name, tensor in tensors.items() if not name.startswith("rope_")]
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in weights if tensor.numel()}
        self.all: dict[int, int] = {}
        self.rows = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in args:
            if isinstance(tensor, torch.Tensor) and (at := tensor.untyped_storage().data_ptr()) in self.weights:
                if operation.overloadpacket in (torch.ops.aten.embedding, torch.ops.aten.index):
                    self.rows += result.nbytes
                else:
                    self.all[at] = tensor.nbytes
        return result


@pytest.mark.parametrize("which", MODELS)
def test_the_bytes_of_a_step_are_those_that_its_operations_read(which: str) -> None:
    for bits, dtype in ((0, torch.float32), (0, torch.bfloat16), (8, torch.bfloat16), (4, torch.float32)):
        model = model_of(which, bits, dtype)
        for rows in (1, 3):
            cache = KVCache(model.config, rows, dtype=dtype)
            cache.lengths = [*range(9, 9 + rows)]  # so that each has a position of its own
            with torch.inference_mode(), ReadWeights(model) as read:
                model(torch.ones(rows, 1, dtype=torch.int64), cache=cache)
            assert weight_bytes(model, rows) == sum(read.all.values()) + read.rows, (bits, dtype, rows)


@pytest.mark.parametrize("which", ["gpt2", "mistral", "qwen3"])
def test_the_bytes_of_the_cache_are_the_keys_and_values_in_the_mask(which: str) -> None:
    model = model_of(which, dtype=torch.bfloat16)
    for context in (1, 4, 5, 6, 48):
        cache = KVCache(model.config, 2, dtype=torch.bfloat16)
        cache.lengths = [context - 1] * 2
        total = 0
        for layer, window in enumerate(model.config.windows):
            mask = cache.attention_mask(cache.next_slots(1), window)  # [1, 1, 1, S]
            visible = slice(None) if mask is None else mask[0, 0, 0]
            for tensor in (cache.keys, cache.values):
                total += tensor[layer, :, :, :context][:, :, visible].nbytes
        assert cache_bytes(model, 2, context) == total, context


def test_a_model_is_measured_in_every_combination_and_is_the_same_afterwards() -> None:
    models = {"float32": model_of("llama"), "int8": model_of("llama", 8)}
    before = [tensor.clone() for tensor in models["int8"].buffers()]
    messages: list[str] = []
    result = bench_generation(models, Grid(["eager"], [1, 3], [1, 48], 2, 4), progress=messages.append)
    assert result.read_bandwidth == 2**16 / 0.5
    keys = [(batch, context, dtype) for batch in (1, 3) for context in (1, 48) for dtype in models]
    assert [(row.batch, row.context, row.dtype) for row in result.prefill] == keys
    assert [(row.batch, row.context, row.dtype) for row in result.decode] == keys
    for row in result.prefill:
        assert row.first_token_seconds
        assert row.tokens_per_second == row.batch * row.context / row.first_token_seconds
    for row in result.decode:
        assert not row.skipped
        assert row.tokens_per_second
        assert row.slowest
        assert row.fastest
        assert row.slowest <= row.tokens_per_second <= row.fastest or row.slowest < row.fastest
        assert row.weight_bytes == weight_bytes(models[row.dtype], row.batch)
        assert row.cache_bytes == cache_bytes(models[row.dtype], row.batch, row.context)
        assert row.bytes_per_second == pytest.approx(row.bytes_per_token * row.tokens_per_second)
        assert row.bandwidth_share == pytest.approx(row.bytes_per_second / result.read_bandwidth)
    assert "batch 3, context 48: int8, eager" in messages
    assert all(torch.equal(a, b) for a, b in zip(before, models["int8"].buffers(), strict=True))


def test_what_cannot_be_measured_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "free_memory", lambda device: 2**10)
    monkeypatch.setattr(generation, "PREFILL_SECONDS", 0.0)
    result = bench_generation({"float32": model_of("gpt2")}, Grid(["eager"], [1], [48], 1, 1))
    [row] = result.decode
    assert row.tokens_per_second is None
    assert "the cache takes 24.0 KiB, more than half of what is free" in row.skipped
    [prefill] = result.prefill
    assert prefill.tokens_per_second is None
    assert prefill.skipped == "the prefill of 1 x 48 tokens would take 0 s or more"

    def refuse(model: GPT, decode: str) -> Any:
        raise ConfigError("no compiler")

    monkeypatch.setattr(generation, "choose_decoder", refuse)
    [row] = bench_generation({"float32": model_of("gpt2")}, Grid(["compiled"], [1], [48], 1, 1)).decode
    assert row.skipped == "no compiler"


def test_every_second_round_runs_in_the_opposite_order() -> None:
    assert generation.alternated("abc", 3) == list("abccbaabc")


class Fake:
    """A program that generates the tokens 1, 2, 3, ..., some milliseconds each, slower in every round."""

    def __init__(self, name: str, milliseconds: list[int], calls: list[str], fails: bool = False):
        self.name, self.times, self.calls, self.fails = name, iter([99, *milliseconds]), calls, fails

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> Generated:
        if self.fails:
            raise GenerationError("it failed")
        self.calls.append(self.name)
        step = next(self.times) / 1000
        return Generated(10 * step, [step] * (new - 1), [[*range(1, new + 1)] for _ in prompts])


def test_ratios_are_those_within_a_round(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    calls: list[str] = []
    programs = {
        "kernels": Fake("ours", [1, 2, 4], calls), "eager": Fake("slow", [9, 9, 9], calls),
        "transformers": Fake("theirs", [3, 5, 16], calls), "xllamacpp": Fake("never", [], calls),
    }  # fmt: skip

    def start(row: Any, *others: Any) -> Any:
        return programs[row.stored if row.program == comparison.OURS else row.program]

    monkeypatch.setattr(comparison, "_start", start)
    grid = Grid(["eager", "kernels"], [2], [20], 3, 4)
    model = model_of("llama")
    rows = comparison.compare(
        {"float32": model}, lambda: model, tokenizer, ["transformers", "xllamacpp"], grid, threads=1
    )  # fmt: skip
    forward = ["slow", "ours", "theirs"]
    assert calls == [*forward, *forward, *forward[::-1], *forward], "a first text, then three rounds"
    slow, ours, theirs, failed = rows
    assert (ours.tokens_per_second, ours.slowest, ours.fastest) == pytest.approx((1000, 500, 2000))
    assert ours.ratio is slow.ratio is None
    assert (theirs.ratio, theirs.lowest_ratio, theirs.highest_ratio) == pytest.approx((3, 2.5, 4))
    assert theirs.first_token_seconds == pytest.approx(0.05)
    assert theirs.prefill_tokens_per_second == pytest.approx(2 * 15 / 0.05)
    assert (theirs.same_tokens, theirs.new_tokens) == (5, 5)
    assert failed.skipped == "xllamacpp is asked for one text at a time"
    monkeypatch.setattr(comparison, "_start", lambda *arguments: Fake("", [], calls, fails=True))
    rows = comparison.compare(
        {"int4": model}, lambda: model, tokenizer, [*peers.PEER_TYPES], grid._replace(batches=[1]), threads=1
    )
    assert [(row.program, row.stored, row.skipped, row.tokens_per_second) for row in rows] == [
        ("glassgpt", "eager", "it failed", None), ("glassgpt", "kernels", "it failed", None),
        ("xllamacpp", "q4_0", "it failed", None),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return BPETokenizer.train("the cat sat on the mat, and then " * 9, 300)


def test_tokens_count_as_the_same_up_to_the_first_difference(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat sat")
    for number in range(len(ids)):
        other = [*ids[:number], ids[number] + 1, *ids[number + 1 :]]
        assert comparison._same(ids, Generated(0, [], [other]), tokenizer) == number
        text = tokenizer.decode(ids[:number]) + "?"
        assert comparison._same(ids, Generated(0, [], None, text), tokenizer) == number
    assert comparison._same(ids, Generated(0, [], [ids]), tokenizer) == len(ids)
    assert comparison._same(ids, Generated(0, [], None, "the cat sat"), tokenizer) == len(ids)


@pytest.mark.parametrize("peer", [pytest.param("transformers", marks=pytest.mark.slow), "xllamacpp"])
def test_a_peer_generates_what_we_do(peer: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip(peer)
    model = model_of("llama")
    with torch.no_grad():  # peaked predictions, without near ties
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    grid = Grid(["eager"], [1] if peer == "xllamacpp" else [2], [40], 2, 8)
    ours, theirs = comparison.compare({"float32": model}, lambda: model, tokenizer, [peer], grid, threads=1)
    assert theirs.skipped == ""
    assert theirs.same_tokens == ours.same_tokens == 9
    for row in (ours, theirs):
        assert row.first_token_seconds
        assert row.tokens_per_second
    assert theirs.ratio and theirs.ratio > 0  # the machine's load decides the rest
    assert not [*tmp_path.iterdir()]


def test_a_peer_that_ends_is_one_message() -> None:
    pytest.importorskip("xllamacpp")
    settings = {"path": "nothing.gguf", "stored": "f32", "context": 8, "device": "cpu", "threads": 1}
    with (
        pytest.raises(GenerationError, match=r"xllamacpp ended with exit code 1: .+"),
        peers.running("xllamacpp", **settings),
    ):
        pass
