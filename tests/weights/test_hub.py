"""The hub by name, against a local server with its protocol; without a network."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import COMMIT, Hub, serving

from glassgpt.errors import CheckpointError, MissingExtraError
from glassgpt.weights import hub

WEIGHTS = bytes(range(256)) * 400
SINGLE = {
    "config.json": b"{}",
    "generation_config.json": b'{"a": 1}',
    "tokenizer.json": b'{"b": 1}',
    "tokenizer.model": b"spm",
    "tokenizer_config.json": b'{"c": 1}',
    "special_tokens_map.json": b'{"d": 1}',
    "added_tokens.json": b'{"e": 1}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "tf_model.h5": b"h5",
    "README.md": b"# Hello",
    "onnx/model.onnx": b"onnx",
}
SHARDS = {f"model-0000{i}-of-00003.safetensors": WEIGHTS[i * 256 :] for i in (1, 2, 3)}
INDEX = json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(SHARDS)}}).encode()
REPOS = {
    "org/single": SINGLE,
    "org/sharded": {"config.json": b"{}", "model.safetensors.index.json": INDEX, **SHARDS, "model.bin": b"other"},
    "org/old": {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": WEIGHTS},
    "org/gguf-only": {"model.Q4_1.gguf": b"GGUF"},
    "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS, "optimizer.pt": b"other"},
    "org/nothing": {"config.json": b"{}", "tf_model.h5": b"h5", "flax_model.msgpack": b"f"},
    "org/gated": SINGLE,
    "org/large": {"config.json": b"{}", "model.safetensors": WEIGHTS * 240},  # several of the library's 10 MB
    "gpt2": SINGLE,
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, as this process's hub, and an empty cache."""
    with serving(Hub(REPOS, gated=("org/gated",))) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("GLASSGPT_OFFLINE", "0")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        importlib.reload(huggingface_hub.constants)
        yield running
    monkeypatch.undo()
    importlib.reload(huggingface_hub.constants)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set one of the two switches."""

    def switch(name: str) -> None:
        monkeypatch.setenv(name, "1")
        importlib.reload(huggingface_hub.constants)

    return switch


def refused(name: str, **more: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(hub.parse(name), **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_fetched(server: Hub) -> None:
    folder = hub.fetch(hub.parse("org/single"))
    needed = set(SINGLE) - {"tokenizer.model", "pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.onnx"}
    assert files_in(folder) == needed and {Path(name).name for name in needed} == set(server.fetched())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    server.requests.clear()
    assert hub.fetch(hub.parse("org/single@v1")) == folder and server.fetched() == []  # the same commit


def test_shards_old_files_and_a_name_without_organisation(server: Hub) -> None:
    folder = hub.fetch(hub.parse("org/sharded"))
    assert files_in(folder) == {"config.json", "model.safetensors.index.json", *SHARDS}
    assert all((folder / name).read_bytes() == content for name, content in SHARDS.items())
    assert files_in(hub.fetch(hub.parse("org/old"))) == set(REPOS["org/old"])
    assert hub.fetch(hub.parse("gpt2")).name == COMMIT


def test_an_adapter_has_no_config_and_is_found_offline_too(server: Hub, offline: Callable[[str], None]) -> None:
    folder = hub.fetch(hub.HubName("org/adapter"))
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    offline("HF_HUB_OFFLINE")
    assert hub.fetch(hub.HubName("org/adapter")) == folder


def test_a_dropped_connection_is_resumed(server: Hub) -> None:
    server.break_after = 15_000_000
    folder = hub.fetch(hub.parse("org/large"))
    assert (folder / "model.safetensors").read_bytes() == REPOS["org/large"]["model.safetensors"]
    first, second = [sent for method, path, sent in server.requests if method == "GET" and path.startswith("/cdn/")]
    assert first is None and second is not None
    assert 10_000_000 < int(second.removeprefix("bytes=").rstrip("-")) <= 15_000_000


def test_complete_files_are_not_fetched_again_after_a_failure(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "cut", 40_000)
    message = refused("org/sharded")
    assert "only in part" in message and "Consistency check failed" in message
    monkeypatch.setattr(server, "cut", None)
    server.requests.clear()
    folder = hub.fetch(hub.parse("org/sharded"))
    assert all((folder / name).read_bytes() == content for name, content in SHARDS.items())
    assert set(server.fetched()) == set(SHARDS)


def test_each_failure_is_one_message(server: Hub) -> None:
    assert "there is no model org/nowhere at http://127" in refused("org/nowhere")
    assert (
        "gated" in (message := refused("org/gated")) and f"{server.url}/org/gated" in message and "--token" in message
    )
    assert hub.fetch(hub.parse("org/gated"), token=server.token).name == COMMIT
    assert "no revision 'v7'" in refused("org/single@v7")
    assert "it has .gguf files" in refused("org/gguf-only")
    assert (
        "no model.safetensors or pytorch_model.bin" in (message := refused("org/nothing")) and "tf_model.h5" in message
    )


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "GLASSGPT_OFFLINE"])
def test_offline_with_and_without_a_cache(server: Hub, offline: Callable[[str], None], switch: str) -> None:
    folder = hub.fetch(hub.parse("org/single"))
    server.requests.clear()
    offline(switch)
    assert hub.fetch(hub.parse("org/single")) == folder
    message = refused("org/sharded")
    assert "not in the cache" in message and f"{switch} is set" in message and f"unset {switch}" in message
    assert server.requests == []


def test_a_hub_that_cannot_be_reached(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.fetch(hub.parse("org/single"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    importlib.reload(huggingface_hub.constants)
    assert hub.fetch(hub.parse("org/single")) == folder
    message = refused("org/old")
    assert "cannot be fetched from http://127.0.0.1:1" in message and "check the connection, and HF_ENDPOINT" in message


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"\[hf\]"):
        hub.fetch(hub.HubName("gpt2"))


def test_which_names_are_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = {
        "gpt2": "gpt2",
        "HuggingFaceTB/SmolLM2-135M": "HuggingFaceTB/SmolLM2-135M",
        "a/b@refs/pr/1": "a/b@refs/pr/1",
    }
    assert {text: str(hub.parse(text)) for text in names} == names
    assert str(hub.parse("a/b@x", revision="y")) == "a/b@y"
    for text in ("my", "runs/my", "runs/my/best", "./a/b", "../a", "a/b.gguf", "a/..", "/a/b", "a b/c", "", "~/x"):
        assert hub.parse(text) is None, text
