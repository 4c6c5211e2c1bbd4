"""The page says what the folders hold: figures, differences, questions lost and won; and nothing else gets in."""

import ast
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxsft.config import SourceConfig
from jaxsft.errors import UserError
from jaxsft.report import page
from jaxsft.report.figures import NARROW
from jaxsft.report.groups import make_groups
from jaxsft.report.read import read_runs
from tests.report import made

REPOSITORY = Path(__file__).resolve().parents[2]
VOID = {"meta", "br", "wbr", "circle", "rect", "path", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Parses strictly: every element is closed in its turn; collects ids, references, tags and texts by class."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.tags, self.attributes = [], [], [], [], []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"][1:]] if values.get("href", "").startswith("#") else []
        self.links += values.get("aria-labelledby", "").split()
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split(" ")).replace("\n", " ")

    def row(self, start: str, whole: bool = False) -> list[str]:
        rows = ([" ".join(cell.split()) for cell in row] for row in self.rows if row)
        return next(row for row in rows if row[0] == start or (row[0].startswith(start) and not whole))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return Page(page.build(made.three(folder)))


def squeezed(text: str) -> str:
    return re.sub(r"[ \t\n]+", " ", text)


def test_the_verdict_is_that_of_the_figures(built):
    text = squeezed(built.text)
    percent = NARROW + "%"
    assert (
        f"full learns most: exact match on seen 0{percent} → 67{percent}, accuracy on cloze 100{percent} → 50{percent}."
        in text
    )
    assert (
        f"lora keeps most: exact match on seen 0{percent} → 33{percent}, accuracy on cloze 100{percent} → 83{percent}."
        in text
    )


def test_the_table_holds_figures_errors_and_differences(built):
    assert built.row("base")[1:5] == ["0.0", "± 2.0", "100.0", "± 2.0"]
    assert built.row("full")[1:] == ["66.7+66.7", "± 2.0", "50.0\u221250.0", "± 2.0", "2.500", ""]
    assert built.row("lora")[1:5] == ["33.3+33.3", "± 2.0", "83.3\u221216.7", "± 2.0"]


def test_lost_and_won_are_the_set_differences(tmp_path):
    story = page.tell(read_runs(made.three(tmp_path)))
    changes = {run["name"]: run["lists"] for run in page._changes(story, 100)}
    base = made.CORRECT["base"]
    for name in ("full", "lora"):
        lost, won = changes[name]
        now = made.CORRECT[name]
        assert {row["key"] for row in lost["rows"]} == {("cloze", i) for i in set(base["cloze"]) - set(now["cloze"])}
        assert {row["key"] for row in won["rows"]} == {("seen", i) for i in set(now["seen"]) - set(base["seen"])}
        assert (lost["of"], won["of"]) == (len(base["cloze"]), made.QUESTIONS - len(base["seen"]))
        assert [lost["count"], won["count"]] == [len(lost["rows"]), len(won["rows"])]


def test_counts_stay_whole_when_lists_are_cut(tmp_path):
    paths = made.three(tmp_path)
    cut = squeezed(Page(page.build(paths, questions=1)).text)
    assert "lost 3 of 6" in cut and "won 4 of 6" in cut and "Lost on cloze: 1 of 3" in cut
    shown = [i for i in range(made.QUESTIONS) if f"cloze-wrong-{i}" in page.build(paths, questions=1, shown=0)]
    assert shown == [4], "of 1, 4 and 5 the first of the first task type"


def test_families_are_told_apart(built):
    correct = made.CORRECT["full"]["seen"]
    for k, kind in enumerate("ab"):
        expected = f"{100 * sum(i % 2 == k for i in correct) / 3:.0f}"
        assert built.row(kind, whole=True)[2] == expected


def test_what_data_say_stays_text(tmp_path):
    paths = made.three(tmp_path)
    evil = '<script>alert("x")</script><img src=x onerror=y>'
    made.answers(tmp_path / "full", {"seen": [], "cloze": []}, evil)
    record = json.loads((tmp_path / "full" / "config.json").read_text())
    record["config"]["data"]["path"] = evil
    (tmp_path / "full" / "config.json").write_text(json.dumps(record))
    evaluation = json.loads((tmp_path / "full" / "evaluation.json").read_text())
    evaluation["tasks"][evil] = {"exact_match": 0.5, "by_source": {evil: {"exact_match": 1}, "b": {"exact_match": 0}}}
    (tmp_path / "full" / "evaluation.json").write_text(json.dumps(evaluation))
    made.metrics(tmp_path / "full", [{"step": s, "split": evil, "accuracy": 0.5} for s in (0, 1)])
    (tmp_path / "full").rename(tmp_path / evil.replace("/", ""))
    html = page.build([*paths[:1], str(tmp_path / evil.replace("/", "")), *paths[2:]])
    parsed = Page(html)
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert evil in "".join(parsed.texts), "it is there, as text"


def test_the_page_needs_nothing_else(built, tmp_path):
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(built.tags)
    loads = [(tag, name, value) for tag, name, value in built.attributes if name in ("src", "srcset", "data", "action")]
    assert not loads
    html = page.build(made.three(tmp_path)).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http:" not in html and "https:" not in html and "@import" not in html and "url(" not in html


def test_references_inside_the_page_exist(built):
    assert len(set(built.ids)) == len(built.ids)
    assert set(built.links) <= set(built.ids) and built.links


def test_seeds_are_taken_together(tmp_path):
    paths = [str(made.evaluation(tmp_path / "base", made.seen_and_cloze(0.0, 1.0)))]
    for seed, seen in enumerate((0.5, 0.6, 0.7)):
        run = made.train_record(tmp_path / f"full-s{seed}", seed=seed)
        paths.append(str(made.evaluation(run, made.seen_and_cloze(seen, 0.8))))
    parsed = Page(page.build(paths))
    # Mean 0.6, standard deviation 0.1, of the mean 0.1 / sqrt(3).
    assert parsed.row("full")[:3] == ["full3 seeds, not finished", "60.0+60.0", "± 5.8"]
    assert parsed.row("full-s1")[1] == "60.0+60.0"


@pytest.mark.parametrize(
    "seeds, rows, groups", [((0, 1), (":9", "9:18"), 1), ((0, 0), (":9", "9:18"), 2), ((0, 1), (":9", "9:17"), 2)]
)
@pytest.mark.parametrize("mixture", [False, True])
def test_a_seed_may_choose_its_rows(tmp_path, seeds, rows, groups, mixture):
    paths = []
    for i, (seed, part) in enumerate(zip(seeds, rows)):
        sources = [SourceConfig(path="a", rows=part), SourceConfig(path="b", weight=0.5)]
        changes = {"data.sources": sources} if mixture else {"data.rows": part}
        run = made.train_record(tmp_path / f"full-s{i}", seed=seed, **changes)
        record = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(record | {"fingerprints": {"data": f"d{i}", "model": "m"}}))
        paths.append(str(made.evaluation(run, made.seen_and_cloze(0.5, 0.5))))
    story = page.tell(read_runs(paths))
    assert len(story.groups) == groups


def test_a_sweep_that_is_half_done_is_joined(tmp_path):
    for name, rate, seed, rows in (("a-s0", 1e-4, 0, ":9"), ("a-s1", 1e-4, 1, "9:18"), ("b-s0", 1e-3, 0, ":9")):
        changes = {"seed": seed, "data.rows": rows, "optimizer.learning_rate": rate}
        made.evaluation(made.train_record(tmp_path / name, **changes), made.seen_and_cloze(0.5, 0.5))
    groups = page.tell(read_runs([str(folder) for folder in sorted(tmp_path.iterdir())])).groups
    assert [(group.name, group.family) for group in groups] == [("a", 0), ("b-s0", 0)]


def frontier_svg(tmp_path: Path, **second: object) -> str:
    """The page about two runs, the second with other fields."""
    for name, changes in (("a", {}), ("b", second)):
        made.evaluation(made.train_record(tmp_path / name, **changes), made.seen_and_cloze(0.5, 0.8))
    return page.build([str(tmp_path / "a"), str(tmp_path / "b")])


@pytest.mark.parametrize(
    "changes, joined",
    [
        ({"optimizer.learning_rate": 1e-3}, True),
        ({"optimizer.learning_rate": 1e-3, "seed": 1}, True),
        ({"optimizer.learning_rate": 1e-3, "mesh.fsdp": 2}, True),  # where it ran does not change its numbers
        ({"optimizer.learning_rate": 1e-3, "epochs": 2.0}, False),
        ({"epochs": 2.0}, False),
    ],
)
def test_a_frontier_joins_what_differs_in_learning_rate_alone(tmp_path, changes, joined):
    html = frontier_svg(tmp_path, **changes)
    assert ('class="path"' in html) == joined
    assert (">1e-3</text>" in html) == joined, "points of a frontier are labelled by their rate"


def test_jobs_of_a_case_belong_together_whatever_their_configs_name(tmp_path):
    """A case's config may name files of the job's own folder; two cases may have one config."""
    for case in ("dtm:4", "dtm:8"):
        for rate in (1e-3, 3e-3):
            for seed in (0, 1):
                folder = tmp_path / f"world-{case.replace(':', '-')}-lr{rate:g}-seed{seed}-{rate}{seed}"
                changes = {"seed": seed, "optimizer.learning_rate": rate, "data.parts": str(folder / "parts")}
                made.train_record(folder, **changes)
                made.evaluation(folder, made.seen_and_cloze(0.5, 0.5))
                made.write(folder / "job.json", {"case": case, "start": "base", "learning_rate": rate, "seed": seed})
    groups = make_groups(read_runs([str(path) for path in sorted(tmp_path.iterdir())]), None)
    assert [(len(group.runs), group.family, group.learning_rate) for group in groups] == [
        (2, 0, 1e-3), (2, 0, 3e-3), (2, 1, 1e-3), (2, 1, 3e-3)
    ]  # fmt: skip


def test_other_data_is_another_family(tmp_path):
    frontier_svg(tmp_path, **{"optimizer.learning_rate": 1e-3})
    record = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(record | {"fingerprints": {"data": "d1"}}))
    assert 'class="path"' not in page.build([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_run_without_evaluation_gives_its_last_figures(tmp_path):
    run = made.train_record(tmp_path / "run")
    entries = [{"step": s, "split": "chat", "exact_match": 0.1 + 0.1 * s} for s in (0, 1, 2)]
    entries += [{"step": s, "split": "knowledge", "accuracy": 0.9 - 0.1 * s} for s in (0, 1, 2)]
    made.metrics(run, entries)
    parsed = Page(page.build([str(run)]))
    text = squeezed(parsed.text)
    percent = NARROW + "%"
    assert (
        f"run: exact match on chat 10{percent} → 30{percent}, accuracy on knowledge 90{percent} → 70{percent}." in text
    )
    assert "'chat' stands for what was learnt" in text and "'knowledge' stands for what was kept" in text
    assert "step 0 of the runs" in text and "not finished, measured while training" in text
    assert "evaluation.jsonl" in text, "what is missing for lost and won is said"


def test_the_way_there_is_drawn_for_few_runs(tmp_path):
    paths = []
    for i in range(5):
        run = made.train_record(tmp_path / f"run{i}", epochs=i + 1.0)
        made.metrics(
            run,
            [
                {"step": s, "split": t, "accuracy": a}
                for s in (0, 1)
                for t, a in (("seen", 0.5 * s), ("cloze", 1 - 0.5 * s))
            ],
        )
        paths.append(str(run))
    assert page.build(paths[:2]).count('class="way"') == 2 * 2, "each in the wide plot and the narrow one"
    assert 'class="way"' not in page.build(paths), "five would be a tangle"


def test_what_is_within_the_error_is_said(tmp_path):
    paths = [str(made.evaluation(tmp_path / "base", made.seen_and_cloze(0.0, 1.0)))]
    for name, seen in (("full", 0.50), ("lora", 0.52)):  # two errors of 0.02 make one of 0.028 for the difference
        run = made.train_record(tmp_path / name, epochs=1.0 + seen)
        paths.append(str(made.evaluation(run, made.seen_and_cloze(seen, seen))))
    assert "lora learns most (full within a standard error)" in squeezed(Page(page.build(paths)).text)
    made.evaluation(tmp_path / "full", made.seen_and_cloze(0.49, 0.4))
    assert "within a standard error" not in squeezed(Page(page.build(paths)).text)


def test_losses_alone_make_a_page(tmp_path):
    run = made.train_record(tmp_path / "run")
    made.metrics(run, [{"step": s, "split": "eval", "loss": 4.0 - s} for s in (0, 1)])
    assert "run: held-out loss 4.000 → 3.000" in squeezed(Page(page.build([str(run)])).text)
    worse = made.train_record(tmp_path / "worse", epochs=2.0)
    made.metrics(worse, [{"step": s, "split": "eval", "loss": 4.0 + 8 * s} for s in (0, 1)])
    assert "run: held-out loss 4.000 → 3.000" in squeezed(Page(page.build([str(worse), str(run)])).text)


def test_the_gradient_of_each_layer_is_drawn_over_the_depth(tmp_path):
    for seed in (0, 1):
        run = made.train_record(tmp_path / f"deep{seed}", seed=seed)
        steps = [
            {"step": s, "split": "train", "loss": 1.0}
            | {f"grad_norm/layer_{i:02d}": (100.0 if s <= 2 else 1.0 + i + seed) for i in range(11)}
            for s in (1, 2, 3, 4)
        ]
        made.metrics(run, steps)
    paths = [str(tmp_path / f"deep{seed}") for seed in (0, 1)]
    html = page.build(paths)
    Page(html)
    (svg,) = [svg for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "norm of the gradient" in svg]
    drawn = re.findall(r'<path class="(line|thin)" d="M([^"]*)"', svg)
    assert sorted(kind for kind, _ in drawn) == ["line", "thin", "thin"], "the mean over seeds, and each of them"
    for _, way in drawn:
        heights = [float(place.split()[1]) for place in way.split("L")]
        assert len(heights) == 11 and heights == sorted(heights, reverse=True), "deeper layers are higher up"
    made.metrics(tmp_path / "deep0", [{"step": 1, "split": "train", "loss": 1.0}])
    assert "norm of the gradient" not in page.build(paths[:1])


def test_how_a_support_moves_is_drawn(tmp_path):
    """Only its changes have the figures, and each figure has a panel of its own."""
    run = made.train_record(tmp_path / "run")
    steps = [{"step": s, "split": "train", "loss": 4.0 - 0.1 * s} for s in range(1, 8)]
    for s, replaced in ((2, 1.0), (5, 0.1)):
        steps[s - 1] |= {"support/replaced": replaced, "support/since_first": 1.5 - s / 4, "support/age": s + 0.5}
    made.metrics(run, steps)
    text = squeezed(Page(page.build([str(run)])).text)
    titles = ("tuned weights replaced", "tuned since the first change", "mean age of tuned weights, steps")
    assert all(title in text for title in titles) and "norm of dropped deltas" not in text


def test_what_is_not_finite_is_a_dash(tmp_path):
    made.evaluation(tmp_path / "base", made.seen_and_cloze(0.0, 1.0))
    tasks = made.seen_and_cloze(float("nan"), 0.5) | {"text": {"nll_per_token": float("inf"), "perplexity": 3.0}}
    made.evaluation(made.train_record(tmp_path / "full"), tasks)
    html = page.build([str(tmp_path / "base"), str(tmp_path / "full")])
    assert Page(html).row("full")[1] == "\u2013"
    assert "nan" not in html.lower().replace("tenant", "") and "inf" not in re.findall(r">\s*([a-z]+)\s*<", html)


def test_the_baseline_can_be_named(tmp_path):
    paths = made.three(tmp_path)
    parsed = Page(page.build(paths, before=paths[2]))
    assert "before training" in parsed.row("lora")[0]
    assert parsed.row("full")[1] == "66.7+33.3"
    with pytest.raises(UserError, match=r"--before=nowhere is none of --runs"):
        page.build(paths, before="nowhere")


def test_a_models_folder_with_an_evaluation_was_not_trained(tmp_path):
    made.evaluation(tmp_path / "model", made.seen_and_cloze(0.1, 0.9))
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert not read_runs([str(tmp_path / "model")])[0].trained


def test_names_are_as_long_as_they_must_be(tmp_path):
    paths = [str(made.train_record(tmp_path / name)) for name in ("x/full", "y/full", "y/lora")]
    assert [run.name for run in read_runs(paths)] == ["x/full", "y/full", "lora"]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    run = made.train_record(tmp_path / "run")
    made.metrics(run, [{"step": 1, "split": "train", "loss": 2.0}])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "spl')
    assert read_runs([str(run)])[0].curves == {"train": {"loss": [(1, 2.0)]}}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("config.json", "{", r"config.json cannot be read as JSON"),
        ("evaluation.json", "[]", r"evaluation.json holds a list, not an object"),
        ("evaluation.json", '{"a": 1}', r"evaluation.json has no `tasks`"),
        ("metrics.jsonl", '{"step": 1}\n', r"metrics.jsonl, line 1, has no step and split"),
        ("metrics.jsonl", "{\n", r"metrics.jsonl, line 1, is not JSON"),
        ("evaluation.jsonl", '{"task": "a", "index": 1}\n', r"evaluation.jsonl, line 1, has no 'correct'"),
        ("other.txt", "", r"run holds nothing of a run; at least one of config.json, metrics.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        page.build([str(tmp_path / "run")])


def test_folders_that_are_missing_or_doubled(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no folder"):
        page.build([str(tmp_path / "nowhere")])
    run = str(made.train_record(tmp_path / "run"))
    with pytest.raises(UserError, match=r"--runs names .* twice"):
        page.build([run, run + "/"])
    base = str(made.evaluation(tmp_path / "base", made.seen_and_cloze(0.0, 1.0)))
    with pytest.raises(UserError, match=r"nothing but the baseline"):
        page.build([base])


def test_the_same_folders_give_the_same_page(tmp_path):
    paths = made.three(tmp_path)
    assert page.build(paths) == page.build(paths)


def test_the_script_takes_folders_after_one_flag(tmp_path):
    paths = made.three(tmp_path)
    output = tmp_path / "report.html"
    command = [sys.executable, "scripts/report.py", "--runs", *paths, f"--output={output}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "about 3 folders" in done.stdout
    assert output.read_text() == page.build(paths)
    bad = subprocess.run(
        [*command[:3], str(tmp_path / "no"), command[-1]], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert bad.returncode == 1 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1


def test_no_module_needs_what_only_training_needs():
    for file in (REPOSITORY / "jaxsft" / "report").glob("*.py"):
        imported = {
            n.module.split(".")[0] for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)
        }
        assert not imported & {"jax", "flax", "optax", "numpy", "matplotlib"}, file


@pytest.mark.parametrize(
    "runs, names",
    [
        (("start-7-full-lr1", "start-7-full-lr2", "start-7-lora"), ("full-lr1", "full-lr2", "lora")),
        (("base-full-lr0.0001", "base-full-lr0.0003"), ("lr0.0001", "lr0.0003")),  # a number is not cut off its name
        (("full_1e-4", "full_3e-4"), ("full_1e-4", "full_3e-4")),
    ],
)
def test_what_all_names_begin_with_is_left_out(tmp_path, runs, names):
    for i, name in enumerate(runs):
        made.train_record(tmp_path / name, batch_size=4 + i)
        made.evaluation(tmp_path / name, made.seen_and_cloze(0.5, 0.5))
    story = page.tell(read_runs([str(tmp_path / name) for name in runs]))
    assert tuple(group.name for group in story.groups) == names


def test_sub_models_are_shown_each_by_itself(tmp_path):
    folder = made.train_record(tmp_path / "dtm", submodels=2)
    made.metrics(folder, [{"step": 1, "split": "train", "loss": 2.5, "running": 2.0}])
    for k in range(2):
        own = made.train_record(folder / "submodels" / str(k), **{"data.part": k})
        made.metrics(own, [{"step": s, "split": "eval", "loss": 2.0 + k - 0.1 * s} for s in (0, 1, 2 + k)])
    lora = made.train_record(tmp_path / "lora")
    made.metrics(lora, [{"step": 1, "split": "eval", "loss": 3.0}])
    runs = read_runs([str(folder), str(lora)])
    assert [run.name for run in runs] == ["dtm/0", "dtm/1", "lora"]
    assert runs[1].curves["eval"]["loss"] == [(0, 3.0), (1, 2.9), (3, 2.7)]
    html = page.build([str(folder)])
    rows = [row[0].strip() for row in Page(html).rows]
    assert "dtm/0" in rows and "dtm/1" in rows
    made.evaluation(folder, made.seen_and_cloze(0.5, 0.5))
    assert [run.name for run in read_runs([str(folder)])] == ["dtm"], "what was made of them"


def test_a_run_of_sub_models_that_has_just_begun_is_shown(tmp_path):
    folder = made.train_record(tmp_path / "dtm", submodels=2)
    (folder / "submodels" / "0").mkdir(parents=True)
    assert [run.name for run in read_runs([str(folder)])] == ["dtm"]
