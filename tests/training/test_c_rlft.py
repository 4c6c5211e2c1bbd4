"""C-RLFT's loss on real batches, what it teaches, and conditioned runs from training to evaluation."""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsft.config import (
    ClassesConfig,
    DataConfig,
    EvalConfig,
    EvaluateConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TaskConfig,
    TrainConfig,
)
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.evaluation.suite import evaluate
from jaxsft.models.decoder import Decoder
from jaxsft.objectives.cross_entropy import token_log_probs
from jaxsft.objectives.objective import ModelOutput
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.terms import total
from jaxsft.training.optimizer import make_horizon, make_schedule
from jaxsft.training.train import train
from tests.conftest import REPOSITORY
from tests.data.conftest import make_tokenizer, write_jsonl
from tests.tiny import llama
from tests.training.conftest import WORDS, lines, run

TOKENIZER = make_tokenizer(bos_token="<s>", eos_token="</s>")
CONDITIONS = {"expert": "A", "rest": "B"}


def dataset_of(tmp_path, rows, weights=None, conditions=None, **options):
    """(source, prompt, answer) rows as a data set."""
    records = [dict(zip(("source", "prompt", "completion"), row)) for row in rows]
    classes = ClassesConfig(weight=weights or {}, condition=conditions or {}, inference="expert" if conditions else "")
    data = DataConfig(write_jsonl(tmp_path / "rows.jsonl", records), template="openchat", classes=classes, **options)
    data.cache_dir = str(tmp_path / "cache")
    return prepare(data, TOKENIZER)


def only_batch(dataset, rows: int, packing: bool = True):
    """All examples, each once, in one batch."""
    (batch,) = Loader(dataset, DataConfig(max_length=96, packing=packing), rows).evaluation_batches()
    return jax.tree.map(jnp.asarray, batch)


DECODER = Decoder(llama(vocab_size=320))
OBJECTIVE = make_objective(ObjectiveConfig(chunk_size=64))


def loss(params, batch, denominators=None):
    hidden = lambda b: DECODER.forward(params, b.tokens, b.positions, b.segment_ids).hidden
    model = lambda b: ModelOutput(hidden(b), DECODER.head, DECODER.head_params(params, None))
    terms, _ = OBJECTIVE(model, batch, OBJECTIVE.denominators(batch) if denominators is None else denominators)
    return total(terms)


gradient = jax.jit(jax.value_and_grad(loss))


@pytest.fixture(scope="module")
def params():
    return DECODER.init(jax.random.key(0))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    words = lambda n: " ".join(rng.choice(WORDS, n))
    return [(("expert", "rest", "rest")[i % 3], words(2), words(1 + i % 4)) for i in range(9)]


def close(a, b, rtol):
    difference = optax.tree.norm(jax.tree.map(lambda x, y: x - y, a, b))
    assert difference < rtol * optax.tree.norm(b)


def test_the_closed_form():
    """T1: ce = (1, 2, 4) under w = (1, 1, 0.1) is 3.4 / 2.1, not the 1.1333 of a division by tokens."""
    weights, logits = np.float32([[1, 1, 0.1]]), np.log(np.exp([1.0, 2.0, 4.0]) - 1)  # the target's own are 0
    ones, zeros = np.ones((1, 3), np.int32), np.zeros((1, 3), np.int32)
    batch = Batch(zeros, zeros, ones, ones, zeros, weights, {"example_index": np.zeros((1, 1), np.int32)})
    head = lambda params, hidden: hidden @ params["kernel"]
    output = ModelOutput(jnp.float32(logits)[None, :, None], head, {"kernel": jnp.array([[0.0, 1.0]])})
    terms, _ = OBJECTIVE(lambda _: output, batch, OBJECTIVE.denominators(batch))
    assert float(total(terms)) == pytest.approx(3.4 / 2.1, rel=1e-6)


def test_the_schedule_is_openchats():
    """T11: 5 steps of warm-up, a cosine to a tenth at step 100."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=5, final_ratio=0.1)
    schedule, horizon = make_schedule(config), make_horizon(config, 100)
    rates = [float(schedule(step, horizon)) for step in (1, 4, 5, 52, 100)]
    np.testing.assert_allclose(rates, [0.2, 0.8, 1.0, 0.55744, 0.1], atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 70.0])
def test_only_ratios_of_weights_count(tmp_path, rows, params, scale):
    """T2."""
    plain, mixed = dataset_of(tmp_path, rows), dataset_of(tmp_path, rows, {"expert": 1.0, "rest": 0.1})
    scaled = dataset_of(tmp_path, rows, {"expert": scale, "rest": scale * 0.1})
    same = dataset_of(tmp_path, rows, {"expert": scale, "rest": scale})
    results = [gradient(params, only_batch(dataset, 6)) for dataset in (plain, mixed, scaled, same)]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), results[0], results[3])))
    np.testing.assert_allclose(results[2][0], results[1][0], rtol=1e-6)
    close(results[2][1], results[1][1], 1e-5)
    assert abs(results[1][0] - results[0][0]) > 1e-4


def test_the_gradient_is_the_weighted_mean_of_the_classes(tmp_path, rows, params):
    """T3: sum_c w_c S_c g_c / sum_c w_c S_c, with S_c supervised tokens and g_c the token mean of a class alone."""
    weights = {"expert": 1.0, "rest": 0.1}
    whole = gradient(params, only_batch(dataset_of(tmp_path, rows, weights), 6))
    parts, sizes = [], []
    for name, weight in weights.items():
        own = dataset_of(tmp_path, [row for row in rows if row[0] == name])
        parts.append(gradient(params, only_batch(own, 6)))
        sizes.append(weight * own.report.supervised)
    share = sizes[0] / sum(sizes)
    mean = jax.tree.map(lambda a, b: share * a + (1 - share) * b, *parts)
    np.testing.assert_allclose(whole[0], mean[0], rtol=1e-6)
    close(whole[1], mean[1], 2e-6)


def test_packing_and_micro_batches_change_nothing(tmp_path, rows, params):
    """T4, T5."""
    dataset = dataset_of(tmp_path, rows, {"expert": 1.0, "rest": 0.1}, CONDITIONS, weighting="turn")
    packed = only_batch(dataset, 6)
    whole = gradient(params, packed)
    single = gradient(params, only_batch(dataset, len(rows), packing=False))
    np.testing.assert_allclose(single[0], whole[0], rtol=1e-6)
    close(single[1], whole[1], 1e-5)
    halves = [jax.tree.map(lambda x, part=part: x[part], packed) for part in (slice(0, 3), slice(3, 6))]
    denominators = OBJECTIVE.denominators(packed)
    parts = [jax.jit(jax.value_and_grad(loss))(params, half, denominators) for half in halves]
    close(jax.tree.map(jnp.add, *(part[1] for part in parts)), whole[1], 1e-6)


def answers_first(dataset, params) -> np.ndarray:
    """The probability of each example's first supervised token."""
    batch = only_batch(dataset, len(dataset), packing=False)
    hidden = DECODER.forward(params, batch.tokens, batch.positions, batch.segment_ids).hidden
    head = DECODER.head_params(params, None)
    log_probs = token_log_probs(DECODER.head, head, hidden, batch.targets, mask=batch.weights != 0)["log_prob"]
    first = np.argmax(np.asarray(batch.weights) != 0, axis=1)
    return np.exp(np.asarray(log_probs)[np.arange(len(first)), first])


@pytest.mark.parametrize("conditions", [CONDITIONS, None], ids=["conditioned", "not"])
def test_what_is_learnt(tmp_path, params, conditions):
    """T12: two sources answer the same question differently. Told apart, each is learnt; not, the weights decide."""
    weights, counts = {"expert": 1.0, "rest": 0.25}, {"expert": 4, "rest": 8}
    rows = [
        (name, "which ?", {"expert": "x", "rest": "y"}[name]) for name, count in counts.items() for _ in range(count)
    ]
    dataset = dataset_of(tmp_path, rows, weights, conditions)
    batch, optimizer = only_batch(dataset, 6), optax.adam(5e-3)

    @functools.partial(jax.jit, static_argnums=2)
    def fit(params, batch, steps):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    learnt = answers_first(dataset, fit(params, batch, 150))
    expert, rest = learnt[0], learnt[-1]
    if conditions:
        assert min(expert, rest) > 0.98
    else:
        share = weights["expert"] * counts["expert"] / sum(weights[name] * counts[name] for name in counts)
        assert share == 2 / 3
        np.testing.assert_allclose([expert, rest], [share, 1 - share], atol=0.02)


@pytest.fixture(scope="module")
def conditioned(model_folder, tmp_path_factory):
    """A short conditioned run with a task on the way, its workdir, and the config of that task."""
    folder = tmp_path_factory.mktemp("conditioned")
    rng = np.random.default_rng(0)
    names = ("expert", "rest")
    records = [{"prompt": " ".join(rng.choice(WORDS, 3)), "completion": WORDS[i % 5]} for i in range(16)]
    tagged = [record | {"source": names[i % 2]} for i, record in enumerate(records)]
    data = DataConfig(write_jsonl(folder / "rows.jsonl", tagged), template="openchat", max_length=96, packing=False)
    data.classes = ClassesConfig(condition=CONDITIONS, inference="expert", weight={"expert": 1.0, "rest": 0.1})
    data.cache_dir = str(folder / "cache")
    asked = DataConfig(write_jsonl(folder / "asked.jsonl", records), max_length=96, cache_dir=data.cache_dir)
    tasks = [TaskConfig("facts", "generation", asked), TaskConfig("likelihood", "perplexity", asked)]
    config = TrainConfig(data=data, batch_size=8, steps=4, eval=EvalConfig(data.path, tasks=tasks))
    config.model.path, config.optimizer.learning_rate = str(model_folder), 3e-3
    config.log.tensorboard = False
    train(config, str(folder / "run"))
    return folder / "run", asked


def test_tasks_ask_with_the_inference_condition(conditioned):
    """In the loop and afterwards, and the record says with which; another condition is another figure."""
    workdir, asked = conditioned
    found = {}
    for condition in ("auto", "A", "B", ""):
        config = EvaluateConfig(task="perplexity", data=DataConfig(**{**vars(asked), "condition": condition}))
        config.model.path = str(workdir)
        figures = evaluate(config).figures
        assert figures["config"]["data"]["condition"] == ("A" if condition == "auto" else condition)
        assert figures["config"]["data"]["template"] == "openchat"
        found[condition] = figures["nll_per_token"]
    last = [line for line in lines(workdir) if line["split"] == "likelihood"][-1]
    np.testing.assert_allclose(found["auto"], last["nll_per_token"], rtol=1e-6)
    assert found["auto"] == found["A"]
    assert len({round(value, 5) for value in found.values()}) == 3


def test_held_out_records_keep_their_condition_and_count_alike(conditioned):
    """The held-out loss is the plain mean over both halves, each under its own class."""
    workdir, asked = conditioned
    by_class = {}
    for condition, parity in (("A", 0), ("B", 1)):
        records = [json.loads(line) for line in Path(asked.path).read_text().splitlines()][parity::2]
        data = DataConfig(**{**vars(asked), "condition": condition})
        data.path = write_jsonl(workdir.parent / f"{condition}.jsonl", records)
        config = EvaluateConfig(task="perplexity", data=data)
        config.model.path = str(workdir)
        by_class[condition] = evaluate(config).figures
    tokens = np.array([figures["tokens"] for figures in by_class.values()])
    losses = np.array([figures["nll_per_token"] for figures in by_class.values()])
    held_out = [line for line in lines(workdir) if line["split"] == "eval"][-1]
    np.testing.assert_allclose(held_out["loss"], (losses * tokens).sum() / tokens.sum(), rtol=1e-6)


def test_the_script_answers_under_a_condition(conditioned):
    workdir, _ = conditioned
    script = str(REPOSITORY / "scripts" / "generate.py")
    command = [sys.executable, script, f"--model={workdir}", "--prompt=fox", "--max_new_tokens=4"]
    own, other = run(command), run([*command, "--condition=B"])
    assert (own.returncode, other.returncode) == (0, 0), own.stderr + other.stderr
    assert "the template 'openchat' with the condition 'A'" in own.stdout
    assert "with the condition 'B'" in other.stdout
