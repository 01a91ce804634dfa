"""Every text bug of the gallery is found under its class; correct programs, files and foreign tokenizers are silent."""

import base64
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from glassgpt.doctor.gallery.bug import Bug
from glassgpt.doctor.gallery.text_bugs import TEXT_BUGS, TEXT_PROGRAMS, examine_text
from glassgpt.doctor.report import Outcome, run_checks
from glassgpt.doctor.texts.conversation_checks import CONVERSATION_CHECKS
from glassgpt.doctor.texts.conversation_subject import conversations_of, load_conversations
from glassgpt.doctor.texts.corpus_checks import CORPUS_CHECKS
from glassgpt.doctor.texts.corpus_subject import corpus_of, load_corpus
from glassgpt.doctor.texts.foreign_tokenizer import adapt_tokenizer
from glassgpt.doctor.texts.tokenizer_checks import TOKENIZER_CHECKS
from glassgpt.doctor.texts.tokenizer_loading import load_tokenizer_subject
from glassgpt.errors import ConfigError, TokenizerError
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer, save

TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps. Where the fox is, there is no dog near it. " * 9


def found(outcomes: Iterable[Outcome], status: str = "FAIL") -> list[str | None]:
    """The findings of the results with a status."""
    return [outcome.result.finding for outcome in outcomes if outcome.result.status == status]


def assert_silent(outcomes: Iterable[Outcome]) -> None:
    """Nothing fails, nothing is warned of, and no check broke."""
    for outcome in outcomes:
        assert outcome.result.status in ("PASS", "NOT RUN"), (outcome.check.name, outcome.result)
        assert "the check ended with" not in outcome.result.message, (outcome.check.name, outcome.result)


def examine(made: Any) -> list[Outcome]:
    """Run the checks on a tokenizer."""
    return list(run_checks(TOKENIZER_CHECKS, adapt_tokenizer(made, "it")))


@pytest.mark.parametrize("program", TEXT_PROGRAMS)
def test_correct_programs_are_silent(program: str) -> None:
    assert_silent(examine_text(program))


@pytest.mark.parametrize(
    ("bug", "program"), [pytest.param(b, p, id=f"{b.name}-{p}") for b in TEXT_BUGS for p in b.changes]
)
def test_every_bug_is_found_under_its_class(bug: Bug, program: str) -> None:
    assert bug.finding in found(examine_text(program, bug))


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train(TEXT, 320)


def test_tokenizers_of_the_house_are_silent(bpe: BPETokenizer) -> None:
    for tokenizer in (
        bpe,
        CharTokenizer.train(TEXT),
        WordTokenizer.train(TEXT),
        WordTokenizer.train(TEXT, vocab_size=20),
    ):
        assert_silent(examine(tokenizer))


class WithWords:
    """A word tokenizer as books write it: no spaces, joined with spaces, an unknown token or an error."""

    def __init__(self, unknown: bool, join: str = " ", change: Callable[[str], str] = str):
        words = sorted(set(re.findall(r"\w+|[^\w\s]", TEXT)))
        self.str_to_int = {word: i for i, word in enumerate([*words, *(["<|unk|>"] if unknown else [])])}
        self.int_to_str = {i: word for word, i in self.str_to_int.items()}
        self.unknown, self.join, self.change = unknown, join, change

    def encode(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", self.change(text))
        if self.unknown:
            words = [word if word in self.str_to_int else "<|unk|>" for word in words]
        return [self.str_to_int[word] for word in words]

    def decode(self, ids: list[int]) -> str:
        return re.sub(r"\s+([,.;?!])", r"\1", self.join.join(self.int_to_str[i] for i in ids))


def test_word_tokenizers_that_lose_what_they_must_are_silent_and_others_are_not() -> None:
    assert_silent(examine(WithWords(unknown=True)))
    assert_silent(examine(WithWords(unknown=False)))
    assert "tokenizer" in found(examine(WithWords(unknown=True, join="")))
    upper = WithWords(unknown=True, change=str.upper)
    assert "tokenizer" in found(examine(upper)), "its own words become unknown"


def test_characters_of_a_lookup_table_in_any_packaging() -> None:
    chars = sorted(set(TEXT))
    stoi = {c: i for i, c in enumerate(chars)}

    def encode(text: str) -> list[int]:
        return [stoi[c] for c in text]

    def decode(ids: list[int]) -> str:
        return "".join(chars[i] for i in ids)

    for made in ((encode, decode), {"encode": encode, "decode": decode, "stoi": stoi, "vocab_size": len(chars)}):
        assert_silent(examine(made))
    assert "tokenizer" in found(examine((encode, lambda ids: "".join(chars[i] for i in ids if i))))
    assert "tokenizer" in found(examine({"encode": encode, "decode": decode, "vocab_size": len(chars) - 1}))
    with pytest.raises(ConfigError, match="no functions encode and decode"):
        adapt_tokenizer(object(), "it")


def test_objects_of_libraries_are_silent(bpe: BPETokenizer) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    content = json.loads(bpe.files()["tokenizer.json"])
    assert_silent(examine(tokenizers.Tokenizer.from_str(json.dumps(content))))
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding(
        "test", pat_str=bpe.model.patterns[0], mergeable_ranks=dict(bpe.model.vocab), special_tokens=bpe.special_ids()
    )
    assert_silent(examine(encoding))

    class AllowsAll:
        def encode(self, text: str) -> list[int]:
            return list(encoding.encode(text, allowed_special="all"))

        def decode(self, ids: list[int]) -> str:
            return str(encoding.decode(ids))

    assert "tokenizer" in found(examine(AllowsAll()))


def _shuffled(content: dict[str, Any]) -> None:
    content["model"]["merges"].reverse()


def _same_id(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["a"] = content["model"]["vocab"]["b"]


def _hole(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["id"] = 900


def _missing_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["Ã"]


def _spaces_lost(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, content["pre_tokenizer"]],
    }


def _no_decoder(content: dict[str, Any]) -> None:
    content["decoder"] = None


def _not_special(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["special"] = False


def _dropout(content: dict[str, Any]) -> None:
    content["model"]["dropout"] = 0.1


DAMAGES = (_shuffled, _same_id, _hole, _missing_byte, _spaces_lost, _no_decoder, _not_special, _dropout)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_tokenizer_files_fail(bpe: BPETokenizer, tmp_path: Path, damage: Callable[[Any], None]) -> None:
    content = json.loads(bpe.files()["tokenizer.json"])
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    assert_silent(run_checks(TOKENIZER_CHECKS, load_tokenizer_subject(str(file))))
    damage(content)
    file.write_text(json.dumps(content))
    assert "tokenizer" in found(run_checks(TOKENIZER_CHECKS, load_tokenizer_subject(str(file))))


def test_a_tokenizer_must_fit_the_model_beside_it(bpe: BPETokenizer, tmp_path: Path) -> None:
    save(bpe, tmp_path, 64)
    for size, right in ((400, True), (320, True), (300, False)):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}))
        outcomes = list(run_checks(TOKENIZER_CHECKS, load_tokenizer_subject(str(tmp_path))))
        assert ("tokenizer" in found(outcomes)) is not right


def test_ranks_without_all_bytes_fail_and_missing_files_are_the_users_mistake(tmp_path: Path) -> None:
    file = tmp_path / "gpt2.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(bytes([b])) + f" {b}\n".encode() for b in range(200)))
    assert "tokenizer" in found(run_checks(TOKENIZER_CHECKS, load_tokenizer_subject(str(file))))
    with pytest.raises(TokenizerError):
        load_tokenizer_subject(str(tmp_path / "none.json"))


class Bytes:
    """Bytes, and control tokens behind them."""

    special_tokens: ClassVar = {"<s>": 256, "</s>": 257, "<|user|>": 258, "<|assistant|>": 259}
    bos_token_id, eos_token_id, vocab_size = 256, 257, 260

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        names = {i: name.encode() for name, i in self.special_tokens.items()}
        return b"".join(names[i] if i in names else bytes([i]) for i in ids).decode("utf-8", "replace")


CHAT = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine — thanks 👍🏽."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
]


def _conversations(**changes: Any) -> list[Outcome]:
    """One chat with control tokens; all answers are trained, and ``changes`` replace parts of the object."""
    tokenizer, ids, labels = Bytes(), [256], [-100]
    for message in CHAT:
        start = tokenizer.special_tokens[f"<|{message['role']}|>"]
        content = [*tokenizer.encode(str(message["content"])), 257]
        ids += [start, *content]
        labels += [-100, *(content if message["role"] == "assistant" else [-100] * len(content))]

    def render(messages: list[dict[str, str]]) -> str:
        return "".join(f"<|{m['role']}|>{m['content']}</s>" for m in messages) + "<|assistant|>"

    made = {"tokenizer": tokenizer, "rows": [(ids, labels)], "messages": [CHAT], "render": render, **changes}
    return list(run_checks(CONVERSATION_CHECKS, conversations_of(made, "it")))


def test_unusual_rows_are_silent() -> None:
    assert_silent(_conversations())
    [(ids, labels)] = conversations_rows = [_row()]
    assert_silent(_conversations(rows=[(ids[:-1], labels[1:])]))  # shifted by hand
    last = [-100] * (len(labels) - 9) + labels[-9:]  # only the last answer
    assert_silent(_conversations(rows=[(ids, last)]))
    assert_silent(_conversations(rows=[{"input_ids": [0, 0, *ids], "labels": [-100, -100, *labels],
                                        "attention_mask": [0, 0, *[1] * len(ids)]}]))  # fmt: skip
    assert_silent(_conversations(rows=conversations_rows, render=None, messages=None))
    assert_silent(_conversations(rows=[(ids, list(ids))], trains_on_prompts=True))


def _row() -> tuple[list[int], list[int]]:
    tokenizer, ids, labels = Bytes(), [256], [-100]
    for message in CHAT:
        content = [*tokenizer.encode(str(message["content"])), 257]
        ids += [tokenizer.special_tokens[f"<|{message['role']}|>"], *content]
        labels += [-100, *(content if message["role"] == "assistant" else [-100] * len(content))]
    return ids, labels


def _text(messages: list[dict[str, str]]) -> str:
    return "".join(f"<|{m['role']}|>{m['content']}</s>" for m in messages)


def _ids(messages: list[dict[str, str]]) -> list[int]:
    special = Bytes.special_tokens
    return [i for m in messages for i in (special[f"<|{m['role']}|>"], *m["content"].encode(), 257)]


def test_a_render_of_the_messages_alone_needs_no_header_of_the_answer() -> None:
    assert_silent(_conversations(render=_text))
    assert_silent(_conversations(render=_ids))
    assert_silent(_conversations(render=lambda m, header=True: _text(m) + "<|assistant|>" * header))
    assert_silent(_conversations(render=lambda m, add_generation_prompt=False: _text(m) + "<|assistant|>"
                                 * add_generation_prompt))  # fmt: skip
    assert "template" in found(_conversations(render=None, render_prompt=_text)), "it says that it gives the prompt"
    assert "template" in found(_conversations(render=lambda m, add_generation_prompt=False: _text(m)))
    assert "template" in found(_conversations(render=lambda m: _text(m).replace("|>", "|> "))), "a space more"
    assert "template" in found(_conversations(render=lambda m: [i for i in _ids(m) if i != 257])), "no end of turns"
    ids, labels = _row()
    assert "template" in found(_conversations(rows=[(ids[1:], labels[1:])], render=lambda m: "<s>" + _text(m)))


def test_messages_come_back_from_their_ids() -> None:
    class Lower(Bytes):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.lower())

    class Begins(Bytes):
        def encode(self, text: str) -> list[int]:
            return [256, *super().encode(text)]

    assert "tokenizer" in found(_conversations(tokenizer=Lower()))
    ids, labels = [256], [-100]
    for message in CHAT:
        content = [*Begins().encode(str(message["content"])), 257]
        ids += [258 + (message["role"] == "assistant"), *content]
        labels += [-100, *(content if message["role"] == "assistant" else [-100] * len(content))]
    assert "tokenizer" in found(_conversations(tokenizer=Begins(), rows=[(ids, labels)]))
    chat = [{"role": "user", "content": "Write </s> please."}, {"role": "assistant", "content": "No."}]
    ids = [256, 258, *b"Write ", 257, *b" please.", 257, 259, *b"No.", 257]
    row = (ids, [-100] * (len(ids) - 4) + ids[-4:])
    assert "tokenizer" in found(_conversations(messages=[chat], rows=[row]))


def test_labels_that_a_model_of_hugging_face_would_shift_again_fail() -> None:
    ids, labels = _row()
    shifted = [*labels[1:], -100]
    assert "targets" in found(_conversations(rows=[{"input_ids": ids, "labels": shifted}]))
    assert_silent(_conversations(rows=[{"input_ids": ids[:-1], "labels": labels[1:]}]))
    assert_silent(_conversations(rows=[{"input_ids": ids, "targets": shifted}]))


def test_rows_with_one_fault_fail_under_its_class() -> None:
    ids, labels = _row()
    assert "mask" in found(_conversations(rows=[(ids, list(ids))])), "prompts are trained"
    assert "mask" in found(_conversations(rows=[(ids, list(ids))], messages=None, render=None)), "seen by the marks"
    assert "mask" in found(_conversations(rows=[(ids, [-100] * len(ids))])), "nothing is trained"
    assert "mask" in found(_conversations(rows=[(ids, [*labels[:-1], -100])])), "the end is not trained"
    assert "mask" in found(_conversations(rows=[(ids[:-1], labels[:-1])])), "there is no end"
    assert "template" in found(_conversations(rows=[([256, *ids], [-100, *labels])])), "two begin tokens"
    assert "template" in found(_conversations(render=lambda m: "<|user|>" + m[-1]["content"])), "another template"
    assert "max length" in found(_conversations(context=20))
    assert "targets" in found(_conversations(rows=[(ids, [*labels[2:], -100, -100])]))
    assert "tokenizer" in found(_conversations(rows=[([*ids, 999], [*labels, -100])]))


def test_a_file_of_conversations_is_examined_with_its_base_model(tmp_path: Path, bpe: BPETokenizer) -> None:
    import torch

    from glassgpt.config import ModelConfig
    from glassgpt.model import GPT
    from glassgpt.weights.folder import save_model

    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=96, vocab_size=bpe.vocab_size))
    torch.manual_seed(0)
    model.init_weights(0)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model, bpe)
    rows = [{"messages": CHAT}] * 12
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_silent(run_checks(CONVERSATION_CHECKS, load_conversations(str(file), str(tmp_path / "model"))))
    swapped = [{"role": {"user": "assistant", "assistant": "user"}[m["role"]], "content": m["content"]} for m in CHAT]
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in (CHAT, swapped, swapped)))
    assert "template" in found(run_checks(CONVERSATION_CHECKS, load_conversations(str(file), str(tmp_path / "model"))))
    with pytest.raises(ConfigError, match="which model"):
        load_conversations(str(file))


def test_leaks_are_found_in_texts_in_ids_and_in_files(tmp_path: Path) -> None:
    words = " ".join(f"word{i * 7919 % 99991}" for i in range(6000))
    cut = len(words) * 9 // 10
    assert_silent(run_checks(CORPUS_CHECKS, corpus_of((words[:cut], words[cut:]), "text")))
    assert "data leak" in found(run_checks(CORPUS_CHECKS, corpus_of((words, words[cut:]), "text")))
    ids = [i * 7919 % 251 * (i // 97 + 1) % 251 for i in range(4000)]
    assert_silent(run_checks(CORPUS_CHECKS, corpus_of((ids[:3000], ids[3000:]), "ids")))
    assert "data leak" in found(run_checks(CORPUS_CHECKS, corpus_of((ids, ids[3000:]), "ids")))
    file = tmp_path / "text.txt"
    file.write_text(words)
    assert_silent(run_checks(CORPUS_CHECKS, load_corpus(str(file))))
    file.write_text(words[:cut] + words[: len(words) - cut])
    assert "data leak" in found(run_checks(CORPUS_CHECKS, load_corpus(str(file))))


def test_ids_of_another_tokenizer_fail() -> None:
    made = {"train": [1, 2, 300] * 50, "val": [1, 2] * 30, "tokenizer": Bytes()}
    assert "tokenizer" in found(run_checks(CORPUS_CHECKS, corpus_of(made, "ids")))
    with pytest.raises(ConfigError, match="no train and val"):
        corpus_of({"train": "a"}, "it")


def test_begin_and_end_tokens_around_every_text_are_no_loss() -> None:
    class Framed(Bytes):
        def encode(self, text: str, bos: bool, eos: bool) -> list[int]:  # type: ignore[override]
            return [256] * bos + super().encode(text) + [257] * eos

    class Always(Bytes):
        def encode(self, text: str) -> list[int]:
            return [256, *super().encode(text), 257]

    assert_silent(examine(Framed()))
    assert_silent(examine(Always()))
