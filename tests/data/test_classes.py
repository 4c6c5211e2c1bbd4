"""C-RLFT's classes: their weights, their conditions, and what is refused."""

import runpy

import numpy as np
import pytest

from jaxsft.config import ClassesConfig, DataConfig, ObjectiveConfig, SourceConfig, TrainConfig
from jaxsft.data.classes import (
    auto_learning_rate,
    check,
    class_weights,
    for_held_out,
    inference_condition,
    spread,
    turn_sizes,
)
from jaxsft.data.dataset import prepare
from jaxsft.errors import UserError
from jaxsft.validation import validate
from tests.conftest import REPOSITORY
from tests.data.conftest import write_jsonl

CONDITIONS = {"good": "GPT4", "poor": "GPT3"}


@pytest.fixture
def make(tmp_path, tokenizer):
    """Prepares three good records and two poor ones; every other is of the task type `sums`, the rest `tales`."""
    rows = [
        {"prompt": "q", "completion": "so " * (i + 1), "source": name, "task_type": ("sums", "tales")[i % 2]}
        for i, name in enumerate(["good", "poor", "good", "poor", "good"])
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    def make(template="openchat", **options):
        fields = ("by", "condition", "inference", "weight", "reward", "beta", "balanced")
        classes = ClassesConfig(**{name: options.pop(name) for name in fields if name in options})
        data = DataConfig(path=path, template=template, classes=classes, max_length=64, **options)
        data.cache_dir = str(tmp_path / "cache")
        return prepare(data, tokenizer)

    return make


def scales(dataset) -> list[float]:
    """The one weight of each example's supervised tokens."""
    found = [set(dataset.example(i)[1].tolist()) - {0.0} for i in range(len(dataset))]
    assert all(len(weights) == 1 for weights in found)
    return [weights.pop() for weights in found]


def test_rewards_are_the_papers_weights():
    """T10 of the method: r = (1, 0) at beta = 1 / ln 10 is (1, 0.1)."""
    rewards = ClassesConfig(reward={"good": 1.0, "poor": 0.0}, beta=1 / np.log(10))
    np.testing.assert_allclose(class_weights(rewards, ["good", "poor"], [1, 9]), [1.0, 0.1], rtol=1e-12)
    huge = ClassesConfig(reward={"good": 9000.0, "poor": 9000.0}, beta=1e-3)  # exp would overflow
    assert class_weights(huge, ["good", "poor"], [1, 9]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1.0, 3.0, 0.1])
def test_only_ratios_count(scale):
    weights = ClassesConfig(weight={"a": scale, "b": scale * 0.25})
    assert class_weights(weights, ["a", "b"], [2, 2]).tolist() == [1.0, 0.25]
    equal = ClassesConfig(weight={"a": scale, "b": scale})
    assert class_weights(equal, ["a", "b"], [2, 7]).tolist() == [1.0, 1.0]


def test_balanced_is_n_over_the_classes_numbers():
    assert class_weights(ClassesConfig(balanced=True), ["a", "b"], [6, 64]).tolist() == [1.0, 6 / 64]
    both = ClassesConfig(weight={"a": 1.0, "b": 2.0}, balanced=True)
    np.testing.assert_allclose(class_weights(both, ["a", "b"], [6, 64]), [1.0, 12 / 64])
    # a class without examples decides nothing
    assert class_weights(ClassesConfig(balanced=True), ["a", "b", "c"], [3, 3, 0]).tolist() == [1.0, 1.0, 0.0]


def test_weights_of_classes_reach_the_tokens(make):
    assert scales(make(weight={"good": 2.0, "poor": 0.5})) == [1, 0.25, 1, 0.25, 1]
    assert scales(make(by="task_type", weight={"sums": 0.5, "tales": 1})) == [0.5, 1, 0.5, 1, 0.5]
    np.testing.assert_allclose(scales(make(balanced=True)), np.float32([2 / 3, 1, 2 / 3, 1, 2 / 3]))


def test_equal_weights_are_plain_fine_tuning(make):
    plain, equal = make(), make(weight={"good": 0.7, "poor": 0.7})
    assert equal.fingerprint == plain.fingerprint
    for i in range(len(plain)):
        for a, b in zip(plain.example(i)[:2], equal.example(i)[:2]):
            np.testing.assert_array_equal(a, b)
    assert not plain.report.class_weights


def test_a_class_of_weight_0_is_dropped_and_counted(make):
    dataset = make(weight={"good": 1.0, "poor": 0.0})  # two of five: more than max_dropped, but meant
    assert len(dataset) == 3
    assert dataset.report.dropped == {"of a class of weight 0": 2}
    assert {dataset.sources[i] for i in dataset.source_ids} == {"good"}
    assert "class weights: good 1, poor 0" in str(dataset.report)
    with pytest.raises(UserError, match="no example is left"):
        make(weight={"good": 0.0, "poor": 0.0})


def test_weights_are_in_the_fingerprints_but_not_in_the_cache(make, tmp_path):
    found = [
        make(),
        make(weight={"good": 1.0, "poor": 0.1}),
        make(weight={"good": 1.0, "poor": 0.0}),
        make(weight={"good": 1.0, "poor": 1.0}, weighting="turn"),
        make(weighting="example"),
    ]
    for fingerprint in ("examples_fingerprint", "fingerprint"):
        assert len({getattr(dataset, fingerprint) for dataset in found}) == len(found)
    caches = lambda: [path for path in (tmp_path / "cache").iterdir() if path.name != "hashes"]
    assert len(caches()) == 1
    make(condition=CONDITIONS, inference="good")
    assert len(caches()) == 2


def test_records_are_rendered_under_their_classs_condition(make, tokenizer):
    dataset = make(condition=CONDITIONS, inference="good")
    texts = [tokenizer.decode(dataset.example(i)[0]) for i in range(5)]
    assert texts[0] == "<s>GPT4 User:q</s>GPT4 Assistant:so </s>"
    assert [text.count("GPT4") for text in texts] == [2, 0, 2, 0, 2]
    assert [text.count("GPT3") for text in texts] == [0, 2, 0, 2, 0]
    plain = make(condition={"good": "GPT4", "poor": ""}, inference="good")
    np.testing.assert_array_equal(plain.example(1)[0], make().example(1)[0])  # T8: an empty condition is none


def test_plain_text_has_no_condition(tmp_path, tokenizer):
    """It has no turns to write one into; text that is replayed beside conversations belongs to a class of none."""
    path = write_jsonl(tmp_path / "text.jsonl", [{"text": "so so so", "source": "good"}])
    data = DataConfig(path, template="openchat", cache_dir=str(tmp_path / "cache"))
    data.classes = ClassesConfig(condition=CONDITIONS, inference="good")
    with pytest.raises(UserError, match=r"line 1: plain text has no turns, so it cannot have the condition of 'good'"):
        prepare(data, tokenizer)
    data.classes = ClassesConfig(condition={"good": ""}, inference="good")
    assert len(prepare(data, tokenizer)) == 1


def test_the_condition_that_a_model_is_asked_with():
    data = DataConfig(condition="C", classes=ClassesConfig(condition={"good": "GPT4"}, inference="good"))
    assert inference_condition(data) == "GPT4"
    assert inference_condition(DataConfig(condition="C")) == "C"
    assert inference_condition(DataConfig()) == "auto"


def test_held_out_data_keep_conditions_and_lose_weights(tmp_path, tokenizer):
    classes = ClassesConfig(condition=CONDITIONS, inference="good", weight={"good": 1.0, "poor": 0.1})
    data = DataConfig(template="openchat", classes=classes, weighting="turn", cache_dir=str(tmp_path / "cache"))
    data.path = write_jsonl(
        tmp_path / "new.jsonl",
        [{"prompt": "q", "completion": "a", **tag} for tag in ({"source": "poor"}, {"source": "other"}, {})],
    )
    data.classes, data.condition, data.weighting = for_held_out(data)
    dataset = prepare(data, tokenizer)
    assert [tokenizer.decode(dataset.example(i)[0])[3:7] for i in range(3)] == ["GPT3", "GPT4", "GPT4"]
    assert scales(dataset) == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weight": {"good": 1.0}},
            r"the data has the source 'poor', which config\.data\.classes\.weight does",
        ),
        ({"reward": {"good": 1.0}, "beta": 1.0}, r"source 'poor', which config\.data\.classes\.reward"),
        ({"weight": {"good": 1.0, "poor": 1.0, "pore": 1.0}}, r"names 'pore', which is no source .*mean 'poor'\?"),
        (
            {"condition": {**CONDITIONS, "x": "X"}, "inference": "good"},
            r"names 'x', which is no source of the data;",
        ),
        (
            {"condition": {"good": "G"}, "inference": "good"},
            r"line 2: the record's source is 'poor', .*condition",
        ),
        ({"condition": CONDITIONS}, r"not config\.data\.classes\.inference, .*'good', 'poor'"),
        ({"condition": CONDITIONS, "inference": "goo"}, r"inference is 'goo', .*did you mean 'good'"),
        ({"reward": {"good": 1.0, "poor": 0.0}}, r"reward needs a temperature; set config\.data\.classes\.beta"),
        ({"beta": 1.0}, r"beta is the temperature of a reward"),
        ({"weight": {"good": 1.0}, "reward": {"good": 1.0}, "beta": 1.0}, r"both a weight and a reward"),
        ({"weight": {"good": 1.0, "poor": -1.0}}, r"weight of 'poor' is -1\.0; it must be"),
        ({"weight": {"good": 1.0, "poor": float("nan")}}, r"weight of 'poor' is nan"),
        ({"reward": {"good": float("inf")}, "beta": 1.0}, r"reward of 'good' is inf"),
        ({"condition": CONDITIONS, "inference": "good", "template": "plain"}, r"'plain' does not write a condition"),
        ({"by": "task_type", "weight": {"good": 1.0}}, r"the data has the task_type 'sums'"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_an_example_mean_would_cancel_the_weights():
    config = TrainConfig(objective=ObjectiveConfig(reduction="example_mean"))
    validate(config)
    config.data.classes.balanced = True
    with pytest.raises(UserError, match="'example_mean' gives all examples the same weight"):
        validate(config)


def test_a_mean_over_examples_is_not_taken_twice():
    """MinorSFT divides by the length of each example; so does the weighting "example"."""
    config = TrainConfig(objective=ObjectiveConfig("minor_sft", beta=0.1))
    validate(config)
    config.data.weighting = "example"
    with pytest.raises(UserError, match="would be divided by their length twice"):
        validate(config)


def test_whole_numbers_are_weights():
    config = TrainConfig(data=DataConfig(classes=ClassesConfig(weight={"a": 1})))
    validate(config)
    assert type(config.data.classes.weight["a"]) is float


def test_weights_are_spread_over_turns_and_examples():
    weights = np.array([0, 0, 2, 2, 2, 2, 0, 0, 1, 1, 0], np.float32)
    assert turn_sizes(weights)[weights > 0].tolist() == [4, 4, 4, 4, 2, 2]
    per_turn = spread(weights, 0.5, "turn", 6)
    np.testing.assert_allclose(per_turn[weights > 0], [0.25] * 4 + [0.25] * 2)  # a sum of weight x scale for each turn
    per_example = spread(weights, 0.5, "example", 6)
    np.testing.assert_allclose(per_example[weights > 0], [1 / 6] * 4 + [1 / 12] * 2)
    assert spread(weights, 1.0, "token", 6) is weights
    assert per_turn.dtype == per_example.dtype == np.float32


def test_a_cut_turn_keeps_its_weights_and_a_cut_example_does_not(tmp_path, tokenizer):
    def weights(weighting, max_length):
        data = DataConfig(template="chatml", weighting=weighting, max_length=max_length, cache_dir=str(tmp_path / "c"))
        data.sources = [SourceConfig(write_jsonl(tmp_path / "a.jsonl", rows))]
        example = prepare(data, tokenizer).example(0)[1]
        return example[example > 0]

    rows = [{"prompt": "q", "completion": "so " * 20}]
    whole, cut = weights("turn", 128), weights("turn", 40)
    assert len(cut) < len(whole)
    np.testing.assert_array_equal(cut, whole[: len(cut)])
    np.testing.assert_allclose([whole.sum(), weights("example", 40).sum()], 1.0, rtol=1e-6)


def test_a_balanced_example_weighting_is_the_loss_of_openchat_3_1(make):
    """Tag 3.1.0: mean losses of sequences, averaged with the factors N / N_class."""
    dataset = make(balanced=True, weighting="example")
    rng = np.random.default_rng(0)
    sums, losses = np.zeros(2), []
    for i in range(5):
        _, weights, _ = dataset.example(i)
        ce = rng.uniform(1, 3, len(weights))
        sums += (weights * ce).sum(), weights.sum()
        losses.append(ce[weights > 0].mean())
    factor = np.array([5 / 3, 5 / 2, 5 / 3, 5 / 2, 5 / 3])
    np.testing.assert_allclose(sums[0] / sums[1], (factor * losses).sum() / factor.sum(), rtol=1e-6)


def test_published_learning_rates():
    """The paper's, and those of the released checkpoints at the batches that they imply."""
    assert auto_learning_rate(200_000) == pytest.approx(6.7082e-5, rel=1e-4)
    published = {("mistral", 250_289): 1.25072e-5, ("mistral", 199_961): 1.11793e-5, ("gemma", 63_846): 6.8912e-6}
    for (family, tokens), rate in published.items():
        assert auto_learning_rate(tokens, family) == pytest.approx(rate, rel=1e-4)
    with pytest.raises(UserError, match="'lama2'; did you mean 'llama2'"):
        auto_learning_rate(1e5, "lama2")


def test_the_config_of_the_recipe_is_whole():
    config = runpy.run_path(str(REPOSITORY / "configs" / "c_rlft.py"))["get_config"]()
    validate(config)
    check(config.data)
    assert inference_condition(config.data) == "GPT4"
