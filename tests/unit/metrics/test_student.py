"""Against the printed tables of Student's t."""

import pytest

from crossvit.metrics.student import t_probability, t_quantile


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_the_975_quantile(degrees, t):
    assert t_quantile(0.975, degrees) == pytest.approx(t, abs=5e-4)
    assert t_quantile(0.025, degrees) == pytest.approx(-t, abs=5e-4)


def test_closed_forms():
    assert t_probability(1.0, 1) == pytest.approx(0.75)  # Cauchy: 1/2 + atan(1)/pi
    assert t_probability(1.0, 2) == pytest.approx(0.5 + 1 / (2 * 3**0.5))
    assert all(t_probability(0.0, degrees) == 0.5 for degrees in (1, 2, 3, 8))


def test_quantile_and_probability_are_inverse():
    for degrees in (1, 2, 3, 4, 7, 12):
        for p in (0.001, 0.3, 0.5, 0.9, 0.9995):
            assert t_probability(t_quantile(p, degrees), degrees) == pytest.approx(p, abs=1e-12)


def test_out_of_range():
    with pytest.raises(ValueError, match="degrees"):
        t_probability(1.0, 0)
    for p in (0.0, 1.0):
        with pytest.raises(ValueError, match="probability"):
            t_quantile(p, 3)
