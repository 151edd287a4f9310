import math

import pytest
import torch

from crossvit.metrics import bootstrap, estimate, estimate_statistic, wilson
from crossvit.metrics.intervals import estimate_by_influence


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_wilson_ends_and_errors():
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    for trials in range(1, 500):  # rounding moves neither end, as it would at 209
        assert wilson(0, trials)[0] == 0.0 and wilson(trials, trials)[1] == 1.0
    assert wilson(1, 10)[0] > 0
    with pytest.raises(ValueError, match=r"successes must lie in \[0, trials\], got 11 of 10"):
        wilson(11, 10)
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
            wilson(1, 10, confidence=confidence)


def test_estimate_is_the_mean_with_its_wilson_interval():
    values = torch.tensor([1.0, 0.0, 0.5, 1.0])
    found = estimate(values)
    assert found.value == 0.625 and found.queries == 4
    assert (found.low, found.high) == wilson(2.5, 4)
    assert estimate(values, confidence=0.5)[1:3] == wilson(2.5, 4, 0.5)


def test_repeats_of_one_query_do_not_narrow_the_interval():
    values = (torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    five = estimate(values.repeat_interleave(5), torch.arange(40).repeat_interleave(5))
    assert (five.low, five.high) == pytest.approx((estimate(values).low, estimate(values).high), abs=0.01)
    independent = estimate(values.repeat_interleave(5))
    assert independent.high - independent.low < 0.6 * (five.high - five.low)


def test_clusters_of_one_change_nothing_and_certainty_counts_clusters():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert estimate(values, torch.arange(4)) == estimate(values)
    sure = estimate(torch.ones(10), torch.arange(10) // 5)
    assert (sure.low, sure.high) == wilson(2, 2)
    one = estimate(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64))
    assert 0 <= one.low < 0.5 < one.high <= 1


def test_estimate_without_queries():
    found = estimate(torch.zeros(0))
    assert math.isnan(found.value) and found[1:] == (0.0, 1.0, 0)
    assert all(math.isnan(end) for end in bootstrap(torch.zeros(0)))


def test_bootstrap_covers_like_the_normal_interval_and_repeats():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 1
    low, high = bootstrap(values, seed=3)
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.15 * half)
    assert bootstrap(values, seed=3) == (low, high) != bootstrap(values, seed=4)
    low, high = bootstrap(values, confidence=0.5)
    assert high - low == pytest.approx(2 * 0.6745 * values.std().item() / 20, rel=0.15)
    low, high = bootstrap(values, resamples=1)
    assert low == high
    many = torch.arange(2.0**20)  # so many that two resamples are drawn at a time
    assert bootstrap(many, resamples=3) != bootstrap(many, resamples=4)


def test_the_interval_of_a_statistic_mirrors_the_percentiles_of_the_bootstrap():
    def mean(values):
        return values.mean().item()

    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = estimate_statistic(mean, values, confidence=0.5)
    low, high = bootstrap(values, resamples=500, confidence=0.5)
    value = mean(values)
    assert found == pytest.approx((value, 2 * value - high, 2 * value - low, 50))
    lopsided = torch.tensor([1.0] * 9 + [0.0])
    assert estimate_statistic(mean, lopsided).high == 1.0 and estimate_statistic(mean, 1 - lopsided).low == 0.0
    # no resample differs, which does not make it certain
    assert estimate_statistic(mean, torch.ones(10))[:3] == (1.0, *wilson(10, 10))
    assert estimate_statistic(mean, torch.ones(10), clusters=torch.arange(10) // 2)[:3] == (1.0, *wilson(5, 5))
    assert estimate_statistic(mean, torch.ones(10), confidence=0.5) == (1.0, *wilson(10, 10, 0.5), 10)


def test_bootstrap_draws_whole_clusters():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap(values.repeat_interleave(4), torch.arange(50).repeat_interleave(4))
    assert (low, high) == pytest.approx(bootstrap(values), abs=1e-6)


def test_the_interval_of_a_statistic_draws_whole_clusters():
    def spread(values):
        return values.std(correction=0).item() / 3

    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = estimate_statistic(spread, values.repeat(4), clusters=torch.arange(50).repeat(4))
    assert found == pytest.approx((*estimate_statistic(spread, values)[:3], 200), abs=1e-6)


def test_effective_size_of_clusters_by_hand():
    # four clusters of two, mean 1/2: residuals 1, 0, 0, -1, so a robust variance of 2 / 64 x 4 / 3 = 1 / 24 over the binomial 1 / 32:
    # 8 values count as 6
    values = torch.tensor([1.0, 1, 1, 0, 0, 1, 0, 0])
    found = estimate(values, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert (found.low, found.high) == pytest.approx(wilson(3, 6))
    assert found.queries == 8
    # two clusters of three, mean 1/2: residuals 1/2 and -1/2, a variance of 2 / 4 / 36 x 2 = 1 / 36 below the binomial 1 / 24: all 6 count
    found = estimate(torch.tensor([1.0, 1, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert (found.low, found.high) == pytest.approx(wilson(3, 6))
    # clusters of one mean have no variance
    found = estimate(torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    assert (found.low, found.high) == pytest.approx(wilson(2, 4))


def test_effective_size_by_influence_by_hand():
    # two clusters that move it by 1/8 and -1/8: a variance of 2 / 64 x 2 = 1 / 16, that of a share of 1/2 among 4
    influence = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]) / 32
    found = estimate_by_influence(0.5, influence, least=2, clusters=torch.arange(8) // 4)
    assert found == pytest.approx((0.5, *wilson(2, 4), 8))
    # nothing moves it, and it is not at an end: all count
    found = estimate_by_influence(0.5, torch.zeros(8), least=2, confidence=0.5)
    assert found == pytest.approx((0.5, *wilson(4, 8, 0.5), 8))


def test_clusters_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"clusters \(2,\) must have one entry a value \(3,\)"):
        estimate(torch.zeros(3), torch.zeros(2))
