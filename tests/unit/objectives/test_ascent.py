import math

import pytest
import torch

from crossvit.objectives.ascent import ascend, direction, fosc, project, radius, row_norm

ROWS = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]])


def test_norms_of_rows():
    assert row_norm(ROWS).tolist() == pytest.approx([5, 0.5, 0])
    assert row_norm(ROWS, "linf").tolist() == pytest.approx([4, 0.4, 0])
    assert row_norm(ROWS.view(3, 1, 2, 1)).tolist() == pytest.approx([5, 0.5, 0])
    assert row_norm(ROWS.view(3, 1, 2, 1), "linf").tolist() == pytest.approx([4, 0.4, 0])


class TestRadius:
    # two words, one of them padding: norm 5, root mean square over the two elements that are not 0
    x = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])

    def test_absolute(self):
        assert radius(torch.cat([self.x, self.x]), 0.7, False, "l2").tolist() == pytest.approx([0.7, 0.7])

    def test_relative(self):
        assert radius(self.x, 0.1, True, "l2").tolist() == pytest.approx([0.5])
        assert radius(self.x, 0.1, True, "linf").tolist() == pytest.approx([0.5 / math.sqrt(2)])
        two = torch.tensor([[[2.0, 3.0, 6.0], [0.0, 0.0, 0.0]], [[0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]])
        assert radius(two, 0.1, True, "linf").tolist() == pytest.approx([0.7 / math.sqrt(3), 0.4])

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_relative_grows_with_the_inputs(self, norm):
        assert radius(10 * self.x, 0.1, True, norm) == pytest.approx(10 * radius(self.x, 0.1, True, norm))
        assert radius(torch.zeros(1, 2), 0.1, True, norm) == 0

    def test_none_is_no_ball(self):
        assert radius(self.x, None, True, "l2") is None
        assert radius(self.x, None, False, "linf") is None


class TestProjection:
    def test_l2(self):
        # 5 -> 1 along the row; what lies inside stays, and so does 0
        inside = project(ROWS, torch.tensor([1.0, 1.0, 1.0]), "l2")
        torch.testing.assert_close(inside, torch.tensor([[0.6, 0.8], [0.3, -0.4], [0, 0]]))

    def test_linf(self):
        box = project(ROWS, torch.tensor([3.5, 0.35, 1.0]), "linf")
        torch.testing.assert_close(box, torch.tensor([[3, 3.5], [0.3, -0.35], [0, 0]]))

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_each_row_has_its_own_ball_and_a_second_time_changes_nothing(self, norm):
        torch.manual_seed(0)
        delta, bound = torch.randn(5, 2, 3, 4), torch.rand(5)
        once = project(delta, bound, norm)
        assert row_norm(once, norm).tolist() == pytest.approx(bound.tolist(), rel=1e-5)
        torch.testing.assert_close(project(once, bound, norm), once)

    def test_no_ball(self):
        assert torch.equal(project(ROWS, None, "l2"), ROWS)

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_a_radius_of_zero(self, norm):
        assert not project(ROWS, torch.zeros(3), norm).any()


class TestDirection:
    def test_l2(self):
        torch.testing.assert_close(direction(ROWS, "l2"), torch.tensor([[0.6, 0.8], [0.6, -0.8], [0, 0]]))

    def test_linf(self):
        assert direction(ROWS, "linf").tolist() == [[1, 1], [1, -1], [0, 0]]

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_a_row_that_is_not_finite_gives_none_and_the_others_theirs(self, norm, value):
        grad = torch.tensor([[1.0, value], [2.0, 0.0]])
        assert direction(grad, norm).tolist() == [[0, 0], [1, 0]]

    def test_squares_of_tiny_and_of_huge_gradients(self):
        for size in (1e-30, 1e30):
            torch.testing.assert_close(direction(size * ROWS[:1], "l2"), torch.tensor([[0.6, 0.8]]))

    def test_half_precision_becomes_full(self):
        assert direction(ROWS.bfloat16(), "l2").dtype == torch.float32


class TestAscent:
    grad = torch.tensor([[3.0, 4.0], [-8.0, 6.0]])  # of a linear function, at any point

    def test_one_step_inside_the_ball(self):
        delta = ascend(torch.zeros(2, 2), self.grad, torch.tensor([0.5, 1.0]), torch.tensor([2.0, 2.0]), "l2")
        torch.testing.assert_close(delta, torch.tensor([[0.3, 0.4], [-0.8, 0.6]]))

    def test_the_maximum_of_a_linear_function_is_reached_exactly(self):
        """eps grad / |grad|, from anywhere in the ball and with steps as long as the ball is wide."""
        eps = torch.tensor([0.5, 2.0])
        delta = torch.zeros(2, 2)
        for _ in range(3):
            delta = ascend(delta, self.grad, eps, eps, "l2")
        torch.testing.assert_close(delta, eps[:, None] * torch.tensor([[0.6, 0.8], [-0.8, 0.6]]))
        box = ascend(delta.clamp(-0.5, 0.5), self.grad, 2 * eps, eps, "linf")
        assert box.tolist() == [[0.5, 0.5], [-2, 2]]

    def test_many_short_steps_turn_towards_it(self):
        eps, delta = torch.tensor([1.0]), torch.tensor([[0.8, -0.6]])  # on the sphere, a right angle away
        for _ in range(200):
            delta = ascend(delta, self.grad[:1], 0.1 * eps, eps, "l2")
        torch.testing.assert_close(delta, torch.tensor([[0.6, 0.8]]))

    def test_without_a_ball_steps_add_up(self):
        delta = torch.zeros(2, 2)
        for _ in range(4):
            delta = ascend(delta, self.grad, torch.tensor([0.5, 0.5]), None, "l2")
        torch.testing.assert_close(delta, torch.tensor([[1.2, 1.6], [-1.6, 1.2]]))


class TestStationarity:
    grad, bound = torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])

    def test_at_the_centre_it_is_all_that_can_be_gained(self):
        # 2 |grad|_2 = 10; on a box the dual norm is the sum, 2 x 7
        assert fosc(torch.zeros(1, 2), self.grad, self.bound, "l2").item() == pytest.approx(10)
        assert fosc(torch.zeros(1, 2), self.grad, self.bound, "linf").item() == pytest.approx(14)

    def test_at_the_maximum_of_a_linear_function_it_is_zero(self):
        for norm in ("l2", "linf"):
            top = ascend(torch.zeros(1, 2), self.grad, self.bound, self.bound, norm)
            assert fosc(top, self.grad, self.bound, norm).item() == pytest.approx(0, abs=1e-5)

    def test_between(self):
        # <delta, grad> = 3 at (1, 0): 10 - 3 and 14 - 3
        delta = torch.tensor([[1.0, 0.0]])
        assert fosc(delta, self.grad, self.bound, "l2").item() == pytest.approx(7)
        assert fosc(delta, self.grad, self.bound, "linf").item() == pytest.approx(11)
        shaped = fosc(delta.view(1, 1, 2), self.grad.view(1, 1, 2), self.bound, "l2")
        assert shaped.tolist() == pytest.approx([7])
