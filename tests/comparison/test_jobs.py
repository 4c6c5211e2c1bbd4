"""The comparison: what makes a case, what names a job, what a broken-off job does again."""

import json
import runpy
from pathlib import Path

import pytest

from jaxsft.comparison import jobs
from jaxsft.comparison.jobs import EVALUATION, Job, execute, find_cases, plan
from jaxsft.errors import UserError
from jaxsft.world import recipe, records
from tests.conftest import REPOSITORY

CASE = '''"""A short run, on purpose.

Nothing else."""

from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-3, 2e-3)


def get_config():
    config = plain()
    config.steps = STEPS
    config.batch_size = 8  # the tests have eight devices
    return config
'''


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    folder.mkdir()
    (folder / "short.py").write_text(CASE.replace("STEPS", "2"))
    (folder / "other.py").write_text("def get_config():\n    return None\n")
    return folder


def test_a_case_is_a_config_with_learning_rates(cases: Path):
    (case,) = find_cases(cases, ["short"])
    assert (case.name, case.about, case.learning_rates) == ("short", "A short run, on purpose", (1e-3, 2e-3))
    with pytest.raises(UserError, match="'shrt', which is no case; did you mean 'short'"):
        find_cases(cases, ["shrt"])
    with pytest.raises(UserError, match="'other', which is no case"):
        find_cases(cases, ["other"])
    with pytest.raises(UserError, match="'short:2', but short has no variants"):
        find_cases(cases, ["short:2"])
    with pytest.raises(UserError, match=r"--cases is empty; .* has short"):
        find_cases(cases, [])


def test_a_variant_is_a_case_of_its_own(cases: Path, tmp_path: Path):
    variant = CASE.replace("get_config():", "get_config(steps='1'):").replace("STEPS", "int(steps)")
    (cases / "variant.py").write_text(variant)
    found = find_cases(cases, ["variant", "variant:5", "variant:7"])
    assert [case.name for case in found] == ["variant", "variant:5", "variant:7"]
    jobs = [Job(case, "world:base", 1e-3) for case in found]
    assert [job.config().steps for job in jobs] == [1, 5, 7]
    assert len({job.folder(tmp_path) for job in jobs}) == 3
    assert jobs[1].folder(tmp_path).name.startswith("world-base-variant-5-lr0.001-seed0-")


def test_a_folder_says_which_job_it_is(cases: Path, tmp_path: Path):
    job = plan(find_cases(cases, ["short"]), ["world:base"], 1)[-1]
    jobs.record(job, tmp_path / "job")
    told = json.loads((tmp_path / "job" / "job.json").read_text())
    assert told == {"case": "short", "start": "world:base", "learning_rate": 2e-3, "seed": 0}


def test_learning_rates_can_be_left_out(cases: Path):
    (case,) = find_cases(cases, ["short"])
    assert [job.learning_rate for job in plan([case], ["world:base"], 1, [5e-4, 2e-3]) if job.case] == [2e-3]
    with pytest.raises(UserError, match=r"--learning_rates has none of short's 0\.001, 0\.002"):
        plan([case], ["world:base"], 1, [5e-4])


def test_every_start_rate_and_seed_is_a_job(cases: Path):
    (case,) = find_cases(cases, ["short"])
    planned = plan([case], ["world:base", "world:chat"], 2)
    assert len(planned) == 2 + 2 * 2 * 2
    assert {(j.start, j.learning_rate, j.seed) for j in planned if j.case} == {
        (start, rate, seed) for start in ("world:base", "world:chat") for rate in (1e-3, 2e-3) for seed in (0, 1)
    }
    assert plan(find_cases(cases, ["short", "short"]), ["world:base", "world:chat"] * 2, 2) == planned, "each once"
    with pytest.raises(UserError, match="--seeds is 7"):
        plan([case], ["world:base"], 7)
    with pytest.raises(UserError, match="--starts is empty"):
        plan([case], [], 1)


def test_seeds_take_different_rows_and_the_config_is_the_cases_own(cases: Path):
    (case,) = find_cases(cases, ["short"])
    configs = [Job(case, "world:base", 2e-3, seed).config() for seed in range(6)]
    assert [config.data.rows for config in configs] == [f"{3000 * s}:{3000 * s + 3000}" for s in range(6)]
    assert records.ROWS["train"] == 6 * recipe.ROWS
    assert all(c.steps == 2 and c.optimizer.learning_rate == 2e-3 and not c.eval.tasks for c in configs)


def test_a_folder_is_named_by_what_decides_the_figures(cases: Path, tmp_path: Path):
    (case,) = find_cases(cases, ["short"])
    job = Job(case, "world:base", 1e-3, 0)
    before = job.folder(tmp_path)
    assert before == job.folder(tmp_path)
    assert before.name.startswith("world-base-short-lr0.001-seed0-")
    others = [
        Job(case, "world:chat", 1e-3, 0),
        Job(case, "world:base", 1e-3, 1),
        Job(None, "world:base"),
    ]
    assert len({before, *(other.folder(tmp_path) for other in others)}) == 4
    case.file.write_text(CASE.replace("STEPS", "3"))
    assert job.folder(tmp_path) != before


def test_a_field_that_a_later_version_adds_does_not_rename_jobs(cases: Path, tmp_path: Path, monkeypatch):
    (case,) = find_cases(cases, ["short"])
    job = Job(case, "world:base", 1e-3, 0)
    before = job.folder(tmp_path)
    plain = jobs.to_dict
    added = lambda value: lambda config: plain(config) | {"added": value, "tree": {"added": value}}
    monkeypatch.setattr(jobs, "to_dict", added(0.0))
    assert job.folder(tmp_path) == before
    monkeypatch.setattr(jobs, "to_dict", lambda config: added(float(config == job.config()))(config))
    assert job.folder(tmp_path) != before


def test_a_job_is_named_by_fields_of_any_depth(cases: Path, tmp_path: Path):
    (case,) = find_cases(cases, ["short"])
    names = set()
    for change in ("", "    config.data.fields = {'a': 'b'}\n", "    config.adapter.lora.rank = 3\n"):
        case.file.write_text(CASE.replace("STEPS\n", f"2\n{change}"))
        names.add(Job(case, "world:base", 1e-3, 0).folder(tmp_path))
    assert len(names) == 3


def test_a_job_is_done_once_and_goes_on_where_it_was_broken_off(cases: Path, tmp_path: Path, monkeypatch, capsys):
    whole = recipe.suite

    def small(reference: str = ""):
        config = whole(reference)
        config.tasks = [task for task in config.tasks if task.name in ("cloze", "moved")]
        for task in config.tasks:
            task.data.rows = ":20"
        return config

    monkeypatch.setattr(recipe, "suite", small)
    (case,) = find_cases(cases, ["short"])
    job = Job(case, "world:base", 1e-3, 0)
    folder = job.folder(tmp_path)
    with capsys.disabled():  # what is printed goes where a worker's would
        execute(job, folder)
    figures = folder / EVALUATION
    first = json.loads(figures.read_text())
    assert first["tasks"]["cloze"]["questions"] == 20
    assert first["tasks"]["moved"]["kl_per_token"] > 0, "it is compared with the start"
    assert "2 steps" in (folder / "log.txt").read_text()
    written = figures.stat().st_mtime_ns
    execute(job, folder)
    assert figures.stat().st_mtime_ns == written, "what is done is not done again"
    figures.unlink()  # as if it had been killed between training and measuring
    metrics = (folder / "metrics.jsonl").stat().st_mtime_ns
    execute(job, folder)
    assert json.loads(figures.read_text())["tasks"] == first["tasks"]
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == metrics, "it is not trained again"


def test_a_case_of_several_runs_brings_its_own(cases: Path, tmp_path: Path):
    (cases / "staged.py").write_text(
        CASE.replace("STEPS", "2") + "\n\ndef run(config, workdir):\n    raise RuntimeError(workdir)\n"
    )
    (case,) = find_cases(cases, ["staged"])
    job = Job(case, "world:base", 1e-3, 0)
    with pytest.raises(RuntimeError, match="here"):
        execute(job, tmp_path / "here")
    before = job.folder(tmp_path)
    case.file.write_text(case.file.read_text().replace("(workdir)", '("there")'))
    assert job.folder(tmp_path) != before, "what `run` does decides the figures too"


def test_a_case_may_leave_its_model_beside_the_run(cases: Path, tmp_path: Path, monkeypatch):
    """In a folder that it returns; what it returns besides is no folder."""
    import jaxsft.evaluation.suite as suite

    seen = []

    def evaluate(config):
        seen.append(config.model.path)
        raise RuntimeError("measured")

    monkeypatch.setattr(suite, "evaluate", evaluate)
    for left in ("Path(workdir) / 'merged'", "'a headline'"):
        run = f"\n\ndef run(config, workdir):\n    from pathlib import Path\n    return {left}\n"
        (cases / "staged.py").write_text(CASE.replace("STEPS", "2") + run)
        (case,) = find_cases(cases, ["staged"])
        with pytest.raises(RuntimeError, match="measured"):
            execute(Job(case, "world:base", 1e-3, 0), tmp_path / "here")
    assert seen == [str(tmp_path / "here" / "merged"), str(tmp_path / "here")]


@pytest.mark.parametrize("asked", ["4-random", "four-random-linear", "4-randm-linear", "4-random-mean"])
def test_a_variant_that_is_none_is_refused(asked: str):
    (case,) = find_cases(REPOSITORY / "configs" / "world", [f"dtm:{asked}"])
    with pytest.raises(UserError, match=f"dtm:{asked} is no variant; write dtm:PARTS-DISPERSAL-MERGE"):
        Job(case, "world:chat", 1e-3).config()


def test_the_variants_of_dispersal_and_merge_are_runs():
    names = runpy.run_path(str(REPOSITORY / "configs" / "world" / "dtm.py"))
    variants = [f"dtm:2-{cut}-{how}" for cut in names["DISPERSALS"] for how in names["MERGES"]]
    for case in find_cases(REPOSITORY / "configs" / "world", variants):
        config = Job(case, "world:chat", 1e-3).config()
        assert config.submodels == 2 and config.adapter.kind == "lora"
