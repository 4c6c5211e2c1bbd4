"""The typed tree: strict reading, validation, and choices that the code behind them knows."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxsft.adapters.loramoe import LoRAMoE
from jaxsft.adapters.method import Parts
from jaxsft.adapters.registry import make_method
from jaxsft.adapters.spiel.schedule import Clock
from jaxsft.compression import groups
from jaxsft.config import (
    AdapterConfig,
    ClassesConfig,
    CompressConfig,
    DataConfig,
    DisperseConfig,
    EvalConfig,
    EvaluateConfig,
    ExportConfig,
    ForgettingConfig,
    FormatConfig,
    LeakConfig,
    LoRAConfig,
    LoRAMoEConfig,
    MergeConfig,
    MixConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PruneConfig,
    RecipeConfig,
    RegularizersConfig,
    RewordConfig,
    ScoreConfig,
    SearchConfig,
    SelfSampleConfig,
    ShotsConfig,
    SourceConfig,
    SpIELConfig,
    StageConfig,
    SuiteConfig,
    SynthesisConfig,
    TaskConfig,
    TokensConfig,
    TrainConfig,
    TypesConfig,
)
from jaxsft.data.classes import condition_of, spread
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.dataset import prepare
from jaxsft.data.grouping import GROUPINGS
from jaxsft.data.groups import Groups
from jaxsft.data.loader import Loader
from jaxsft.data.mixture import domain_ids
from jaxsft.data.render import Renderer
from jaxsft.data.templates import load_template
from jaxsft.data.types import type_ids
from jaxsft.dispersal import run as dispersal
from jaxsft.errors import UserError
from jaxsft.evaluation import registry
from jaxsft.evaluation.answers import judges
from jaxsft.evaluation.answers.formats import Format
from jaxsft.evaluation.answers.generation import judge
from jaxsft.evaluation.answers.matching import MATCHES
from jaxsft.evaluation.asking import Pool, Shot
from jaxsft.evaluation.choices.multiple_choice import choose, normalized, said
from jaxsft.evaluation.forms import Question
from jaxsft.evaluation.papers import separation
from jaxsft.merging.plan import make_plan
from jaxsft.merging.trees import merge_trees
from jaxsft.merging.weighing import Space, minimise
from jaxsft.mixing.leaks import Leaks
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context
from jaxsft.models.quantized import quantize_params
from jaxsft.objectives.objective import ModelOutput
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.terms import total
from jaxsft.pruning.masks import parse
from jaxsft.pruning.prune import Rule
from jaxsft.recipes import stages
from jaxsft.scoring.embedding import mean_hidden_states
from jaxsft.scoring.statistics import Moments
from jaxsft.sharding import make_mesh
from jaxsft.synthesis import self_sample
from jaxsft.synthesis.accept import TESTS
from jaxsft.synthesis.registry import METHODS
from jaxsft.synthesis.rows import Row
from jaxsft.synthesis.sdft import TEMPLATES
from jaxsft.tokens.rows import new_rows
from jaxsft.training.optimizer import DIRECTIONS, make_horizon, make_optimizer, make_schedule
from jaxsft.training.program import Program, dtypes
from jaxsft.training.restore import OpenModel
from jaxsft.validation import CHOICES, NOT_NEGATIVE, POSITIVE, did_you_mean, from_dict, to_dict, validate
from tests.data.conftest import make_tokenizer
from tests.evaluation.folders import make_folder
from tests.tiny import llama, make_batch, random_examples

KINDS = (
    TrainConfig,
    EvaluateConfig,
    SuiteConfig,
    ForgettingConfig,
    ScoreConfig,
    DisperseConfig,
    StageConfig,
    RecipeConfig,
    SynthesisConfig,
    ExportConfig,
    PruneConfig,
    MergeConfig,
    SearchConfig,
    CompressConfig,
    TokensConfig,
    RewordConfig,
    MixConfig,
)


def full() -> TrainConfig:
    """A config that differs from the default in every kind of field."""
    sources = [SourceConfig("a", fields={"q": "prompt"}), SourceConfig("b", weight=0.5, rows=":-9")]
    return TrainConfig(
        data=DataConfig(sources=sources, packing=False),
        adapter=AdapterConfig("lora", lora=LoRAConfig(rank=3, targets=("head", "layers.0"))),
        optimizer=OptimizerConfig("lion", 3e-4, no_decay=(), freeze=("embed",)),
        eval=EvalConfig(tasks=[TaskConfig("facts", "generation", max_new_tokens=3), TaskConfig("likelihood")]),
        seed=7,
    )


@pytest.mark.parametrize("config", [*(kind() for kind in KINDS), full()], ids=lambda config: type(config).__name__)
def test_round_trip(config):
    written = to_dict(config)
    assert json.loads(json.dumps(written)) == written
    again = from_dict(type(config), written)
    assert again == config
    validate(again)
    for holder in getattr(again, "tasks", [again] if hasattr(again, "data") else []):
        assert type(holder.data) is DataConfig and all(type(s) is SourceConfig for s in holder.data.sources)


def test_missing_fields_take_their_defaults():
    config = from_dict(TrainConfig, {"adapter": {"lora": {"rank": 2}}})
    assert config == TrainConfig(adapter=AdapterConfig(lora=LoRAConfig(rank=2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sede": 1}, r"config\.sede is no field of TrainConfig; did you mean 'seed'\?"),
        ({"optimizer": {"learning_rte": 1.0}}, r"config\.optimizer\.learning_rte is .*'learning_rate'"),
        ({"data": {"sources": [{}, {"wieght": 1.0}]}}, r"config\.data\.sources\[1\]\.wieght is .*'weight'"),
        ({"zzzzzz": 1}, r"config\.zzzzzz is no field of TrainConfig\.$"),
    ],
)
def test_unknown_fields(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(TrainConfig, values)


def broken(path: str, value: object) -> TrainConfig:
    config = full()
    *steps, last = path.split(".")
    node = config
    for step in steps:
        node = node[int(step)] if step.isdigit() else getattr(node, step)
    if last.isdigit():
        node[int(last)] = value
    else:
        setattr(node, last, value)
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("steps", "many", r"config\.steps is 'many' \(str\); its type is int"),
        ("steps", 1.0, r"config\.steps is 1\.0 \(float\)"),
        ("steps", True, r"config\.steps is True \(bool\)"),
        ("data.packing", 1, r"config\.data\.packing is 1 \(int\); its type is bool"),
        ("optimizer.learning_rate", "1e-3", r"config\.optimizer\.learning_rate is '1e-3' \(str\); its type is float"),
        ("optimizer.freeze", "embed", r"config\.optimizer\.freeze is 'embed' \(str\)"),
        ("optimizer.freeze", ("embed", 3), r"config\.optimizer\.freeze"),
        ("data.fields", {"a": 1}, r"config\.data\.fields"),
        ("data.sources", [{"path": "a"}], r"config\.data\.sources"),
        ("data.sources.1.weight", "x", r"config\.data\.sources\[1\]\.weight"),
        ("data.sources.1.weight", -1.0, r"config\.data\.sources\[1\]\.weight is -1\.0; it must not be negative"),
        ("adapter.lora", {"rank": 2}, r"config\.adapter\.lora is .*; it must be a LoRAConfig"),
        ("eval.tasks.0.max_new_tokens", -1, r"config\.eval\.tasks\[0\]\.max_new_tokens is -1; it must not be negative"),
        ("eval.tasks.1.name", "", r"config\.eval\.tasks\[1\]\.name is empty"),
        ("eval.tasks.1.name", "facts", r"tasks\[1\]\.name is 'facts'; train, eval, facts are taken"),
        ("eval.tasks.0.name", "eval", r"tasks\[0\]\.name is 'eval'"),
        ("eval.tasks.0", EvaluateConfig(name="a"), r"tasks\[0\] is a EvaluateConfig; .* must be a TaskConfig"),
        ("batch_size", 0, r"config\.batch_size is 0; it must be positive"),
        ("adapter.lora.rank", -1, r"config\.adapter\.lora\.rank is -1; it must be positive"),
        ("optimizer.weight_decay", -0.1, r"config\.optimizer\.weight_decay is -0\.1; it must not be negative"),
        ("optimizer.learning_rate", float("nan"), r"config\.optimizer\.learning_rate is nan"),
        ("objective.beta", float("nan"), r"config\.objective\.beta is nan, which is no number"),
        ("optimizer.name", "adamm", r"config\.optimizer\.name is 'adamm'; choose one of .*did you mean 'adamw'\?$"),
        ("optimizer.schedule", "", r"config\.optimizer\.schedule is ''; choose one of cosine, linear"),
        ("model.dtype", "bf16", r"config\.model\.dtype is 'bf16'; .*'bfloat16'"),
    ],
)
def test_what_cannot_be_is_refused(path, value, message):
    with pytest.raises(UserError, match=message):
        validate(broken(path, value))


def test_whole_numbers_are_numbers():
    config = broken("epochs", 3)
    validate(config)
    assert type(config.epochs) is float and config.epochs == 3.0


def fields(kind: type) -> set[tuple[str, str]]:
    """(class, field) of a config's whole tree."""
    found = set()
    for field in dataclasses.fields(kind):
        found.add((kind.__name__, field.name))
        for inner in (field.default_factory, SourceConfig if field.name == "sources" else None):
            if dataclasses.is_dataclass(inner):
                found |= fields(inner)
    return found


def test_rules_are_of_fields_that_exist():
    known = set.union(*map(fields, KINDS))
    names = {name for _, name in known} | {f"{kind}.{name}" for kind, name in known}
    assert names >= CHOICES.keys() | POSITIVE | NOT_NEGATIVE
    for kind in KINDS:
        validate(kind())


def test_did_you_mean():
    assert did_you_mean("pakcing", ["packing", "path"]) == "; did you mean 'packing'?"
    assert did_you_mean("colour", ["packing", "path"]) == ""


# --- every choice, given to the code that reads it: an effect of its own, and an error for another word


def _truncation(choice, tmp_path):
    """Three short conversations and a long one: how many are left."""
    words = ("Blue", "Blue is a colour. " * 9)
    text = "".join(json.dumps({"prompt": "Name", "completion": word}) + "\n" for word in (words[0],) * 3 + words[1:])
    (tmp_path / "rows.jsonl").write_text(text)
    data = DataConfig(str(tmp_path / "rows.jsonl"), template="plain", max_length=48, truncation=choice, max_dropped=1.0)
    data.cache_dir = str(tmp_path / "cache")
    try:
        return len(prepare(data, make_tokenizer(bos_token="<s>", eos_token="</s>"), 0).lengths)
    except UserError as error:
        return "longer than config.data.max_length 48" in str(error)


def _attention_unit(choice, tmp_path):
    """Of a row of two pairs: for each example the first of those that it shares its unit with."""
    groups = Groups.of(np.arange(4), np.array([2, 2]))
    data = types.SimpleNamespace(
        lengths=np.full(4, 2),
        epochs_vary=False,
        epoch=lambda epoch: groups,
        extras=lambda i: {"example_index": i},
        example=lambda i: (np.full(2, i, np.int32), np.ones(2, np.float32), {"example_index": i}),
    )
    config = DataConfig(max_length=8, grouping="pairs", attention_unit=choice)
    row = Loader(data, config, 1).batch(0)
    unit = dict(zip(row.tokens[0].tolist(), row.segment_ids[0].tolist()))
    return tuple(min(other for other in unit if unit[other] == unit[i]) for i in range(4))


def _domain(choice, tmp_path):
    """The domains of two examples of one source and two task types."""
    names = {"sources": ["a"], "source_ids": np.zeros(2, int), "task_types": ["a", "b"], "task_type_ids": np.arange(2)}
    config = DataConfig(mixture=MixtureConfig(by=choice, domains=("a", "b") if choice == "task_type" else ("a",)))
    return tuple(domain_ids(types.SimpleNamespace(config=config, **names)).tolist())


def _supervise(choice, tmp_path):
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    conversation = Conversation([Message("user", "Hello"), Message("assistant", "Blue")])
    (example,) = Renderer(load_template("chatml", tokenizer), tokenizer, choice).examples([(conversation, "here")])
    return int(np.count_nonzero(example.weights))


def _by(choice, tmp_path):
    """Which tag of a record names its class."""
    data = DataConfig(classes=ClassesConfig(by=choice, condition={"web": "Web", "sums": "Sums"}))
    return condition_of(Conversation([], source="web", task_type="sums"), "file", data, "here")


def _weighting(choice, tmp_path):
    return tuple(spread(np.array([0, 1, 1, 0, 1], np.float32), 1.0, choice, 3).tolist())


def _loss(**changes):
    """The forward pass and gradient of a tiny model, traced."""
    decoder = Decoder(llama(), **changes)
    ones = jnp.ones((1, 4), jnp.int32)
    run = lambda params: decoder.forward(params, ones, ones, ones).hidden.sum()
    return str(jax.make_jaxpr(jax.grad(run))(decoder.abstract_params()))


def _grade(choice, tmp_path):
    """What of five texts is the likeliest, by whatever the log-likelihoods are measured."""
    texts, tokens = ["aaaaaaaa", "b", "cc", "ééé", "ddd"], np.array([1, 1, 9, 2, 1])
    scores, premise = np.array([-8.0, -3.0, -9.0, -4.0, -5.0]), np.array([-1.0, -1.0, -9.0, -1.0, -9.0])
    return int(choose(normalized(scores, tokens, texts, choice, premise), np.zeros(0, int))[0])


def _said_of_choices(choice, tmp_path):
    return said(Question("", ["red", "blue"], {0}, ""), TaskConfig(choices=choice))


def _shots(choice, tmp_path):
    """The two examples that stand before a question."""
    pool = Pool([Shot(str(i), "", "", "") for i in range(5)], ShotsConfig(2, draw=choice))
    return [shot.question for shot in pool.before(Shot("q", "", "", ""))]


def _match(choice, tmp_path):
    """What finds an answer right."""
    return MATCHES[choice].__name__ if choice != "exact" else judge.__name__


def _l1_on(choice, tmp_path):
    """The penalty of a weight of 2 that has not moved."""
    objective = make_objective(ObjectiveConfig(regularizers=RegularizersConfig(l1=1.0, l1_on=choice)))
    weight = {"w": jnp.float32(2.0)}
    return float(objective.penalties(Parts(weight, {}, {}, weight))["l1"].sum)


def _prune_score(choice, tmp_path):
    """Which of two inputs an output keeps: one of weight 2, or one of weight 1 and ten times the size."""
    inputs = Moments(jnp.float32(4), jnp.zeros(2), jnp.array([4.0, 400.0]))
    rule = Rule(choice, parse("1:2"), False, 0, 0.0, 0.0, False)
    return rule.keeps(jnp.array([[2.0], [1.0]]), inputs, 1)[:, 0].tolist()


def _schedule(choice, tmp_path):
    config = OptimizerConfig(schedule=choice)
    return tuple(float(make_schedule(config)(step, make_horizon(config, 20))) for step in range(20))


def _optimizer(choice, tmp_path):
    params = Decoder(llama()).init(jax.random.key(0))
    transformation = make_optimizer(OptimizerConfig(choice), llama(), params).transformation
    return str(jax.tree.structure(jax.eval_shape(transformation.init, params)))


def _dtypes(field):
    def read(choice, tmp_path):
        config = ModelConfig(**{field: choice})
        platform = "tpu" if choice == "auto" else "cpu"  # where "auto" is not float32
        device = type("Device", (), {"platform": platform})
        mesh = type("Mesh", (), {"devices": np.array([device], object)})
        picked = dtypes(config, mesh)[("dtype", "param_dtype").index(field)]
        return f"{choice if choice == 'auto' else ''}{picked.name}"

    return read


def _quantization(choice, tmp_path):
    """What a linear map of the layers is stored as."""
    params = jax.eval_shape(lambda params: quantize_params(params, choice, True), Decoder(llama()).abstract_params())
    return str(jax.tree.leaves(params["stacks"]["0"]["0"]["attn"]["q_proj"])[0].dtype)


def _merge_trees(method, **fields):
    trees = [{"embed": {"embedding": jnp.cos(jnp.arange(64.0) + i).reshape(8, 8)}} for i in range(3)]
    try:
        merged = merge_trees(llama(), MergeConfig(method=method, density=(0.5,), **fields), trees[:2], trees[2])
    except UserError as error:
        return str(error)
    return float(merged["embed"]["embedding"].sum())


def _vocabulary(choice, tmp_path):
    for name in ("one", "other"):
        make_folder(tmp_path / choice / name)
    tmp_path = tmp_path / choice
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"a"', '"new"'))
    try:
        make_plan(MergeConfig(models=(str(tmp_path / "one"), str(tmp_path / "other")), vocabulary=choice))
    except UserError:
        return "refused"
    return "aligned"


def _formatted(choice, _):
    form = Format(FormatConfig(choice, pattern="a" if choice == "regex" else ""))
    return [form.fits(text) for text in ("a", "{'a': 1}", '{"a": true}')]


def _leaking(choice, _):
    """What is left of two records of which one leaks, or that they are refused."""
    rows = [Row(i, Conversation([Message("user", text)]), "here", "here") for i, text in enumerate("ab")]
    try:
        return len(Leaks(LeakConfig(("b",), on_leak=choice), []).left(rows, "here")[0])
    except UserError:
        return "refused"


def _tokens_init(choice, _):
    table = np.random.default_rng(0).normal(1.0, 1.0, (6, 4)).astype(np.float32)
    return new_rows(table, 1, choice, np.random.default_rng(1), [[1, 2]]).round(6).tolist()


def _init(choice, tmp_path):
    """Whether a run looks for weights, in a folder that has none."""
    program = types.SimpleNamespace(
        config=TrainConfig(model=ModelConfig(init=choice)),
        random_base=lambda: "drawn",
        decoder=Decoder(llama()),
        mesh=None,
        base_dtype=jnp.float32,
    )
    try:
        return Program.load_base(program, tmp_path)
    except UserError as error:
        return f"sought: {'safetensors' in str(error)}"


T = float(np.float32(1 / 3))


def _of_group(name, size, **changes):
    """The loss of a group of examples under a model without attention."""
    batch = make_batch([random_examples(size, 9)], 9 * size, size)
    batch.extras["member"] = np.arange(size, dtype=np.int32)[None]
    unnormed = jnp.sin(jnp.arange(9.0 * size * 4)).reshape(1, 9 * size, 4)
    output = ModelOutput(unnormed**3, lambda w, h: h @ w, jnp.cos(jnp.arange(256.0)).reshape(4, 64))
    output = dataclasses.replace(output, unnormed=unnormed, norm=lambda x: x**3)
    model = type("Model", (), {"step_key": jax.random.key(0), "__call__": lambda self, batch: output})()
    objective = make_objective(ObjectiveConfig(name, **changes))
    return float(total(objective(model, batch, objective.denominators(batch))[0]))


def _cut(choice, tmp_path):
    """The parts of five records of two sources and two task types."""
    table = tmp_path / "vectors.parquet"
    pq.write_table(pa.table({"vector": [[1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]]}), table)
    dataset = types.SimpleNamespace(
        sources=["x", "y"], source_ids=np.array([0, 0, 0, 1, 1]), records=np.arange(5),
        task_types=["t", "u"], task_type_ids=np.array([0, 1, 1, 1, 1]), report=types.SimpleNamespace(records=5),
    )  # fmt: skip
    config = DisperseConfig(method=choice, parts=2, vectors=str(table))
    return tuple(dispersal._cut(config, tmp_path, None, dataset, np.arange(5), np.arange(5)).parts.tolist())


def _tried(choice, tmp_path):
    tried = []
    minimise(choice, Space((1, 1), True), lambda w: tried.append(w) or (w[0] - 0.3) ** 2, 2, 9)
    return tuple(tried)


def _mean(choice, tmp_path):
    decoder = Decoder(llama())
    batch = make_batch([random_examples(1, 9)], 9, 1)
    means = mean_hidden_states(decoder, choice, decoder.init(jax.random.key(0)), None, batch)["embedding"]
    return float(means.sum())


def _routed(**changes):
    """What a routed linear map gives in training, and its balance, of two rows of two examples and padding."""
    method = LoRAMoE(LoRAMoEConfig(experts=2, rank=2, dropout=0.5, **changes), llama())
    batch = make_batch([random_examples(2, 9), random_examples(2, 5)], 18, 2)
    batch.extras["type"] = np.array([[1, 0], [0, 0]])
    arrays = method.fresh(jnp.zeros((4, 4)), jax.random.key(0)) | {"lora_b": jnp.ones((4, 4))}
    ctx = Context(jax.random.key(1), batch.example_ids, None, batch.extras, train=True)
    y, report = method.node(arrays).project(jnp.sin(jnp.arange(144.0)).reshape(2, 18, 4), jnp.zeros((4, 4)), ctx)
    balance = method.terms([{"embed": report}], batch, method.denominators(batch))["balance"]
    return float(jnp.sum(y)), float(balance.sum / balance.denominator)


def _type_of(choice, tmp_path):
    """The types of two examples of one source and two task types."""
    config = DataConfig(types=TypesConfig(by=choice, of={"b": 1, "a": 0} if choice == "task_type" else {"a": 0}))
    names = {"sources": ["a"], "source_ids": np.zeros(2, int), "task_types": ["a", "b"], "task_type_ids": np.arange(2)}
    return tuple(type_ids(types.SimpleNamespace(config=config, **names)).tolist())


def _spiel(**settings):
    return make_method(TrainConfig(adapter=AdapterConfig("spiel", spiel=SpIELConfig(**settings))), llama(), 9)


def _variant(choice, tmp_path):
    """The optimizer of a variant, by what its state holds."""
    method = _spiel(variant=choice)
    parts = jax.eval_shape(lambda base: method.split(base, jax.random.key(0)), Decoder(llama()).abstract_params())
    direction = method.direction(OptimizerConfig())
    return jax.eval_shape(direction.init, parts.params)._fields


def _deltas(choice, tmp_path):
    kernel = jax.ShapeDtypeStruct((3, 32, 48), jnp.float32)
    return str(jax.eval_shape(_spiel(dtype=choice).fresh, kernel, jax.random.key(0))["delta"].dtype)


def _merged_onto(choice, _):
    """Whether the weights that a fresh adapter over a quantised base is merged into are the quantised ones."""
    plain, rounded = {"w": jnp.float32(0.3)}, {"w": jnp.float32(0.25)}
    method = types.SimpleNamespace(merge=lambda parts: parts.frozen["base"])
    model = OpenModel(
        *(None, rounded, {}, method, Parts({}, {"base": rounded}, {}), None, "", None), unquantized=lambda: plain
    )
    return model.merged(choice) is rounded


REWRITTEN = [  # new answers beside given ones, of which each test lets other ones through
    ("your own response: 3", "3"),
    ("two", "two"),
    ("it is 3", "3"),
    ("f(1)", "f(1)"),
    ("Here is: ```python", "code"),
]


def _row():
    return Row(0, Conversation([Message("user", "why ?"), Message("assistant", "so .")]), "", "")


READERS = {
    "truncation": (_truncation, {"right": 4, "drop": 3, "error": True}),
    "supervise": (_supervise, None),
    "grouping": (lambda choice, _: id(GROUPINGS[choice].groups), None),
    "attention_unit": (_attention_unit, {"example": (0, 1, 2, 3), "group": (0, 0, 2, 2), "row": (0, 0, 0, 0)}),
    "by": (_by, {"source": "Web", "task_type": "Sums"}),
    "weighting": (_weighting, {"token": (0, 1, 1, 0, 1), "turn": (0, 0.5, 0.5, 0, 1), "example": (0, T, T, 0, T)}),
    "MixtureConfig.by": (_domain, {"task_type": (0, 1), "source": (0, 0)}),
    "TypesConfig.by": (_type_of, {"task_type": (0, 1), "source": (0, 0)}),
    "LoRAMoEConfig.dropout_mode": (lambda choice, _: _routed(dropout_mode=choice)[0], None),
    "LoRAMoEConfig.form": (lambda choice, _: _routed(form=choice)[1], None),
    "LoRAMoEConfig.sign": (lambda choice, _: _routed(sign=choice)[1], None),
    "LoRAMoEConfig.tokens": (lambda choice, _: _routed(tokens=choice, scope="global")[1], None),
    "LoRAMoEConfig.scope": (lambda choice, _: _routed(scope=choice)[1], None),
    "init": (_init, {"pretrained": "sought: True", "random": "drawn"}),
    "dtype": (_dtypes("dtype"), {"auto": "autobfloat16", "float32": "float32", "bfloat16": "bfloat16"}),
    "param_dtype": (_dtypes("param_dtype"), {"auto": "autobfloat16", "float32": "float32", "bfloat16": "bfloat16"}),
    "remat": (lambda choice, _: _loss(remat=choice), None),
    "quantization": (_quantization, {"none": "float32", "nf4": "uint8", "int8": "int8"}),
    "attention": (lambda choice, _: (choice, bool(_loss(attention=choice))), None),  # on CPUs both are XLA
    "DisperseConfig.method": (_cut, None),
    "DisperseConfig.text": (_mean, None),
    "reduction": (lambda choice, _: make_objective(ObjectiveConfig(reduction=choice)).reduction, None),
    "ratio": (lambda choice, _: make_objective(ObjectiveConfig("minor_sft", beta=0.1, ratio=choice)).ratio, None),
    "form": (lambda choice, _: make_objective(ObjectiveConfig("minor_sft", beta=0.1, form=choice)).form, None),
    "lambda_scope": (lambda choice, _: _of_group("sftmix", 2, lambda_scope=choice), None),
    "mix_hidden": (lambda choice, _: _of_group("sftmix", 2, mix_hidden=choice), None),
    "mix_reduction": (lambda choice, _: _of_group("sftmix", 2, mix_reduction=choice), None),
    "views": (lambda choice, _: _of_group("max_match", 3, views=choice), None),
    "trim": (lambda choice, _: _merge_trees("ties", trim=choice), None),
    "rescale": (lambda choice, _: [_merge_trees(m, rescale=choice) for m in ("ties", "dare_linear")].__repr__(), None),
    "vocabulary": (_vocabulary, None),
    "SearchConfig.kind": (_tried, None),
    "FormatConfig.kind": (_formatted, None),
    "LeakConfig.on_leak": (_leaking, None),
    "TokensConfig.init": (_tokens_init, None),
    "StageConfig.kind": (lambda choice, _: stages.KINDS[choice].config.__name__, None),
    "SynthesisConfig.method": (lambda choice, _: type(METHODS[choice](SynthesisConfig())).__name__, None),
    "merge_base": (_merged_onto, {"dequantised": True, "full_precision": False}),
    "SDFTConfig.template": (lambda choice, _: TEMPLATES[choice], None),
    "SDFTConfig.accept": (lambda choice, _: [TESTS[choice](*pair) == "" for pair in REWRITTEN], None),
    "SelfSampleConfig.mode": (lambda choice, _: self_sample.prompt(_row(), SelfSampleConfig(choice)).messages, None),
    "l1_on": (_l1_on, {"change": 0.0, "weights": 2.0}),
    "schedule": (_schedule, None),
    "task": (lambda choice, _: registry.KINDS[choice], None),
    "instruction_in": (lambda choice, _: str(separation.prompt("s", "d", TaskConfig(instruction_in=choice))), None),
    "normalize": (_grade, {"none": 1, "tokens": 2, "characters": 0, "bytes": 3, "unconditional": 4}),
    "choices": (_said_of_choices, {"text": ["red", "blue"], "letters": ["A", "B"]}),
    "draw": (_shots, {"first": ["0", "1"], "random": ["2", "3"]}),
    "match": (_match, None),
    "judge": (lambda choice, _: judges.FORMS[choice].read.__name__, None),
    "CompressConfig.counts": (lambda choice, _: groups.choose(CompressConfig(counts=choice), (4096, 4096)), None),
    "PruneConfig.score": (_prune_score, {"wanda": [False, True], "magnitude": [True, False]}),
    "OptimizerConfig.name": (_optimizer, None),
    "variant": (_variant, {"ag": ("age", "mu", "nu"), "ma": ("rows", "columns")}),
    "policy": (lambda choice, _: Clock(20, 5, 0.2, choice, 60).proportion(5), None),
    "SpIELConfig.dtype": (_deltas, {"float32": "float32", "bfloat16": "bfloat16"}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_known_to_its_reader(name, tmp_path):
    read, expected = READERS[name]
    effects = {choice: read(choice, tmp_path) for choice in CHOICES[name]}
    assert len({str(effect) for effect in effects.values()}) == len(CHOICES[name]), "two choices do the same"
    assert expected is None or effects == expected


def test_no_reader_knows_more_than_the_config_lets_through():
    assert set(DIRECTIONS) == set(CHOICES["OptimizerConfig.name"])
    assert set(GROUPINGS) == set(CHOICES["grouping"])
    assert set(registry.KINDS) == set(CHOICES["task"])
    assert set(METHODS) == set(CHOICES["SynthesisConfig.method"])
    assert set(TEMPLATES) == set(CHOICES["SDFTConfig.template"])
    assert set(TESTS) == set(CHOICES["SDFTConfig.accept"])


def test_auto_is_float32_on_cpu():
    assert dtypes(ModelConfig(), make_mesh(TrainConfig().mesh)) == (jnp.float32, jnp.float32)
