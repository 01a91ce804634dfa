"""Every family, both ways, compared with `transformers`: logits at every position, greedy text, and tensors.

Sequences are longer than the sliding windows, and than the original contexts of RoPE scaling.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here has a reason to ask

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import load_config, load_model, thread_count
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError
from glassgpt.inference.decode import generate
from glassgpt.model import GPT, ExplicitAttention, KVCache
from glassgpt.model.rope import rotary_tables
from glassgpt.runtime import Runtime
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import CharTokenizer
from glassgpt.tokenizer import save as save_tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.folder import save_model, write_folder

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOKENIZER = CharTokenizer.train("".join(map(chr, range(32, 129))))
CPU = Runtime(torch.device("cpu"), torch.float32, 1, compile=False, reason="test")
CONTEXT, LENGTH = 320, 300

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 40, "max_position_embeddings": CONTEXT, "rms_norm_eps": 0.003}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 80}
LINEAR, DYNAMIC = ({"rope_type": kind, "rope_theta": 77.0, "factor": 2.5} for kind in ("linear", "dynamic"))
WINDOW = {"use_sliding_window": True, "sliding_window": 24}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {}),
    "gpt2-untied-wide": ("GPT2", {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"}),
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama-tied-wide-heads": ("Llama", {"tie_word_embeddings": True, "head_dim": 12}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama3.2": ("Llama", {"rope_parameters": LLAMA3 | {"factor": 32.0}, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-dynamic": ("Llama", {"rope_parameters": DYNAMIC}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3}}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "mistral-one-kv-head": ("Mistral", {"sliding_window": 2, "num_key_value_heads": 1, "head_dim": 10}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "mistral-linear": ("Mistral", {"sliding_window": 50, "rope_parameters": LINEAR, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {**WINDOW, "max_window_layers": 0}),
    "qwen2-window-above": ("Qwen2", {**WINDOW, "max_window_layers": 2, "num_key_value_heads": 4}),
    "qwen2-window-nowhere": ("Qwen2", {**WINDOW, "max_window_layers": 28}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3-biased-window": ("Qwen3", {**WINDOW, "max_window_layers": 1, "head_dim": 8, "attention_bias": True}),
    "qwen3-yarn": ("Qwen3", {"rope_parameters": YARN, "head_dim": 16}),
}
everywhere = pytest.mark.parametrize("which", CASES)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1), torch.no_grad():
        yield


def theirs(which: str) -> Any:
    """A random model of `transformers`: nothing at zero, nothing at one, every bias and norm takes part."""
    kind, changes = CASES[which]
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT} if kind == "GPT2" else SHAPE
    tokens = {"vocab_size": TOKENIZER.vocab_size, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**{**shape, **tokens, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.3 * noise if p.dim() == 1 and name.endswith("weight") else 0.2 * noise)
    return model.eval()


def published(folder: Path, model: Any, **how: Any) -> Path:
    """That model in a folder, with a tokenizer of ours."""
    model.save_pretrained(folder, **how)
    save_tokenizer(TOKENIZER, folder, CONTEXT)
    return folder


def saved(folder: Path, model: GPT, **how: Any) -> Path:
    with write_folder(folder) as temporary:
        save_model(temporary, model, TOKENIZER, **how)
    return folder


def opened_by_transformers(folder: Path) -> Any:
    """The model, strictly: nothing missing, nothing left over, nothing of another shape."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model


def tokens(B: int, T: int) -> Tensor:
    return torch.randint(TOKENIZER.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1, "logits this flat would prove little"
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def weights_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@everywhere
def test_equal_to_transformers_in_and_out(which: str, tmp_path: Path) -> None:
    reference = theirs(which)
    model, _ = load_model(published(tmp_path / "in", reference))
    idx = tokens(2, LENGTH)
    close(model(idx), reference(idx).logits)
    out = saved(tmp_path / "out", model)
    again = opened_by_transformers(out)
    close(again(idx).logits, reference(idx).logits)
    before, after = weights_of(tmp_path / "in"), weights_of(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape), name
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes(), name
    assert load_model(out)[0].config == model.config


@everywhere
def test_greedy_text_equals_transformers_generate(which: str, tmp_path: Path) -> None:
    """64 tokens with a cache: past the windows, beyond the original contexts of RoPE scaling; two prompts."""
    reference = theirs(which)
    model, _ = load_model(published(tmp_path / "in", reference))
    prompts = tokens(2, 40)
    steps = generate(model, prompts.tolist(), 64, SamplingConfig(0.0))
    greedy = reference.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=64, do_sample=False)
    assert [step.tokens for step in steps] == greedy[:, 40:].T.tolist()


def test_ragged_prompts_continue_as_each_alone(tmp_path: Path) -> None:
    """Rows shorter than the window, longer, and beyond the context, where the newest half is prefilled again."""
    model, _ = load_model(published(tmp_path / "in", theirs("qwen2-window-above")))
    rows = [tokens(1, n)[0].tolist() for n in (1, 23, 24, 25, 100, CONTEXT - 3, CONTEXT + 9)]
    together = list(generate(model, rows, 12, SamplingConfig(0.0)))
    for r, row in enumerate(rows):
        alone = [step.tokens[0] for step in generate(model, [row], 12, SamplingConfig(0.0))]
        assert [step.tokens[r] for step in together] == alone


@pytest.mark.parametrize("which", ["mistral", "mistral-one-kv-head", "qwen2-window-above", "qwen3-biased-window"])
def test_cached_in_chunks_equals_full_and_explicit_equals_fused(which: str, tmp_path: Path) -> None:
    model, _ = load_model(published(tmp_path / "in", theirs(which)))
    idx = tokens(2, 120)
    whole = model(idx)
    cache, parts = KVCache(model.config, 2), []
    for size in (1, 1, 30, 1, 23, 24, 1, 25, 14):
        done = cache.longest
        parts.append(model(idx[:, done : done + size], cache=cache))
    close(torch.cat(parts, dim=1), whole)
    for block in model.blocks:
        block.attention.attend = ExplicitAttention()
    close(model(idx), whole)
    close(model(idx[:, :1], cache=KVCache(model.config, 2)), whole[:, :1])


@pytest.mark.parametrize("first", [0, 2])
def test_a_window_hides_only_the_tokens_beyond_it(first: int) -> None:
    """Brute force: with one windowed block on top, a token matters up to ``window - 1`` later, and no further."""
    config = ModelConfig(
        vocab_size=11, block_size=20, n_layer=first + 1, n_head=2, n_embd=16, sliding_window=5, first_window_layer=first
    )
    model = GPT(config)
    model.init_weights(0)
    mixing = model.blocks[-1]
    inputs = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(2))
    mask = model._mask(torch.zeros(1, 20, dtype=torch.long), config.windows[-1], None, None, None)
    plain = mixing(inputs, None, mask, None, None)
    for moved in range(20):
        changed = inputs.clone()
        changed[0, moved] = -2 * changed[0, moved].flip(0)
        differs = (mixing(changed, None, mask, None, None) - plain).abs().amax(dim=-1)[0] > 1e-6
        assert differs.nonzero().flatten().tolist() == list(range(moved, min(20, moved + 5)))
    assert config.windows == (0,) * first + (5,)


def test_packed_documents_see_their_own_window_only() -> None:
    config = ModelConfig(vocab_size=11, block_size=30, n_layer=2, n_head=2, n_embd=16, sliding_window=4)
    model = GPT(dataclasses.replace(config, position="rope"))
    model.init_weights(0)
    one, two = tokens(1, 13) % 11, tokens(1, 17) % 11 + 0
    ids = torch.tensor([[0] * 13 + [1] * 17])
    positions = torch.cat((torch.arange(13), torch.arange(17)))
    packed = model(torch.cat((one, two), dim=1), document_ids=ids, position_ids=positions)
    torch.testing.assert_close(packed[:, :13], model(one))
    torch.testing.assert_close(packed[:, 13:], model(two))


# --- files in other types, and in several parts


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("which", ["gpt2", "llama3.2", "qwen2"])
def test_shards_in_a_shorter_type(which: str, dtype: str, tmp_path: Path) -> None:
    """Theirs, read and written again: the same bytes in a type that both have. Ours, read by them."""
    short = getattr(torch, dtype)
    reference = theirs(which).to(short)
    folder = published(tmp_path / "in", reference, max_shard_size=9_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    model, _ = load_model(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    idx = tokens(2, LENGTH)
    close(model(idx), opened_by_transformers(folder).float()(idx).logits)
    same, _ = load_model(folder, dtype=short)
    assert {p.dtype for p in same.parameters()} == {short}
    out = saved(tmp_path / "out", same, dtype=short, max_shard_bytes=9_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    before, after = weights_of(folder), weights_of(out)
    assert before.keys() == after.keys()
    assert all(before[n].dtype == after[n].dtype and torch.equal(before[n], after[n]) for n in before)
    content = json.loads((out / "config.json").read_text("utf-8"))
    assert content["dtype"] == content["torch_dtype"] == dtype
    again = opened_by_transformers(out)
    assert again.dtype == short
    close(again.float()(idx).logits, model(idx))


def test_pytorch_model_bin_is_read_and_advised_against(tmp_path: Path) -> None:
    from glassgpt.weights.sources import FolderSource

    reference = theirs("llama3.1")
    folder = published(tmp_path / "m", reference)
    (folder / "model.safetensors").unlink()
    names = list(reference.state_dict())
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in halves.items():
        torch.save({name: reference.state_dict()[name].clone() for name in part}, folder / file)
    places = {name: file for file, part in halves.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}), "utf-8")
    idx = tokens(2, LENGTH)
    close(load_model(folder)[0](idx), reference(idx).logits)
    assert "safetensors" in FolderSource(folder).notes[0]
    (folder / "pytorch_model.bin.index.json").unlink()
    torch.save(reference.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    close(load_model(folder)[0](idx), reference(idx).logits)

    class Anything:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "run"),))

    torch.save({"model.norm.weight": Anything()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .*holds more than tensors.*safetensors"):
        load_model(folder)
    assert not (tmp_path / "run").exists()


# --- config.json


@everywhere
def test_configuration_keys_old_and_new_agree(which: str, tmp_path: Path) -> None:
    """What we write is read the same by `transformers` with the new keys alone, and with the old ones alone."""
    theirs(which).config.save_pretrained(tmp_path)
    config = load_config(tmp_path)
    content = mapping.to_hf_config(config, mapping.family_of(config))
    read = transformers.AutoConfig.for_model
    both = read(**content).to_dict()
    for left_out in ({"rope_theta", "rope_scaling"}, {"rope_parameters"}, {"layer_types"}, {"max_window_layers"}):
        part = {key: value for key, value in content.items() if key not in left_out}
        if left_out != {"max_window_layers"}:
            assert mapping.from_hf_config(part)[0] == config
        found = read(**part).to_dict()
        for name in set(both) - left_out:
            assert found[name] == both[name], name


def test_rotary_tables_equal_transformers_for_published_scalings() -> None:
    """The numbers of Llama 3.1, 3.2 and Qwen-2.5's long contexts, with their own wide heads."""
    for rope, head_dim in (
        ({**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8192}, 128),
        ({**LLAMA3, "rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 8192}, 64),
        ({**YARN, "rope_theta": 1e6, "original_max_position_embeddings": 32768}, 128),
        ({**YARN, "rope_theta": 1e6, "original_max_position_embeddings": 32768, "beta_fast": 1.2}, 128),
        ({**YARN, "rope_theta": 10.0, "original_max_position_embeddings": 9}, 16),
    ):
        theirs_config = transformers.LlamaConfig(
            hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=4096, rope_parameters=dict(rope)
        )
        module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs_config)
        cos, sin = module(torch.zeros(1), torch.arange(4096)[None])
        config, _ = mapping.from_hf_config({**theirs_config.to_dict(), "model_type": "llama"})
        ours = rotary_tables(config)
        torch.testing.assert_close(ours[0], cos[0], atol=2e-4, rtol=0)  # angles of thousands, in float32
        torch.testing.assert_close(ours[1], sin[0], atol=2e-4, rtol=0)


def test_an_unknown_architecture_is_named_with_its_fields(tmp_path: Path) -> None:
    for kind in ("Gemma2", "Mixtral", "Mamba", "GPTNeoX"):
        config = getattr(transformers, f"{kind}Config")(architectures=[f"{kind}ForCausalLM"])
        config.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            load_config(tmp_path)
        message = str(caught.value)
        assert f"{kind}ForCausalLM (model_type {config.model_type!r})" in message
        assert "gpt2, qwen3, llama, mistral, qwen2" in message
        named = {"Gemma2": "attn_logit_softcapping=50.0", "Mixtral": "num_local_experts=8", "Mamba": "conv_kernel=4"}
        assert named.get(kind, "use_parallel_residual=True") in message
        assert "token_id" not in message and "dtype" not in message
