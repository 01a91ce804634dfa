"""The Transformer: causality, two attentions, the cache, packed documents, initialisation."""

import copy
import dataclasses
import math
import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import thread_count
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN, PRESETS
from glassgpt.model import GPT, Block, ExplicitAttention, FusedAttention, KVCache, UnfusedAttention, gpt
from glassgpt.model.rope import rotary_tables, rotate

CLASSIC = ModelConfig(vocab_size=23, block_size=16, n_layer=3, n_head=4, n_embd=32)
CONFIGS = {
    "classic": CLASSIC,
    "classic-gqa": dataclasses.replace(CLASSIC, n_kv_head=2, mlp="gelu", norm_bias=False, tie_embeddings=False),
    "modern": dataclasses.replace(CLASSIC, **MODERN, intermediate_size=48),
    "modern-gqa": dataclasses.replace(CLASSIC, **MODERN, intermediate_size=48, n_kv_head=2, head_dim=12),
    "modern-mqa": dataclasses.replace(CLASSIC, **MODERN | {"qk_norm": False, "qkv_bias": True}, n_kv_head=1),
}


class FewQueries(UnfusedAttention):
    """Texts of a few tokens have several blocks, the last one incomplete."""

    queries = 3


ATTENTIONS = (FusedAttention, ExplicitAttention, UnfusedAttention, FewQueries)
everywhere = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
both_ways = pytest.mark.parametrize("attend", ATTENTIONS, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, far slower where the machine is busy."""
    with thread_count(1):
        yield


def build(config: ModelConfig, attend: type = FusedAttention, seed: int = 0) -> GPT:
    """A model whose every parameter matters: random biases, norms far from one, attention far from uniform."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.25 * noise)
    for block in model.blocks:
        block.attention.attend = attend()
    return model.eval().requires_grad_(False)


def roll_back(cache: KVCache, lengths: list[int]) -> None:
    for row, length in enumerate(lengths):
        cache.roll_back(row, length)


def tokens(config: ModelConfig, B: int, T: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, atol: float = 3e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


def influence(model: GPT, idx: Tensor, **how: Tensor) -> Tensor:
    """How much each input embedding moves each position's logits: ``[B, T out, T in]``, exactly 0 where it cannot."""
    leaf: list[Tensor] = []

    def detach(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        leaf.append(output.detach().requires_grad_())
        return leaf[0]

    handle = model.token_embedding.register_forward_hook(detach)
    logits = model(idx, **how)  # [B, T, V]
    handle.remove()
    projection = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    projected = (logits * projection).sum(dim=(0, 2))  # [T]; rows of a batch never mix, as the test below shows
    rows = [torch.autograd.grad(value, leaf[0], retain_graph=True)[0].abs().sum(-1) for value in projected]
    return torch.stack(rows, dim=1)


# --- causality


@both_ways
@everywhere
def test_a_position_is_reached_by_all_of_its_past_and_by_none_of_its_future(config: ModelConfig, attend: type) -> None:
    reached = influence(build(config, attend), tokens(config, 2, config.block_size))
    past = torch.ones(config.block_size, config.block_size).tril().bool()
    assert (reached[:, ~past] == 0).all()
    assert (reached[:, past] > 0).all()


@both_ways
@everywhere
def test_logits_do_not_change_when_more_tokens_follow(config: ModelConfig, attend: type) -> None:
    model, idx = build(config, attend), tokens(config, 2, config.block_size)
    whole = model(idx)
    for length in range(1, config.block_size):
        close(model(idx[:, :length]), whole[:, :length])


@everywhere
def test_rows_of_a_batch_do_not_mix(config: ModelConfig) -> None:
    model, idx = build(config), tokens(config, 3, 9)
    other = idx.clone()
    other[1] = (other[1] + 1) % config.vocab_size
    first, second = model(idx), model(other)
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])
    for row in range(3):
        close(model(idx[row : row + 1])[0], first[row])


@everywhere
def test_order_matters(config: ModelConfig) -> None:
    """Without positions, attention would treat its past as a set."""
    model, idx = build(config), tokens(config, 1, 8)
    swapped = idx[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert (model(idx)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-3


# --- the attentions


@pytest.mark.parametrize("KV", [1, 2, 4])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (1, 7), (3, 7)])
def test_explicit_attention_equals_fused_and_its_weights_give_the_output(KV: int, T: int, S: int) -> None:
    g = torch.Generator().manual_seed(3)
    q = 2 * torch.randn(2, 4, T, 6, generator=g)
    k, v = (2 * torch.randn(2, KV, S, 6, generator=g) for _ in "kv")
    ragged = torch.rand(2, 1, T, S, generator=g) < 0.5
    ragged[..., 0] = True  # every query sees something
    chunk = torch.ones(T, S).tril(S - T).bool()[None, None]
    for mask in (ragged, chunk) if T not in (1, S) else (None, ragged, chunk):
        mixed, weights = ExplicitAttention()(q, k, v, mask)
        fused, nothing = FusedAttention()(q, k, v, mask)
        assert nothing is None
        close(mixed, fused)
        close(FewQueries()(q, k, v, mask)[0], fused)
        close(weights.sum(-1), torch.ones(2, 4, T))
        visible = (chunk if mask is None else mask).expand(2, 4, T, S)
        assert (weights[~visible] == 0).all()
        assert (weights[visible] > 0).all()
        heads = [v[:, h * KV // 4] for h in range(4)]  # consecutive query heads share a key/value head
        close(mixed, torch.stack([weights[:, h] @ heads[h] for h in range(4)], dim=1))


@everywhere
@pytest.mark.parametrize("attend", ATTENTIONS[1:], ids=lambda kind: kind.__name__)
def test_other_attention_equals_fused(config: ModelConfig, attend: type) -> None:
    """With every kind of mask: plain, packed documents, cached chunks, ragged rows."""
    fused, explicit = build(config), build(config, attend)
    idx, documents = tokens(config, 3, 12), torch.tensor([[0] * 5 + [1] * 7, [0] * 12, [0] + [1] * 11])
    close(explicit(idx), fused(idx))
    close(explicit(idx, document_ids=documents), fused(idx, document_ids=documents))
    caches = [KVCache(config, 3), KVCache(config, 3)]
    for chunk in (idx[:, :5], idx[:, 5:8], idx[:, 8:9]):
        close(explicit(chunk, cache=caches[0]), fused(chunk, cache=caches[1]))
    for cache in caches:
        roll_back(cache, [2, 9, 5])
    close(explicit(idx[:, 9:], cache=caches[0]), fused(idx[:, 9:], cache=caches[1]))


# --- the cache


@both_ways
@everywhere
@pytest.mark.parametrize("chunks", [[1] * 16, [5, 1, 7, 3], [1, 15], [15, 1], [16]], ids=str)
def test_cached_equals_full_forward(config: ModelConfig, attend: type, chunks: list[int]) -> None:
    model, idx = build(config, attend), tokens(config, 3, 16)
    cache, parts = KVCache(config, 3), []
    for chunk in idx.split(chunks, dim=1):
        parts.append(model(chunk, cache=cache))
        assert cache.longest == max(cache.lengths) == sum(part.size(1) for part in parts)
    close(torch.cat(parts, dim=1), model(idx))


@both_ways
@everywhere
@pytest.mark.parametrize("chunks", [[1, 1, 1, 1, 1], [3, 2], [2, 1, 2]], ids=str)
def test_ragged_rows_equal_each_row_alone(config: ModelConfig, attend: type, chunks: list[int]) -> None:
    """Prompts padded on the right, with a token that would change the logits if it were attended to."""
    model, lengths = build(config, attend), [3, 11, 1, 7]
    idx = tokens(config, 4, 16)
    padded = idx[:, :11].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = (row * 5 + 3) % config.vocab_size
    cache = KVCache(config, 4)
    prefilled = model(padded, cache=cache)
    roll_back(cache, lengths)
    assert cache.ragged
    later = []
    done = 0
    for size in chunks:
        chunk = torch.stack([idx[row, n + done : n + done + size] for row, n in enumerate(lengths)])
        later.append(model(chunk, cache=cache))
        done += size
    after = torch.cat(later, dim=1)  # [B, 5, V]
    for row, length in enumerate(lengths):
        alone = model(idx[row : row + 1, : length + done])[0]
        close(prefilled[row, :length], alone[:length])
        close(after[row], alone[length:])
    assert cache.lengths == [n + done for n in lengths]


def test_roll_back_forgets_and_can_make_rows_equal_in_length_again() -> None:
    model, idx = build(CLASSIC), tokens(CLASSIC, 2, 12)
    cache = KVCache(CLASSIC, 2)
    model(tokens(CLASSIC, 2, 10, seed=9), cache=cache)
    roll_back(cache, [0, 4])
    roll_back(cache, [0, 0])  # all of it
    assert not cache.ragged
    model(idx[:, :6], cache=cache)
    roll_back(cache, [4, 4])
    assert not cache.ragged
    close(model(idx[:, 4:], cache=cache), model(idx)[:, 4:])


class Texts:
    """Rows of a cache, each checked against a full forward pass of its own text after every pass."""

    def __init__(self, model: GPT, max_rows: int):
        self.model = model
        self.cache = KVCache(model.config, max_rows, rows=0)
        self.rows: list[list[int]] = []
        self.generator = torch.Generator().manual_seed(4)

    def random(self, length: int) -> list[int]:
        return torch.randint(self.model.config.vocab_size, (length,), generator=self.generator).tolist()

    def admit(self, *lengths: int) -> None:
        """Prefill prompts of these lengths, padded, in a cache of their own that is just large enough."""
        other = KVCache(self.model.config, len(lengths), capacity=max(lengths))
        prompts = [self.random(length) for length in lengths]
        self.model(torch.tensor([row + [7] * (max(lengths) - len(row)) for row in prompts]), cache=other)
        roll_back(other, list(lengths))
        self.cache.admit(other)
        self.rows += prompts

    def evict(self, *rows: int) -> None:
        self.cache.evict(rows)
        self.rows = [row for r, row in enumerate(self.rows) if r not in rows]

    def copy(self, *sources: int) -> None:
        self.cache.copy_rows(sources)
        self.rows = [list(self.rows[source]) for source in sources]

    def roll_back(self, row: int, length: int) -> None:
        self.cache.roll_back(row, length)
        del self.rows[row][length:]

    def step(self, T: int) -> None:
        new = [self.random(T) for _ in self.rows]
        logits = self.model(torch.tensor(new), cache=self.cache)  # [B, T, V]
        for row, more, got in zip(self.rows, new, logits, strict=True):
            row += more
            close(got, self.model(torch.tensor([row]))[0, -T:])
        assert self.cache.lengths == [len(row) for row in self.rows]


WINDOWED = {name: dataclasses.replace(CONFIGS[name], sliding_window=5) for name in ("classic", "modern-gqa")}
with_windows = pytest.mark.parametrize(
    "config", [*CONFIGS.values(), *WINDOWED.values()], ids=[*CONFIGS, *(f"{name}-window" for name in WINDOWED)]
)


@both_ways
@with_windows
def test_rows_admitted_evicted_and_rolled_back_equal_full_forward(config: ModelConfig, attend: type) -> None:
    texts = Texts(build(config, attend), 4)
    texts.admit(5)
    texts.step(1)
    texts.admit(2, 5)  # ragged from here
    texts.step(1)
    texts.step(3)
    texts.roll_back(1, 4)  # as after rejected drafts
    texts.step(2)
    texts.evict(0)  # the rows behind it move up
    texts.step(1)
    texts.admit(12, 1)  # full again, in memory that held other rows
    texts.step(1)
    texts.roll_back(0, 0)
    texts.roll_back(2, 3)
    texts.step(2)
    texts.evict(0, 2, 3)
    texts.step(1)
    texts.roll_back(0, 9)
    texts.copy(0, 0, 0)
    texts.step(1)
    texts.roll_back(1, 2)
    texts.copy(0, 1, 1, 0)
    texts.step(1)
    texts.evict(0, 1, 2, 3)
    texts.admit(6, 6)  # rows of one length, so without a ragged mask
    assert not texts.cache.ragged
    texts.step(1)
    texts.step(2)


@both_ways
@with_windows
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_cache_operations_equals_full_forward(config: ModelConfig, attend: type, seed: int) -> None:
    texts, choice = Texts(build(config, attend), 4), random.Random(seed)
    for _ in range(25):
        free = 4 - len(texts.rows)
        match choice.choice(["admit", "copy", "evict", "roll back", "step", "step"]):
            case "admit" if free:
                texts.admit(*(choice.randint(1, 12) for _ in range(choice.randint(1, free))))
            case "copy" if texts.rows:
                texts.copy(*(choice.randint(0, min(r, len(texts.rows) - 1)) for r in range(choice.randint(1, 4))))
            case "evict" if texts.rows:
                texts.evict(*choice.sample(range(len(texts.rows)), choice.randint(1, len(texts.rows))))
            case "roll back" if texts.rows:
                row = choice.randrange(len(texts.rows))
                texts.roll_back(row, choice.randint(0, len(texts.rows[row])))
            case "step" if texts.rows and texts.cache.longest < config.block_size:
                texts.step(choice.randint(1, min(3, config.block_size - texts.cache.longest)))


def test_rows_that_do_not_fit_raise_and_change_nothing() -> None:
    model = build(CLASSIC)
    texts = Texts(model, 2)
    texts.admit(5)
    two, long = KVCache(CLASSIC, 2), KVCache(CLASSIC, 1, capacity=20)
    long.advance(17)
    for other, message in (
        (two, "2 rows of up to 0 tokens"),
        (long, "1 rows of up to 17 tokens do not fit: 1 rows of"),
    ):
        with pytest.raises(ValueError, match=message):
            texts.cache.admit(other)
    with pytest.raises(ValueError, match="3 rows do not fit: the cache has memory for 2"):
        texts.cache.copy_rows([0, 0, 0])
    for length in (-1, 6):
        with pytest.raises(ValueError, match=f"row 0 holds 5 tokens; it cannot be rolled back to {length}"):
            texts.cache.roll_back(0, length)
    texts.step(2)


@pytest.mark.parametrize("config", [CONFIGS["classic"], CONFIGS["modern"]], ids=["classic", "modern"])
def test_too_many_tokens_raise_and_change_nothing(config: ModelConfig) -> None:
    model, idx = build(config), tokens(config, 2, 17)
    with pytest.raises(ValueError, match=r"17 tokens do not fit .* 16"):
        model(idx)
    cache = KVCache(config, 2, capacity=8)
    model(idx[:, :6], cache=cache)
    with pytest.raises(ValueError, match=r"6 of 8 tokens; 3 more do not fit"):
        model(idx[:, 6:9], cache=cache)
    close(model(idx[:, 6:8], cache=cache), model(idx[:, :8])[:, 6:])
    with pytest.raises(ValueError, match=r"8 of 8 tokens; 1 more do not fit"):
        model(idx[:, :1], cache=cache)


@pytest.mark.parametrize("config", [CONFIGS["classic"], CONFIGS["modern"]], ids=["classic", "modern"])
def test_a_cache_larger_than_the_context_does_not_stretch_it(config: ModelConfig) -> None:
    model, idx = build(config), tokens(config, 1, 17)
    cache = KVCache(config, 1, capacity=32)
    model(idx[:, :16], cache=cache)
    with pytest.raises(ValueError, match="do not fit"):
        model(idx[:, 16:], cache=cache)


# --- packed documents and positions


@both_ways
@everywhere
def test_packed_documents_equal_documents_run_apart(config: ModelConfig, attend: type) -> None:
    """Also a row longer than the context, of documents that each fit, and an id that comes back."""
    model, rows = build(config, attend), [[7, 1, 12], [4, 16], [10, 9, 1]]
    idx = tokens(config, 3, 20)
    documents = torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in rows])  # [B, T]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])  # [B, T]
    packed = model(idx, position_ids=positions, document_ids=documents)
    for row, lengths in enumerate(rows):
        apart = [model(part[None])[0] for part in idx[row].split(lengths)]
        close(packed[row], torch.cat(apart))


@everywhere
def test_documents_are_isolated_exactly(config: ModelConfig) -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]]).repeat(2, 1)
    reached = influence(build(config), tokens(config, 2, 9), document_ids=documents)
    visible = (documents[:, :, None] == documents[:, None, :]).tril()
    assert (reached[~visible] == 0).all()
    assert (reached[visible] > 0).all()


@everywhere
def test_positions_default_to_the_next_ones(config: ModelConfig) -> None:
    model, idx = build(config), tokens(config, 2, 6)
    close(model(idx, position_ids=torch.arange(6)), model(idx))
    close(model(idx, position_ids=torch.arange(6).repeat(2, 1)), model(idx))
    rotary = config.position == "rope"  # rotary attention knows only distances; a learned table knows places
    shifted = model(idx, position_ids=torch.arange(6) + 10)
    assert torch.allclose(shifted, model(idx), atol=1e-3) == rotary


def test_rotation_is_a_rotation_by_position_times_frequency() -> None:
    """Against complex numbers: channel i and channel i + D/2 are one complex number, rotated."""
    D, theta = 10, 500.0
    x = torch.randn(2, 3, 9, D, generator=torch.Generator().manual_seed(4))
    config = ModelConfig(block_size=9, n_embd=D, n_head=1, position="rope", rope_theta=theta)
    turned = rotate(x, *rotary_tables(config))
    angle = torch.arange(9)[:, None].double() * theta ** (-2 * torch.arange(D // 2).double() / D)
    expected = torch.complex(x[..., : D // 2].double(), x[..., D // 2 :].double()) * torch.polar(
        torch.ones_like(angle), angle
    )
    close(turned, torch.cat((expected.real, expected.imag), dim=-1).float())


def test_rotary_tables_that_grow_on_demand_equal_full_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is allocated for a context that is only claimed; and a table that grew while generating can train."""
    config = dataclasses.replace(CONFIGS["modern-gqa"], block_size=10**9)
    full = build(dataclasses.replace(config, block_size=64))
    monkeypatch.setattr(gpt, "ROPE_POSITIONS", 4)

    def fresh() -> GPT:
        model = build(config)
        assert model.rope_cos.shape == (4, config.head_dim)
        return model

    idx, positions = tokens(config, 2, 30), torch.tensor([[3, 40, 5], [63, 0, 1]])
    assert torch.equal(fresh()(idx), full(idx))
    assert torch.equal(fresh()(idx[:, :3], position_ids=positions), full(idx[:, :3], position_ids=positions))
    model = fresh().requires_grad_(True)
    with torch.inference_mode():
        caches = [KVCache(config, 2, capacity=64) for _ in range(2)]
        for part in idx.split((2, 1, 9, 18), dim=1):
            assert torch.equal(model(part, cache=caches[0]), full(part, cache=caches[1]))
    assert 30 <= len(model.rope_cos) <= 60
    model(idx).sum().backward()
    assert model.blocks[0].attention.qkv.weight.grad is not None


# --- initialisation, construction, dropout


@everywhere
def test_initial_weights_are_a_pure_function_of_the_seed(config: ModelConfig) -> None:
    first, second, other = build(config), GPT(config), GPT(config)
    torch.manual_seed(0)
    first.init_weights(5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second.init_weights(5)
    assert torch.equal(torch.get_rng_state(), state)
    other.init_weights(6)
    same = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, same[name]), name
        if tensor.dim() == 2:
            assert not torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("n_layer", [2, 8])
def test_initial_weights_have_gpt2s_scale(n_layer: int, modern: bool) -> None:
    config = ModelConfig(vocab_size=200, n_layer=n_layer, n_embd=64, **(MODERN if modern else {}))
    model = GPT(config)
    model.init_weights(0)
    seen: list[bytes] = []
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
            continue
        writes_to_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
        expected = 0.02 / math.sqrt(2 * n_layer) if writes_to_stream else 0.02
        assert p.std().item() == pytest.approx(expected, rel=0.05), name
        assert abs(p.mean().item()) < expected * 5 / math.sqrt(p.numel()), name
        seen.append((p[0, :8] / expected).detach().numpy().round(4).tobytes())
    assert len(set(seen)) == len(seen), "two matrices started alike"


@everywhere
def test_built_on_meta_equals_built_directly(config: ModelConfig) -> None:
    direct = GPT(config)
    direct.init_weights(7)
    with torch.device("meta"):
        model = GPT(config)
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.num_parameters() == direct.num_parameters()
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan"))  # nothing may survive of what to_empty happened to find
    model.tie_weights_and_build_rope()
    model.init_weights(7)
    idx = tokens(config, 2, 16)
    assert torch.equal(model.eval()(idx), direct.eval()(idx))
    assert (model.head.weight is model.token_embedding.weight) == config.tie_embeddings
    assert model.state_dict().keys() == direct.state_dict().keys()
    assert model.num_parameters() == direct.num_parameters()


@everywhere
def test_state_dict_holds_parameters_only_and_carries_the_whole_model(config: ModelConfig) -> None:
    source, target = build(config), build(config, seed=99)
    state = copy.deepcopy(source.state_dict())
    assert set(state) == {name for name, _ in source.named_parameters(remove_duplicate=False)}
    target.load_state_dict(state)
    idx = tokens(config, 2, 8)
    assert torch.equal(target(idx), source(idx))
    fresh = {name for name in state if torch.equal(state[name], build(config, seed=99).state_dict()[name])}
    assert not fresh


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].model.vocab_size == 65])
def test_initial_loss_is_ln_of_the_vocabulary_size(name: str) -> None:
    config = PRESETS[name].model
    model = GPT(config)
    model.init_weights(1337)
    idx = tokens(config, 2, 65 if config.block_size > 64 else 64)
    with torch.no_grad():
        logits = model.eval()(idx[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).item()
    assert loss == pytest.approx(math.log(config.vocab_size), rel=0.05)


@pytest.mark.parametrize("name", ["classic", "modern"])
def test_dropout_acts_in_training_and_only_there(name: str) -> None:
    config = CONFIGS[name]
    model, plain = build(dataclasses.replace(config, dropout=0.3)), build(config)
    idx = tokens(config, 2, 16)
    assert torch.equal(model(idx), plain(idx))
    assert torch.equal(plain.train()(idx), plain.eval()(idx))
    model.train()
    torch.manual_seed(0)
    first, second = model(idx), model(idx)
    assert not torch.allclose(first, second, atol=1e-2)
    torch.manual_seed(0)
    assert torch.equal(model(idx), first)


def test_dropout_is_on_the_embeddings_and_on_both_residual_branches() -> None:
    """Dropping everything that can be dropped leaves nothing of the input."""
    model = build(dataclasses.replace(CLASSIC, dropout=0.5)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 1.0
    assert (model(tokens(CLASSIC, 2, 4), apply_head=False) - model.final_norm.bias).abs().max() == 0
    block = model.blocks[0]
    assert isinstance(block, Block)
    x = torch.randn(2, 4, CLASSIC.n_embd)
    assert torch.equal(block(x, None, None, None, None), x)


@everywhere
def test_gradients_reach_every_parameter_and_agree_between_the_attentions(config: ModelConfig) -> None:
    idx, gradients = tokens(config, 2, 16), []
    for attend in ATTENTIONS:
        model = build(config, attend).train().requires_grad_()
        F.cross_entropy(model(idx)[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        close(gradient, gradients[1][name])
