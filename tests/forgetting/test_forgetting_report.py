"""The report on answers made up by hand: what is paired, refused, counted and written."""

import dataclasses
import html
import json
import re
from pathlib import Path

import pytest

from jaxsft.errors import UserError
from jaxsft.forgetting import page, terminal, words
from jaxsft.forgetting.differences import Figure, Row, Settings, compare
from jaxsft.forgetting.evaluations import read_evaluation
from jaxsft.forgetting.progress import read_progress, slope
from jaxsft.forgetting.report import tell, write
from tests.forgetting.evaluations import record
from tests.forgetting.evaluations import write as write_evaluation

SETTINGS = Settings(draws=500)
MOVED = {"task": "deviation", "deviation": 0.25, "kl_per_token": 0.5, "log_ratio_per_token": 0.125, "examples": 9}
LIKELY = {"task": "perplexity", "nll_per_token": 1.5, "perplexity": 4.481689, "dropped": {}}


def answers(task, correct, of=12, **fields):
    """Answers to `of` questions, of which those in `correct` are right, in two sources and three task types."""
    parts = lambda i: {"source": f"source {i % 2}", "task_type": f"<type> & {i % 3}"}
    return [record(task, i, i in correct, **parts(i), **fields) for i in range(of)]


@pytest.fixture
def files(tmp_path):
    """name -> path: a base that knows and cannot, two models of which one lost more."""
    told = {
        "base": [*answers("knows", range(10)), *answers("can", range(2))],
        "full": [*answers("knows", range(3)), *answers("can", range(9))],
        "lora": [*answers("knows", [*range(8), 11]), *answers("can", range(6))],
    }
    likely = lambda nll: LIKELY | {"nll_per_token": nll}
    more = {
        "base": {"text": likely(1.5)},
        "full": {"text": likely(2.5), "moved": MOVED},
        "lora": {"text": likely(1.75)},
    }
    return {name: write_evaluation(tmp_path, name, records, more[name]) for name, records in told.items()}


@pytest.fixture
def report(files):
    return tell([read_evaluation(file) for file in files.values()], SETTINGS, ["a remark & more"])


def test_differences_are_of_the_same_questions(report):
    rows = {(row.model, row.task): row for row in report.tasks}
    row = rows["full", "knows"]
    assert (row.base, row.tuned, row.difference) == (10 / 12, 3 / 12, -7 / 12)
    assert (row.lost, row.won, row.known, row.questions, row.distinct) == (7, 0, 10, 12, 12)
    assert row.low < row.difference < row.high < 0 and row.p == 2 / 2**7
    assert row.p_holm == 2 * row.p, "two tasks, and that of the other is as large"
    assert (rows["lora", "knows"].lost, rows["lora", "knows"].won) == (2, 1)


def test_subjects_add_up_to_the_task(report):
    for split in ("by_source", "by_task_type"):
        for task in report.tasks:
            rows = [r for r in report.subjects if (r.model, r.task, r.split) == (task.model, task.task, split)]
            assert len(rows) == {"by_source": 2, "by_task_type": 3}[split]
            for field in ("questions", "distinct", "known", "lost", "won"):
                assert sum(getattr(row, field) for row in rows) == getattr(task, field)
            mean = sum(row.difference * row.questions for row in rows) / task.questions
            assert mean == pytest.approx(task.difference)


def test_figures_without_questions_stand_beside_the_bases(report):
    figures = {(f.model, f.task, f.name): f for f in report.figures}
    assert dataclasses.astuple(figures["full", "text", "nll_per_token"])[3:] == (1.5, 2.5, 1.0, None, None)
    assert dataclasses.astuple(figures["full", "moved", "deviation"])[3:] == (None, 0.25, None, None, None)
    assert ("lora", "moved", "deviation") in figures and figures["lora", "moved", "deviation"].tuned is None


def test_questions_are_told_one_by_one(report):
    asked = {(q["task"], q["index"]): q for q in report.questions}
    assert len(asked) == 24
    changes = {i: asked["knows", i]["models"]["lora"]["change"] for i in (0, 8, 11, 10)}
    assert changes == {0: "kept", 8: "lost", 11: "won", 10: "missing"}
    lost = asked["knows", 8]
    assert (lost["base"]["answer"], lost["models"]["lora"]["answer"]) == ("right 8", "wrong 8")
    assert (lost["prompt"], lost["reference"]) == ("knows question 8?", "right 8")


def test_questions_in_another_order_are_paired_by_their_id(files, tmp_path):
    base = read_evaluation(files["base"])
    turned = [r | {"index": 11 - r["index"]} for r in reversed(answers("knows", range(3)))]
    other = read_evaluation(write_evaluation(tmp_path, "turned", turned))
    (row,) = compare(base, [other], SETTINGS).tasks
    assert (row.lost, row.won) == (7, 0)


def test_without_ids_places_are_paired(files, tmp_path):
    bare = [{k: v for k, v in r.items() if k != "id"} for r in answers("knows", range(3))]
    other = read_evaluation(write_evaluation(tmp_path, "bare", bare))
    (row,) = compare(read_evaluation(files["base"]), [other], SETTINGS).tasks
    assert (row.lost, row.won) == (7, 0)


def _changed(change):
    records = answers("knows", range(10))
    return change(records) or records


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda r: r[:5], r"different questions \(12 and 5\): only .*base.json has \"knows question 5\?\""),
        (lambda r: [*r, record("knows", 99, True)], 'only .*other.json has "knows question 99'),
        (lambda r: r[3].update(prompt="what else?"), 'id .knows-3. the prompt is "knows question 3\\?" in the one'),
        (lambda r: r[3].update(reference="nothing"), "the reference is"),
        (lambda r: r[3].update(id="knows-4"), "two questions have the same id"),
        (lambda r: [i.pop("id") and None for i in r] and r[2].update(prompt="x"), "at index 2 the prompt"),
    ],
)
def test_different_questions_are_refused(files, tmp_path, change, says):
    other = read_evaluation(write_evaluation(tmp_path, "other", _changed(change)))
    with pytest.raises(UserError, match=says):
        compare(read_evaluation(files["base"]), [other], SETTINGS)


def test_other_refusals(files, tmp_path):
    base = read_evaluation(files["base"])
    with pytest.raises(UserError, match="have no task in common; measure base and models with the same config"):
        compare(base, [read_evaluation(write_evaluation(tmp_path, "x", answers("elsewhere", [0])))], SETTINGS)
    with pytest.raises(UserError, match="two models are called 'base'"):
        compare(base, [base], SETTINGS)
    stale = read_evaluation(write_evaluation(tmp_path, "stale", answers("knows", [0])))
    stale.tasks["knows"]["exact_match"] = 0.5
    with pytest.raises(
        UserError, match=r"says that exact_match of 'knows' is 0.500000, but the answers .* give 0.083333"
    ):
        compare(base, [stale], SETTINGS)
    with pytest.raises(UserError, match=r"name the figures beside it, base.json"):
        read_evaluation(files["base"] + "l")
    with pytest.raises(UserError, match=r"cannot be read .No such file"):
        read_evaluation(tmp_path / "nowhere.json")
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(UserError, match="is no evaluation"):
        read_evaluation(tmp_path / "odd.json")
    for odd in ({"model": "m", "version": "1", "tasks": ["knows"]}, {"model": "m", "version": "1", "tasks": {"a": 1}}):
        (tmp_path / "odd.json").write_text(json.dumps(odd))
        with pytest.raises(UserError, match="is no evaluation: its tasks"):
            read_evaluation(tmp_path / "odd.json")
    (tmp_path / "odd.json").write_text('{"model": "m", "version": "1", "config": null}')
    assert read_evaluation(tmp_path / "odd.json").prompts == {}
    (tmp_path / "odd.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"odd.npz cannot be read .*; remove it"):
        read_evaluation(tmp_path / "odd.json")
    (tmp_path / "full.jsonl").write_text('{"task": "knows"}\n')
    with pytest.raises(UserError, match=r"full.jsonl, line 1: no field 'index'"):
        read_evaluation(files["full"])


def test_scores_besides_the_first_have_rows_of_their_own(tmp_path):
    """A strict filter finds less than the flexible one that a task goes by; a third says the same as the latter."""
    scored = lambda right, strict: [
        r | {"scores": {"exact_match": float(r["correct"]), "strict_match": s, "flexible_match": float(r["correct"])}}
        for r, s in zip(answers("sums", right), strict, strict=True)
    ]
    paths = [
        write_evaluation(tmp_path, "base", scored(range(8), [1.0] * 2 + [0.0] * 10)),
        write_evaluation(tmp_path, "tuned", scored(range(4), [1.0] * 4 + [0.0] * 8)),
    ]
    report = compare(read_evaluation(paths[0]), [read_evaluation(paths[1])], SETTINGS)
    told = [(row.metric, row.base, row.tuned, row.lost, row.won) for row in report.tasks]
    assert told == [("exact_match", 8 / 12, 4 / 12, 4, 0), ("strict_match", 2 / 12, 4 / 12, 0, 2)]
    assert [line.metric for line in words.task_lines(report)] == ["exact match, %", "strict match, %"]
    assert {row.metric for row in report.subjects} == {"exact_match"}
    assert report.questions[5]["models"]["tuned"]["change"] == "lost", "by the first"
    assert page.render(report).count("strict match, %") == 1


def test_graded_marks_and_records_that_say_little(tmp_path):
    """Answers without reference and source, worth something between right and wrong."""
    graded = lambda scores: [
        {"task": "essay", "index": i, "prompt": f"write {i}", "answer": "a", "correct": s == 1, "scores": {"f1": s}}
        for i, s in enumerate(scores)
    ]
    paths = [write_evaluation(tmp_path, n, graded(s)) for n, s in (("a", [1.0, 0.5, 0.25]), ("b", [0.75, 1.0, 0.25]))]
    report = compare(read_evaluation(paths[0]), [read_evaluation(paths[1])], SETTINGS)
    rows = {row.metric: row for row in report.tasks}
    assert (rows["f1"].base, rows["f1"].tuned) == (pytest.approx(1.75 / 3), pytest.approx(2 / 3))
    assert (rows["f1"].lost, rows["f1"].won) == (1, 1) and not report.subjects
    cell = words.cell(rows["f1"])
    assert (cell.lost, cell.won) == ("1 of 3", "1 of 2"), "what is right in part can be lost, and won"
    page.render(report)


def test_plain_and_chat_prompting_stand_side_by_side(tmp_path):
    """One set of questions under two names; and a model that was asked one of them in another template."""
    rows = [*answers("chat", range(3)), *answers("plain", range(9))]
    base = write_evaluation(tmp_path, "base", rows, templates={"plain": "none"})
    same = write_evaluation(tmp_path, "same", rows, templates={"plain": "none"})
    other = write_evaluation(tmp_path, "other", rows, templates={"plain": "none", "chat": "chatml"})
    report = compare(read_evaluation(base), [read_evaluation(same)], SETTINGS)
    assert {line.name: line.prompt for line in words.task_lines(report)} == {"chat": "", "plain": "as plain text"}
    assert "plain exact match, % as plain text 12 75.0" in text_of(page.render(report)) and not report.remarks
    (remark,) = compare(read_evaluation(base), [read_evaluation(other)], SETTINGS).remarks
    assert remark.startswith("'chat' was asked under the template 'auto' of base, 'chatml' of other; unless both")


def test_what_is_neither_better_nor_worse_has_no_colour(report):
    row = next(row for row in report.tasks if row.sure and row.difference > 0)
    trends = {name: words.cell(dataclasses.replace(row, metric=name)).trend for name in ("accuracy", "parametric")}
    assert trends == {"accuracy": "better", "parametric": ""}
    fallen = dataclasses.replace(row, difference=-0.5, low=-0.6, high=-0.4)
    assert words.cell(fallen).trend == "worse"
    assert words.cell(dataclasses.replace(fallen, low=-1.0, high=0.1)).trend == "", "not sure"


def test_separation_is_a_ratio_of_what_each_model_executes(tmp_path):
    """a = (1, 1, 0, 1), b = (0, 1, 0, 0) of the base: 2/3; of the model (1, 1, 1, 0), (0, 0, 1, 1): 2/3 too."""
    told = lambda a, b: [
        record("sep", i, bool(x and not y), counted=bool(x), reference="w") for i, (x, y) in enumerate(zip(a, b))
    ]
    paths = [write_evaluation(tmp_path, "base", told((1, 1, 0, 1), (0, 1, 0, 0)))]
    paths.append(write_evaluation(tmp_path, "tuned", told((1, 1, 1, 0), (0, 0, 1, 1))))
    for path in paths:
        figures = json.loads(Path(path).read_text())
        figures["tasks"]["sep"] = {"task": "separation", "separation": 2 / 3, "utility": 0.75}
        Path(path).write_text(json.dumps(figures))
    report = compare(read_evaluation(paths[0]), [read_evaluation(paths[1])], SETTINGS)
    (row,) = report.tasks
    assert (row.base, row.tuned, row.metric) == (pytest.approx(2 / 3), pytest.approx(2 / 3), "separation")
    assert (row.lost, row.won) == (0, 1), "of the two items that count for both"
    assert (row.known, row.missed) == (2, 1), "of the three that count for the base"
    assert [line.metric for line in words.figure_lines(report)] == ["utility, %"], "never without the other"
    changes = [q["models"]["tuned"]["change"] for q in report.questions]
    assert changes == ["kept", "won", "uncounted", "uncounted"]


def test_a_task_that_a_model_was_not_asked_is_said(files, tmp_path):
    partly = read_evaluation(write_evaluation(tmp_path, "partly", answers("knows", range(3))))
    report = compare(read_evaluation(files["base"]), [partly, read_evaluation(files["full"])], SETTINGS)
    assert "partly was not asked 'can'." in report.remarks
    assert {(r.model, r.task) for r in report.tasks} == {("partly", "knows"), ("full", "knows"), ("full", "can")}
    lines = {line.name: line.cells for line in words.task_lines(report)}
    assert lines["can"][0] is None and lines["can"][1] is not None
    page.render(report)


def test_only_what_the_base_knows_by_heart_counts_against_a_context(tmp_path):
    recalled = [record("conflict", i, True, recalled=i < 4) for i in range(6)]
    after = [record("conflict", i, i == 0, recalled=False) for i in range(6)]
    paths = [write_evaluation(tmp_path, name, rows) for name, rows in (("a", recalled), ("b", after))]
    report = compare(*(lambda a, b: (a, [b]))(*map(read_evaluation, paths)), SETTINGS)
    assert (report.tasks[0].questions, report.tasks[0].lost) == (4, 3)
    assert report.remarks == ["Of 'conflict' 4 of 6 questions count: those that a answers from memory."]
    paths[0] = write_evaluation(tmp_path, "a", [r | {"recalled": False} for r in recalled])
    with pytest.raises(UserError, match="answers none from memory"):
        compare(read_evaluation(paths[0]), [read_evaluation(paths[1])], SETTINGS)


def text_of(page_html):
    body = re.sub(r"<style>.*?</style>", " ", page_html, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_has_every_number_of_the_tables(report):
    told = text_of(page.render(report))
    lines = [*words.task_lines(report)]
    for task, split in words.splits(report):
        lines += words.subject_lines(report, task, split)
    assert len(lines) == 2 + 2 * (2 + 3)
    for line in lines:
        cells = (f"{c.value} {c.difference} {c.interval} {c.p} ({c.p_holm}) {c.lost} {c.won}" for c in line.cells if c)
        assert " ".join([line.name, line.metric, line.questions, line.base, *cells]) in told
    for line in words.figure_lines(report) + words.figure_lines(report, all_of_them=True):
        numbers = " ".join(text for pair in line.cells for text in pair if text)
        assert f"{line.task} {line.metric} {line.base} {numbers}" in told
    assert "a remark & more" in told and "<type>" in told
    shown = terminal.summary(report)
    assert {word for word in re.findall(r"[\u2212+][\d.]+", shown)} <= set(re.findall(r"[\u2212+][\d.]+", told))


def test_the_page_names_lost_and_won_questions_by_subject(report):
    told = text_of(page.render(report, shown=2))
    assert "Lost, <type> & 0: 2 of 3 question reference base now knows question 3? right 3 right 3 wrong 3" in told
    assert "Won, <type> & 2: 1 of 1 question reference base now knows question 11? right 11 wrong 11 right 11" in told


def test_files_of_the_report(report, tmp_path):
    write(report, tmp_path / "out")
    found = json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)
    assert found.keys() == {
        "base", "models", "paths", "kinds", "prompts", "tasks", "subjects", "figures", "progress", "remarks",
        "settings",
        "version",
    }  # fmt: skip
    for name, kind in (("tasks", Row), ("subjects", Row), ("figures", Figure)):
        assert [kind(**row) for row in found[name]] == getattr(report, name)
    assert found["settings"] == {"draws": 500, "confidence": 0.95, "seed": 0}
    lines = [json.loads(line) for line in (tmp_path / "out/questions.jsonl").read_text().splitlines()]
    assert lines == report.questions
    needed = {"task", "index", "id", "prompt", "reference", "source", "task_type", "base", "models"}
    assert all(line.keys() == needed for line in lines)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", (tmp_path / "out/report.html").read_text())
    assert (tmp_path / "out/differences.svg").read_text().startswith("<svg")


def test_what_is_sure_is_said_first(report):
    clauses = page.verdict(report, "full")
    assert [c["text"] + c["after"] for c in clauses] == [
        "lost on 1 of 2 tasks, most on knows: 83.3 → 25.0\u202f%",
        "won on 1 of 2 tasks, most on can: 16.7 → 75.0\u202f%",
    ]
    assert page.verdict(report, "lora")[0]["text"].startswith("won on 1 of 2 tasks")


def test_slopes_are_those_of_the_least_squares_line(tmp_path):
    assert slope([(0, 1.0), (50, 2.0), (100, 3.0)]) == pytest.approx(2.0)
    assert slope([(0, 0.0), (100, 1.0), (200, 0.0)]) == pytest.approx(0.0)
    assert slope([(10, 1.0)]) is None
    series = [(0, 1.0), (100, 1.0), (200, 0.9), (300, 0.5)]
    (tmp_path / "run").mkdir()
    lines = [{"step": s, "split": "facts", "exact_match": v, "questions": 10} for s, v in series]
    lines += [{"step": s, "split": "train", "loss": 1.0} for s in (1, 2)] + [
        {"step": 0, "split": "once", "accuracy": 1.0}
    ]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = read_progress(str(tmp_path / "run"), "run")
    assert (found.task, found.metric, found.points, found.best) == ("facts", "exact_match", series, 0)
    # sums over centred steps: (-150, -50, 50, 150); halves of the run are two points each
    assert found.slope == pytest.approx(100 * (-150 - 50 + 45 + 75) / 50000)
    assert (found.early, found.late) == (pytest.approx(0.0), pytest.approx(-0.4))
    assert read_progress(str(tmp_path), "no run") == []


@pytest.mark.parametrize(
    ("metric", "best"), [("nll_per_token", 100), ("deviation", 100), ("cv", None), ("accuracy", 0)]
)
def test_the_best_step_is_that_of_the_better_value(tmp_path, metric, best):
    lines = [{"step": s, "split": "t", metric: v} for s, v in [(0, 3.0), (100, 1.0), (200, 2.0)]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = read_progress(str(tmp_path), "run")
    assert (found.metric, found.best) == (metric, best)


def test_where_the_format_was_learnt_a_run_may_stop(tmp_path):
    series = [(0, 0.3), (50, 0.92), (100, 0.921), (150, 0.925), (200, 0.93)]
    lines = [{"step": s, "split": "format", "ifs": v, "ifs_full": v, "questions": 9} for s, v in series]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = read_progress(str(tmp_path), "run")
    assert (found.metric, found.stop) == ("ifs", 150)
    base, run = (
        read_evaluation(write_evaluation(tmp_path / name, name, answers("x", [0]))) for name in ("base", "run")
    )
    report = tell([base, dataclasses.replace(run, model=str(tmp_path))], SETTINGS, [])
    assert "The rule of early stopping ends this run at step 150." in text_of(page.render(report))
