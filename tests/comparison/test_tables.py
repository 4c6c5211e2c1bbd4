"""The tables of a comparison, on figures made by hand."""

import json
import math
from pathlib import Path

import pytest
from scipy import stats

from jaxsft.comparison import tables
from jaxsft.comparison.jobs import Case, Job
from jaxsft.comparison.tables import Done

PLAIN, OTHER = Case("full", Path("full.py"), "", (1e-3, 3e-3)), Case("other", Path("other.py"), "", (1e-3,))


def done(case: Case | None, rate: float, seed: int, seen: float, cloze: float, validation: float = 0.5) -> Done:
    """A job's figures, all others being made up."""
    match = lambda share: {"exact_match": share, "by_task_type": {"add": {"exact_match": share}}}
    tasks = {"seen": match(seen), "cloze": match(cloze), "validation": match(validation), "unseen": match(0.3)}
    tasks |= {"chat": {"exact_match": 0.2, "watched": 0.1}, "skills": match(0.9), "chat_choice": {"accuracy": 0.5}}
    tasks |= {"cloze_choice": {"accuracy": 0.9}, "moved": {"deviation": 1.5, "kl_per_token": 2.5}}
    return Done(Job(case, "world:base", rate, seed), tasks, 10.0 * (1 + (case is OTHER)) if case else math.nan)


START = done(None, 0.0, 0, 0.0, 1.0)
PLAIN_RUNS = [
    done(PLAIN, 1e-3, 0, 0.60, 0.90, validation=0.6),
    done(PLAIN, 3e-3, 0, 0.80, 0.40, validation=0.7),
    done(PLAIN, 1e-3, 1, 0.62, 0.80, validation=0.6),
    done(PLAIN, 3e-3, 1, 0.82, 0.50, validation=0.7),
]


def row(text: str, name: str, section: int = 0) -> list[str]:
    """The cells of a table's row."""
    table = [part for part in text.split("\n\n") if part.startswith("|")][section]
    return next(
        [c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith(f"| {name} ")
    )


@pytest.mark.parametrize(
    "seen, cloze, above",
    [
        (0.70, 0.75, 10.0),  # halfway between the two rates: plain keeps 65 %
        (0.30, 0.90, -5.0),  # halfway between the start and the gentler rate: plain keeps 95 %
        (0.60, 0.90, 0.0),
        (0.81, 0.60, math.nan),  # plain never learns that much
    ],
)
def test_the_frontier_is_drawn_through_the_start_and_the_seeds_own_rates(seen: float, cloze: float, above: float):
    everything = [START, *PLAIN_RUNS]
    assert tables.above_frontier(done(OTHER, 1e-3, 0, seen, cloze), everything, "full") == pytest.approx(
        above, nan_ok=True
    )


def test_a_rate_that_is_beaten_in_both_does_not_lower_the_frontier():
    hot = done(PLAIN, 1e-2, 0, 0.70, 0.10)  # learns less than 3e-3 does and keeps less
    everything = [START, *PLAIN_RUNS, hot]
    assert tables.above_frontier(done(OTHER, 1e-3, 0, 0.70, 0.40), everything, "full") == pytest.approx(0.0)


def test_the_learning_rate_is_chosen_on_validation_alone():
    worse_on_test = [done(PLAIN, 1e-3, 0, 0.9, 1.0, validation=0.5), done(PLAIN, 3e-3, 0, 0.1, 0.0, validation=0.6)]
    assert tables.chosen(worse_on_test) == {"full": 3e-3}
    equal = [done(PLAIN, rate, 0, 0.5, 0.5, validation=0.5) for rate in (3e-3, 1e-3)]
    assert tables.chosen(equal) == {"full": 1e-3}


def test_means_deviations_and_paired_intervals():
    others = [done(OTHER, 1e-3, 0, 0.70, 0.75), done(OTHER, 1e-3, 1, 0.80, 0.70)]
    text = tables.tables([START, *PLAIN_RUNS, *others])
    assert row(text, "world:base")[2] == "0.0"
    assert row(text, "full")[:3] == ["full", "0.003", "81.0 ± 1.4"]
    assert row(text, "other")[-1] == "2.00", "time, relative to plain fine-tuning"
    plain_keeps = [90 - 50 / 2, 80 - 30 * 18 / 20]  # at 70 % of seed 0 and 80 % of seed 1
    mean = (75 - plain_keeps[0] + 70 - plain_keeps[1]) / 2
    assert row(text, "other", 1)[-1].startswith(f"{mean:+.1f} ± ")
    differences = [-10.0, -2.0]  # on seen, of seeds 0 and 1
    low, high = stats.t.interval(0.95, 1, loc=-6.0, scale=stats.sem(differences))
    assert tables.PAIRED in text
    assert row(text, "other", 2)[1] == f"-6.0 ± {(high - low) / 2:.1f}"
    assert row(text, "full", 3)[1] == "81 ± 1"


def test_seeds_more_accurate_than_plain_fine_tuning_are_counted_apart():
    others = [done(OTHER, 1e-3, 0, 0.70, 0.75), done(OTHER, 1e-3, 1, 0.90, 0.70)]
    assert row(tables.tables([START, *PLAIN_RUNS, *others]), "other", 1)[-1] == "+10.0, 1 of 2 beyond"
    others[0] = done(OTHER, 1e-3, 0, 0.90, 0.75)
    assert row(tables.tables([START, *PLAIN_RUNS, *others]), "other", 1)[-1] == "2 of 2 beyond"


def test_another_case_can_be_what_all_are_held_against():
    others = [done(OTHER, 1e-3, seed, 0.70, 0.75) for seed in (0, 1)]
    text = tables.tables([START, *PLAIN_RUNS, *others], against="other")
    assert "Difference from other at" in text and row(text, "full", 2)[1].startswith("+11.0 ± ")
    assert row(text, "other")[-1] == "1.00" and row(text, "other", 1)[-1] == ""


def test_without_plain_fine_tuning_there_is_no_frontier():
    text = tables.tables([START, done(OTHER, 1e-3, 0, 0.70, 0.75)])
    assert row(text, "other")[2] == "70.0"
    assert row(text, "other", 1)[-1] == "-"
    assert tables.PAIRED not in text


def test_a_case_without_a_record_of_steps_has_no_time(tmp_path: Path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"tasks": START.tasks}))
    assert math.isnan(tables.read(Job(OTHER, "world:base", 1e-3), tmp_path).seconds)
    lines = [{"step": s, "split": "train", "time/step_seconds": t} for s, t in ((2, 0.5), (4, 0.1), (6, 0.1))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tables.read(Job(OTHER, "world:base", 1e-3), tmp_path).seconds == pytest.approx(0.6)
