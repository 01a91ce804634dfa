"""Sources and loading: damage is reported before anything is replaced, and no weight is in memory twice."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import glassgpt
from conftest import load_model
from glassgpt.config import ModelConfig, presets
from glassgpt.errors import CheckpointError, ConfigError, GlassError
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.weights import loading, mapping
from glassgpt.weights.folder import CHECKSUMS, load_weights, save_model, verify, write_folder
from glassgpt.weights.loading import load_into, load_source
from glassgpt.weights.sources import FolderSource
from glassgpt.weights.transfer import to_folder, to_gguf, to_tiktoken

TOKENIZER = CharTokenizer.train("abcdefgh\n")
CLASSIC = ModelConfig(vocab_size=9, block_size=16, n_layer=2, n_head=4, n_embd=32)
MODERN = dataclasses.replace(CLASSIC, **presets.MODERN, n_kv_head=2, intermediate_size=40)
QWEN2 = dataclasses.replace(MODERN, qk_norm=False, qkv_bias=True, tie_embeddings=True)
INDEX = "model.safetensors.index.json"


def random_model(config: ModelConfig, seed: int = 0) -> GPT:
    model = GPT(config)
    model.init_weights(seed)
    return model


def saved(folder: Path, config: ModelConfig, **how: Any) -> Path:
    with write_folder(folder) as temporary:
        save_model(temporary, random_model(config), TOKENIZER, **how)
    return folder


def from_elsewhere(folder: Path, config: ModelConfig = MODERN, **how: Any) -> Path:
    """A folder without our checksums."""
    (saved(folder, config, **how) / CHECKSUMS).unlink()
    return folder


# --- shards


@pytest.mark.parametrize("config", [CLASSIC, MODERN, QWEN2], ids=["gpt2", "qwen3", "qwen2"])
@pytest.mark.parametrize("limit", [1, 3_000, 20_000, 10**9])
def test_any_number_of_shards_holds_the_same(config: ModelConfig, limit: int, tmp_path: Path) -> None:
    folder, idx = saved(tmp_path / "m", config, max_shard_bytes=limit), torch.arange(9)[None]
    verify(folder)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert torch.equal(load_model(folder)[0](idx), random_model(config)(idx))
    if limit == 10**9:
        assert files == ["model.safetensors"] and not (folder / INDEX).exists()
        return
    index = json.loads((folder / INDEX).read_text("utf-8"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    sizes = [sum(t.numel() * 4 for t in load_file(folder / name).values()) for name in files]
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * random_model(config).num_parameters()
    assert index["weight_map"] == {name: file for file in files for name in load_file(folder / file)}
    assert all(size <= limit or len(load_file(folder / name)) == 1 for size, name in zip(sizes, files, strict=True))


def test_a_changed_bit_in_any_shard_is_noticed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", MODERN, max_shard_bytes=8_000)
    for path in folder.glob("*.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=rf"{path.name} is not what was saved"):
            load_model(folder)
        path.write_bytes(whole)
    load_model(folder)


# --- damaged folders


def _edit(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / name).read_text("utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), "utf-8")


def _shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _reshape(folder: Path) -> None:
    path = _shard(folder, 0)
    weights = load_file(path)
    name = next(iter(weights))
    save_file(weights | {name: weights[name][..., :-1].contiguous()}, path)


def _integers(folder: Path) -> None:
    path = _shard(folder, 0)
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)


def _twice(folder: Path) -> None:
    one, two = load_file(_shard(folder, 0)), load_file(_shard(folder, 1))
    save_file(two | dict(list(one.items())[:1]), _shard(folder, 1))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: [p.unlink() for p in f.glob("model*")], r"model\.safetensors is missing"),
    "another layout": (
        lambda f: [(f / INDEX).rename(f / "consolidated.00.pth"), [p.unlink() for p in f.glob("model*")]],
        r"consolidated\.00\.pth, in a layout that is not supported",
    ),
    "the last shard truncated": (lambda f: _truncate(_shard(f, -1)), r"model-\d+-of-\d+\.safetensors is damaged"),
    "the first shard empty": (lambda f: _shard(f, 0).write_bytes(b""), "is damaged"),
    "a shard missing": (
        lambda f: _shard(f, 1).unlink(),
        r"lacks model-00002-of-000\d\d\.safetensors of its \d+ shards",
    ),
    "a shard of another model": (lambda f: save_file({"x": torch.ones(2)}, _shard(f, 1)), "has no such tensor"),
    "a tensor in two shards": (_twice, "is in both model-00001-of"),
    "the index no JSON": (lambda f: (f / INDEX).write_text("{", "utf-8"), r"index\.json is damaged"),
    "the index without a map": (lambda f: _edit(f, INDEX, lambda c: c.pop("weight_map")), "weight_map"),
    "the index a list": (lambda f: (f / INDEX).write_text("[]", "utf-8"), "contains list, not an object"),
    "the index points outside": (
        lambda f: _edit(f, INDEX, lambda c: c["weight_map"].update(x="../elsewhere.safetensors")),
        r"'\.\./elsewhere\.safetensors', which is not a file of its folder",
    ),
    "a tensor of another shape": (_reshape, "1 of another shape"),
    "integers": (_integers, "stored as I8"),
    "another number of layers": (
        lambda f: _edit(f, "config.json", lambda c: c.update(num_hidden_layers=3, layer_types=None)),
        "missing",
    ),
    "config.json gone": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config.json of a model that cannot be": (
        lambda f: _edit(f, "config.json", lambda c: c.update(num_key_value_heads=3, rms_norm_eps="small")),
        r"config\.json.*norm_eps",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json"),
    "the tokenizer damaged": (lambda f: (f / "tokenizer.json").write_bytes(b"{"), r"tokenizer\.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_gives_one_message_and_nothing_is_replaced(damage: str, tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path / "m", max_shard_bytes=15_000)
    damage_folder, message = DAMAGE[damage]
    damage_folder(folder)
    with pytest.raises(GlassError, match=f"(?s){message}") as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    if "tokenizer" in damage:
        return
    model = random_model(MODERN, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if damage not in ("another number of layers", "config.json of a model that cannot be"):  # detected by another shape
        with pytest.raises(CheckpointError):
            load_weights(folder, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02garbage", b"{}" * 50])
def test_a_damaged_pytorch_model_bin_is_an_error(content: bytes, tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read.*published as safetensors"):
        load_model(folder)
    weights = load_file(from_elsewhere(tmp_path / "n") / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    load_model(folder)
    for bad in ([1], {"model": weights}, {"epoch": 3}):
        torch.save(bad, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="more than named tensors"):
            load_model(folder)
    name = next(iter(weights))
    for odd in (weights[name].to_sparse(), weights[name].to("meta")):
        torch.save(weights | {name: odd}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=rf"{name} .* not a plain tensor"):
            load_model(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    _truncate(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(folder)


def test_constants_in_old_files_are_ignored(tmp_path: Path) -> None:
    folder = from_elsewhere(tmp_path / "m", dataclasses.replace(MODERN, qk_norm=False))
    path, idx = folder / "model.safetensors", torch.arange(9)[None]
    expected = load_model(folder)[0](idx)
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    save_file(load_file(path) | frequencies, path)
    assert torch.equal(load_model(folder)[0](idx), expected)
    save_file(load_file(path) | {"model.layers.0.self_attn.inv_freq": torch.ones(4)}, path)
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_model(folder)


def in_memory(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder whose file is overwritten afterwards: not mapped."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_head_in_the_file_of_a_tied_model(tmp_path: Path) -> None:
    """The token embedding again changes nothing; another head is the model's own, and has to have its shape."""
    folder, idx, expected = from_elsewhere(tmp_path / "m", QWEN2), torch.arange(9)[None], random_model(QWEN2)
    weights = in_memory(folder)
    head = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": head.clone()}, folder / "model.safetensors")
    model = load_model(folder)[0]
    assert model.config.tie_embeddings and torch.equal(model(idx), expected(idx))
    save_file(weights | {"lm_head.weight": head.flip(0).contiguous()}, folder / "model.safetensors")
    model = load_model(folder)[0]
    assert not model.config.tie_embeddings
    torch.testing.assert_close(model(idx), expected(idx).flip(-1))
    save_file(weights | {"lm_head.weight": head[1:].clone()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of another shape\n.*lm_head\.weight *\[8, 32\], expected \[9, 32\]"):
        load_model(folder)


# --- values that no model can compute with


@pytest.mark.parametrize(
    ("config", "value", "dtype"),
    [
        (CLASSIC, math.nan, torch.float32),
        (MODERN, math.nan, torch.float16),
        (MODERN, -math.inf, torch.float32),
        (CLASSIC, math.inf, torch.bfloat16),
        (CLASSIC, -65536.0, torch.float16),
        (MODERN, 65536.0, torch.float32),
        (MODERN, 3.4e38, torch.bfloat16),
        (CLASSIC, 1e39, torch.float32),
    ],
)
def test_a_weight_that_is_not_finite_in_the_dtype_is_named(
    config: ModelConfig, value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Wherever it is: in loading, in copying, and in saving, which then writes nothing."""
    folder, stored = from_elsewhere(tmp_path / "m", config), torch.tensor(value, dtype=torch.float64)
    weights = in_memory(folder)
    for name in (min(weights), max(weights)):
        changed = {n: t.double() if n == name else t for n, t in weights.items()}
        changed[name].view(-1)[-1] = stored
        save_file(changed, folder / "model.safetensors")
        if torch.isfinite(stored.to(dtype)):
            load_model(folder, dtype)
            continue
        reason = r"beyond \S+, which" if torch.isfinite(stored) else "NaN or infinite"
        with pytest.raises(CheckpointError, match=rf"{folder}: {name} .*{reason}"):
            load_model(folder, dtype)
        with pytest.raises(CheckpointError, match=name):
            to_folder(FolderSource(folder), tmp_path / "copy", dtype=dtype)
        model = random_model(config)
        place = next(
            place for place in mapping.placements(config, mapping.family_of(config)) if place.published == name
        )
        place.view(model.state_dict()[place.ours])[-1:].fill_(stored)
        with pytest.raises(CheckpointError, match=name), write_folder(tmp_path / "copy") as temporary:
            save_model(temporary, model, TOKENIZER, dtype=dtype)
        assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_and_a_padded_model_is_not(tmp_path: Path) -> None:
    padded = from_elsewhere(tmp_path / "m", dataclasses.replace(MODERN, vocab_size=16))
    assert load_model(padded)[1].vocab_size == 9
    small = from_elsewhere(tmp_path / "n", dataclasses.replace(MODERN, vocab_size=8))
    with pytest.raises(CheckpointError, match=r"tokenizer has 9 tokens, .* 8 rows"):
        load_model(small)
    with pytest.raises(CheckpointError, match="8 rows"):
        to_folder(FolderSource(small), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("where", [".", "", "..", "/", "sub/.."])
def test_the_current_folder_is_never_replaced(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FolderSource(from_elsewhere(tmp_path / "m"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for write in (
        lambda: to_folder(source, Path(where)),
        lambda: glassgpt.save(random_model(MODERN), TOKENIZER, where),
    ):
        with pytest.raises(CheckpointError, match=r"name a|another name"):
            write()
    for write_file in (to_gguf, to_tiktoken):
        with pytest.raises(CheckpointError, match=r"name a|another name"):
            write_file(source, Path(where))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "a").rglob("*")) == ["a/b"]


# --- the side-by-side table


def test_placements_describe_each_weight() -> None:
    rows = {
        row.published: (row.published_shape, row.ours, row.our_shape, row.operation)
        for row in mapping.placements(QWEN2, mapping.family_of(QWEN2))
    }
    qkv, bias = "blocks.1.attention.qkv.weight", "blocks.1.attention.qkv.bias"
    attention = "model.layers.1.self_attn"
    assert rows[f"{attention}.q_proj.weight"] == ((32, 32), qkv, (64, 32), "rows 0:32 of the fused q, k, v")
    assert rows[f"{attention}.k_proj.weight"] == ((16, 32), qkv, (64, 32), "rows 32:48 of the fused q, k, v")
    assert rows[f"{attention}.v_proj.bias"] == ((16,), bias, (64,), "rows 48:64 of the fused q, k, v")
    assert rows["lm_head.weight"][-1] == "tied: left out"
    assert rows["model.norm.weight"] == ((32,), "final_norm.weight", (32,), "copy")
    assert f"{attention}.o_proj.bias" not in rows
    name = "transformer.h.0.attn.c_attn.weight"
    (conv,) = (row for row in mapping.placements(CLASSIC, mapping.family_of(CLASSIC)) if row.published == name)
    assert (conv.published_shape, conv.our_shape, conv.operation) == ((32, 96), (96, 32), "transpose")
    with pytest.raises(ConfigError, match="no published family"):
        mapping.family_of(dataclasses.replace(CLASSIC, qk_norm=True))


# --- memory


class Watched(FolderSource):
    """Counts the rows that are read."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.read_rows: dict[str, int] = dict.fromkeys(self.shapes, 0)
        self.most = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor = super().read(name, start, stop)
        self.read_rows[name] += len(tensor)
        self.most = max(self.most, tensor.numel() * 4)
        return tensor


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["gpt2", "qwen3"])
@pytest.mark.parametrize("part", [1, 700, 2**24])
def test_every_row_is_read_once_in_parts(
    config: ModelConfig, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PART", part)
    source, idx = Watched(saved(tmp_path / "m", config)), torch.arange(9)[None]
    model, _ = load_source(source)
    assert source.read_rows == {name: shape[0] for name, shape in source.shapes.items()}
    assert source.most <= max(part, 4 * max(shape[-1] for shape in source.shapes.values()))
    assert torch.equal(model(idx), random_model(config)(idx))
    again = random_model(config, seed=5).to(torch.bfloat16)
    load_into(again, source)
    assert torch.equal(again.state_dict()["head.weight"], model.to(torch.bfloat16).state_dict()["head.weight"])


MEASURE = """
import sys
from pathlib import Path
import torch
from glassgpt.weights.resolve import open_folder
from glassgpt.weights.loading import load_source

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

folder, warm, dtype = sys.argv[1:]
load_source(open_folder(Path(warm)), dtype=getattr(torch, dtype))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
model, _ = load_source(open_folder(Path(folder)), dtype=getattr(torch, dtype))
held = sum(p.numel() * p.element_size() for p in model.parameters())
print((kilobytes("VmHWM") - before) * 1024 / held)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's accounts of memory")
@pytest.mark.parametrize("layout", ["one file", "shards", "bin"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_peak_memory_is_that_of_the_weights(layout: str, stored: str, wanted: str, tmp_path: Path) -> None:
    """200 MB of weights in float32, half of them in one embedding."""
    config = ModelConfig(vocab_size=49152, block_size=64, n_layer=8, n_head=8, n_embd=512)
    config = dataclasses.replace(config, **presets.MODERN | {"tie_embeddings": True}, intermediate_size=1536)
    folder = saved(
        tmp_path / "m", config, dtype=getattr(torch, stored),
        max_shard_bytes=60_000_000 if layout == "shards" else 10**9,
    )  # fmt: skip
    if layout == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        (folder / CHECKSUMS).unlink()
    warm = saved(tmp_path / "warm", MODERN)
    command = [sys.executable, "-c", MEASURE, str(folder), str(warm), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ratio = float(done.stdout)
    assert ratio >= 0.95, "measured wrongly"
    if layout == "bin":  # torch maps the whole shard
        sizes = {"float32": 4, "bfloat16": 2}
        assert ratio < 1.2 + sizes[stored] / sizes[wanted]
    else:
        assert ratio < 1.2
