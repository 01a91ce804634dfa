"""Every entry of a config.json and of a .gguf header, set to anything: a model, or one error that the user can read.

In-process and with tiny models. Nothing may be allocated for what an entry claims: only for the weights that are there.
"""

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import gguf_header
from glassgpt.config import ModelConfig, presets
from glassgpt.errors import CheckpointError, ConfigError, TokenizerError
from glassgpt.gguf_header import Header
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer
from glassgpt.tokenizer.base import attach
from glassgpt.tokenizer.published import PublishedSettings
from glassgpt.weights.folder import save_model
from glassgpt.weights.gguf.export import write_gguf
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.loading import describe, load_source
from glassgpt.weights.sources import FolderSource, WeightSource

REMOVED = object()
#: What a header of a .gguf file can hold, and what JSON can hold beside it.
GGUF_VALUES = [REMOVED, "x", [], [1, 10**9], True, 0, -1, 1.5, 10**9, 10**30, 1e308, math.nan, -math.inf]
JSON_VALUES = [None, {}, {"x": 1}, [[1]], *GGUF_VALUES]

TOKENIZER = BPETokenizer.train(["to be or not to be"], 260)
TINY = ModelConfig(vocab_size=264, block_size=16, n_layer=2, n_head=4, n_embd=16, intermediate_size=8)
QWEN3 = dataclasses.replace(TINY, **presets.MODERN, n_kv_head=2)
LLAMA = dataclasses.replace(QWEN3, qk_norm=False)
PUBLISHED = PublishedSettings(
    roles={"pad_token": "<|endoftext|>"},
    tokenizer_config={"padding_side": "left"},
    token_ids={"eos_token_id": 1},
    generation_config={"eos_token_id": [0, 1], "temperature": 0.5},
)
SCALED = {"rope_factor": 4.0, "rope_original_context": 8}
CONFIGS = {
    "gpt2": TINY,
    "llama": dataclasses.replace(LLAMA, rope_scaling="llama3", **SCALED),
    "mistral": dataclasses.replace(LLAMA, sliding_window=8),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, sliding_window=8, first_window_layer=1),
    "qwen3": dataclasses.replace(QWEN3, rope_scaling="yarn", **SCALED),
}


def tiny(config: ModelConfig) -> GPT:
    model = GPT(config)
    model.init_weights(0)
    return model


def with_entry(entries: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(entries)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is REMOVED:
        inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return changed


def entries_of(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)


def peak_megabytes() -> float:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def check(open_source: Callable[[], WeightSource], what: object, known: set[ModelConfig]) -> bool:
    """Load a model and compute something, unless it is one of those known. Returns whether it is a model."""
    try:
        source = open_source()
        if (config := describe(source)[0]) in known:
            source.tokenizer()
            return True
        model, _ = load_source(source)
        known.add(config)
    except (CheckpointError, ConfigError, TokenizerError) as error:
        assert 10 < len(str(error)) < 3000, what
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    kept = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    assert kept < 10**6, f"{what}: {kept:,} numbers"
    with torch.inference_mode():
        assert model(torch.tensor([[1]])).shape[:2] == (1, 1), what
    return True


Cases = Iterator[tuple[object, Callable[[], WeightSource]]]


def run_cases(cases: Cases, record: Callable[[str, object], None]) -> None:
    """Check every case, and count them for the summary of all tests."""
    before, known = peak_megabytes(), set[ModelConfig]()
    loaded = [check(open_source, what, known) for what, open_source in cases]
    assert peak_megabytes() - before < 300
    assert len(loaded) > 350 and any(loaded)
    record("cases", len(loaded))


@pytest.mark.parametrize("family", CONFIGS)
def test_any_entry_of_a_config_json(family: str, tmp_path: Path, record_property: Any) -> None:
    save_model(tmp_path, tiny(CONFIGS[family]), TOKENIZER)
    source = FolderSource(tmp_path)
    source.tokenizer = lambda: TOKENIZER  # type: ignore[method-assign]
    original = source.config
    assert original["model_type"] == family

    def cases() -> Cases:
        extra = ("rope_scaling", "layer_types", "quantization_config", "partial_rotary_factor", "architectures")
        for path in dict.fromkeys([*entries_of(original), *((key,) for key in extra)]):
            for value in JSON_VALUES:
                source.config = with_entry(original, path, value)
                yield (path, value), lambda: source

    run_cases(cases(), record_property)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3"])
def test_any_entry_of_a_gguf_header(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    tokenizer = BPETokenizer(TOKENIZER.model)
    attach(tokenizer, PUBLISHED)
    write_gguf(path, tiny(CONFIGS[architecture]), tokenizer, dtype="f32")
    header = gguf_header.read_header(path, CheckpointError)
    own = {key: json.loads(header.metadata[key]) for key in ("glassgpt.config", "glassgpt.published")}

    def cases() -> Cases:
        extra = [f"{architecture}.rope.scaling.{key}" for key in ("type", "factor", "attn_factor", "yarn_beta_fast")]
        extra += [
            f"{architecture}.expert_count",
            f"{architecture}.rope.scale_linear",
            "tokenizer.ggml.padding_token_id",
        ]
        changes = [((key,), value) for key in [*header.metadata, *extra] for value in GGUF_VALUES]
        changed = [with_entry(header.metadata, path, value) for path, value in changes]
        nested = [((k, *path), value) for k in own for path in entries_of(own[k]) for value in JSON_VALUES]
        for (key, *inner), value in nested:
            text = json.dumps(with_entry(own[key], tuple(inner), value))
            changed.append({**header.metadata, key: text})
        for what, metadata in zip(changes + nested, changed, strict=True):
            monkeypatch.setattr(
                gguf_header, "read_header", lambda *_, metadata=metadata: Header(metadata, header.tensors, header.size)
            )
            yield what, lambda: GGUFSource(path)

    run_cases(cases(), record_property)
