"""Sampling, against plain Python on plain lists, and against transformers."""

import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import thread_count
from glassgpt.errors import ConfigError
from glassgpt.sampling import (
    SamplingConfig,
    apply_temperature,
    cuts,
    explain,
    interval,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token,
    next_uniform,
    penalize_repetition,
    probabilities,
    row_generator,
    sample_inverse_cdf,
    stages,
)

JUST_BELOW_ONE = math.nextafter(1.0, 0.0)  # the largest random number there is
NEVER = float("-inf")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


def t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def uniforms(seed: int, row: int, count: int) -> Tensor:
    generator = row_generator(seed, row)
    return torch.stack([next_uniform(generator) for _ in range(count)])


# --- brute force


def naive_softmax(logits: list[float]) -> list[float]:
    peak = max(logits)
    powers = [math.exp(x - peak) for x in logits]
    return [x / math.fsum(powers) for x in powers]


def naive_order(logits: list[float]) -> list[int]:
    """The most likely first; among equals, the lowest id first."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def naive_top_k(logits: list[float], k: int) -> set[int]:
    return set(naive_order(logits)[:k] if k else range(len(logits)))


def naive_top_p(logits: list[float], p: float) -> tuple[set[int], float]:
    """The kept ids, and how close the decision was."""
    share, kept, before, margin = naive_softmax(logits), set(), [], 1.0
    for i in naive_order(logits):
        mass = math.fsum(before)
        margin = min(margin, abs(mass - p)) if before else margin
        if not before or mass < p:
            kept.add(i)
        before.append(share[i])
    return kept, margin


def naive_penalty(logits: list[float], previous_ids: list[int], penalty: float) -> list[float]:
    changed = [x / penalty if x > 0 else x * penalty for x in logits]
    return [changed[i] if i in previous_ids else x for i, x in enumerate(logits)]


def naive_min_p(logits: list[float], p: float) -> tuple[set[int], float]:
    """The kept ids, and how close the decision was. The most likely token is always kept."""
    share = naive_softmax(logits)
    rest = [x for i, x in enumerate(share) if i != share.index(max(share))]
    return {i for i, x in enumerate(share) if x >= p * max(share)}, min(
        (abs(x - p * max(share)) for x in rest), default=1
    )


def naive_probabilities(
    logits: list[float], config: SamplingConfig, previous_ids: list[int] | None = None
) -> tuple[list[float], float]:
    logits = naive_penalty(logits, previous_ids or [], config.repetition_penalty)
    if config.temperature == 0:
        first = logits.index(max(logits))
        return [float(i == first) for i in range(len(logits))], 1.0
    scaled = [x / config.temperature for x in logits]
    kept = naive_top_k(scaled, config.top_k)
    cut = [x if i in kept else NEVER for i, x in enumerate(scaled)]
    kept, margin = naive_top_p(cut, config.top_p) if config.top_p < 1 else (set(range(len(cut))), 1.0)
    cut = [x if i in kept else NEVER for i, x in enumerate(cut)]
    if config.min_p:
        kept, other_margin = naive_min_p(cut, config.min_p)
        margin = min(margin, other_margin)
    return naive_softmax([x if i in kept else NEVER for i, x in enumerate(cut)]), margin


def naive_draw(probability: list[float], uniform: float) -> int:
    total = 0.0
    for i, p in enumerate(probability):
        total += p
        if uniform < total:
            return i
    return max(i for i, p in enumerate(probability) if p > 0)


# Few distinct values, so that ties are common; some rows of arbitrary numbers.
rows_of_logits = st.lists(st.sampled_from([-3.0, 0.0, 0.5, 0.5, 2.0]), min_size=1, max_size=12) | st.lists(
    st.floats(-30, 30).map(lambda x: round(x, 6)),
    min_size=1,
    max_size=12,  # no ties that only rounding makes
)
configs = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.31, 1e-9]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
)
previous = st.lists(st.integers(0, 11), max_size=5)


# --- each stage


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows_of_logits, st.integers(0, 14))
def test_top_k_keeps_exactly_the_k_first_in_order(logits: list[float], k: int) -> None:
    kept = naive_top_k(logits, k)
    assert keep_top_k(t(logits), k).tolist() == [[x if i in kept else NEVER for i, x in enumerate(logits)]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows_of_logits, st.floats(0.01, 1, exclude_max=True))
def test_top_p_keeps_the_fewest_that_reach_p(logits: list[float], p: float) -> None:
    kept, margin = naive_top_p(logits, p)
    assume(margin > 1e-9)
    got = keep_top_p(t(logits), p)[0].tolist()
    assert got == [x if i in kept else NEVER for i, x in enumerate(logits)]
    share = naive_softmax(logits)
    survivors = [share[i] for i, x in enumerate(got) if x > NEVER]
    assert math.fsum(survivors) >= p - 1e-12
    if len(survivors) > 1:
        assert math.fsum(survivors) - min(survivors) < p


def test_top_p_keeps_the_larger_of_two_logits_with_equal_probabilities() -> None:
    """So near that softmax gives the same number."""
    logits = torch.tensor([0.0, 5e-324, -1.0], dtype=torch.float64)
    assert keep_top_p(logits, 0.3).isfinite().tolist() == [False, True, False]


def test_top_p_is_exact_where_the_arithmetic_is() -> None:
    """Quarters and eighths have no rounding: reaching p exactly is enough."""
    logits = t([0.5, 0.25, 0.125, 0.125]).log2() * math.log(2)
    for p, count in ((1e-9, 1), (0.3, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.88, 4), (1.0, 4)):
        assert (keep_top_p(logits, p) > NEVER).sum() == count, p


def partitions(total: int, parts: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """All ways to write total as an ascending sum of that many numbers."""
    if parts == 1:
        yield from [(total,)] * (total >= least)
        return
    for first in range(least, total // parts + 1):
        for rest in partitions(total - first, parts - 1, first):
            yield (first, *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_p_and_min_p_decide_as_exact_fractions_do(dtype: torch.dtype) -> None:
    """Every distribution of up to 5 tokens in parts of 1/n, n up to 20, and every p that is a number of such parts.

    So most cases are ties: a sum that is exactly p, or a token exactly p times as likely as the first.
    """
    cases = 0
    for total, parts in itertools.product(range(2, 21), range(1, 6)):
        rows = [row[::-1] for row in partitions(total, parts)]  # the most likely first
        if not rows:
            continue
        logits = (torch.tensor(rows, dtype=dtype) / total).log()
        for part in range(1, total):
            p = Fraction(part, total)
            fewest = [next(n for n in range(1, parts + 1) if Fraction(sum(row[:n]), total) >= p) for row in rows]
            assert (keep_top_p(logits, part / total) > NEVER).sum(-1).tolist() == fewest
            likely = [sum(count >= p * row[0] for count in row) for row in rows]
            assert (keep_min_p(logits, part / total) > NEVER).sum(-1).tolist() == likely
            cases += len(rows)
    assert cases > 5_000
    uniform = torch.zeros(128_000, dtype=torch.float64)
    for p, count in ((0.1, 12_800), (0.25, 32_000), (0.5, 64_000), (0.999, 127_872)):
        assert (keep_top_p(uniform, p) > NEVER).sum() == count


def test_min_p_is_relative_to_the_most_likely_token() -> None:
    """Quarters and eighths have no rounding: exactly p times the largest is enough."""
    logits = t([0.5, 0.25, 0.125, 0.125]).log2() * math.log(2)
    for p, count in ((0, 4), (0.25, 4), (0.26, 2), (0.5, 2), (0.51, 1), (1, 1)):
        assert (keep_min_p(logits, p) > NEVER).sum() == count, p


def test_the_repetition_penalty_counts_a_token_once_and_lowers_both_signs() -> None:
    logits = t([2.0, -2.0, 0.0, 3.0, NEVER])
    assert penalize_repetition(logits, [0, 1, 1, 2, 4, 0], 2.0).tolist() == [[1, -4, 0, 3, NEVER]]
    assert penalize_repetition(logits, [], 2.0) is logits
    assert penalize_repetition(logits, [0], 1.0) is logits


def test_stages_work_row_by_row_and_leave_their_input_alone() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    copy = logits.clone()
    config = SamplingConfig(0.8, 4, 0.7, 0.1, 1.2)
    for stage in (
        lambda x: apply_temperature(x, 0.5),
        lambda x: keep_top_k(x, 3),
        lambda x: keep_top_p(x, 0.6),
        lambda x: keep_min_p(x, 0.2),
        lambda x: penalize_repetition(x, [1, 5], 1.5),
        lambda x: probabilities(x, config, [0, 8]),
    ):
        whole = stage(logits)
        assert torch.equal(whole, torch.cat([stage(row[None]) for row in logits]))
        assert torch.equal(whole, torch.stack([stage(row) for row in logits]))
        assert torch.equal(logits, copy)
    assert torch.equal(apply_temperature(logits, 0.5), (logits - logits.amax(-1, keepdim=True)) * 2)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows_of_logits, configs, previous)
def test_probabilities_equal_brute_force(logits: list[float], config: SamplingConfig, ids: list[int]) -> None:
    ids = [i for i in ids if i < len(logits)]
    expected, margin = naive_probabilities(logits, config, ids)
    assume(margin > 1e-9)
    got = probabilities(t(logits), config, ids)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got[0], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-9)
    assert [p > 0 for p in got[0].tolist()] == [p > 0 for p in expected]


# --- against transformers


def test_all_settings_together_equal_transformers() -> None:
    """Also the order in which `generate` of transformers applies them."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    generator = torch.Generator().manual_seed(4)
    seen: Counter[int] = Counter()
    for top_k, top_p, min_p, penalty, temperature in itertools.product(
        (0, 12), (1.0, 0.8), (0.0, 0.06), (1.0, 1.4, 0.7), (0.6, 1.5)
    ):
        config = SamplingConfig(temperature, top_k, top_p, min_p, penalty)
        names = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p or None}
        settings = GenerationConfig(do_sample=True, repetition_penalty=penalty, **names)
        processors = theirs._get_logits_processor(settings, input_ids_seq_length=9)
        for _ in range(4):
            logits = 2 * torch.randn(3, 40, generator=generator, dtype=torch.float64)
            ids = torch.randint(40, (3, 9), generator=generator)
            expected = processors(ids, logits).softmax(dim=-1)
            for row in range(3):
                got = probabilities(logits[row], config, ids[row].tolist())
                torch.testing.assert_close(got, expected[row], atol=1e-12, rtol=1e-9)
                assert torch.equal(got > 0, expected[row] > 0)
                seen[int((got > 0).sum())] += 1
    assert len(seen) > 12, "the settings must drop various numbers of tokens"


def test_greedy_with_a_repetition_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    config, ids = SamplingConfig(0.0, repetition_penalty=3.0), logits.topk(2).indices  # [20, 2]
    expected = RepetitionPenaltyLogitsProcessor(3.0)(ids, logits).argmax(dim=-1)
    got = [int(probabilities(row, config, seen.tolist()).argmax()) for row, seen in zip(logits, ids, strict=True)]
    assert got == expected.tolist()
    assert not torch.equal(expected, logits.argmax(dim=-1))


# --- order, precision, greedy


def test_top_p_is_relative_to_the_mass_that_top_k_kept() -> None:
    """Of [.4 .3 .2 .1], top-k 2 leaves [4/7 3/7]: top-p .5 then keeps one, where alone it would keep two."""
    logits = t([0.4, 0.3, 0.2, 0.1]).log()
    assert (probabilities(logits, SamplingConfig(top_p=0.5)) > 0).sum() == 2
    assert probabilities(logits, SamplingConfig(top_k=2, top_p=0.5)).tolist() == [[1, 0, 0, 0]]
    assert (probabilities(logits, SamplingConfig(top_k=2, top_p=0.58)) > 0).sum() == 2


def test_temperature_comes_before_top_p() -> None:
    """At temperature 1, .7 is enough for top-p .6; at 2 the same token has less than .6 and another joins it."""
    logits = t([0.7, 0.2, 0.1]).log()
    assert (probabilities(logits, SamplingConfig(1.0, top_p=0.6)) > 0).sum() == 1
    assert (probabilities(logits, SamplingConfig(2.0, top_p=0.6)) > 0).sum() == 2


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([-3.0, 0.5, 2.0, 2.0]), min_size=1, max_size=12), st.floats(0, JUST_BELOW_ONE))
def test_greedy_takes_the_first_largest_whatever_else_is_set(logits: list[float], uniform: float) -> None:
    best = logits.index(max(logits))
    number = torch.tensor([uniform], dtype=torch.float64)
    for config in (SamplingConfig(0.0), SamplingConfig(0.0, 3, 0.5), SamplingConfig(2.0, top_k=1)):
        assert next_token(t(logits).float(), config, number).tolist() == [best]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_the_limit_of_low_temperature_is_greedy(temperature: float) -> None:
    got = probabilities(t([1.0, 5.0, -3.0], [-9.0, -8.0, -7.0]), SamplingConfig(temperature))
    assert got.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_probabilities_of_low_precision_logits_are_computed_in_double() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = probabilities(logits.to(dtype), SamplingConfig(0.7))
        assert torch.equal(got, probabilities(logits.to(dtype).double(), SamplingConfig(0.7)))
        torch.testing.assert_close(got.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-14, rtol=0)


# --- sampling by inverse CDF


shares = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(shares, st.floats(0, JUST_BELOW_ONE) | st.sampled_from([0.0, 0.25, 0.5, JUST_BELOW_ONE]))
def test_sampling_inverts_the_cumulative_distribution(counts: list[int], uniform: float) -> None:
    """Shares of 2**k parts are exact, so the edges are too: each belongs to the token above it."""
    counts = [*counts, 64 - sum(counts)]  # at most 60 before
    probability = [n / 64 for n in counts]
    got = int(sample_inverse_cdf(t(probability), torch.tensor([uniform], dtype=torch.float64)))
    assert got == naive_draw(probability, uniform)
    assert probability[got] > 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda row: sum(row) > 1e-6))
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float]) -> None:
    """At both ends of [0, 1), and just around every edge between tokens, whatever the sum is rounded to."""
    probability = t([w / sum(weights) for w in weights])
    edges = [min(float(c), JUST_BELOW_ONE) for c in probability[0].cumsum(0)]
    numbers = [0.0, 5e-324, JUST_BELOW_ONE, *edges, *(math.nextafter(edge, 0) for edge in edges)]
    drawn = sample_inverse_cdf(probability.expand(len(numbers), -1), torch.tensor(numbers, dtype=torch.float64))
    assert (probability[0, drawn] > 0).all()


def test_zeros_at_both_ends_and_a_single_token() -> None:
    ends = torch.tensor([0.0, JUST_BELOW_ONE], dtype=torch.float64)
    assert sample_inverse_cdf(t([0, 0, 0.5, 0, 0.5, 0, 0]).expand(2, -1), ends).tolist() == [2, 4]
    assert sample_inverse_cdf(t([0, 0, 1, 0]).expand(2, -1), ends).tolist() == [2, 2]
    assert sample_inverse_cdf(t([1]).expand(2, -1), ends).tolist() == [0, 0]


def test_sampled_tokens_follow_the_distribution() -> None:
    """Chi-square over 20,000 tokens of one row, with top-k; 9 degrees of freedom, 0.1 % critical value 27.88."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    config, n = SamplingConfig(1.3, top_k=10), 20_000
    uniform = uniforms(3, 0, n)
    seen = Counter(next_token(logits.expand(n, -1), config, uniform).tolist())
    expected, _ = naive_probabilities(logits[0].double().tolist(), config)
    assert set(seen) == {i for i, p in enumerate(expected) if p > 0}
    assert sum((seen[i] - n * p) ** 2 / (n * p) for i, p in enumerate(expected) if p > 0) < 27.88


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows_of_logits, configs, previous, st.floats(0, JUST_BELOW_ONE))
def test_the_cuts_add_up_and_the_number_falls_into_the_interval_of_the_chosen_token(
    logits: list[float], config: SamplingConfig, ids: list[int], number: float
) -> None:
    ids = [i for i in ids if i < len(logits)]
    row, left = torch.tensor(logits, dtype=torch.float64), len(logits)
    for cut, mass in zip(cuts(row, stages(row, config, ids)), [0, None, None, None, None], strict=True):
        left -= cut.dropped
        assert cut.kept == left >= 1 and mass in (None, cut.mass) and 0 <= cut.mass < 1
        assert (cut.dropped > 0) == (cut.mass > 0) == (cut.last_kept is not None) == (cut.first_dropped is not None)
        if cut.last_kept is not None and cut.first_dropped is not None and config.repetition_penalty == 1:
            assert (-logits[cut.last_kept], cut.last_kept) < (-logits[cut.first_dropped], cut.first_dropped)
    share = probabilities(row, config, ids)
    assert int((share > 0).sum()) <= left
    chosen = int(sample_inverse_cdf(share, torch.tensor(number, dtype=torch.float64)))
    begin, end = interval(share, chosen)
    assert begin <= number * float(share.cumsum(0)[-1]) < end
    assert interval(share, len(logits) - 1)[1] == float(share.cumsum(0)[-1]) and interval(share, 0)[0] == 0


# --- settings


def test_every_setting_out_of_range_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(temperature=-1, top_k=-2, top_p=0, min_p=-0.25, repetition_penalty=-3.5)
    named = [problem.split(":")[0] for problem in caught.value.problems]
    assert named == ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]
    for found in ("-1", "-2", "-0.25", "-3.5"):
        assert found in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", v) for v in (-0.1, math.inf, math.nan)]
    + [("top_p", v) for v in (0, -1, 1.01, math.nan)]
    + [("min_p", v) for v in (-0.1, 1.01, math.nan)]
    + [("repetition_penalty", v) for v in (0, -1, math.inf, math.nan, 5e-324)]
    + [(name, v) for name in ("temperature", "top_k", "top_p", "min_p") for v in ("0.5", None, True, [0.5])]
    + [("top_k", 2.0)],
)
def test_a_setting_out_of_range_or_of_a_wrong_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingConfig(**{name: value})


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert SamplingConfig(0, 0, 1) == SamplingConfig(0.0, 0, 1.0)
    SamplingConfig(1e-9, 10**9, 1e-9, 1, 1e-9)


# --- the random numbers


def test_random_numbers_depend_on_seed_and_row_only() -> None:
    torch.manual_seed(0)
    first = torch.stack([uniforms(11, row, 20) for row in range(6)])  # [rows, numbers]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two = row_generator(11, 1), row_generator(11, 4)
    for number in range(20):  # in turn
        assert next_uniform(two) == first[4, number]
        assert next_uniform(one) == first[1, number]
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.float64
    assert ((first >= 0) & (first < 1)).all()


def test_random_numbers_stay_the_same_from_version_to_version() -> None:
    assert uniforms(11, 3, 3).tolist() == [0.6372195506051875, 0.043289121031173994, 0.18528215441377494]


def test_random_numbers_of_neighbouring_seeds_and_rows_are_uncorrelated() -> None:
    draws = {(seed, row): uniforms(seed, row, 200) for seed in range(12) for row in range(12)}
    correlation = torch.corrcoef(torch.stack(list(draws.values()))).fill_diagonal_(0)
    assert correlation.abs().max() < 0.4  # 10,000 pairs of 200 numbers: 5.5 standard deviations
    firsts = torch.tensor([float(numbers[0]) for numbers in draws.values()])
    assert abs(firsts.mean() - 0.5) < 0.1


# --- explain


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows_of_logits, configs, st.integers(1, 14), previous)
def test_explain_shows_the_stages_that_lead_to_the_distribution(
    logits: list[float], config: SamplingConfig, n: int, ids: list[int]
) -> None:
    row, ids = torch.tensor(logits, dtype=torch.float32), [i for i in ids if i < len(logits)]
    candidates = explain(row, config, n, ids)
    penalized = penalize_repetition(row.double(), ids, config.repetition_penalty)
    assert [c.token for c in candidates] == naive_order(penalized.tolist())[:n]
    without = {
        "after_temperature": {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
        "after_top_k": {"top_p": 1.0, "min_p": 0.0},
        "after_top_p": {"min_p": 0.0},
        "after_min_p": {},
    }
    for c in candidates:
        assert c.logit == row[c.token].item()
        assert c.penalized_logit == penalized[c.token].item()
        for name, later in without.items():
            expected = probabilities(row[None], dataclasses.replace(config, **later), ids)
            assert getattr(c, name) == expected[0, c.token].item()


def test_explaining_is_deterministic_for_a_large_vocabulary_full_of_ties() -> None:
    numbers = random.Random(0).choices([0.0, 1.0, 2.0], k=5000)
    candidates = explain(torch.tensor(numbers), SamplingConfig(1.0, top_k=100), 200)
    assert [c.token for c in candidates] == naive_order(numbers)[:200]
    last = naive_order(numbers)[-1]
    assert explain(torch.tensor(numbers), SamplingConfig(1.0, top_k=100), 200, chosen=last)[:-1] == candidates
    assert explain(torch.tensor(numbers), SamplingConfig(1.0), 3, chosen=last)[3].token == last
    assert [c.after_top_k > 0 for c in candidates] == [rank < 100 for rank in range(200)]
