"""Of a folder's tokens, chat template and generation settings, `transformers` reads the same, and of what we save."""

import functools
import inspect
import io
import json
import math
import os
import random
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here has a reason to ask

import pytest

from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.inference.stream import encode_prompt
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, chat, load, published, save
from glassgpt.tokenizer.base import adds_bos_token, attach
from glassgpt.weights.folder import save_model
from glassgpt.weights.gguf.export import write_gguf

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CLASSIC = ModelConfig(vocab_size=330, block_size=16, n_layer=1, n_head=2, n_embd=8)
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": MODERN | {"qk_norm": False},
    "mistral": MODERN | {"qk_norm": False, "sliding_window": 8},
    "qwen2": MODERN | {"qk_norm": False, "qkv_bias": True},
    "qwen3": MODERN,
}
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "<|im_end|>"]
SHOW_ROLES = "{% for m in messages %}{{ m.content }}|" + "".join(
    f"{{{{ {role} is defined }}}}{{{{ {role} }}}}"
    for role in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "image_token", "fill_token")
)
SHOW_ROLES += "{% endfor %}"
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA_CLASS = {"tokenizer_class": "LlamaTokenizer"}
BOS_FIRST = {"type": "TemplateProcessing", "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
BOS_FIRST |= {"single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
BOS_FIRST |= {"pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True}
PADDING = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 4, "pad_type_id": 0}

#: By name: the family, and the content of its files; of those that are always there, the changes.
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "the hub's gpt2": ("gpt2", {"tokenizer_config": {"model_max_length": 16}}),
    "no configuration": ("gpt2", {}),
    "other ids in config.json": ("gpt2", {"tokenizer_config": FAST, "config": {"eos_token_id": 50256}}),
    "a list of end tokens": (
        "llama",
        {
            "config": {"eos_token_id": 2},
            "tokenizer_config": FAST
            | {"eos_token": "<|endoftext|>", "bos_token": {"__type": "AddedToken", "content": "<s>"}},
            "generation_config": {"eos_token_id": [0, 253], "temperature": 0.5, "do_sample": True, "max_length": 9},
        },
    ),
    "all in config.json": (
        "llama",
        {
            "config": {"eos_token_id": [0, 253], "pad_token_id": 4, "temperature": 0.5, "do_sample": True, "top_k": 7},
            "tokenizer_config": FAST,
        },
    ),
    "an older folder": (
        "llama",
        {
            "tokenizer_config": FAST | {"eos_token": "<|endoftext|>", "padding_side": "left"},
            "special_tokens_map": {"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": "<pad>"},
        },
    ),
    "a newer folder": (
        "llama",
        {
            "tokenizer_config": FAST | {"eos_token": "</s>", "added_tokens_decoder": {}},
            "special_tokens_map": {"eos_token": "<s>", "pad_token": "<pad>"},
        },
    ),
    "Llama 3 under Llama 2's class": ("llama", {"tokenizer_config": LLAMA_CLASS | {"eos_token": "</s>"}}),
    "mistral": ("mistral", {"tokenizer_config": LLAMA_CLASS | {"eos_token": "</s>"}}),
    "qwen2": ("qwen2", {"tokenizer_config": FAST | {"eos_token": "<|im_end|>"}}),
    "qwen3": ("qwen3", {"tokenizer_config": {"eos_token": "<|im_end|>", "pad_token": None}}),
    "roles of this model alone": (
        "llama",
        {"tokenizer_config": FAST | {"image_token": "<pad>", "extra_special_tokens": {"fill_token": "<unk>"}}},
    ),
    "roles outside the vocabulary": ("llama", {"tokenizer_config": FAST | {"pad_token": "<far>", "eos_token": "<o>"}}),
    "a token of the vocabulary alone": (
        "llama",
        {"vocab": "<|end|>", "tokenizer_config": FAST | {"eos_token": "<|end|>"}},
    ),
    "padding in tokenizer.json": (
        "llama",
        {"tokenizer": {"padding": PADDING | {"pad_token": "<pad>"}}, "tokenizer_config": FAST},
    ),
    "<s> first": ("llama", {"tokenizer": {"post_processor": BOS_FIRST}, "tokenizer_config": FAST}),
    "<s> first, as BOS": (
        "llama",
        {"tokenizer": {"post_processor": BOS_FIRST}, "tokenizer_config": FAST | {"bos_token": "<s>"}},
    ),
    "add_bos_token beside tokenizer.json": (
        "llama",
        {"tokenizer_config": FAST | {"bos_token": "<s>", "add_bos_token": True}},
    ),
    "SentencePiece": ("llama", {"tokenizer.model": True}),
    "SentencePiece, Llama 2": (
        "llama",
        {"tokenizer.model": True, "tokenizer_config": LLAMA_CLASS | {"add_bos_token": True, "pad_token": "</s>"}},
    ),
    "SentencePiece and added tokens": (
        "llama",
        {
            "tokenizer.model": True,
            "tokenizer_config": LLAMA_CLASS | {"eos_token": "<|im_end|>"},
            "added_tokens": {"<|im_end|>": 59, "<plain>": 60},
            "special_tokens_map": {"additional_special_tokens": ["<|im_end|>"]},
        },
    ),
    "SentencePiece and added_tokens_decoder": (
        "llama",
        {
            "tokenizer.model": True,
            "tokenizer_config": LLAMA_CLASS
            | {"added_tokens_decoder": {"59": {"content": "<|x|>", "special": True}}, "pad_token": "<|x|>"},
        },
    ),
}


@functools.cache
def byte_level() -> str:
    """The content of a small byte-level tokenizer.json."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(["the cat sat on the mat and the hat " * 9], trainer)
    return str(library.to_str())


@functools.cache
def sentencepiece_model() -> bytes:
    spm = pytest.importorskip("sentencepiece")
    words = random.Random(0).choices(["the", "cat", "sat", "on", "mat", "and", "hat", "quick"], k=400)
    proto = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words)] * 3), model_writer=proto, vocab_size=60, model_type="bpe",
        byte_fallback=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return proto.getvalue()


@functools.cache
def model_of(family: str) -> GPT:
    model = GPT(ModelConfig(**{**vars(CLASSIC), **SHAPES[family], "n_kv_head": 2, "intermediate_size": 16}))
    model.init_weights(0)
    return model


def folder_of(path: Path, which: str) -> Path:
    """A folder as others publish it."""
    family, files = FOLDERS[which]
    path.mkdir()
    save_model(path, model_of(family), CharTokenizer.train("ab"))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (path / name).unlink()
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == family
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    contents = {"config": {**config, **ids, **files.get("config", {})}}
    if "tokenizer.model" in files:
        (path / "tokenizer.model").write_bytes(sentencepiece_model())
    else:
        contents["tokenizer"] = json.loads(byte_level()) | files.get("tokenizer", {})
        contents["tokenizer"]["model"]["vocab"] |= {files["vocab"]: 300} if "vocab" in files else {}
    for name in ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config"):
        contents |= {name: files[name]} if name in files else {}
    for name, content in contents.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (path / "chat_template.jinja").write_text(SHOW_ROLES, encoding="utf-8")
    return path


def ids_of(eos: int | list[int] | None) -> set[int]:
    return set(eos if isinstance(eos, list) else [] if eos is None else [eos])


def require_equal(folder: Path, ours: Tokenizer) -> Any:
    """Compare the tokenizer with what `transformers` reads of a folder; return the latter's generation settings."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    file = {} if (folder / "generation_config.json").exists() else {"config_file_name": "config.json"}
    generation = transformers.GenerationConfig.from_pretrained(folder, **file)  # as a model's from_pretrained does
    assert ours.roles() == theirs.special_tokens_map
    assert ours.published.tokenizer_config.get("padding_side", "right") == theirs.padding_side
    for role in ("bos", "eos", "pad"):
        i, our_id = getattr(theirs, f"{role}_token_id"), getattr(ours, f"{role}_token_id")
        if i is None or i < ours.vocab_size:
            assert our_id == i or (role == "bos" and i is None), role  # without a role, BOS is what encoding puts first
        else:
            assert our_id is None, role  # `transformers` numbers tokens outside the vocabulary itself
    ends = {i for i in ids_of(generation.eos_token_id) if i < ours.vocab_size}
    assert set(ours.end_token_ids) == ends | ids_of(ours.eos_token_id)
    assert encode_prompt(ours, "the cat") == theirs("the cat")["input_ids"]
    talk = [{"role": "user", "content": "the hat"}]
    template = published.read_templates(folder)["default"]
    assert chat.render(template, talk, **ours.roles()) == theirs.apply_chat_template(talk, tokenize=False)
    if ours.kind != "sentencepiece" and set(ours.roles().values()) <= ours.special_ids().keys():
        chat_ids = theirs.apply_chat_template(talk, tokenize=True, return_dict=False)
        assert chat.encode(ours, template, talk, prompt=False) == chat_ids
    known = transformers.GenerationConfig().to_dict().keys() - {"_from_model_config", "transformers_version"}
    return {key: value for key, value in generation.to_diff_dict().items() if key in known}


def test_the_defaults_of_a_class_are_its_own() -> None:
    for name, defaults in published.CLASS_DEFAULTS.items():
        theirs = getattr(transformers, name)
        given = inspect.signature(theirs.__init__).parameters
        roles = {role: given[role].default for role in given if role.endswith("_token")}
        assert {"padding_side": "right", **defaults} == {"padding_side": theirs.padding_side, **roles}


@pytest.mark.parametrize("which", FOLDERS)
def test_a_folder_is_read_and_saved_as_transformers_reads_it(which: str, tmp_path: Path) -> None:
    folder, out, model = folder_of(tmp_path / "in", which), tmp_path / "out", model_of(FOLDERS[which][0])
    ours = load(folder)
    before = require_equal(folder, ours)
    out.mkdir()
    save_model(out, model, ours)
    again = load(out)
    after = require_equal(out, again)
    assert {key: after.get(key) for key in before} == before
    assert again.end_token_ids == ours.end_token_ids
    written = [(out / name).read_bytes() for name in ("tokenizer_config.json", "generation_config.json")]
    save_model(out, model, again)
    assert written == [(out / name).read_bytes() for name in ("tokenizer_config.json", "generation_config.json")]
    if ours.kind == "bpe":
        write_gguf(tmp_path / "m.gguf", model, ours)
        from_gguf = load(tmp_path / "m.gguf")
        assert from_gguf.published == ours.published
        assert from_gguf.end_token_ids == ours.end_token_ids and from_gguf.bos_token_id == ours.bos_token_id


def test_several_chat_templates_are_kept_by_name(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "in", "qwen3"), tmp_path / "out"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}", encoding="utf-8")
    out.mkdir()
    save_model(out, model_of("qwen3"), load(folder))
    for place in (folder, out):
        templates = transformers.AutoTokenizer.from_pretrained(place).chat_template
        assert templates == load(place).published.chat_templates == {"default": SHOW_ROLES, "rag": "{{ documents }}"}


def test_a_number_that_json_does_not_have_is_not_saved(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "in", "qwen3"), tmp_path / "out"
    (folder / "generation_config.json").write_text(json.dumps({"top_p": math.inf}), "utf-8")
    out.mkdir()
    save_model(out, model_of("qwen3"), load(folder))
    assert json.loads((out / "generation_config.json").read_text("utf-8"))["top_p"] is None


def test_tokens_beside_a_sentencepiece_model_are_matched(tmp_path: Path) -> None:
    ours = load(folder_of(tmp_path / "in", "SentencePiece and added tokens"))
    special, plain = 59, 60
    assert (ours.vocab_size, ours.eos_token_id, ours.special_ids()["<|im_end|>"]) == (61, special, special)
    text = "the<plain>cat<|im_end|>"
    ids = ours.encode(text, allow_special=True)
    assert plain in ids and ids[-1] == special and ours.decode(ids) == text
    assert plain in ours.encode(text) and special not in ours.encode(text)
    assert b"".join(map(ours.token_bytes, ids)).replace(b" ", b"") == b"the<plain>cat<|im_end|>"


def test_add_bos_token_becomes_part_of_a_tokenizer_json(tmp_path: Path) -> None:
    """In a folder of an older layout it is in force; beside a tokenizer.json it is not."""
    loaded = load(folder_of(tmp_path / "in", "<s> first, as BOS"))
    assert isinstance(loaded, BPETokenizer)
    ours = BPETokenizer(loaded.model, {**json.loads(byte_level()), "post_processor": None})
    assert not adds_bos_token(ours)
    attach(ours, published.PublishedSettings(tokenizer_config={"add_bos_token": True}))
    save(ours, tmp_path, 16)
    again = load(tmp_path)
    assert adds_bos_token(ours) and adds_bos_token(again)
    assert encode_prompt(again, "the") == loaded.encode("<s>the", allow_special=True)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("the")["input_ids"] == encode_prompt(ours, "the")
