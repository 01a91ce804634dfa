"""`why`: the parts sum to the logit, and each is the change when its write is taken out of the residual stream."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError
from glassgpt.glass.inside import why
from glassgpt.glass.inside.attribution import find_token
from glassgpt.model import GPT
from glassgpt.recording import record
from glassgpt.tokenizer import BPETokenizer, WordTokenizer
from published_models import FAMILIES, TOKENIZER, make

PROMPT = "Who adds what?"


def biased() -> GPT:
    """RMSNorm and every bias, untied, no learned positions: what no family has."""
    model = GPT(
        ModelConfig(
            vocab_size=TOKENIZER.vocab_size, block_size=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=32,
            position="rope", norm="rmsnorm", norm_bias=False, mlp="swiglu", tie_embeddings=False,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.fixture(params=[*FAMILIES, "biased"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> GPT:
    return biased() if request.param == "biased" else make(request.param, tmp_path)[1]


def test_the_parts_sum_to_the_logit(model: GPT) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([TOKENIZER.encode(PROMPT)]))[0]
    for position in (0, 5, -1):
        ranked = logits[position].argsort(descending=True).tolist()
        found = why(model, TOKENIZER, PROMPT, position=position)
        assert (found.token, found.rank) == (ranked[0], 1)
        assert found.value == logits[position, ranked[0]]
        assert found.explained and found.relative_remainder < 2e-6
        token, other = (f"id:{i}" for i in (ranked[7], ranked[30]))
        found = why(model, TOKENIZER, PROMPT, token, other, position)
        assert found.rank == 8
        assert found.value == pytest.approx(float(logits[position, ranked[7]] - logits[position, ranked[30]]), abs=1e-5)
        assert found.relative_remainder < 2e-6
        assert sum(found.totals().values()) == pytest.approx(found.value, abs=1e-4)
        assert found.parts()[0].value == max((part.value for part in found.parts()), key=abs)
    config = model.config
    biases = config.n_layer * (config.attention_out_bias + config.mlp_bias) + (config.norm == "layernorm")
    embeddings = 1 + (config.position == "learned")
    assert len(found.parts()) == config.n_layer * (config.n_head + 1) + biases + embeddings


@torch.no_grad()
def test_each_part_is_the_change_when_its_write_is_removed_and_the_norm_held(model: GPT) -> None:
    """With the modules of the model in float64, the write of each part is made again, alone."""
    place, token = 5, 3
    found = why(model, TOKENIZER, PROMPT, f"id:{token}", position=place)
    recorded = record(model, torch.tensor([TOKENIZER.encode(PROMPT)]), attention="fused")
    config, H, D = model.config, model.config.n_head, model.config.head_dim
    stream = recorded.get("residual after mlp", config.n_layer - 1)[0, place].double()
    deep = model.double()
    norm = deep.final_norm
    centred = config.norm == "layernorm"
    scale = ((stream.var(correction=0) if centred else stream.square().mean()) + norm.eps).rsqrt()

    def logit(x: Tensor) -> float:
        normed = (x - x.mean() if centred else x) * scale * norm.weight
        return float(deep.head.weight[token] @ normed)

    for layer, block in enumerate(deep.blocks):
        nothing = torch.zeros(H * D, dtype=torch.float64)
        for head in range(H):
            part = nothing.clone()
            part[head * D : (head + 1) * D] = recorded.get("head outputs", layer)[0, head, place]
            write = block.attention.out(part) - block.attention.out(nothing)
            assert found.heads[layer, head] == pytest.approx(logit(stream) - logit(stream - write), abs=1e-6)
        if found.attention_biases is not None:
            write = block.attention.out(nothing)
            assert found.attention_biases[layer] == pytest.approx(logit(stream) - logit(stream - write), abs=1e-6)
        hidden = recorded.get("hidden", layer)[0, place].double()
        bias = block.mlp.down(torch.zeros_like(hidden))
        write = block.mlp.down(hidden) - bias
        assert found.mlps[layer] == pytest.approx(logit(stream) - logit(stream - write), abs=1e-5)
        if found.mlp_biases is not None:
            assert found.mlp_biases[layer] == pytest.approx(logit(stream) - logit(stream - bias), abs=1e-6)
    idx = TOKENIZER.encode(PROMPT)[place]
    assert found.token_embedding == pytest.approx(logit(deep.token_embedding.weight[idx]), abs=1e-6)
    if found.position_embedding is not None:
        assert found.position_embedding == pytest.approx(logit(deep.position_embedding.weight[place]), abs=1e-6)
    if found.final_norm_bias is not None:
        assert found.final_norm_bias == pytest.approx(float(deep.head.weight[token] @ norm.bias), abs=1e-6)


def test_a_write_that_no_part_accounts_for_is_noticed(tmp_path: Path) -> None:
    model = make("Llama", tmp_path)[1]
    model.blocks[1].register_forward_hook(lambda _, inputs, output: output + 0.01)
    assert not why(model, TOKENIZER, PROMPT).explained


def test_a_logit_near_zero_is_explained_by_large_parts_that_cancel(tmp_path: Path) -> None:
    model = make("GPT2", tmp_path)[1]
    with torch.no_grad():
        logits = model(torch.tensor([TOKENIZER.encode(PROMPT)]))[0, -1]
        closest = int(logits.abs().argmin())
        model.final_norm.bias -= (
            logits[closest] * model.head.weight[closest] / model.head.weight[closest].square().sum()
        )
    found = why(model, TOKENIZER, PROMPT, f"id:{closest}")
    assert abs(found.value) < 1e-5
    assert found.explained


def test_a_text_that_is_not_one_token_is_refused_with_its_tokens(prose: str) -> None:
    tokenizer = BPETokenizer.train(prose, 400)
    spaced = next(i for i in range(257, 400) if tokenizer.token_bytes(i).startswith(b" ") and i < tokenizer.vocab_size)
    text = tokenizer.decode([spaced])
    assert find_token(tokenizer, 400, text, "--token") == spaced
    for i in range(257, 400):  # a word that is one token after a space only
        word = tokenizer.token_bytes(i).decode("utf-8", "replace")
        if word.startswith(" ") and len(tokenizer.encode(word[1:])) > 1 and tokenizer.encode(word) == [i]:
            with pytest.raises(ConfigError) as caught:
                find_token(tokenizer, 400, word[1:], "--token")
            assert f"With a space before it, it is one token: {word!r}" in str(caught.value)
            break
    else:
        raise AssertionError("no such word")
    with pytest.raises(ConfigError, match=r"--instead '' has no token"):
        find_token(tokenizer, 400, "", "--instead")
    with pytest.raises(ConfigError, match=r"is 5,000 tokens \(.* and 4,992 more\)|tokens \("):
        find_token(tokenizer, 400, "\0" * 5000, "--token")
    assert find_token(tokenizer, 400, "<|endoftext|>", "--token") == tokenizer.eos_token_id
    assert find_token(tokenizer, 400, "id:7", "--token") == 7
    for wrong in ("id:400", "id:-1", "id:x", "id:" + "9" * 5000, "id:²"):
        with pytest.raises(ConfigError, match="the model's tokens are id:0 to id:399"):
            find_token(tokenizer, 400, wrong, "--token")


def test_an_unknown_word_is_not_a_token() -> None:
    tokenizer = WordTokenizer.train("one two three", vocab_size=5)
    with pytest.raises(ConfigError, match=r"'four' is not one of the model's tokens \('<\|unk\|>' id:"):
        find_token(tokenizer, tokenizer.vocab_size, "four", "--token")
    assert find_token(tokenizer, tokenizer.vocab_size, "<|unk|>", "--token") == tokenizer.unk_token_id


def test_the_same_token_twice_and_a_position_that_is_not_there_are_errors(tmp_path: Path) -> None:
    model = make("Llama", tmp_path)[1]
    with pytest.raises(ConfigError, match="--instead is the same token as --token: 'a'"):
        why(model, TOKENIZER, PROMPT, "a", "a")
    for position in (len(PROMPT), -len(PROMPT) - 1):
        with pytest.raises(ConfigError, match=f"--position {position}: the prompt has the positions 0 to 13"):
            why(model, TOKENIZER, PROMPT, position=position)
    assert np.isfinite(why(model, TOKENIZER, "").value)
