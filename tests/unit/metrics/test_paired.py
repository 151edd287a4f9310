from statistics import fmean

import pytest

from crossvit.metrics import holm, paired_difference, sign_flip_p
from crossvit.metrics.paired import DRAWS, EXACT


def test_sign_flip_by_hand():
    # sums of +-1 +-2 +-3: 6 and -6 are as far as 1 + 2 + 3, of 8
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    # 3 - 1 - 2 = 0: every toss is as far
    assert sign_flip_p([3, -1, -2]) == 1.0
    # |1 + 2 - 3| < |-1 + 2 + 3| = 4: reached by +-4 and +-6
    assert sign_flip_p([-1, 2, 3]) == 4 / 8


def test_the_least_p_value_of_n_seeds():
    for size in (1, 5, EXACT):
        assert sign_flip_p([0.1] * size) == 2 / 2**size


def test_equal_sums_are_equal_under_rounding():
    assert sign_flip_p([0.1, 0.2, 0.3]) == sign_flip_p([0.3, 0.2, 0.1]) == 2 / 8


def test_no_difference_at_all():
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_many_seeds_are_drawn():
    found = sign_flip_p([1.0] * (EXACT + 1) + [-1.0] * 7)
    exact = 2 * sum(_choose(20, k) for k in range(13, 21)) / 2**20
    assert found == pytest.approx(exact, abs=4 * (exact * (1 - exact) / DRAWS) ** 0.5)
    assert sign_flip_p([1.0] * (EXACT + 1) + [-1.0] * 7) == found  # the same draw
    assert sign_flip_p([1.0] * 40) == 1 / (1 + DRAWS)


def _choose(n: int, k: int) -> int:
    from math import comb

    return comb(n, k)


def test_paired_difference_by_hand():
    found = paired_difference([0.9, 0.8, 0.7], [0.8, 0.75, 0.55])
    differences = [0.1, 0.05, 0.15]
    assert found.mean == pytest.approx(fmean(differences))
    half = 4.302653 * 0.05 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.1 - half, abs=1e-6), pytest.approx(0.1 + half, abs=1e-6))
    assert (found.sign_flip, found.count) == (0.25, 3)
    # t = .1 / (.05 / sqrt 3) = 2 sqrt 3 on two degrees of freedom, where P(|T| > t) = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14)
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5, abs=1e-9)
    half = 0.816497 * 0.05 / 3**0.5  # of 50 %
    assert paired_difference([0.9, 0.8, 0.7], [0.8, 0.75, 0.55], 0.5).high == pytest.approx(0.1 + half, abs=1e-6)


def test_one_pair_has_no_interval():
    assert paired_difference([0.9], [0.5])[1:] == (None, None, None, 1.0, 1)


def test_differences_that_do_not_vary():
    assert paired_difference([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert paired_difference([0.75, 1.0], [0.5, 0.75]).p == 0.0


def test_what_does_not_pair():
    with pytest.raises(ValueError, match="do not pair"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no "):
        paired_difference([], [])
    with pytest.raises(ValueError, match="no differences to test"):
        sign_flip_p([])


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, and never below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    assert holm([0.04, 0.01], planned=4) == pytest.approx([0.12, 0.04])  # two more to come, greater than both
    assert holm([0.03, 0.01], planned=1) == holm([0.03, 0.01])
