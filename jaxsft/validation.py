"""Checks of the config tree: types, choices and ranges of every field; and its way to JSON and back."""

import dataclasses
import difflib
import json
import types
import typing
from typing import Any

from jaxsft.config import ModelConfig, NewModelConfig, TaskConfig, TrainConfig
from jaxsft.errors import UserError

CHOICES = {
    "truncation": ("right", "drop", "error"),
    "supervise": ("assistant", "all"),
    "by": ("source", "task_type"),
    "weighting": ("token", "turn", "example"),
    "grouping": ("example", "preference", "mixup", "domain", "dcot", "views"),  # those of `jaxsft.data.grouping`
    "attention_unit": ("example", "group", "row"),
    "MixtureConfig.by": ("task_type", "source"),
    "TypesConfig.by": ("task_type", "source"),
    "init": ("pretrained", "random"),
    "FormatConfig.kind": ("dict", "json", "regex"),
    "LeakConfig.on_leak": ("error", "drop"),
    "TokensConfig.init": ("normal0.02", "unit_normal", "mean", "mean_cov", "mean_of_text"),
    "dtype": ("auto", "float32", "bfloat16"),
    "param_dtype": ("auto", "float32", "bfloat16"),
    "remat": ("none", "dots", "block"),
    "attention": ("auto", "xla"),
    "quantization": ("none", "nf4", "int8"),
    "DisperseConfig.method": ("random", "iid", "source", "task_type", "kmeans"),
    "DisperseConfig.text": ("response", "instruction", "both"),
    "StageConfig.kind": (
        "train",
        "score",
        "disperse",
        "merge",
        "search",
        "compress",
        "tokens",
        "reword",
        "mix",
        "evaluate",
        "synthesize",
        "export",
        "forgetting",
    ),  # the names in `jaxsft.recipes.stages.KINDS`
    "reduction": ("token_mean", "example_mean"),
    "ratio": ("sum", "mean"),
    "form": ("weight", "closed"),
    "lambda_scope": ("pair", "token", "batch"),
    "mix_hidden": ("post_norm", "pre_norm"),
    "mix_reduction": ("mean", "sum"),
    "views": ("max", "mean"),
    "trim": ("exact", "threshold"),
    "rescale": ("auto", "none", "l1", "density"),
    "vocabulary": ("same", "last"),
    "l1_on": ("change", "weights"),
    "LoRAMoEConfig.dropout_mode": ("shared", "per_expert"),
    "LoRAMoEConfig.form": ("cv_squared", "var_over_mean"),
    "LoRAMoEConfig.sign": ("published", "attract"),
    "LoRAMoEConfig.tokens": ("valid", "all"),
    "LoRAMoEConfig.scope": ("per_example", "microbatch", "global"),
    "schedule": ("cosine", "linear", "constant", "wsd"),
    "task": (
        "perplexity",
        "multiple_choice",
        "generation",
        "answers",
        "ifeval",
        "code",
        "deviation",
        "routing",
        "format",
        "instruction_following",
        "separation",
        "knowledge_conflict",
    ),
    "instruction_in": ("system", "user", "labels"),
    "normalize": ("none", "tokens", "characters", "bytes", "unconditional"),
    "choices": ("text", "letters"),
    "draw": ("first", "random"),
    "match": ("exact", "alias", "number", "stated", "boxed", "pattern", "label", "translation"),
    "judge": ("mt_bench", "alpaca_eval"),
    "variant": ("ag", "ma"),
    "policy": ("linear", "cosine"),
    "SpIELConfig.dtype": ("float32", "bfloat16"),
    "SearchConfig.kind": ("grid", "nelder_mead"),
    "PruneConfig.score": ("wanda", "magnitude"),
    "CompressConfig.counts": ("stored", "codes"),
    "SynthesisConfig.method": (
        "sdft",
        "self_sample",
        "paraphrase",
        "self_play",
        "lamini",
        "evol_instruct",
        "orca",
        "judge",
    ),  # the names in `jaxsft.synthesis.registry.METHODS`
    "merge_base": ("dequantised", "full_precision"),
    "SDFTConfig.template": ("refer", "guide", "math", "earlier_answer"),
    "SDFTConfig.accept": ("chat", "number", "call", "code", "none"),
    "SelfSampleConfig.mode": ("plain", "with_reference"),
    "OptimizerConfig.name": ("adamw", "adafactor", "lion", "sm3", "muon"),
}
POSITIVE = {
    "ewc_examples", "MergeConfig.examples",
    "max_length", "max_examples_per_row", "rank", "chunk_size", "batch_size", "accumulate", "learning_rate",
    "keep_latest", "LogConfig.every", "draws", "mix_alpha", "keep", "scale",
    "init_std", "embed_std",
    "experts", "microbatch_rows",
    "reselect_every", "phase", "rate",
    "cycles",
    "size_ratio", "group_size", "multiple", "per_record",
    "cells", "most", "budget",
    "SynthesisConfig.top_p", "SynthesisConfig.max_new_tokens", "samples", "part_rows", "CodeConfig.top_p", "seconds",
    "lists", "LaMiniConfig.examples", "wanted", "rounds", "JudgeConfig.scale",
    "ForgettingConfig.draws", "confidence",
}  # fmt: skip
NOT_NEGATIVE = {
    "SourceConfig.weight", "max_dropped", "dropout", "z_loss", "label_smoothing", "final_ratio", "weight_decay",
    "max_grad_norm", "ema", "warmup_ratio", "decay_ratio", "eps", "every", "keep_best", "steps", "epochs", "alpha",
    "b1", "b2", "seed", "max_new_tokens", "chains", "count", "beta", "sft_weight", "reference_clip", "mu",
    "consistency",
    "snapshots", "DisperseConfig.parts", "submodels",
    "n_post_layers", "post_ln_alpha",
    "neftune_alpha", "kl_to_base", "l2_to_start", "ewc", "l1", "LoRAMoEConfig.delta", "top_k",
    "MergeConfig.shrink", "SpIELConfig.weights", "SpIELConfig.density", "lora_rank", "gamma", "epsilon",
    "DSnoTConfig.threshold", "DSnoTConfig.power",
    "SynthesisConfig.temperature", "CodeConfig.temperature", "min_p",
    "MixConfig.ratio", "LeakConfig.words", "JudgeConfig.threshold",
}  # fmt: skip
AT_MOST_ONE = {
    "keep", "MergeConfig.shrink", "post_ln_alpha", "LoRAMoEConfig.delta", "SpIELConfig.density", "rate",
    "SynthesisConfig.top_p", "CodeConfig.top_p", "min_p",
}  # fmt: skip
BELOW_ONE = {"dropout", "label_smoothing", "ema", "b1", "gamma", "confidence"}
SPLITS = ("train", "eval")  # what the lines of `metrics.jsonl` are of besides tasks


def validate(config: Any, where: str = "config") -> None:
    """Checks types, choices and ranges of every field of the tree.

    Raises:
      UserError: naming the field by its full path, what it holds and what it may hold.
    """
    hints = typing.get_type_hints(type(config))
    for name, hint in hints.items():
        value, path = getattr(config, name), f"{where}.{name}"
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):
                raise UserError(f"{path} is {value!r}; it must be a {hint.__name__}.")
            validate(value, path)
            continue
        if hint is Any:  # a stage's config, whose type its kind decides
            if dataclasses.is_dataclass(value):
                validate(value, path)
            continue
        if float in (hint, *typing.get_args(hint)) and type(value) is int:
            value = float(value)
            setattr(config, name, value)
        if typing.get_origin(hint) is tuple:
            value = _tuples(value, hint)
            setattr(config, name, value)
        if hint == dict[str, float] and isinstance(value, dict):
            value = {key: float(number) if type(number) is int else number for key, number in value.items()}
            setattr(config, name, value)
        _check_type(value, hint, path)
        if value is None:
            continue
        if value != value:
            raise UserError(f"{path} is nan, which is no number; give one.")
        own = f"{type(config).__name__}.{name}"
        if (choices := choices_of(type(config), name, hint)) and value not in choices:
            raise UserError(
                f"{path} is {value!r}; choose one of {', '.join(choices)}{did_you_mean(str(value), choices) or '.'}"
            )
        if (name in POSITIVE or own in POSITIVE) and not value > 0:
            raise UserError(f"{path} is {value!r}; it must be positive.")
        if (name in NOT_NEGATIVE or own in NOT_NEGATIVE) and not value >= 0:
            raise UserError(f"{path} is {value!r}; it must not be negative.")
        if name in BELOW_ONE and not value < 1:
            raise UserError(f"{path} is {value!r}; it must be below 1.")
        if (name in AT_MOST_ONE or own in AT_MOST_ONE) and not value <= 1:
            raise UserError(f"{path} is {value!r}; it must be 1 at most.")
        if isinstance(value, list):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    validate(item, f"{path}[{i}]")
            _check_names([item for item in value if isinstance(item, TaskConfig)], path)
    if isinstance(config, TrainConfig):
        _check_weights(config)
        if config.adapter.kind == "loramoe":
            _check_routing(config)
        _check_optimizer(config)
    if isinstance(config, ModelConfig):
        _check_new(config, where)


def choices_of(kind: type, name: str, hint: Any) -> tuple[str, ...]:
    """The words that a field of a dataclass may hold, () where any; fields of other types than text have none."""
    is_text = str in (hint, *typing.get_args(hint))
    return CHOICES.get(f"{kind.__name__}.{name}", CHOICES.get(name, ())) if is_text else ()


def _check_weights(config: TrainConfig) -> None:
    classes = config.data.classes
    if config.objective.name == "minor_sft" and config.data.weighting != "token":
        raise UserError(
            f"config.data.weighting is {config.data.weighting!r}, but the objective 'minor_sft' takes the mean over "
            "each example itself, so long examples would be divided by their length twice; leave it at 'token'."
        )
    if config.objective.reduction == "example_mean" and (classes.weight or classes.reward or classes.balanced):
        raise UserError(
            "config.objective.reduction 'example_mean' gives all examples the same weight, so those of "
            "config.data.classes would have no effect; use 'token_mean', with config.data.weighting 'example'."
        )


def _check_new(config: ModelConfig, where: str) -> None:
    new, plain = config.new, NewModelConfig()
    if new.n_post_layers is not None and new.post_ln_alpha is not None:
        raise UserError(f"{where}.new has both n_post_layers and post_ln_alpha, which say the same; set one of them.")
    changed = [f.name for f in dataclasses.fields(new) if getattr(new, f.name) != getattr(plain, f.name)]
    if changed and config.init != "random":
        name = f"{where}.new.{changed[0]}"
        why = "the first values are those of the checkpoint"
        if changed[0] in ("n_post_layers", "post_ln_alpha"):
            why = "moving the norms of trained layers changes what they compute, so Mix-LN starts from random weights"
        raise UserError(
            f"{name} is {getattr(new, changed[0])!r}, but {where}.init is {config.init!r}: {why}; set {where}.init to "
            f"'random', or leave {name} alone."
        )


def _check_routing(config: TrainConfig) -> None:
    routed, where = config.adapter.loramoe, "config.adapter.loramoe"
    if routed.scope != "per_example" and config.accumulate > 1:
        raise UserError(
            f"{where}.scope is {routed.scope!r}, whose variance does not add up over micro-batches, but "
            f"config.accumulate is {config.accumulate}; set the scope to 'per_example', or accumulate to 1."
        )
    if routed.scope == "microbatch" and config.batch_size % routed.microbatch_rows:
        raise UserError(
            f"{where}.microbatch_rows is {routed.microbatch_rows}, which does not divide the {config.batch_size} rows "
            "of config.batch_size; choose a divisor."
        )
    if routed.tokens == "all" and config.data.packing:
        raise UserError(
            f"{where}.tokens is 'all', which counts padding to the example of its row, but config.data.packing puts "
            "several into a row; set it to False, or tokens to 'valid'."
        )


def _check_optimizer(config: TrainConfig) -> None:
    wanted = {"ag": "adamw", "ma": "sm3"}[config.adapter.spiel.variant]
    if config.adapter.kind == "spiel" and config.optimizer.name != wanted:
        raise UserError(
            f"config.optimizer.name is {config.optimizer.name!r}, but the variant {config.adapter.spiel.variant!r} of "
            f"config.adapter.spiel brings its own form of {wanted!r}; name that."
        )


def _check_names(tasks: list[TaskConfig], path: str) -> None:
    """Every one of several tasks has a name of its own."""
    for i, task in enumerate(tasks):
        if type(task) is not TaskConfig:
            raise UserError(f"{path}[{i}] is a {type(task).__name__}; one of several tasks must be a TaskConfig.")
        if not task.name:
            raise UserError(f"{path}[{i}].name is empty; give each task a name, which its figures are called by.")
        if task.name in (taken := [*SPLITS, *(other.name for other in tasks[:i])]):
            raise UserError(f"{path}[{i}].name is {task.name!r}; {', '.join(taken)} are taken, so choose another.")


def _check_type(value: Any, hint: Any, path: str) -> None:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        good = any(type(value) is a or (a is type(None) and value is None) for a in args)
    elif origin in (list, tuple):
        good = _is(value, hint)
    elif origin is dict:
        good = isinstance(value, dict) and all(
            isinstance(k, args[0]) and (args[1] is Any or isinstance(v, args[1])) for k, v in value.items()
        )
    else:
        good = type(value) is hint
    if not good:
        name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
        raise UserError(f"{path} is {value!r} ({type(value).__name__}); its type is {name}.")


def _tuples(value: Any, hint: Any) -> Any:
    """Lists as the tuples that JSON does not have, and whole numbers as the floats that they stand for."""
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_tuples(item, typing.get_args(hint)[0]) for item in value)
    return float(value) if hint is float and type(value) is int else value


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, its items likewise."""
    origin = typing.get_origin(hint)
    if origin is None:
        return isinstance(value, hint)
    return isinstance(value, origin) and all(_is(item, typing.get_args(hint)[0]) for item in value)


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """'; did you mean X?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A config of plain values as dotted path -> value; items of lists as `list[i]`."""
    if isinstance(tree, dict) and tree:
        return {
            k: v for name, sub in tree.items() for k, v in flatten(sub, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return {k: v for i, sub in enumerate(tree) for k, v in flatten(sub, f"{prefix}[{i}]").items()}
    return {prefix: tree}


def from_dict(kind: type, values: dict[str, Any], where: str = "config") -> Any:
    """The inverse of `to_dict`, strict.

    Raises:
      UserError: for a field that `kind` does not have, with the nearest match.
    """
    hints = typing.get_type_hints(kind)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}.{name} is no field of {kind.__name__}{did_you_mean(name, hints) or '.'}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = from_dict(hint, value, f"{where}.{name}")
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            value = [from_dict(typing.get_args(hint)[0], v, f"{where}.{name}[{i}]") for i, v in enumerate(value)]
        elif typing.get_origin(hint) is tuple:
            value = _tuples(value, hint)
        fields[name] = value
    return kind(**fields)
