"""The commands in the report, read by the very parser that the training script uses, give back the run's config."""

import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from jaxsft.config import DataConfig, TaskConfig, TrainConfig
from jaxsft.report import repeat
from jaxsft.report.read import Run
from jaxsft.validation import to_dict
from tests.report import made

ODD = {
    "data.path": "a folder/with 'quotes' & $signs",
    "optimizer.learning_rate": 3e-4,
    "optimizer.no_decay": ("*norm*", "a b"),
    "optimizer.freeze": ("embed*",),
    "data.packing": False,
    "data.max_length": 77,
    "adapter.kind": "lora",
    "epochs": 2.5,
}
NESTED = {
    "data.fields": {"question": "prompt"},
    "data.sources": [made.TrainConfig().data.all_sources()[0]],
    "eval.tasks": [TaskConfig(name="seen", data=DataConfig(path="x", packing=False))],
    "data.classes.condition": {"a.b": "GPT4", "c": ""},
    "data.mixture.system": {"code": "You are a programmer."},
    "objective.regularizers.ewc_data.fields": {"q": "prompt"},
    "objective.beta": 0.1,
    "seed": 3,
}


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of config_flags
@pytest.mark.parametrize("changes", [{}, ODD, NESTED, {"optimizer.no_decay": ()}])
def test_a_command_gives_back_its_config(tmp_path, monkeypatch, changes):
    run = Run("run", "runs/a run", made.config(**changes))
    (tmp_path / repeat.CONFIG_NAME).write_text(repeat.config_file(run) + "\n")
    words = shlex.split(repeat.command(run).replace("\\\n", " "))
    assert words[:2] == ["python", "scripts/train.py"] and words[3] == "--workdir=runs/a run"
    arguments = ["train", f"--config={tmp_path / repeat.CONFIG_NAME}", *words[4:]]
    monkeypatch.setattr("sys.argv", arguments)  # where config_flags looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    assert isinstance(values.config, TrainConfig)
    assert to_dict(values.config) == run.config
