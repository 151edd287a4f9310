import pytest

from crossvit.metrics import first_step_at, median_step, share_at_least, spread


def test_spread_by_hand():
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.least, found.count) == (2.0, 1.0, 1.0, 3)
    half = 4.302653 / 3**0.5  # t of 2 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half, abs=1e-5))


def test_one_seed_has_no_interval():
    assert spread([0.7]) == (0.7, None, 0.7, None, None, 1)


def test_share_at_least():
    assert share_at_least([0.5, 0.9, 0.95, 0.2], 0.9) == 0.5


def test_no_values():
    for call in (lambda: spread([]), lambda: share_at_least([], 0.5)):
        with pytest.raises(ValueError, match="no values"):
            call()


def test_first_step_at():
    curve = [(10, 0.5), (20, 0.91), (30, 0.89), (40, 0.95)]
    assert first_step_at(curve, 0.9) == 20
    assert first_step_at(curve, 0.91) == 20
    assert first_step_at(curve, 0.96) is None
    assert first_step_at(curve, 0.5, mode="min") == 10 and first_step_at(curve, 0.3, mode="min") is None


def test_a_seed_that_never_got_there_counts_as_the_latest():
    assert median_step([30, 10, None]) == 30
    assert median_step([10, None, None]) is None
    assert median_step([10, 20]) == 15
    assert median_step([10, None]) is None
