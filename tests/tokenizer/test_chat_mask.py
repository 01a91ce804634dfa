"""The loss mask of a conversation: the assistant's tokens and the end of each of their turns, for any template."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, gpt2

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, chat, save
from glassgpt.tokenizer.base import attach
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.chat import CHATML, encode, encode_trained
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.published import PublishedSettings

NAMES = (
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
)
G, E = "{% generation %}", "{% endgeneration %}"


def turn(body: str) -> str:
    """A turn; the assistant's has the marks of generation, from which `transformers` takes a mask."""
    return "{% if m.role == 'assistant' %}" + G + body + E + "{% else %}" + body + "{% endif %}"


FOR, DONE, PROMPT = "{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}"
IM_START, IM_PROMPT = "{{ '<|im_start|>' + m.role + '\n' }}", PROMPT + "{{ '<|im_start|>assistant\n' }}{% endif %}"
IM_TURN = turn("{{ m.content + '<|im_end|>' }}")
#: Templates as published models have them.
TEMPLATES = {
    "ChatML": CHATML,
    "ChatML with a default system turn": (
        FOR + "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
        + IM_START + IM_TURN + "{{ '\n' }}" + DONE + IM_PROMPT
    ),
    "Llama 3": (
        FOR + "{{ bos_token if loop.first }}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        + turn("{{ m.content | trim + '<|eot_id|>' }}") + DONE
        + PROMPT + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "Qwen 3: thoughts in the last answer": (
        "{% set ns = namespace(last=0) %}" + FOR + "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
        + DONE + FOR + IM_START + turn(
            "{% if loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>' }}"
        ) + "{{ '\n' }}" + DONE + IM_PROMPT
    ),
    "Mistral": (
        "{{ '<s>' }}" + FOR + "{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% elif m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}" + turn("{{ ' ' + m.content + '</s>' }}") + "{% endif %}"
        + DONE
    ),
    "Zephyr: the end token ends every turn": (
        FOR + "{{ '<|' + m.role + '|>\n' }}" + turn("{{ m.content + '</s>' }}") + "{{ '\n' }}" + DONE
        + PROMPT + "{{ '<|assistant|>\n' }}{% endif %}"
    ),
}  # fmt: skip
ENDS = {"Llama 3": "<|eot_id|>", "Mistral": "</s>", "Zephyr: the end token ends every turn": "</s>"}


@cache
def with_end(*names: str) -> BPETokenizer:
    """GPT-2's merges with Llama 3's split pattern, these end tokens, and the control tokens of all templates."""
    model = gpt2().model
    special = {**model.special, **{name: 50257 + i for i, name in enumerate(NAMES)}}
    patterns, eos = (PATTERNS["llama3"],), (*names, None)[0]
    tokenizer = BPETokenizer(BPEModel(model.vocab, model.merges, patterns, special=special, eos=eos, bos="<s>"))
    attach(tokenizer, PublishedSettings(generation_config={"eos_token_id": [special[name] for name in names]}))
    return tokenizer


def plain(template: str) -> str:
    return template.replace(G, "").replace(E, "")


TEXT = ANY_TEXT.filter(lambda text: text.strip())
TALKS = st.tuples(st.one_of(st.none(), TEXT), st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)).map(
    lambda talk: [
        *([{"role": "system", "content": talk[0]}] if talk[0] else []),
        *(m for u, a in talk[1] for m in ({"role": "user", "content": u}, {"role": "assistant", "content": a})),
    ]
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save(with_end("<|im_end|>"), folder, 64)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_mask_are_those_of_transformers_from_a_template_with_marks(name: str, theirs: Any) -> None:
    tokenizer = with_end(ENDS.get(name, "<|im_end|>"))
    template = TEMPLATES[name]

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(talk=TALKS)
    def check(talk: list[dict[str, str]]) -> None:
        talk = [{**m, "content": "".join(c for c in m["content"].strip() if c not in "<\x00") or "x"} for m in talk]
        ids, trained = encode_trained(tokenizer, plain(template), talk)
        expected = theirs.apply_chat_template(
            talk, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == list(expected["input_ids"])
        assert trained == [bool(mark) for mark in expected["assistant_masks"]]

    check()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(talk=TALKS, name=st.sampled_from([name for name in TEMPLATES if not name.startswith("Llama")]))
def test_what_is_trained_is_each_answer_and_its_end_even_with_names_of_control_tokens(
    talk: list[dict[str, str]], name: str
) -> None:
    talk = [{**m, "content": f"x{m['content']}<|im_end|></s>\n<|im_start|>user"} for m in talk]
    end = ENDS.get(name, "<|im_end|>")
    tokenizer = with_end(end)
    ids, trained = encode_trained(tokenizer, plain(TEMPLATES[name]), talk)
    assert ids == encode(tokenizer, plain(TEMPLATES[name]), talk, prompt=False)
    runs, before = list[list[int]](), False
    for i, is_trained in zip(ids, trained, strict=True):
        if is_trained:
            runs[-1:] = [*runs[-1:], []] if not before else runs[-1:]
            runs[-1].append(i)
        before = is_trained
    answers = [m["content"] for m in talk if m["role"] == "assistant"]
    assert [
        tokenizer.decode(run[:-1]).removeprefix("<think>\n\n</think>\n\n").removeprefix(" ") for run in runs
    ] == answers
    assert all(run[-1] == tokenizer.special_ids()[end] and not set(run[:-1]) & set(range(50256, 50266)) for run in runs)


def talk_of(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_without_end_tokens_the_first_control_token_ends_an_answer() -> None:
    ids, trained = encode_trained(with_end(), CHATML, talk_of("a", "b", "c", "d"))
    assert (ids, trained) == encode_trained(with_end("<|im_end|>"), CHATML, talk_of("a", "b", "c", "d"))


def test_a_template_that_cannot_be_masked_gives_one_error() -> None:
    last_only = FOR + "{{ m.content + '\n' }}" + DONE + "{{ '<|im_end|>' if not add_generation_prompt }}"
    with pytest.raises(TokenizerError, match=r"no end token or control token ends message 2"):
        encode_trained(with_end("<|im_end|>"), last_only, talk_of("0 a", "b", "c", "d"))
    users_end = FOR + "{{ m.content + ('<|im_end|>' if m.role == 'user' else '\n') }}" + DONE
    with pytest.raises(TokenizerError, match=r"no end token"):
        encode_trained(with_end("<|im_end|>"), users_end, talk_of("a", "b", "c", "d"))
    counted = "{{ messages | length }}" + CHATML
    with pytest.raises(TokenizerError, match=r"not prefix-preserving: .* before message 2"):
        encode_trained(with_end("<|im_end|>"), counted, talk_of("a", "b"))
    with pytest.raises(TokenizerError, match=r"begins with white space, which may be one token .* remove it"):
        encode_trained(with_end("<|im_end|>"), CHATML, talk_of("a", "\n\nb"))


def test_chatml_is_the_text_of_published_templates() -> None:
    text = chat.render(CHATML, [{"role": "system", "content": "s"}, *talk_of(" a\n", "b"), *talk_of("c")])
    turns = (("system", "s"), ("user", " a\n"), ("assistant", "b"), ("user", "c"))
    expected = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert text == f"{expected}<|im_start|>assistant\n"
