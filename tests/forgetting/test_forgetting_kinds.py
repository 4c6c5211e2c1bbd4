"""Every kind of task with questions has a figure that a report knows how to write."""

from jaxsft.evaluation.registry import KINDS
from jaxsft.report.figures import HEADLINES, METRICS

WITHOUT_QUESTIONS = {"perplexity", "deviation", "routing"}
FOR_JUDGES = {"answers"}  # which are marked elsewhere


def test_figures_of_tasks_are_shares_that_may_be_better_or_worse():
    asked = {kind.figure for task, kind in KINDS.items() if task not in WITHOUT_QUESTIONS | FOR_JUDGES}
    assert {name for name in asked if name not in METRICS} == set()
    assert all(METRICS[name].share and METRICS[name].higher_is_better for name in asked)
    assert asked <= set(HEADLINES), "they stand for a task among its other figures"
