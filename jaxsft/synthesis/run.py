"""A synthesis from its config to a folder, which goes on where it was broken off.

The folder holds `records.jsonl`, which can be trained on; for every pass over the model a file of answers with its
manifest (`jaxsft.decoding.job`); and `synthesis.json`, written last: what was asked for, and what became of it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from jaxsft import __version__
from jaxsft.config import SynthesisConfig
from jaxsft.data.conversation import Message
from jaxsft.data.templates import as_trained
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.job import Job, weights_digest
from jaxsft.decoding.prompts import Prompter, make_prompter
from jaxsft.errors import UserError
from jaxsft.files import as_json_lines, json_lines, write_json, write_text
from jaxsft.sharding import make_mesh
from jaxsft.synthesis.method import Answer, Made, Prompt, counts
from jaxsft.synthesis.registry import METHODS
from jaxsft.synthesis.rows import RECORDS, digest, read_rows
from jaxsft.training.distributed import say, wait_for_all
from jaxsft.training.restore import open_model
from jaxsft.validation import flatten, from_dict, to_dict

MANIFEST = "synthesis.json"
FREE = ("batch_size", "mesh", "data.cache_dir")  # what may differ where a synthesis goes on


def synthesize(config: SynthesisConfig, output: epath.PathLike) -> str:
    """Writes the records that `config` asks for into the folder `output`.

    Returns:
      One line on the result.

    Raises:
      UserError: for a model or data that cannot be read or do not fit the method, a folder with another synthesis, or
        where no record is left.
    """
    output = epath.Path(output)
    rows = read_rows(config.data)
    method = METHODS[config.method](config)
    teacher = Teacher(config, output) if method.asks else None
    asked = {
        "config": to_dict(config),
        "template": teacher.template if teacher else None,
        "weights": teacher.weights if teacher else None,
        "data": {"rows": len(rows), "digest": digest(rows)},
    }
    manifest = output / MANIFEST
    if manifest.exists():
        found = json.loads(manifest.read_text())
        # a field that the older version did not have has its default
        found["config"] = to_dict(from_dict(SynthesisConfig, found["config"], f"{manifest}: config"))
        _compare(asked, {name: found[name] for name in asked}, output)
        return f"{output}: done before; {found['result']}"
    how = f", asked of {config.model.path} by {teacher.template}; {teacher.sampling}" if teacher else ""
    say(f"{config.method}: {len(rows)} records{how}")
    made = method(rows, teacher.ask if teacher else _nobody)
    records = [outcome.record for outcome in made.outcomes if outcome.record is not None]
    line = summary(made)
    if not records:
        raise UserError(f"{config.method} leaves no record of {len(rows)}: {line}; change its settings or the model.")
    text = as_json_lines(records)
    if jax.process_index() == 0:
        write_text(output / RECORDS, text)
        report = {"records": len(records), **counts(made.outcomes), "figures": made.figures, "result": line}
        report["digest"] = hashlib.sha256(text.encode()).hexdigest()[:32]
        write_json(manifest, {"kind": "synthesis", **asked, **report, "version": __version__})
    return f"{output / RECORDS}: {line}"


def summary(made: Made) -> str:
    """Counts and figures in a line."""
    found = counts(made.outcomes)
    parts = [f"{found['kept']} kept"]
    for fate in ("fell back", "dropped"):
        if found[fate]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in found[fate].items())
            parts.append(f"{sum(found[fate].values())} {fate} ({reasons})")
    parts += [f"{name} {value:.4g}" for name, value in made.figures.items()]
    return ", ".join(parts)


def _nobody(name: str, prompts: Sequence[Prompt]) -> list[Answer]:
    raise AssertionError(f"a method that asks nobody has asked for {name}")


class Teacher:
    """The model that writes.

    Attributes:
      template: how it is asked, for the report.
      sampling: how its answers are drawn.
      weights: a name for its arrays.
    """

    def __init__(self, config: SynthesisConfig, output: epath.Path):
        if not config.model.path:
            raise UserError("config.model.path is empty; name the model that is to write.")
        self._mesh = make_mesh(config.mesh)
        self._model = open_model(config.model.path, config.model, self._mesh)
        if not config.adapter and self._model.adapters is None:
            raise UserError(f"config.adapter is False, but {config.model.path} is no adapter; leave it True.")
        self._adapters = self._model.adapters if config.adapter else None
        way = as_trained(config.data, self._model.template, self._model.condition)
        folder = self._model.source
        self._prompter = make_prompter(self._model.tokenizer, way.template, folder, condition=way.condition)
        self.template = "plain text" if self._prompter.template is None else self._prompter.template.name
        self.sampling = self._prompter.sampling(
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        self.weights = weights_digest((self._model.params, self._adapters))
        self._config, self._output = config, output

    def ask(self, name: str, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers to prompts, in their order, by a job that goes on; see `jaxsft.synthesis.method.Ask`."""
        encoded = [encode(self._prompter, prompt) for prompt in prompts]
        context = self._model.decoder.arch.max_positions
        fit = [i for i, ids in enumerate(encoded) if len(ids) < context]
        answers = [Answer("", "")] * len(prompts)
        if not fit:
            return answers
        if note := self._prompter.unknown([encoded[i] for i in fit]):
            say(note)
        text = self._prompter.text
        sampler = Sampler(self._model.decoder, self.sampling, self._mesh, batch_size=self._config.batch_size, text=text)
        described = {"model": self._config.model.path, "method": self._config.method, "pass": name}
        job = Job(sampler, self._prompter, self._model.params, self._adapters, described, self._config.part_rows)
        output = self._output / f"{name}.jsonl"
        shown = [shown_messages(prompts[i]) for i in fit]
        job.run(shown, [encoded[i] for i in fit], output, say, [prompts[i].id for i in fit])
        wait_for_all(str(output))
        lines = json_lines(output.read_text())
        for i, line in zip(fit, lines, strict=True):
            answers[i] = Answer(line["answer"].strip(), line["stopped_by"])
        return answers


def encode(prompter: Prompter, prompt: Prompt) -> list[int]:
    """Token ids; without a chat template, those of the text of a single message.

    Raises:
      UserError: for several messages without a chat template.
    """
    if prompter.template is not None:
        return prompter.encode(prompt.messages, prompt.tools, prompt.prefill)
    if len(prompt.messages) > 1:
        raise UserError(
            "the model has no chat template, which prompts of several messages need; set config.data.template to a "
            "built-in one (such as 'plain') or a .jinja file."
        )
    return prompter.encode(prompt.messages[0].content or "", prefill=prompt.prefill)


def shown_messages(prompt: Prompt) -> list[Message]:
    """The prompt as the file of answers shows it, with what the answer begins with."""
    return prompt.messages + [Message("assistant", prompt.prefill)] * bool(prompt.prefill)


def _compare(asked: dict[str, Any], found: dict[str, Any], where: epath.Path) -> None:
    old, new = flatten(found), flatten(json.loads(json.dumps(asked)))
    for name in sorted(old.keys() | new.keys()):
        free = any(name.removeprefix("config.").split("[")[0].startswith(start) for start in FREE)
        if old.get(name) != new.get(name) and not free:
            raise UserError(
                f"{where} holds another synthesis: its {name} is {old.get(name)!r}, now it is {new.get(name)!r}; "
                "choose another output, or remove the folder."
            )
