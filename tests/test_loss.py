"""The loss is a fact of the model and the text: equal to plain arithmetic, and to itself at every batch size."""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import thread_count
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.loss import counting_baselines, evaluate, subset
from glassgpt.model import GPT

CPU = torch.device("cpu")
V, T = 11, 8
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(0)) * 3  # a bigram model: logits of the next token


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with thread_count(1):  # tiny matrices: more threads would only wait for each other
        yield


def stream(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, n).astype(np.uint16)


def bigram(idx: Tensor) -> Tensor:
    return TABLE[idx]


def positional(idx: Tensor) -> Tensor:
    """Logits that depend on the place in the window and on everything before it: a wrong cut shows."""
    place = torch.arange(idx.size(1)).float()
    return TABLE[idx] * (1 + place[:, None] / T) + TABLE[idx].cumsum(dim=1) / (1 + place[:, None])


@pytest.fixture(scope="module", params=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> GPT:
    model = GPT(ModelConfig(V, T, 2, 2, n_embd=16, **(MODERN if request.param == "modern" else {})))
    model.init_weights(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)  # far from uniform
    return model.eval()


def by_hand(logits_of: object, tokens: np.ndarray, starts: list[int] | None = None) -> tuple[list[list[float]], int]:
    """Losses of every token of every window, one window at a time, in float64 and plain Python."""
    ids, windows = tokens.tolist(), []
    for start in range(0, len(ids) - 1, T) if starts is None else starts:
        window = ids[start : start + T + 1]
        with torch.no_grad():
            rows = logits_of(torch.tensor([window[:-1]]))[0].double().tolist()  # type: ignore[operator]
        windows.append(
            [math.log(sum(map(math.exp, row))) - row[target] for row, target in zip(rows, window[1:], strict=True)]
        )
    return windows, sum(map(len, windows))


@pytest.mark.parametrize("n", [2, 3, T, T + 1, T + 2, 2 * T + 1, 5 * T, 5 * T + 1, 333])
@pytest.mark.parametrize("logits_of", [bigram, positional])
def test_equals_a_loop_over_windows(logits_of: object, n: int) -> None:
    found = evaluate(logits_of, stream(n), T, CPU, batch_size=3)  # type: ignore[arg-type]
    windows, count = by_hand(logits_of, stream(n))
    assert found.tokens == count == n - 1  # each token but the first, once
    assert found.loss == pytest.approx(sum(map(sum, windows)) / count, rel=1e-6)
    means = [sum(window) / len(window) for window in windows]
    if len(means) == 1:
        assert math.isnan(found.stderr)
    else:
        centre = sum(means) / len(means)
        variance = sum((mean - centre) ** 2 for mean in means) / (len(means) - 1)
        assert found.stderr == pytest.approx(math.sqrt(variance / len(means)), rel=1e-5)


def test_a_real_model_equals_a_loop_over_windows(model: GPT) -> None:
    tokens = stream(20 * T + 4)
    windows, count = by_hand(model, tokens)
    assert evaluate(model, tokens, T, CPU).loss == pytest.approx(sum(map(sum, windows)) / count, rel=1e-6)


def test_repeated_is_bit_equal(model: GPT) -> None:
    found = [evaluate(model, stream(500), T, CPU, batch_size=7) for _ in range(3)]
    assert len({(e.loss.hex(), e.stderr.hex(), e.tokens) for e in found}) == 1


def test_every_batch_size_gives_the_same(model: GPT) -> None:
    tokens = stream(40 * T + 5)
    for logits_of in (bigram, positional, model):
        whole = evaluate(logits_of, tokens, T, CPU, batch_size=1000)
        for batch_size in range(1, 65):
            part = evaluate(logits_of, tokens, T, CPU, batch_size=batch_size)
            tolerance = 1e-6 if logits_of is model else 1e-9  # float32 matrices round by their shapes
            assert part.loss == pytest.approx(whole.loss, rel=tolerance)
            assert part.stderr == pytest.approx(whole.stderr, rel=10 * tolerance)
            assert part.tokens == whole.tokens


def test_chosen_windows_only() -> None:
    tokens = stream(10 * T + 4)
    starts = np.array([0, 3 * T, 10 * T])  # the last is short
    found = evaluate(positional, tokens, T, CPU, starts=starts, batch_size=2)
    windows, count = by_hand(positional, tokens, starts.tolist())
    assert found.tokens == count == T + T + 3
    assert found.loss == pytest.approx(sum(map(sum, windows)) / count, rel=1e-6)


def test_no_gradients_and_no_trace_left(model: GPT) -> None:
    tokens, before = stream(100), torch.get_rng_state()
    kept = tokens.copy()
    evaluate(model, tokens, T, CPU)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(tokens, kept) and torch.is_grad_enabled()


def test_a_perfect_and_a_clueless_model() -> None:
    tokens = np.arange(100, dtype=np.uint16) % V
    perfect = evaluate(lambda idx: 1000.0 * torch.eye(V)[(idx + 1) % V], tokens, T, CPU)
    assert perfect.loss == 0 and perfect.stderr == 0
    clueless = evaluate(lambda idx: torch.zeros(*idx.shape, V), stream(3001), 999, CPU)
    one = torch.nn.functional.cross_entropy(torch.zeros(1, V), torch.tensor([0])).item()
    assert one == pytest.approx(math.log(V), rel=1e-6)
    assert clueless.loss == pytest.approx(one, rel=1e-14)  # sums of equal float32 losses, kept in float64


# --- subset ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 5000), st.integers(1, 60), st.integers(1, 6000))
def test_subset_is_spread_and_within_its_budget(n: int, block_size: int, at_most: int) -> None:
    tokens = np.zeros(n, dtype=np.uint16)
    starts = subset(tokens, block_size, at_most)
    assert np.array_equal(starts, subset(tokens, block_size, at_most))
    possible = range(0, n - 1, block_size)
    assert set(starts.tolist()) <= set(possible) and len(set(starts.tolist())) == len(starts)
    predicted = int(np.minimum(block_size, n - 1 - starts).sum())
    assert predicted <= max(at_most, block_size)  # one window at least
    assert len(starts) == max(1, min(len(possible), at_most // block_size))
    if len(starts) == len(possible):
        assert predicted == n - 1
    elif len(starts) > 1:
        gaps = np.diff(starts) // block_size
        assert starts[0] == 0 and starts[-1] == possible[-1] and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("n", [0, 1])
def test_subset_of_nothing(n: int) -> None:
    assert len(subset(np.zeros(n, dtype=np.uint16), 8, 100)) == 0


def test_subset_evaluates_to_the_whole_when_all_fits() -> None:
    tokens = stream(333)
    assert evaluate(bigram, tokens, T, CPU, starts=subset(tokens, T, 10**6)) == evaluate(bigram, tokens, T, CPU)


# --- baselines and units ---------------------------------------------------------------------------------------------


def losses_by_counting(train: list[int], val: list[int], vocab_size: int) -> tuple[float, float]:
    singles, after = Counter(train), defaultdict[int, Counter[int]](Counter)
    for one, two in itertools.pairwise(train):
        after[one][two] += 1

    def unigram(token: int) -> float:
        return (singles[token] + 1) / (len(train) + vocab_size)

    def bigram(one: int, two: int) -> float:
        total = sum(after[one].values())
        if not total:
            return unigram(two)
        return max(after[one][two] - 0.75, 0) / total + 0.75 * len(after[one]) / total * unigram(two)

    pairs = list(itertools.pairwise(val))
    return (
        -sum(math.log(unigram(token)) for token in val) / len(val),
        -sum(math.log(bigram(*pair)) for pair in pairs) / len(pairs),
    )


def structured(vocab_size: int, n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    ids = [min(int(rng.expovariate(8) * vocab_size), vocab_size - 1) for _ in range(n)]
    for _ in range(n // 3):  # some structure to find
        i = rng.randrange(n - 1)
        ids[i + 1] = (ids[i] * 7 + 1) % vocab_size
    return ids


@pytest.mark.parametrize(("vocab_size", "n"), [(2, 50), (5, 3000), (65, 2000), (65_536, 500), (100_000, 500)])
def test_floors_equal_counting(vocab_size: int, n: int) -> None:
    train, val = structured(vocab_size, n, 1), structured(vocab_size, n // 2, 2)
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32  # products of ids must not overflow it
    found = counting_baselines(np.array(train, dtype=dtype), np.array(val, dtype=dtype), vocab_size)
    assert (found.unigram, found.bigram) == pytest.approx(losses_by_counting(train, val, vocab_size), rel=1e-9)
    assert found.uniform == math.log(vocab_size)


def test_the_counting_models_are_distributions() -> None:
    train = np.array(structured(V, 60, 3), dtype=np.uint16)
    for before in range(V):  # also one that was never seen
        losses = [counting_baselines(train, np.array([before, after]), V).bigram for after in range(V)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_a_cycle_costs_a_bigram_model_almost_nothing() -> None:
    found = counting_baselines(np.arange(50_000) % 7, np.arange(500) % 7, 7)
    assert found.bigram < 1e-3 and found.unigram == pytest.approx(math.log(7), rel=1e-3)


@pytest.mark.parametrize("n", [0, 1])
def test_floors_of_almost_nothing_are_finite(n: int) -> None:
    found = counting_baselines(np.zeros(n, dtype=np.uint16), np.zeros(1, dtype=np.uint16), 65)
    assert found.uniform == math.log(65) and 0 < found.unigram <= math.log(65) and found.bigram == 0


def test_bits_per_byte_compares_tokenizers() -> None:
    """The same total loss on the same 700 bytes, in few tokens or in many."""
    for n in (100, 700):
        found = evaluate(lambda idx: torch.zeros(*idx.shape, V), stream(n + 1), T, CPU, tokens_per_byte=n / 700)
        assert found.bits_per_byte == pytest.approx(n * math.log2(V) / 700)
    assert evaluate(bigram, stream(100), T, CPU).bits_per_byte is None
