"""Bad input: one clear sentence on stderr, a non-zero exit status, and no traceback."""

import json
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.training.conftest import devices, run


def refused(arguments, *expected, **changes):
    """Runs, and checks status and sentence."""
    done = run(arguments, **changes)
    message = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert len(message) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in expected:
        assert part in message[0], message[0]
    return message[0]


def data(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    return f"data.path={path}"


GOOD = json.dumps({"prompt": "the fox", "completion": "jumps"}) + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("rows.jsonl", "empty")),
        (GOOD * 2 + '{"prompt": \n', ("rows.jsonl", "3")),
        (GOOD + '{"colour": "blue"}\n', ("rows.jsonl", "colour", "fields")),
        (GOOD + '{"messages": [{"role": "user", "content": "hi"}]}\n', ("rows.jsonl", "assistant")),
        (GOOD * 3 + json.dumps({"prompt": "fox " * 300, "completion": "x"}) + "\n", ("max_dropped", "max_length")),
    ],
    ids=["empty", "malformed", "unknown form", "no assistant turn", "over-long prompt"],
)
def test_data(command, tmp_path, text, expected):
    refused(command(tmp_path / "w", data(tmp_path, text), "data.rows="), *expected)


def test_template_that_masks_everything(command, tmp_path):
    template = tmp_path / "silent.jinja"
    template.write_text("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    refused(
        command(tmp_path / "w", data(tmp_path, GOOD * 3), "data.rows=", f"data.template={template}"), "silent.jinja"
    )


def test_no_weights(command, tmp_path):
    refused(command(tmp_path / "w", f"model.path={tmp_path / 'nothing'}"), "nothing")
    (tmp_path / "empty").mkdir()
    refused(command(tmp_path / "w", f"model.path={tmp_path / 'empty'}"), "config.json")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=many", ("steps", "many")),
        ("optimizer.name=adamm", ("adamm", "adamw")),
        ("optimizer.learning_rate=-1.0", ("learning_rate", "positive")),
        ("optimizer.learning_rte=1e-3", ("learning_rte", "learning_rate")),
        ("data.fields={'q': 'prompt'}", ("config.data.fields is a dict", "set it there")),
        ("mesh.fsdp=3", ("mesh", "devices")),
        ("batch_size=9", ("batch_size", "accumulate")),
    ],
)
def test_config(command, tmp_path, override, expected):
    extra = ("accumulate=2",) if override.startswith("batch") else ()

    refused(command(tmp_path / "w", override, *extra), *expected, XLA_FLAGS=devices(8))


def test_mesh_that_does_not_divide_the_model(command, tmp_path):
    refused(
        command(tmp_path / "w", "mesh.tensor=3"), "kv_heads=16", "tensor=3", "does not divide", XLA_FLAGS=devices(3)
    )


def test_patterns_that_name_nothing(command, tmp_path):
    refused(command(tmp_path / "w", "optimizer.freeze=('layers.*.atn',)"), "layers.*.atn", "layers.*.attn")
    lora = ("adapter.kind=lora", "adapter.lora.targets=('layers.*.mlp.gate',)")
    refused(command(tmp_path / "w", *lora), "layers.*.mlp.gate", "layers.*.mlp.gate_proj")


def test_workdir_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(command(tmp_path / "file" / "w"), "workdir", "cannot be written")


def test_workdir_that_is_a_model(command, model_folder, tmp_path):
    refused(command(model_folder), "config.json", "--workdir")


FULL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_disk_full(command, tmp_path):
    """A limit on the size of files stands in for a full disk; nothing broken is left, the run goes on afterwards."""
    arguments = command(tmp_path / "w", "log.tensorboard=False")
    assert run(command(tmp_path / "other", "steps=1")).returncode == 0  # the token cache is filled
    message = refused([sys.executable, "-c", FULL_DISK.format(40_000), *arguments[1:]], "could not be written", "disk")
    assert str(tmp_path / "w") in message
    done = run(arguments)
    assert done.returncode == 0, done.stderr


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(command, tmp_path):
    explode = ("learning_rate=1e30", "warmup_steps=6", "max_grad_norm=0.0", "name=lion")
    done = run(command(tmp_path / "w", *(f"optimizer.{field}" for field in explode), "checkpoint.every=1"))
    assert done.returncode == 1
    assert "at step" in done.stderr and "is kept" in done.stderr, done.stderr


def test_no_config():
    script = str(REPOSITORY / "scripts" / "train.py")
    refused([sys.executable, script, "--workdir=w"], "--config")
    refused([sys.executable, script, "--config=nowhere.py"], "nowhere.py")
