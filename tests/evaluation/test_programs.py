"""Programs that misbehave, pass@k by counting, and the task from problems to figures."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxsft.config import CodeConfig, DataConfig, MeshConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.writing import Answer
from jaxsft.evaluation.programs import sandbox
from jaxsft.evaluation.programs.problems import BLOCK, pass_at_k, read_problems, summarize
from jaxsft.evaluation.programs.sandbox import Limits, Outcome, Sandbox
from jaxsft.evaluation.registry import headline, prepare
from jaxsft.evaluation.task import Subject
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from tests.evaluation.folders import make_folder
from tests.evaluation.pages import figures_on_the_page

LIMITS = Limits(seconds=30.0, memory_mib=256, disk_mib=8, processes=8)  # a busy machine takes long to begin
SHORT = 2.0  # seconds


@pytest.fixture(scope="session")
def run():
    """Runs a program in the sandbox; skips where there is none."""
    if reason := sandbox._unavailable():
        pytest.skip(f"no sandbox on this machine: {reason}")
    return Sandbox(LIMITS).run


@pytest.mark.parametrize(
    ("program", "tests", "why"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", "passed"),
        ("def f(x): return x", "assert f(1) == 2", "wrong"),
        ("def f(x): return y", "assert f(1) == 2", "error"),
        ("def f(x)", "assert f(1) == 2", "error"),
        ("import math, collections, typing, heapq, re, json, random, datetime, decimal", "math.sqrt(2)", "passed"),
        ("open('own', 'w').write('x')", "assert open('/tmp/own').read() == 'x'", "passed"),
        # what would cheat
        ("import sys; sys.exit(0)", "assert False", "ended"),
        ("import os; os._exit(0)", "assert False", "ended"),
        ("import os; os.kill(os.getpid(), 9)", "assert False", "ended"),
        ("import builtins; builtins.__build_class__ = None; exit = quit = None", "assert False", "wrong"),
        # what would take too much
        ("data = bytearray(2**30)", "pass", "memory"),
        ("file = open('big', 'wb')\nwhile True: file.write(bytes(2**20))", "pass", "error"),
        # what would reach outside
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "pass", "error"),
        ("import socket; socket.create_server(('127.0.0.1', 0)); socket.gethostbyname('example.com')", "pass", "error"),
        ("open('/usr/jaxsft', 'w')", "pass", "error"),
        ("open('/etc/passwd')", "pass", "error"),
    ],
)
def test_outcomes(run, program, tests, why):
    assert run(program, tests).why == why


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "while True: print('x' * 10**6)",
        "import os\nos.setsid()\nwhile True: pass",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ],
    ids=["loop", "output", "session", "forks"],
)
def test_what_never_ends_is_ended(run, program):
    began = time.monotonic()
    assert Sandbox(dataclasses.replace(LIMITS, seconds=SHORT)).run(program, "pass") == Outcome(False, "time")
    while left := _still_there():
        assert time.monotonic() - began < 15 * SHORT, left


def _still_there():
    """Processes of the sandbox; where root runs the tests they have an id of their own."""
    own = f"\nUid:\t{sandbox.NOBODY}\t"
    return [] if os.geteuid() else [p for p in Path("/proc").glob("[0-9]*/status") if own in _text(p)]


def _text(path):
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def test_files_outside_stay_as_they_are(run, tmp_path):
    target = tmp_path / "file"
    target.write_text("before")
    tmp_path.chmod(0o777), target.chmod(0o666)
    assert run(f"open({str(target)!r}, 'w').write('after')", "pass").why == "error"
    assert target.read_text() == "before"


def test_what_is_mounted_below_the_system_is_read_only_too(run):
    """A file system of its own below /usr, writable by all, in a namespace of this test's."""
    if os.geteuid():
        pytest.skip("only root may mount")
    mounted = 'mount -t tmpfs -o mode=777 tmpfs /usr/share && touch /usr/share/there && exec "$@"'
    code = f"from jaxsft.evaluation.programs.sandbox import Sandbox; print(Sandbox().run({WRITES!r}, 'pass'))"
    command = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Read-only file system: '/usr/share/written'" in done.stdout, done.stdout + done.stderr


WRITES = "import os\nassert os.path.exists('/usr/share/there')\nopen('/usr/share/written', 'w')"


def test_what_was_asked_cannot_be_read_again(run):
    """Neither the tests nor the word that tells success."""
    program = "import os\nassert os.path.exists('/tmp')\nassert os.read(0, 1) == b''\ntry: os.lseek(0, 0, 0)\n"
    assert run(program + "except OSError: pass\nassert os.read(0, 10**6) == b''", "pass").passed


def test_messages_are_short(run):
    outcome = run("raise ValueError('x' * 10**6)", "pass")
    assert outcome.why == "error" and outcome.message.startswith("ValueError: xxx") and len(outcome.message) < 400


def test_without_a_sandbox_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox, "_unavailable", lambda: "namespaces may be forbidden")
    with pytest.raises(UserError, match="run in a sandbox alone, and there is none here: namespaces may be forbidden"):
        Sandbox()


def test_what_is_missing_is_said(monkeypatch):
    why = sandbox._unavailable.__wrapped__
    monkeypatch.setattr(sandbox, "_command", lambda root, limits: ["false"])
    if sys.platform.startswith("linux"):
        assert why() == "a program that does nothing did not run (ended); namespaces may be forbidden"
        monkeypatch.setattr(sandbox, "TOOLS", ("sh", "no-such-tool"))
        assert why() == "no-such-tool (util-linux) is not installed"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why() == "it needs Linux, and this is darwin"


def test_the_users_files_are_not_beside_the_interpreter(run, monkeypatch):
    """It may lie below /home or /root; nothing else there may be seen."""
    why = sandbox._unavailable.__wrapped__
    assert why() == ""
    with monkeypatch.context() as patch:
        patch.setattr(
            sandbox, "SETUP", sandbox.SETUP.replace('mkdir -p "$root/tmp"', 'mkdir -p "$root/tmp" "$root/root/own"')
        )
        assert why() == "in the sandbox a program can still see other files"
    home = Path(os.path.realpath(sys._base_executable)).parents[1]
    monkeypatch.setenv("HOME", str(home))
    assert why() == f"programs see all of {home}, for the interpreter's sake, and the home folder {home} lies in it"


def test_no_sandbox_passes_for_one(monkeypatch, tmp_path):
    """The same programs without namespaces: the probe finds what it can do."""
    here = sandbox.RUNNER.replace("/tmp", str(tmp_path))
    monkeypatch.setattr(sandbox, "_command", lambda root, limits: [sys.executable, "-S", "-c", here])
    monkeypatch.setattr(
        sandbox, "PROBE", sandbox.PROBE.replace("range(256)", "range(1)").replace("/usr", str(tmp_path))
    )
    why = sandbox._unavailable.__wrapped__()
    assert re.match("in the sandbox a program can still .*start processes without end, write a file outside", why)


def test_the_probe_tells_a_sandbox_from_none(tmp_path):
    """Outside of any sandbox, with the rights of this test, something of what it tries works."""
    probe = sandbox.PROBE.replace("range(256)", "range(1)").replace("/usr/jaxsft", str(tmp_path / "outside"))
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "write a file outside" in done.stderr and "start processes without end" in done.stderr


# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_counts_all_draws(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_figures():
    passed = np.array([[True, True], [True, False], [False, False]])
    outcomes = [Outcome(p, "passed" if p else "wrong") for p in passed.ravel()]
    figures = summarize(passed, outcomes)
    assert figures["pass_at_1"] == pytest.approx(0.5) and figures["pass_at_2"] == pytest.approx(2 / 3)
    assert figures["standard_error"] == pytest.approx(0.5 / 3**0.5)
    assert figures["outcomes"] == {"passed": 3, "wrong": 3} and (figures["problems"], figures["programs"]) == (3, 6)


HUMAN = {
    "task_id": "x/0",
    "prompt": 'import math\n\n\ndef root(x):\n    """The root of x."""\n',
    "entry_point": "root",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n",
}
HELPED = HUMAN | {"prompt": "def root_of(x):\n    return x**0.5\n\n\ndef root(x):\n"}
MBPP = {
    "task_id": 1,
    "text": "Write a function that doubles.",
    "test_list": ["assert double(2) == 4", "assert double(0) == ZERO"],
    "test_setup_code": "ZERO = 0",
}


def problems(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_problems(DataConfig(path=str(path)))


@pytest.mark.parametrize(
    ("record", "answer", "plain"),
    [
        (HUMAN, "    return math.sqrt(x)\n\nprint(root('x'))", True),
        (HUMAN, "Here it is:\n```python\nimport math\ndef root(x):\n    return math.sqrt(x)\n```\nand so on", False),
        (HUMAN, "```python\ndef root(x):\n    return math.sqrt(x)\n```", False),  # the import is the prompt's
        (HUMAN, "```\n    return math.sqrt(x)\n```", False),  # the body alone
        (HUMAN, "```\n    def root_of(y): return math.sqrt(y)\n    return root_of(x)\n```", False),  # it too
        (HELPED, "```python\ndef root(x):\n    return root_of(x)\n```", False),  # the helper is the prompt's
        (MBPP, "def double(x):\n    return 2 * x\n\nassert False", True),
        (MBPP, "```Python\ndef double(x): return 2 * x", False),  # not closed
        (MBPP, "def double(x): return 2 * x", False),
    ],
)
def test_programs_of_answers(run, tmp_path, record, answer, plain):
    (problem,) = problems(tmp_path, record)
    assert run(problem.program(answer, plain), problem.tests) == Outcome(True, "passed")
    assert (
        run(problem.program("```python\npass\n```" if not plain else "    return 7", plain), problem.tests).why
        != "passed"
    )


def test_prompts(tmp_path):
    human, mbpp = problems(tmp_path, HUMAN, MBPP)
    assert human.text == HUMAN["prompt"] and HUMAN["prompt"] in human.question
    assert mbpp.text == '"""\nWrite a function that doubles.\nassert double(2) == 4\nassert double(0) == ZERO\n"""\n'
    assert BLOCK.search(mbpp.question).group(1).strip() == "\n".join(MBPP["test_list"])


@pytest.fixture
def subject(tmp_path):
    make_folder(tmp_path)
    decoder = Decoder(load_architecture(tmp_path))
    mesh = make_mesh(MeshConfig())
    params = load_params(tmp_path, decoder, mesh, "float32")
    return Subject(decoder, load_tokenizer(str(tmp_path)), tmp_path, mesh), params


def task(tmp_path, **code):
    (tmp_path / "data.jsonl").write_text(json.dumps({**MBPP, "text": "Double."}) + "\n" + json.dumps(HUMAN) + "\n")
    data = DataConfig(path=str(tmp_path / "data.jsonl"), template="none")
    return TaskConfig(task="code", data=data, max_new_tokens=8, batch_size=8, code=CodeConfig(**code))


def test_task(run, tmp_path, subject, monkeypatch):
    """Three of four programs are right; this test writes them in the model's place."""

    class Writer:
        cut, mode = 0, "plain continuation"

        def __init__(self, asked, config, subject, **sampling):
            assert len(asked) == 4 and sampling["temperature"] == 0.8 and asked[0] == asked[1] != asked[2]

        def write(self, params, adapters, strip):
            texts = [
                "def double(x): return 2 * x",
                "def double(x): return x",
                "    return math.sqrt(x)",
                "    return 2",
            ]
            return [Answer(text, True) for text in texts]

    monkeypatch.setattr("jaxsft.evaluation.programs.problems.Writer", Writer)
    config = task(tmp_path, execute=True, samples=2, temperature=0.8, seconds=5.0)
    ready = prepare(config, subject[0])
    result = ready.measure(None, None)
    assert result.figures["pass_at_1"] == pytest.approx(3 / 4) and result.figures["pass_at_2"] == 1
    assert result.figures["outcomes"] == {"passed": 3, "wrong": 1}
    assert [record["correct"] for record in result.records] == [0.5, 1.0]
    assert result.figures.keys() - {"pass_at_2"} == figures_on_the_page("code") - {"pass_at_K"}
    assert "2 problems, 2 programs each" in ready.report and "0.7500" in headline(config, result)


def test_task_with_a_model(run, tmp_path, subject):
    result = prepare(task(tmp_path, execute=True), subject[0]).measure(subject[1], None)
    assert result.figures["programs"] == 2 and result.figures["pass_at_1"] == 0
    assert all(record["answer"] and record["outcome"] != "passed" for record in result.records)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({}, r"which nobody has read; if that is meant, set config\.code\.execute=True"),
        ({"execute": True, "samples": 4}, r"config\.code\.samples is 4 at temperature 0"),
    ],
)
def test_refusals(tmp_path, subject, code, message):
    with pytest.raises(UserError, match=message):
        prepare(task(tmp_path, **code), subject[0])


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "x"},
        {"text": "x", "test_list": []},
        {"text": "", "test_list": ["a"]},
        {"text": "x", "test_list": [3]},
        {"text": "x", "test_list": ["a"], "test_imports": "import math"},
        {"text": "x", "test_list": ["a"], "test_setup_code": 3},
    ],
)
def test_bad_records(tmp_path, record):
    with pytest.raises(UserError, match=r"problems.jsonl, line 1: the record is no problem"):
        problems(tmp_path, record)
