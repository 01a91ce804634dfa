"""The page as a file: it loads nothing, holds the recorded tensors exactly, and stays under its limit."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt.config import ModelConfig, presets
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.page.encoding import encode_floats, encode_json
from glassgpt.glass.page.progress import summarize
from glassgpt.glass.page.tensors import RECORDED, longest_prompt, page_tensors, required_bytes
from glassgpt.glass.page.writing import SCRIPTS, STYLES, glass_page
from glassgpt.model import GPT
from glassgpt.recording import record
from glassgpt.tokenizer import CharTokenizer
from glassgpt.weights.folder import save_model

HOSTILE = "</script><script>alert('&quot;')</script><!-- <b> \u2028 👩‍🚀 שלום"
TOKENIZER = CharTokenizer.train("".join(map(chr, range(32, 127))) + HOSTILE)
TINY = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": TOKENIZER.vocab_size}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": TINY,
    "grouped queries and a window": TINY | presets.MODERN | {"n_kv_head": 2, "sliding_window": 4, "qk_norm": False},
    "qwen3": TINY | presets.MODERN | {"n_kv_head": 2, "head_dim": 12},
    "biased": TINY
    | presets.MODERN
    | {"qkv_bias": True, "qk_norm": False, "rope_scaling": "linear", "rope_factor": 2.0},
}


def build(config: dict[str, Any], seed: int = 0) -> GPT:
    """A model with random weights, all of them different from their initial values."""
    model = GPT(ModelConfig(**config))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    return model


class Elements(HTMLParser):
    """The <script> elements of a page by their id, all tags, and what the page would load."""

    def __init__(self, html: str):
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self._id = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        attributes = dict(attrs)
        self.loaded += [str(attributes[name]) for name in ("src", "srcset", "data", "action") if name in attributes]
        self.loaded += [str(attributes["href"])] if tag == "link" else []
        self._id = str(attributes.get("id", f"script {len(self.tags)}")) if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._id = ""

    def handle_data(self, data: str) -> None:
        if self._id:
            self.scripts[self._id] = data


def test_the_page_loads_nothing_and_has_no_tag_from_the_prompt() -> None:
    model = build(TINY)
    pages = (glass_page(model, TOKENIZER, text, name=f"{text}\udcff") for text in (HOSTILE, "plain"))
    page, plain = (Elements(page.html) for page in pages)
    assert page.loaded == []
    names = {name for name in page.scripts if not name.startswith("tensor")}
    assert [tag for tag in page.tags if tag != "script"] == [tag for tag in plain.tags if tag != "script"]
    assert len(names) == len([name for name in plain.scripts if not name.startswith("tensor")])
    about = json.loads(page.scripts["about"])
    assert about["text"] == HOSTILE
    assert bytes.fromhex("".join(about["token_bytes"])).decode() == HOSTILE
    assert page.scripts["about"].isascii() and not re.search("[<>&]", page.scripts["about"])
    assert "http" not in "".join(text for name, text in page.scripts.items() if name.startswith("script"))


def decode_floats(text: str) -> np.ndarray:
    """Decode what encode_floats returned, as the page does."""
    planes = np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).view("<f4").reshape(-1)


@pytest.mark.parametrize("name", MODELS)
def test_the_page_holds_every_recorded_tensor_exactly(name: str) -> None:
    model = build(MODELS[name])
    page = Elements(glass_page(model, TOKENIZER, "First Citizen:", limit=10**8).html)
    frame = json.loads(page.scripts["about"])["frames"][0]
    kept = {(entry["name"], entry["layer"]): entry for entry in frame["tensors"]}
    idx = torch.tensor([TOKENIZER.encode("First Citizen:")])
    for (tensor, layer), values in record(model, idx, RECORDED).tensors.items():
        entry = kept[tensor, layer]
        expected = values if tensor == "position embedding" else values[0]
        assert entry["shape"] == list(expected.shape)
        assert np.array_equal(decode_floats(page.scripts[entry["block"]]), expected.numpy().reshape(-1))
    stored = [p.numel() for key, p in model.named_parameters() if "embedding" not in key or model.config.tie_embeddings]
    in_page = sum(int(np.prod(entry["shape"])) for key, entry in kept.items() if "weight" in key[0] or "bias" in key[0])
    in_page -= sum(int(np.prod(entry["shape"])) for key, entry in kept.items() if key[0] == "attention weights")
    table = 0 if model.position_embedding is None else model.position_embedding.weight.numel()
    assert in_page == sum(stored) - (table if model.config.tie_embeddings else 0), "every weight, or its rows in use"


def test_every_file_of_the_page_is_put_into_it() -> None:
    names = {entry.name for entry in (resources.files("glassgpt.glass.page") / "static").iterdir()}
    assert names == {"page.html", *STYLES, *SCRIPTS}


def test_encoded_numbers_come_back_bit_for_bit() -> None:
    values = np.array([0.0, -0.0, 1e-45, 3.4e38, -np.inf, np.nan, 1 / 3], dtype=np.float32)
    assert decode_floats(encode_floats(values)).tobytes() == values.tobytes()
    assert decode_floats(encode_floats(values[:0])).size == 0
    assert json.loads(encode_json("</script>&\u2028")) == "</script>&\u2028"


def test_pages_stay_under_their_limit_and_name_what_was_left_out() -> None:
    modern = presets.MODERN | {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128, "intermediate_size": 384}
    model = build(modern | {"vocab_size": TOKENIZER.vocab_size})
    page = glass_page(model, TOKENIZER, "O Romeo, Romeo! wher")
    assert 2_000_000 < len(page.html.encode()) < 3_000_000
    assert page.not_kept and all(re.fullmatch("(gate|up|mlp output) weight of block [123]", x) for x in page.not_kept)
    assert glass_page(model, TOKENIZER, "O Romeo", limit=10_000_000).not_kept == []


def test_a_prompt_that_is_too_long_for_the_page_is_refused_with_the_length_that_fits() -> None:
    model = build(TINY)
    with pytest.raises(ConfigError, match=r"60 tokens; a page of 0\.25 MB has room for (\d+) of this model") as error:
        glass_page(model, TOKENIZER, "x" * 60, limit=250_000)
    fitting = int(re.search(r"room for (\d+)", str(error.value))[1])  # type: ignore[index]
    assert 1 <= fitting < 60
    assert len(glass_page(model, TOKENIZER, "x" * fitting, limit=250_000).html.encode()) <= 250_000
    with pytest.raises(ConfigError, match="not one token"):
        glass_page(model, TOKENIZER, "x", limit=1000)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_page_needs_is_never_estimated_too_low_and_is_close_for_wide_models(name: str) -> None:
    for changes, most in [({}, 2.0), ({"n_embd": 256, "head_dim": 64}, 1.4)]:
        model, T = build(MODELS[name] | changes), 40
        recording = record(model, torch.arange(T)[None])
        tensors = [tensor for tensor in page_tensors(model, recording) if tensor.required]
        size = sum(len(encode_floats(tensor.values.numpy(force=True))) for tensor in tensors)
        size += 300 * len(tensors) + len(encode_json(summarize(model, recording)))
        assert size <= required_bytes(model.config, T) < most * size
    assert longest_prompt(model.config, required_bytes(model.config, T)) == T


def test_the_summary_agrees_with_the_final_norm_and_the_head() -> None:
    model = build(MODELS["qwen3"])
    recording = record(model, torch.tensor([[5, 1, 7, 7, 2]]))
    summary = summarize(model, recording)
    for layer, residual in enumerate(recording.layers("residual after mlp")):
        probability = torch.softmax(model.head(model.final_norm(residual))[0], dim=-1)
        top = probability.topk(5)
        assert summary["top"][layer + 1] == top.indices.tolist()
        assert np.allclose(summary["top_probability"][layer + 1], top.values.detach(), rtol=1e-5)
        added = recording.get("mlp output", layer)[0].norm(dim=-1)
        change = added / recording.get("residual after attention", layer)[0].norm(dim=-1)
        assert np.allclose(summary["mlp_change"][layer], change, rtol=1e-5)
    logits = recording.logits[0]
    assert summary["final_rank"][-1] == [1] * 5
    assert np.allclose(-np.log(summary["next_probability"]), torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor([1, 7, 7, 2]), reduction="none"), rtol=1e-4)  # fmt: skip


def test_ranks_are_those_of_the_lens_also_where_probabilities_are_rounded_to_zero() -> None:
    model = build(MODELS["qwen3"])
    with torch.no_grad():
        model.final_norm.weight *= 1e4
    recording = record(model, torch.tensor([[5, 1, 7, 7, 2]]))
    summary, final = summarize(model, recording), recording.logits[0].argmax(dim=-1)
    depths = [recording.get("embeddings"), *recording.layers("residual after mlp")]
    assert any(0 in row for row in summary["final_probability"])
    with torch.no_grad():
        order = [model.head(model.final_norm(x))[0].argsort(dim=-1, descending=True) for x in depths]
    places = [[1 + (row == i).nonzero().item() for row, i in zip(rows, final, strict=True)] for rows in order]
    assert summary["final_rank"] == places


def test_a_page_with_checkpoints_has_the_tensors_of_each(tmp_path: Path) -> None:
    models = {step: build(TINY, seed=step) for step in (1, 2)}
    for step, model in models.items():
        (tmp_path / str(step)).mkdir()
        save_model(tmp_path / str(step), model, TOKENIZER)
    page = glass_page(models[2], TOKENIZER, "abc", checkpoints={step: tmp_path / str(step) for step in models})
    elements = Elements(page.html)
    frames = json.loads(elements.scripts["about"])["frames"]
    assert [frame["step"] for frame in frames] == [1, 2]
    for frame, model in zip(frames, models.values(), strict=True):
        [entry] = [entry for entry in frame["tensors"] if entry["name"] == "last logits"]
        logits = record(model, torch.tensor([TOKENIZER.encode("abc")])).logits[0, -1]
        assert np.array_equal(decode_floats(elements.scripts[entry["block"]]), logits.numpy())


def test_a_damaged_model_is_refused() -> None:
    model = build(TINY)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 3] = float("nan")
    with pytest.raises(GenerationError, match="the logits are not all finite numbers"):
        glass_page(model, TOKENIZER, "abc")


def test_the_verb_writes_the_page_and_says_what_is_wrong(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", build(TINY), TOKENIZER)
    code, out, err = cli("glass", "model", "-p", "abc", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result == {"path": "glass.html", "bytes": (tmp_path / "glass.html").stat().st_size, "not_kept": []}
    for arguments, message in [
        (["-o", "page.pdf"], "should end in .html or .htm"),
        (["--max-mb", "nan"], "--max-mb: nan is not a number from 0 to 2,000"),
        (["--film"], "there is no run 'model'"),
        (["--max-mb", "0.01"], "not one token of this model fits a page of 0.01 MB"),
    ]:
        code, _, err = cli("glass", "model", "-p", "abc", *arguments)
        assert (code, message in err) == (2, True), err
