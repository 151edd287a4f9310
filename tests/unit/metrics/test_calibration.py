import math

import pytest
import torch

from crossvit.metrics import (
    Decision,
    auroc,
    best_threshold,
    estimate_auroc,
    estimate_statistic,
    expected_calibration_error,
    platt_scaling,
    reliability,
    verification_accuracy,
    wilson,
)


def sample(count: int, slope: float, offset: float, seed: int = 0):
    """Scores and labels drawn with p(true) = sigmoid(slope s + offset)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, generator=generator, dtype=torch.float64)
    labels = torch.rand(count, generator=generator) < torch.sigmoid(slope * scores + offset)
    return scores, labels.long()


class TestThreshold:
    def test_by_hand(self):
        scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
        assert best_threshold(scores, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.25)
        assert 0.1 < best_threshold(scores, torch.tensor([0, 1, 1, 1])) < 0.2
        assert best_threshold(scores, torch.ones(4)) < 0.1
        assert best_threshold(scores, torch.zeros(4)) > 0.4
        assert best_threshold(torch.tensor([-1e20, 1e20]).double(), torch.ones(2)) < -1.01e20

    def test_nothing_else_is_better(self):
        generator = torch.Generator().manual_seed(1)
        scores = torch.randint(0, 12, (80,), generator=generator).float()
        labels = torch.randint(0, 2, (80,), generator=generator)
        tried = [verification_accuracy(scores, labels, t / 4).mean().item() for t in range(-8, 60)]
        found = verification_accuracy(scores, labels, best_threshold(scores, labels)).mean().item()
        assert found == pytest.approx(max(tried))

    def test_equal_scores_tie_at_the_threshold(self):
        threshold = best_threshold(torch.full((6,), 3.0), torch.arange(6) % 2)
        assert threshold == 3.0
        assert verification_accuracy(torch.full((4,), 3.0), torch.tensor([1, 1, 1, 0]), threshold).mean() == 0.5


class TestPlatt:
    def test_finds_what_the_labels_were_drawn_with(self):
        slope, offset = platt_scaling(*sample(10_000, 3.0, -1.0))
        assert slope == pytest.approx(3.0, abs=0.2) and offset == pytest.approx(-1.0, abs=0.1)

    def test_another_unit_gives_the_same_probabilities(self):
        scores, labels = sample(500, 2.0, 0.5)
        slope, offset = platt_scaling(scores, labels)
        for unit, shift in ((1000, 7), (1e-9, 0)):
            other = platt_scaling(unit * scores + shift, labels)
            assert other[0] * unit == pytest.approx(slope, rel=1e-4)
            assert other[1] + shift * other[0] == pytest.approx(offset, abs=1e-4)

    def test_a_perfect_separation_stays_finite_and_equal_scores_give_the_share(self):
        slope, offset = platt_scaling(torch.tensor([0.0, 0.1, 0.9, 1.0]), torch.tensor([0, 0, 1, 1]))
        assert 0 < slope < 1000 and math.isfinite(offset)
        for value in (0.0, 2.0):
            scores = torch.full((6,), value)
            assert platt_scaling(scores, torch.arange(6) % 2) == (0.0, pytest.approx(0.0, abs=1e-6))

    def test_targets_are_smoothed_by_the_count_of_each_label(self):
        # one true, three false: (1 + 1) / (1 + 2) and 1 / (3 + 2), on average (2/3 + 3/5) / 4 = 19/60
        slope, offset = platt_scaling(torch.ones(4), torch.tensor([1, 0, 0, 0]))
        assert (slope, offset) == (0.0, pytest.approx(math.log(19 / 41), abs=1e-4))

    def test_it_stops_where_it_is_told(self):
        scores, labels = sample(50, 2.0, 0.0)
        assert platt_scaling(scores, labels, max_iter=1) != pytest.approx(platt_scaling(scores, labels), abs=0.01)

    def test_works_while_nothing_is_to_be_learnt(self):
        with torch.inference_mode():
            assert platt_scaling(*sample(50, 2.0, 0.0))[0] > 0


class TestCalibrationError:
    def test_by_hand(self):
        probabilities, labels = torch.tensor([0.1, 0.2, 0.7, 0.8]), torch.tensor([0, 1, 1, 0])
        assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(abs(0.45 - 0.5))
        assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx((0.35 + 0.25) / 2)
        assert expected_calibration_error(probabilities, labels, bins=9) == pytest.approx((0.1 + 0.8 + 0.3 + 0.8) / 4)

    def test_its_bins_by_hand(self):
        probabilities, labels = torch.tensor([0.8, 0.1, 0.7, 0.2, 0.9]), torch.tensor([0, 0, 1, 1, 1])
        low, high = reliability(probabilities, labels, bins=2)  # 0.1, 0.2, 0.7 and 0.8, 0.9
        assert low == pytest.approx((1 / 3, 2 / 3, 3)) and high == pytest.approx((0.85, 0.5, 2))
        assert [one.rows for one in reliability(probabilities, labels)] == [1] * 5  # no more than there are rows
        assert reliability(torch.full((4,), 0.5), torch.tensor([1, 1, 0, 1]), bins=2) == [(0.5, 0.75, 2)] * 2

    def test_equal_probabilities_share_their_labels_in_any_order(self):
        labels = torch.arange(30) % 2
        assert expected_calibration_error(torch.full((30,), 0.5), labels) == 0.0
        assert expected_calibration_error(torch.full((30,), 0.5), labels.sort().values) == 0.0
        assert expected_calibration_error(torch.full((30,), 0.9), labels) == pytest.approx(0.4)
        assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0)))

    def test_small_where_the_probabilities_are_right_and_large_where_they_are_too_sure(self):
        scores, labels = sample(20_000, 2.0, 0.0)
        assert expected_calibration_error(torch.sigmoid(2 * scores), labels) < 0.015
        assert expected_calibration_error(torch.sigmoid(20 * scores), labels) > 0.1


class TestInterval:
    @pytest.mark.parametrize(("apart", "true"), [(1.0, 0.7602), (3.29, 0.9900)])
    def test_it_covers_the_true_value_about_as_often_as_it_says(self, apart, true):
        """Of the AUROC of two normals so many deviations apart; near 1, too, it does not miss on the flattering side."""
        missed = {"above": 0, "below": 0}
        for seed in range(200):
            generator = torch.Generator().manual_seed(seed)
            labels = torch.arange(128) % 2
            found = estimate_auroc(torch.randn(128, generator=generator) + apart * labels, labels)
            assert found.low <= found.value <= found.high and found.queries == 128
            missed["above"] += found.low > true
            missed["below"] += found.high < true
        assert max(missed.values()) <= 12  # five are expected on each side

    def test_by_hand(self):
        # placements of the true pairs 1, 1/2 and 3/4 (a tie with one of two), of the false ones 1 and 1/2: each moves the area by its
        # distance from 3/4 over the number of its kind
        scores, labels = torch.tensor([3.0, 1.0, 2.0, 0.0, 2.0]), torch.tensor([1, 1, 1, 0, 0])
        size = (3 / 16) / (5 / 4 * (2 / 12**2 + 2 / 8**2))
        found = estimate_auroc(scores, labels)
        assert found == pytest.approx((3 / 4, *wilson(3 / 4 * size, size), 5))
        found = estimate_auroc(scores, labels, confidence=0.5)
        assert found == pytest.approx((3 / 4, *wilson(3 / 4 * size, size, 0.5), 5))
        # 1/12 and -1/12 together in two pictures: as good as 6.75 pairs, of which there are five
        found = estimate_auroc(scores, labels, torch.tensor([0, 1, 0, 1, 1]))
        assert found == pytest.approx((3 / 4, *wilson(3 / 4 * 5, 5), 5))

    def test_the_variance_is_that_of_placements(self):
        scores, labels = sample(200, 1.0, 0.0)
        found = estimate_auroc(scores, labels)
        true, false = scores[labels == 1], scores[labels == 0]
        wins = (true[:, None] > false).double()
        variance = wins.mean(1).var(correction=0) / len(true) + wins.mean(0).var(correction=0) / len(false)
        value = wins.mean().item()
        size = value * (1 - value) / (variance.item() * 200 / 199)
        assert min(len(true), len(false)) < size < 200
        assert found[:3] == pytest.approx((value, *wilson(value * size, size)))

    def test_a_perfect_ranking_of_few_is_not_known_to_be_perfect(self):
        found = estimate_auroc(torch.tensor([1.0, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
        assert found[:3] == pytest.approx((1.0, *wilson(3, 3)))
        found = estimate_auroc(torch.arange(7.0), torch.arange(7) > 1)  # two false ones
        assert found[:3] == pytest.approx((1.0, *wilson(2, 2)))
        assert estimate_auroc(torch.arange(6.0), torch.arange(6) < 3, torch.arange(6) % 2)[:3] == (0.0, *wilson(0, 2))

    def test_repeats_of_one_picture_do_not_narrow_it(self):
        scores, labels = sample(60, 1.0, 0.0)
        once = estimate_auroc(scores, labels)
        five = [x.repeat_interleave(5) for x in (scores, labels)]
        together = estimate_auroc(*five, torch.arange(60).repeat_interleave(5))
        assert (together.low, together.high) == pytest.approx((once.low, once.high), abs=1e-6)
        apart = estimate_auroc(*five)
        assert apart.high - apart.low < 0.7 * (once.high - once.low)

    def test_what_is_not_defined_is_not_a_number(self):
        for found in (estimate_auroc, lambda *columns: estimate_statistic(auroc, *columns)):
            found = found(torch.arange(4.0), torch.ones(4))
            assert math.isnan(found.value) and found[1:] == (0.0, 1.0, 4)


def test_misuse_is_named():
    for function in (best_threshold, platt_scaling, expected_calibration_error):
        with pytest.raises(ValueError, match="scores and labels"):
            function(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="scores and labels"):
        best_threshold(torch.zeros(0), torch.zeros(0))


def test_a_decision():
    decision = Decision(threshold=0.3, scale=2.0, offset=-1.0)
    assert decision.accepts(torch.tensor([0.2, 0.3, 0.4])).tolist() == [False, False, True]
    assert decision.probability(torch.tensor([0.5, 2.0])).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-3))])
