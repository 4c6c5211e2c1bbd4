"""Every kind of task has a figure that reports take for its own and know how to write."""

import string

import pytest

from jaxsft.evaluation.registry import KINDS
from jaxsft.report.figures import METRICS, headline

WITHOUT_QUESTIONS = {"perplexity", "deviation", "routing"}
FOR_JUDGES = {"answers"}  # which are marked elsewhere


def test_figures_of_tasks_are_shares_that_may_be_better_or_worse():
    asked = {kind.figure for task, kind in KINDS.items() if task not in WITHOUT_QUESTIONS | FOR_JUDGES}
    assert {name for name in asked if name not in METRICS} == set()
    assert all(METRICS[name].share and METRICS[name].higher_is_better for name in asked)


@pytest.mark.parametrize("task", KINDS)
def test_a_report_shows_the_figure_that_the_task_is_measured_by(task):
    kind = KINDS[task]
    named = [name for _, name, _, _ in string.Formatter().parse(kind.headline) if name]
    for order in (named, named[::-1]):
        assert headline(dict.fromkeys([*order, *kind.beside], 0.5)).key == kind.figure, "among its other figures"
    assert all(METRICS[name].higher_is_better is not None for name in kind.beside)
