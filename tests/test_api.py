"""The public functions: wrong arguments are one message that names all of them."""

from typing import Any

import pytest

import glassgpt
from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer

MODEL, TOKENIZER = (
    GPT(ModelConfig(vocab_size=3, block_size=8, n_layer=1, n_head=1, n_embd=8)),
    CharTokenizer(["a", "b"]),
)
GENERATE: dict[str, Any] = {"max_new_tokens": 2.5, "min_new_tokens": True, "seed": 0.5, "stop": 3, "end_token_ids": 3}
GENERATE |= {"temperature": "0.5", "top_k": None, "top_p": [1], "min_p": "", "repetition_penalty": 10**200}


@pytest.mark.parametrize(
    ("function", "arguments", "settings"),
    [
        (glassgpt.generate, {"model": TOKENIZER, "tokenizer": MODEL, "prompt": b"a"}, GENERATE),
        (glassgpt.load, {"source": None}, {"device": 0, "dtype": 16, "revision": 1, "token": 2, "runs": None}),
        (glassgpt.save, {"model": None, "tokenizer": "gpt2", "folder": 3}, {}),
        (glassgpt.train, {"preset": None}, {"data": 3, "overrides": "steps=3", "name": 4, "runs": 5}),
        (glassgpt.plan, {"preset": 1}, {"data": ["a"], "overrides": 2, "runs": 5}),
        (glassgpt.plan, {}, {"overrides": ["steps=3"]}),
    ],
    ids=["generate", "load", "save", "train", "plan", "a list of settings"],
)
def test_every_argument_of_a_wrong_type_is_named_at_once(
    function: Any, arguments: dict[str, Any], settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        function(*arguments.values(), **settings)
    named = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(named) == sorted(arguments | settings)


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    texts = [
        glassgpt.generate(MODEL, TOKENIZER, "a", max_new_tokens=kind(9), seed=kind(3), temperature=number(0.5))
        for kind, number in ((int, float), (np.int64, np.float32))
    ]
    assert len(texts[0]) == 9 and texts[0] == texts[1]
