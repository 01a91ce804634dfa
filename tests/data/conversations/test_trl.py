"""Against TRL: the rows, the masks, the number of packs, and the loss and gradients of a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import load_model
from glassgpt.data.batch import IGNORE_INDEX
from glassgpt.data.conversations.batches import ChatBatches
from glassgpt.data.conversations.encoding import Row, encode_rows
from glassgpt.data.conversations.packing import pack
from glassgpt.data.conversations.rows import Conversation
from glassgpt.tokenizer import BPETokenizer, save
from glassgpt.tokenizer.chat import CHATML
from glassgpt.training.objective import answer_loss

pytestmark = pytest.mark.slow

T = 128
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "said", "that", "it", "was", "not", "who", "ate"]
TALKS = [
    [
        {"role": ("user", "assistant")[i % 2], "content": " ".join(WORDS[(3 * n + i) % 9 :][: 2 + (5 * n + 3 * i) % 6])}
        for i in range(2 + 2 * (n % 3))
    ]
    for n in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights and a tokenizer that has ChatML."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    tokenizer = BPETokenizer.train(" ".join(WORDS) * 9, 290, special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=T, initializer_range=0.3,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    save(tokenizer, path, T)
    (path / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return path


def trainer_of(folder: Path, out: Path, packing: bool) -> Any:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|endoftext|>"
    return trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa"),
        args=trl.SFTConfig(
            output_dir=str(out), assistant_only_loss=True, packing=packing, padding_free=packing, max_length=T,
            per_device_train_batch_size=len(TALKS), report_to=[], use_cpu=True, bf16=False, loss_type="nll",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"messages": talk} for talk in TALKS]),
        processing_class=tokenizer,
    )  # fmt: skip


def our_rows(folder: Path) -> tuple[Any, list[Row]]:
    model, tokenizer = load_model(folder)
    talks = [Conversation(line, tuple(talk)) for line, talk in enumerate(TALKS, 1)]
    encoded = encode_rows(talks, tokenizer, CHATML, T + 1)
    assert not encoded.problems
    return model, encoded.rows


@pytest.mark.parametrize("packing", [False, True])
def test_rows_loss_and_gradients_are_those_of_trl(packing: bool, folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, packing)
    model, rows = our_rows(folder)
    if not packing:
        for row, theirs in zip(rows, trainer.train_dataset, strict=True):
            assert row.ids.tolist() == list(theirs["input_ids"])
            assert np.where(row.trained, row.ids, IGNORE_INDEX).tolist() == list(theirs["labels"])
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, dict(batch))
    expected.backward()
    batches = ChatBatches(rows, T, len(rows), seed=0, packing=packing)
    ours = batches.get(0, slice(0, batches.num_rows))
    loss = answer_loss(model, ours) / ours.num_loss_tokens()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for ours_, theirs in (
        (model.token_embedding, trainer.model.model.embed_tokens),
        (model.head, trainer.model.lm_head),
    ):
        torch.testing.assert_close(ours_.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-6)


def test_as_many_packs_as_trl(folder: Path) -> None:
    trl_data = pytest.importorskip("trl.data_utils")
    from datasets import Dataset

    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, T + 1, size=200).tolist()
        theirs = trl_data.pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), T, "bfd")
        assert len(pack(lengths, T)) == len(theirs)
