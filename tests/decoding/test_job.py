"""Jobs over files: a killed one against one that was not, and what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import ModelConfig
from jaxsft.data.conversation import parse
from jaxsft.data.templates import Template
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.job import Job, weights_digest
from jaxsft.decoding.neighbours import Neighbours
from jaxsft.decoding.prompts import make_prompter
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.training.restore import open_model
from tests.conftest import REPOSITORY
from tests.training.conftest import run as run_process

PROMPTS = [f"please repeat {' '.join('bcdfghk'[: 1 + i % 7])} ." for i in range(26)]
PARTS = 4  # prompts of a part


@pytest.fixture(scope="module")
def job(mesh):
    model = open_model("world:chat", ModelConfig(path="world:chat"), mesh)
    prompter = make_prompter(model.tokenizer, model.template, model.source)
    sampling = Sampling(temperature=1.0, max_new_tokens=12, stop_ids=prompter.stop_ids)
    sampler = Sampler(model.decoder, sampling, mesh, batch_size=8, text=prompter.text)
    return Job(sampler, prompter, model.params, model.adapters, {"model": "world:chat"}, part_rows=PARTS)


def run(job, output, prompts=PROMPTS, say=lambda line: None):
    return job.run(prompts, [job.prompter.encode(prompt) for prompt in prompts], output, say)


def with_sampling(job, **changes):
    """The job with other settings of its sampler."""
    sampling = dataclasses.replace(job.sampler.sampling, **changes)
    sampler = Sampler(job.sampler.decoder, sampling, job.sampler.mesh, batch_size=8, text=job.prompter.text)
    return dataclasses.replace(job, sampler=sampler)


class Interrupted(Exception):
    pass


def stop_after(parts):
    """A `say` that interrupts the job when so many parts are written."""

    def say(line):
        if line.startswith(f"part {parts} "):
            raise Interrupted

    return say


def test_a_job_that_is_interrupted_goes_on(job, tmp_path):
    whole, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    run(job, whole)
    with pytest.raises(Interrupted):
        run(job, again, say=stop_after(3))
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "again.jsonl.parts").glob("*.jsonl")}
    assert len(written) == 3 and not again.exists()
    with pytest.raises(Interrupted):
        run(job, again, say=stop_after(5))
    for name, when in written.items():  # no part was written again
        assert (tmp_path / "again.jsonl.parts" / name).stat().st_mtime_ns == when
    run(job, again)
    assert again.read_bytes() == whole.read_bytes()
    manifests = [(tmp_path / f"{name}.jsonl.manifest.json").read_bytes() for name in ("whole", "again")]
    assert manifests[0] == manifests[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "again.jsonl", "again.jsonl.manifest.json", "whole.jsonl", "whole.jsonl.manifest.json"
    ]  # fmt: skip
    before = whole.stat().st_mtime_ns
    assert "done before" in run(job, whole)
    assert whole.stat().st_mtime_ns == before


def test_what_is_written(job, tmp_path):
    run(job, tmp_path / "out.jsonl")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS
    assert [record["index"] for record in records] == list(range(26))
    asked = [job.prompter.encode(prompt) for prompt in PROMPTS]
    sampled = job.sampler.generate(job.params, asked)  # in one go
    assert [record["tokens"] for record in records] == [len(one.tokens) for one in sampled]
    np.testing.assert_allclose([r["logp"] for r in records], [sum(one.logps) for one in sampled], atol=1e-3)
    for record in records:  # which can be trained on, as docs/generate.md says
        *_, last = parse(record, "here", {"answer": "completion"}).messages
        assert (last.role, last.content) == ("assistant", record["answer"])
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["model"] == "world:chat"
    assert manifest["job"]["sampling"]["temperature"] == 1.0
    assert manifest["job"]["weights"] == weights_digest((job.params, job.adapters))
    assert manifest["job"]["template"]["name"] == job.prompter.template.name
    assert manifest["result"]["answers"] == 26
    assert manifest["result"]["tokens"] == sum(record["tokens"] for record in records)
    assert sum(manifest["result"]["stopped_by"].values()) == 26


def test_a_stop_string_is_no_part_of_the_answer(job, tmp_path):
    run(with_sampling(job, stop_strings=(" d",), temperature=0.0), tmp_path / "out.jsonl", PROMPTS[:4])
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["answer"].strip(), record["stopped_by"]) for record in records[1:]] == [
        ("b c", "token"),
        ("b c", "string"),
        ("b c", "string"),
    ]


def test_another_job_is_refused(job, tmp_path):
    with pytest.raises(Interrupted):
        run(job, tmp_path / "out.jsonl", say=stop_after(1))
    other = dataclasses.replace(job, params=jax.tree.map(lambda p: p * 1.001, job.params))
    for changed, what in ((with_sampling(job, seed=1), "sampling.seed"), (other, "weights")):
        with pytest.raises(UserError, match=f"of another job: its {what}"):
            run(changed, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"prompts\.rows is 26, here it is 25"):
        run(job, tmp_path / "out.jsonl", PROMPTS[1:])
    with pytest.raises(UserError, match=r"of another job: its prompts\.digest"):
        run(job, tmp_path / "out.jsonl", [*PROMPTS[1:], PROMPTS[0]])
    own = job.prompter.template
    other = dataclasses.replace(job.prompter, template=Template(own.source + " ", own.variables, own.name))
    with pytest.raises(UserError, match=r"of another job: its template\.digest"):
        run(dataclasses.replace(job, prompter=other), tmp_path / "out.jsonl")
    run(job, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"of another job: its sampling\.seed is 0, here it is 1"):
        run(with_sampling(job, seed=1), tmp_path / "out.jsonl")
    (tmp_path / "mine.txt").write_text("something else")
    with pytest.raises(UserError, match="nothing is overwritten"):
        run(job, tmp_path / "mine.txt")
    with pytest.raises(UserError, match="1 of 26 prompts cannot be continued, the first at place 25"):
        run(job, tmp_path / "long.jsonl", [*PROMPTS[1:], "b " * 2000])
    assert not (tmp_path / "long.jsonl.parts").exists()


def test_a_job_with_another_processor_is_another(job, tmp_path):
    """By its name, its arrays and its settings; the manifest says which it was."""

    def with_processor(processor):
        old = job.sampler
        sampler = Sampler(old.decoder, old.sampling, old.mesh, batch_size=8, text=old.text, processor=processor)
        return dataclasses.replace(job, sampler=sampler)

    keys = np.ones((4, job.sampler.decoder.arch.embed_dim), np.float32)
    store = Neighbours(jnp.asarray(keys), jnp.arange(4), neighbours=2, weight=0.1)
    with pytest.raises(Interrupted):
        run(with_processor(store), tmp_path / "out.jsonl", say=stop_after(1))
    for other, what in (
        (None, "name"),
        (_least_of_all, "name"),
        (dataclasses.replace(store, values=jnp.arange(4) + 1), "arrays"),
        (dataclasses.replace(store, weight=0.2), "weight"),
    ):
        with pytest.raises(UserError, match=rf"of another job: its processor(\.{what})? is"):
            run(with_processor(other), tmp_path / "out.jsonl")
    run(with_processor(dataclasses.replace(store)), tmp_path / "out.jsonl", PROMPTS)
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["job"]["processor"]["name"] == "Neighbours" and manifest["job"]["processor"]["weight"] == 0.1
    with pytest.raises(Interrupted):
        run(with_processor(_least_of_all), tmp_path / "function.jsonl", say=stop_after(1))
    settings = json.loads((tmp_path / "function.jsonl.parts" / "job.json").read_text())
    assert settings["processor"]["name"] == "_least_of_all"


def _least_of_all(step, logits):
    return -logits


def test_answers_that_are_printed_overwrite_nothing_either(tmp_path):
    (tmp_path / "mine.jsonl").write_text("something else")
    script = [sys.executable, str(REPOSITORY / "scripts" / "generate.py"), "--model=world:chat", "--prompt=b"]
    done = run_process([*script, f"--output={tmp_path / 'mine.jsonl'}"])
    assert done.returncode == 1 and "nothing is overwritten" in done.stderr
    assert (tmp_path / "mine.jsonl").read_text() == "something else"


def test_texts_may_have_line_ends_of_other_kinds(job, tmp_path):
    """U+2028 and U+0085 stand in JSON as they are, and end a line for `str.splitlines`."""
    prompts = ["please repeat b\u2028c .", "please repeat\u0085d ."]
    run(job, tmp_path / "out.jsonl", prompts)
    lines = (tmp_path / "out.jsonl").read_text().split("\n")
    assert [json.loads(line)["prompt"] for line in lines[:-1]] == prompts
    assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text())["result"]["answers"] == 2


def test_ids_decide_what_is_drawn(job, tmp_path):
    """Of some of the prompts the same answers, under the ids that they had among all."""
    run(job, tmp_path / "all.jsonl")
    some = list(range(1, 26, 3))
    asked = [job.prompter.encode(PROMPTS[i]) for i in some]
    job.run([PROMPTS[i] for i in some], asked, tmp_path / "some.jsonl", lambda line: None, some)
    lines = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("all", "some")}
    read = lambda line: {name: value for name, value in json.loads(line).items() if name != "logp"}
    assert list(map(read, lines["some"])) == [read(lines["all"][i]) for i in some]
    with pytest.raises(UserError, match=r"of another job: its prompts\.ids"):
        job.run([PROMPTS[i] for i in some], asked, tmp_path / "some.jsonl", lambda line: None, some[::-1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_the_digest_of_weights_sees_every_element(dtype):
    x = (100 * jax.random.normal(jax.random.key(0), (6, 8))).astype(dtype)
    digests = {weights_digest({"w": y}) for y in (x, x.at[3, 4].add(1), x.at[0].set(x[1]), x[::-1], x.T.reshape(6, 8))}
    assert len(digests) == 5
    assert weights_digest({"v": x}) != weights_digest({"w": x})
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("a", "b")))
    assert weights_digest({"w": split}) == weights_digest({"w": x})


def test_a_killed_job_goes_on(tmp_path):
    """SIGKILL in the middle, and the same command again: the file of an undisturbed run."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}

    def command(name):
        flags = [f"--input={source}", f"--output={tmp_path / name}", "--temperature=1", "--max_new_tokens=12"]
        flags += ["--part_rows=2", "--batch_size=4", "--model=world:chat"]
        return [sys.executable, str(REPOSITORY / "scripts" / "generate.py"), *flags]

    undisturbed = subprocess.Popen(command("whole.jsonl"), env=environment, stdout=subprocess.PIPE, text=True)
    killed = subprocess.Popen(command("killed.jsonl"), env=environment, stdout=subprocess.PIPE, text=True)
    parts, began = tmp_path / "killed.jsonl.parts", time.monotonic()
    while not (parts / "000001.jsonl").exists() and time.monotonic() - began < 300:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed.jsonl").exists()
    left = len(list(parts.glob("*.jsonl")))
    assert 2 <= left < 13
    again = subprocess.run(command("killed.jsonl"), env=environment, capture_output=True, text=True, check=True)
    assert f"{left} of 13 parts were written before" in again.stdout
    assert undisturbed.communicate()[0] and undisturbed.returncode == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
