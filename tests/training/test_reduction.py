"""The reduction ratio against losses whose slopes are known."""

import pytest

from jaxsft.training.reduction import reduction_ratio


def test_straight_lines_have_the_ratio_of_their_slopes():
    training = [(step, 5.0 - 0.06 * (step - 0.5)) for step in range(1, 31)]
    held_out = [(step, 4.0 - 0.02 * step) for step in (0, 10, 20, 30)]
    assert reduction_ratio(training, held_out) == pytest.approx(3.0)
    assert reduction_ratio(training[:20], held_out[:3]) == pytest.approx(3.0), "wherever it is taken"
    every_fifth = [entry for entry in training if entry[0] % 5 == 0]
    assert reduction_ratio(every_fifth, held_out) == pytest.approx(3.0)


def test_only_the_last_two_intervals_count():
    training = [(1, 9.0), (2, 4.0), (3, 3.0)]
    held_out = [(0, 9.0), (1, 3.0), (2, 2.5), (3, 2.0)]
    assert reduction_ratio(training, held_out) == pytest.approx((4.0 - 3.0) / ((3.0 - 2.0) / 2))


def test_a_held_out_loss_that_rises_makes_it_negative():
    assert reduction_ratio([(1, 3.0), (2, 2.0)], [(0, 2.0), (1, 2.1), (2, 2.2)]) == pytest.approx(-10.0)


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        ([(1, 1.0), (2, 0.5)], [(0, 2.0), (2, 1.0)]),
        ([(2, 0.5)], [(0, 2.0), (1, 1.5), (2, 1.0)]),
        ([(1, 1.0), (2, 0.5)], [(0, 2.0), (1, 1.5), (2, 2.0)]),
    ],
    ids=["two evaluations", "no training loss in an interval", "the held-out loss stands still"],
)
def test_where_there_is_none(training, held_out):
    assert reduction_ratio(training, held_out) is None
