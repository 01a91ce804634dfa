"""The logit lens: equal to `transformers` with `output_hidden_states`, and its last row is the model's output."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.inside import lens
from published_models import FAMILIES, TOKENIZER, make

PROMPT = "The lens reads what each layer knows."


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_predicts_what_the_hidden_states_of_transformers_give(family: str, tmp_path: Path) -> None:
    theirs, model = make(family, tmp_path)
    found = lens(model, TOKENIZER, PROMPT)
    inner = theirs.transformer if family == "GPT2" else theirs.model
    norm = inner.ln_f if family == "GPT2" else inner.norm
    with torch.no_grad():
        states = theirs(torch.tensor([found.prompt.ids]), output_hidden_states=True).hidden_states
        normed = [norm(state) for state in states[:-1]] + [states[-1]]  # the last one is after the final norm
        logits = torch.cat([theirs.lm_head(state) for state in normed]).numpy()  # [L + 1, T, V]
    assert found.tokens.shape == logits.shape[:2] == (model.config.n_layer + 1, len(PROMPT))
    places = np.ogrid[: logits.shape[0], : logits.shape[1]]
    expected = torch.from_numpy(logits).softmax(-1).numpy()
    np.testing.assert_allclose(found.probability, expected.max(-1), atol=1e-5)
    np.testing.assert_allclose(expected[*places, found.tokens], expected.max(-1), atol=1e-5)
    said = logits[*places, found.tokens[-1]][..., None]  # the logit of the final prediction, in each layer
    assert ((logits > said + 1e-4).sum(-1) + 1 <= found.rank).all()
    assert (found.rank <= (logits > said - 1e-4).sum(-1)).all()
    assert len(np.unique(found.rank)) > 10
    assert found.texts[-1] == [TOKENIZER.decode([i]) for i in found.tokens[-1].tolist()]


def test_the_last_row_is_exactly_what_the_model_predicts(tmp_path: Path) -> None:
    model = make("Qwen3", tmp_path)[1].train()
    for text in (PROMPT, "T", ""):
        found = lens(model, TOKENIZER, text)
        with torch.no_grad():
            best = model(found.prompt.idx(model))[0].softmax(-1).max(-1)
        assert np.array_equal(found.probability[-1], best.values.numpy())
        assert np.array_equal(found.tokens[-1], best.indices.numpy())
        assert (found.rank[-1] == 1).all()


def test_a_prompt_that_does_not_fit_and_damaged_weights_are_errors(tmp_path: Path) -> None:
    model = make("Llama", tmp_path)[1]
    with pytest.raises(ConfigError, match="the prompt has 65 tokens; the model reads 64"):
        lens(model, TOKENIZER, "x" * 65)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight.fill_(torch.nan)
    with pytest.raises(GenerationError, match="after block 1 are not all finite"):
        lens(model, TOKENIZER, PROMPT)
