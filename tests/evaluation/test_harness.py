"""lm-evaluation-harness asks this library's models what its own backend for transformers answered when recorded."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.choices.continuations import Pair, score, share
from jaxsft.evaluation.harness.requests import Responder, rolling_windows
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from tests.evaluation import harness_case as case

RECORDED = json.loads(Path(__file__).with_name("recorded").joinpath("harness.json").read_text())
TOLERANCE = 1e-4  # nats, of a sum over all tokens
ROUNDING = 1e-6  # of a long sum, which that backend adds up in float32


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness") / "tiny"
    folder.mkdir()
    case.make_folder(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tiny_folder, request):
    def find(name):
        return tiny_folder if name == "tiny" else request.getfixturevalue("real_data") / "models" / name

    return find


@pytest.fixture(scope="session")
def responder(folders):
    made = {}

    def make(name, **options):
        key = name, *sorted(options.items())
        if key not in made:
            mesh, path = make_mesh(MeshConfig()), str(folders(name))
            made[key] = Responder(open_model(path, ModelConfig(path=path), mesh), mesh, batch_size=8, **options)
        return made[key]

    return make


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
def test_log_likelihoods(responder, name):
    answers = dict(responder(name).loglikelihood(case.PAIRS))
    assert sorted(answers) == list(range(len(case.PAIRS)))
    expected = RECORDED[name]["loglikelihood"]
    assert [answers[i].log_prob for i in range(len(expected))] == pytest.approx(
        [e[0] for e in expected], abs=TOLERANCE, rel=ROUNDING
    )
    assert [answers[i].greedy for i in range(len(expected))] == [e[1] for e in expected]
    assert {e[1] for e in RECORDED["stories260K"]["loglikelihood"]} == {True, False}


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
def test_whole_texts(responder, name):
    rolling = responder(name).loglikelihood_rolling(case.TEXTS)
    assert rolling == _near(RECORDED[name]["loglikelihood_rolling"])


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
def test_answers(responder, name):
    assert responder(name).generate_until(case.PROMPTS) == RECORDED[name]["generate_until"]


def test_chat_templates(responder):
    rendered = [responder("tiny").render(history, more) for history, more in case.CHATS]
    assert rendered == RECORDED["tiny"]["chats"]


@pytest.mark.parametrize(("name", "kind"), [("tiny", "plain"), ("tiny", "chat"), ("stories260K", "plain")])
def test_tasks_through_the_harness(folders, tmp_path, name, kind):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'jaxsft[eval]'")
    from jaxsft.evaluation.harness.model import JaxSFT

    model = JaxSFT(path=str(folders(name)), batch_size=8)
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True} if kind == "chat" else {}
    found, expected = case.run_tasks(model, tmp_path, **chat), RECORDED[name][kind]
    assert (found["versions"], found["n-shot"]) == (expected["versions"], expected["n-shot"])
    for task, metrics in expected["metrics"].items():
        # perplexities are exponentials of sums over few words
        assert found["metrics"][task] == pytest.approx(metrics, rel=10 * TOLERANCE), task
        said, recorded = _flat(found["answers"][task]), _flat(expected["answers"][task])
        assert said == [one if isinstance(one, str) else _near(one) for one in recorded], task


def _near(values):
    return pytest.approx(values, abs=TOLERANCE, rel=ROUNDING)


def _flat(values):
    """Numbers and texts of nested lists, in order; texts as they are."""
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in _flat(value)]
    return [float(values)] if not isinstance(values, str) else [values]


@pytest.mark.slow  # the harness reads the definitions of all of its tasks
def test_command_line(tiny_folder, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'jaxsft[eval]'")
    import yaml

    case.write_data(tmp_path)
    (task, *_) = case.tasks(tmp_path)
    (tmp_path / "letters.yaml").write_text(yaml.safe_dump(task))
    arguments = ["--model_args", f"path={tiny_folder},max_length=80", "--tasks", "letters", "--output_path", tmp_path]
    script = Path(__file__).resolve().parents[2] / "scripts" / "harness.py"
    run = lambda *more: subprocess.run(
        [sys.executable, script, *arguments, "--include_path", tmp_path, *more], capture_output=True, text=True
    )
    done = run()
    assert done.returncode == 0, done.stderr
    assert "|letters|" in done.stdout.replace(" ", "")
    (written,) = tmp_path.glob("**/results_*.json")
    results = json.loads(written.read_text())
    assert results["results"]["letters"]["acc,none"] == RECORDED["tiny"]["plain"]["metrics"]["letters"]["acc,none"]
    assert results["config"]["model"] == "jaxsft" and results["config"]["model_num_parameters"] > 0
    assert results["n-shot"] == {"letters": 0} and results["versions"] == {"letters": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "names no model"),
        ({"path": "x", "patch": "y"}, "'patch'; did you mean 'path'"),
        ({"path": "x", "pretrained": "y"}, "'pretrained'"),
        ({"path": "x", "batch_size": "auto:4"}, "batch_size is 'auto:4'; it is a number"),
        ({"path": "x", "dtype": "float8"}, "dtype is 'float8'"),
    ],
)
def test_bad_arguments(arguments, message):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'jaxsft[eval]'")
    from jaxsft.evaluation.harness.model import JaxSFT

    with pytest.raises(UserError, match=message):
        JaxSFT(device="cuda:0", **arguments)


def test_without_the_harness(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxsft.evaluation.harness.model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    with pytest.raises(UserError, match=r"lm-evaluation-harness is not installed .*pip install 'jaxsft\[eval\]'"):
        importlib.import_module("jaxsft.evaluation.harness.model")


# ----------------------------------------------------------------------------------------------------------------------


def test_pairs_that_differ_in_their_last_token_share_a_pass():
    context = [5, 6, 7]
    pairs = [Pair(context, [8]), Pair(context, [9]), Pair([5, 6], [7, 9]), Pair(context, [8, 9]), Pair([6, 6, 7], [8])]
    passes = share(pairs, 16)
    assert [one.inputs.tolist() for one in passes] == [[5, 6, 7, 8], [6, 6, 7]]
    assert [[pair.index for pair in one.pairs] for one in passes] == [[0, 1, 2, 3], [4]]
    places, targets = passes[0].targets
    assert places.tolist() == [1, 2, 2, 3] and targets.tolist() == [7, 8, 9, 9]


def test_against_full_logits(decoder, params, log_softmax):
    """Ragged pairs, of which several share a pass, on eight devices: as from the whole table of log-probabilities."""
    random = np.random.default_rng(1)
    pairs = []
    for _ in range(9):
        ids = random.integers(1, 64, int(random.integers(4, 40))).tolist()
        begin = int(random.integers(1, len(ids) - 1))
        pairs += [Pair(ids[:begin], ids[begin:]), Pair(ids[:begin], [*ids[begin:-1], 3]), Pair(ids[:-1], ids[-1:])]
    found = dict(score(decoder, params, None, pairs, make_mesh(MeshConfig()), batch_size=8))
    for index, (context, continuation) in enumerate(pairs):
        table = log_softmax(params, [*context, *continuation])
        rows = range(len(context) - 1, len(context) + len(continuation) - 1)
        assert found[index].log_prob == pytest.approx(sum(table[r, c] for r, c in zip(rows, continuation)), abs=1e-4)
        assert found[index].greedy == all(table[r].argmax() == c for r, c in zip(rows, continuation))


def test_answers_do_not_depend_on_company(responder):
    tiny = responder("tiny")
    together = dict(tiny.loglikelihood(case.PAIRS))
    for index, pair in enumerate(case.PAIRS[:4]):
        ((_, alone),) = tiny.loglikelihood([pair])
        assert alone.log_prob == pytest.approx(together[index].log_prob, abs=1e-5)


def test_long_contexts_lose_their_beginning(responder):
    tiny = responder("tiny", max_length=16)
    assert tiny.max_length == 16
    (long,) = tiny.encode_pairs([("a b c d e f g h i j k l", " m n")])
    (kept,) = [Pair(long.context[-(17 - len(long.continuation)) :], long.continuation)]
    ((_, answer),) = tiny._score([long])
    ((_, expected),) = tiny._score([kept])
    assert len(long.context) + len(long.continuation) > 17 and answer == expected


def test_windows():
    ids = list(range(10))
    windows = rolling_windows(ids, 99, 4)
    assert windows == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert all(len(context) + len(rest) - 1 <= 4 for context, rest in windows)
    assert rolling_windows(ids[:3], 99, 4) == [([99], [0, 1, 2])] and rolling_windows([], 99, 4) == []


def test_draws_depend_on_seed_and_place(responder):
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "top_k": 40}
    asked = [("The cat", settings)] * 3
    first = responder("tiny").generate_until(asked)
    assert len(set(first)) == 3
    assert responder("tiny").generate_until(asked) == first
    assert responder("tiny", seed=1).generate_until(asked) != first


def test_settings(responder):
    plain, chat = responder("tiny").sampling, responder("tiny", template="chatml").sampling
    assert plain({"until": "x"}).stop_strings == ("x", "</s>") and plain({}).max_new_tokens == 256
    assert chat({}).stop_strings == ("</s>", "<|im_end|>")  # where training put the end of an answer
    assert plain({"max_gen_toks": 3, "max_tokens": 9}).max_new_tokens == 3 and plain({}).stop_ids == (1,)
    drawn = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    sampling = plain(drawn)
    assert {name: getattr(sampling, name) for name in drawn} == drawn
    greedy = plain(drawn | {"do_sample": False})
    assert (greedy.temperature, greedy.top_p, greedy.top_k, greedy.repetition_penalty) == (0, 1, 0, 1.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"untill": ["\n"]}, "'untill' is not known here; did you mean 'until'"),
        ({"do_sample": True}, "temperature is 0 or missing"),
        ({"max_gen_toks": 96}, "leaves no room for a prompt in a context of 96"),
    ],
)
def test_bad_settings(responder, settings, message):
    with pytest.raises(UserError, match=message):
        responder("tiny").generate_until([("The cat", settings)])


@pytest.mark.parametrize(
    ("pair", "message"), [(("The cat", ""), "has 0 tokens of its own"), (("a", " the" * 97), "has 97 tokens")]
)
def test_bad_pairs(responder, pair, message):
    with pytest.raises(UserError, match=message):
        responder("tiny").loglikelihood([pair])


def test_templates_that_text_cannot_carry(responder):
    with pytest.raises(UserError, match="piece by piece"):
        responder("tiny", template="openchat").render([{"role": "user", "content": "?"}])
