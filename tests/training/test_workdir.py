"""The run's folder: lock, record, metrics and event files."""

import contextlib
import json
import resource
import time

import pytest

from jaxsft.config import DataConfig, SourceConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.training.workdir import Metrics, Workdir
from jaxsft.validation import to_dict

PRINTS = {"data": "d0", "model": "m0"}


@contextlib.contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def config(**changes: object) -> dict:
    """A resolved config with two sources; `changes` are {"optimizer.b1": 0.8}."""
    tree = TrainConfig(data=DataConfig(sources=[SourceConfig("a.jsonl"), SourceConfig("b.jsonl", weight=2.0)]))
    for path, value in changes.items():
        node, *steps = (tree, *path.split("."))
        for step in steps[:-1]:
            node = node[int(step)] if step.isdigit() else getattr(node, step)
        setattr(node, steps[-1], value)
    return to_dict(tree)


def test_lock(tmp_path):
    first = Workdir(tmp_path / "a" / "w")
    with pytest.raises(UserError, match=r"a/w is in use by a live run"):
        Workdir(tmp_path / "a" / "w")
    Workdir(tmp_path / "a" / "other")
    reader = Workdir(tmp_path / "a" / "w", writes=False)
    reader.write_json("summary.json", {})
    assert not reader.finished, "only the writer writes"
    del first
    Workdir(tmp_path / "a" / "w")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/w cannot be written: Not a directory"):
        Workdir(tmp_path / "file" / "w")


def test_record_holds_all_that_a_repetition_needs(tmp_path):
    folder = Workdir(tmp_path)
    folder.record("TrainConfig", config(), PRINTS)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["kind"] == "TrainConfig" and record["fingerprints"] == PRINTS
    assert record["config"] == config() and record["config"]["data"]["sources"][1]["weight"] == 2.0
    assert record["versions"].keys() >= {"jax", "optax", "python", "jaxsft"}
    before = (tmp_path / "config.json").read_bytes()
    folder.record("TrainConfig", config(), PRINTS)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.b1": 0.8}, r"config\.optimizer\.b1 = 0\.9, now it is 0\.8"),
        ({"seed": 3}, r"config\.seed = 0, now it is 3"),
        ({"data.sources.1.path": "c.jsonl"}, r"config\.data\.sources\[1\]\.path = 'b\.jsonl', now it is 'c\.jsonl'"),
        ({"data.sources": [SourceConfig("a.jsonl")]}, r"config\.data\.sources\[1\]\.\w+ = .*, now it is None"),
        (
            {"data.sources": [SourceConfig("a.jsonl"), SourceConfig("b.jsonl", weight=2.0), SourceConfig("c.jsonl")]},
            r"config\.data\.sources\[2\]\.\w+ = None, now it is",
        ),
        ({"data.sources": []}, r"config\.data\.sources = None, now it is \[\]"),
        ({"data.sources.0.fields": {"q": "prompt"}}, r"config\.data\.sources\[0\]\.fields"),
        ({"adapter.lora.targets": ("layers.*",)}, r"config\.adapter\.lora\.targets = \['layers"),
        ({"log.every": 7}, r"config\.log\.every"),
        ({"checkpoint.every": 7, "steps": 9}, r"config\.steps = 0, now it is 9"),
        ({"checkpoint.snapshots": 5}, r"config\.checkpoint\.snapshots = 0, now it is 5"),
    ],
)
def test_another_config_is_refused_by_name(tmp_path, changes, message):
    folder = Workdir(tmp_path)
    folder.record("TrainConfig", config(), PRINTS)
    with pytest.raises(UserError, match=message):
        folder.record("TrainConfig", config(**changes), PRINTS)
    folder.record("TrainConfig", config(), PRINTS)  # what was there still is


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh.fsdp": 4, "mesh.tensor": 2},
        {"checkpoint.every": 7, "checkpoint.keep_best": 1},
        {"log.tensorboard": False},
        {"log.wandb_project": "w"},
        {"data.cache_dir": "/elsewhere", "objective.regularizers.ewc_data.cache_dir": "/elsewhere"},
    ],
)
def test_fields_that_change_no_number_are_free(tmp_path, changes):
    folder = Workdir(tmp_path)
    folder.record("TrainConfig", config(), PRINTS)
    assert config(**changes) != config()
    folder.record("TrainConfig", config(**changes), PRINTS)


def test_other_data_under_the_same_name_is_refused(tmp_path):
    folder = Workdir(tmp_path)
    folder.record("TrainConfig", config(), PRINTS)
    with pytest.raises(UserError, match=r"fingerprints\.model = 'm0', now it is 'm1'"):
        folder.record("TrainConfig", config(), PRINTS | {"model": "m1"})
    with pytest.raises(UserError, match=r"fingerprints\.eval_data = None, now it is 'e0'"):
        folder.record("TrainConfig", config(), PRINTS | {"eval_data": "e0"})


def test_a_model_folder_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"config\.json is not a run's record"):
        Workdir(tmp_path).record("TrainConfig", config(), PRINTS)


def test_other_versions_are_told(tmp_path, capsys):
    folder = Workdir(tmp_path)
    folder.record("TrainConfig", config(), PRINTS)
    record = json.loads((tmp_path / "config.json").read_text())
    now = record["versions"]["optax"]
    record["versions"]["optax"] = "0.0.1"
    (tmp_path / "config.json").write_text(json.dumps(record))
    folder.record("TrainConfig", config(), PRINTS)
    assert capsys.readouterr().out == f"note: this run started with other versions: optax 0.0.1 -> {now}\n"


def test_write_json_is_whole_or_not_at_all(tmp_path):
    folder = Workdir(tmp_path)
    folder.write_json("summary.json", {"loss": 1.5})
    assert folder.finished
    with (
        full_disk(100),
        pytest.raises(UserError, match=r"summary\.json cannot be written: File too large"),
    ):
        folder.write_json("summary.json", {"loss": list(range(1000))})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": 1.5}
    folder.write_json("summary.json", {"loss": 2.5})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": 2.5}


def metrics(folder: Workdir, resume_step: int, tensorboard: bool = False, writes: bool = True) -> Metrics:
    return Metrics(folder, resume_step, tensorboard, "", writes)


def read(folder: Workdir) -> list[dict]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("torn", ["", '{"step": 2, "spl', '{"step": 2, "split": "train", "loss": 1.0}', "{"])
def test_metrics_are_cut_back_to_the_checkpoint(tmp_path, torn):
    """A line without its end was cut off, though what is left of it may read like a line."""
    folder = Workdir(tmp_path)
    sink = metrics(folder, -1)
    sink.write(0, "eval", {"loss": 9.0})
    for step in range(1, 5):
        sink.write(step, "train", {"loss": 1.0 / step})
    sink.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    sink = metrics(folder, 2)
    assert [line["step"] for line in read(folder)] == [0, 1, 2]
    sink.write(3, "train", {"loss": 0.25, "time/step_seconds": 2.0})
    sink.close()
    assert read(folder) == [
        {"step": 0, "split": "eval", "loss": 9.0},
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 2, "split": "train", "loss": 0.5},
        {"step": 3, "split": "train", "loss": 0.25, "time/step_seconds": 2.0},
    ]
    metrics(folder, -1).close()
    assert read(folder) == [], "a run without a checkpoint starts anew"


def test_metrics_are_readable_while_training(tmp_path):
    folder = Workdir(tmp_path)
    sink = metrics(folder, -1)
    sink.write(1, "train", {"loss": 0.1})
    assert read(folder) == [{"step": 1, "split": "train", "loss": 0.1}]
    sink.close()


def test_metrics_on_a_full_disk(tmp_path):
    sink = metrics(Workdir(tmp_path), -1)
    with full_disk(100), pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large"):
        for step in range(10):
            sink.write(step, "train", {"loss": 0.1})


def test_other_processes_write_nothing(tmp_path):
    folder = Workdir(tmp_path, writes=False)
    sink = metrics(folder, -1, tensorboard=True, writes=False)
    sink.write(1, "train", {"loss": 0.1})
    sink.close()
    folder.write_json("summary.json", {})
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_one_curve_of_a_resumed_run(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="reading event files needs tensorboard"
    )
    folder = Workdir(tmp_path)
    for resume, steps, shift in ((-1, range(0, 5), 0.0), (2, range(3, 6), 10.0)):
        sink = metrics(folder, resume, tensorboard=True)
        for step in steps:
            sink.write(step, "train", {"loss": step + shift, "learning_rate": 0.5})
        sink.close()
        time.sleep(1.1)  # tensorboardX names a file by the second
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/learning_rate"}
    curve = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert curve == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0)]
