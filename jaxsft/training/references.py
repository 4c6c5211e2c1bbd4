"""Which frozen models a run is compared with, and what they say of its data, asked before the first step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.config import TrainConfig
from jaxsft.data.dataset import Dataset
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.likelihood.deviation import Kept
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.models.decoder import Decoder
from jaxsft.objectives.objective import Objective
from jaxsft.objectives.reference import PREFIX
from jaxsft.scoring.reference import score_log_probs
from jaxsft.scoring.table import read_scores, write_scores
from jaxsft.training.restore import open_model, tokenizer_source
from jaxsft.training.runs import is_workdir, weights_fingerprint

START = "start"  # in `config.reference.models`: the model that the run starts from


class References:
    """The references of a run.

    Attributes:
      models: their names; empty without any, or where the base under the adapter is asked at every step.
    """

    def __init__(self, config: TrainConfig, objective: Objective, folder: epath.Path):
        """Reads the config; loads nothing.

        Args:
          config: the run's.
          objective: its loss.
          folder: where tables of scores are kept.

        Raises:
          UserError: for references that cannot be what the config asks.
        """
        self._config, self._folder = config, folder
        self._watched: list[Kept] = []
        self.models = reference_models(config, objective)

    def check_tokens(self, tokenizer: Tokenizer) -> None:
        """Refuses references to which the run's token ids mean something else.

        Raises:
          UserError: naming the reference.
        """
        own = tokenizer.hf.get_vocab().items()
        for model in self.models:
            if model != START and not own <= load_tokenizer(resolve(tokenizer_source(model))).hf.get_vocab().items():
                raise UserError(
                    f"config.reference.models names {model}, whose tokenizer gives tokens other ids than that of "
                    f"{self._config.model.path}, so it would score other text; name models of one tokenizer."
                )

    def fingerprints(self) -> dict[str, str]:
        """Name of the extra -> fingerprint of the model's weights."""
        return {name: self._fingerprint(model) for name, model in self._named()}

    def reserve(self, dataset: Dataset) -> None:
        """Gives the examples room for their scores, so that the shape of a batch is known before there are any."""
        for name, _ in self._named():
            dataset.score(name, np.zeros(len(dataset), np.float32))

    def watch(self, kept: Kept) -> None:
        """Takes an evaluation set on which the distance from the start is to be measured while training.

        Raises:
          UserError: if the run starts from random weights.
        """
        if self._config.model.init == "random":
            raise UserError(
                f"the task {kept.task.name!r} is a deviation, but config.model.init is 'random': there is no model to "
                "deviate from; leave the task out."
            )
        self._watched.append(kept)

    def recall(self, dataset: Dataset) -> bool:
        """Reads the scores of a run that goes on; False if some are still to be made."""
        names = [name for name, _ in self._named()] + [kept.task.name for kept in self._watched]
        if not all(self._path(name).exists() for name in names):
            return False
        for name, model in self._named():
            dataset.score(name, read_scores(self._path(name), self._key(dataset, model))[1]["log_prob"])
        for kept in self._watched:
            kept.keep(read_scores(self._path(kept.task.name), self._start_key(kept))[1]["nll"])
        return True

    def score(self, datasets: Sequence[Dataset], loader: Loader, decoder: Decoder, mesh: Mesh, base: Any) -> None:
        """Scores the data with every reference, one after the other; and evaluation sets with the start.

        Args:
          datasets: the training data, whose examples get the scores; of sub-models several, which hold the same
            examples, whichever of them they train on.
          loader: of the first.
          decoder: the run's.
          mesh: the run's.
          base: the parameters that the run starts from.
        """
        for kept in self._watched:
            nll = kept.score(base, None).astype(np.float32)  # as the table holds it
            kept.keep(nll)
            if jax.process_index() == 0:
                write_scores(self._path(kept.task.name), self._start_key(kept), np.arange(len(nll)), {"nll": nll})
        for name, model in self._named():
            scores = self._ask(name, model, datasets[0], loader, decoder, mesh, base)
            for dataset in datasets:
                dataset.score(name, scores)
            if jax.process_index() == 0:
                print(f"{name}: {model} has scored {len(scores)} examples", flush=True)

    def _ask(
        self, name: str, model: str, dataset: Dataset, loader: Loader, decoder: Decoder, mesh: Mesh, base: Any
    ) -> np.ndarray:
        """What one reference says of every example; on return its weights are gone, before the next one's come."""
        weights = (base, None)
        if model != START:
            # as it is, not as the run's own base is stored: its scores are those of the model that was named
            opened = open_model(model, dataclasses.replace(self._config.model, quantization="none"), mesh)
            decoder, weights = opened.decoder, (opened.params, opened.adapters)
        rows, chunk_size = self._config.batch_size // self._config.accumulate, self._config.objective.chunk_size
        path, key = self._path(name), self._key(dataset, model)
        return score_log_probs(decoder, weights, dataset, loader, mesh, path, key, chunk_size, rows)

    def _named(self) -> list[tuple[str, str]]:
        return [(f"{PREFIX}{k}", model) for k, model in enumerate(self.models)]

    def _path(self, name: str) -> epath.Path:
        return self._folder / f"{name}.parquet"

    def _key(self, dataset: Dataset, model: str) -> dict[str, str]:
        return {"examples": dataset.examples_fingerprint, "model": self._fingerprint(model)}

    def _start_key(self, kept: Kept) -> dict[str, str]:
        return {"examples": kept.fingerprint, "model": self._fingerprint(START)}

    def _fingerprint(self, model: str) -> str:
        own, path = self._config.model, self._config.model.path if model == START else model
        if model == START and own.quantization != "none":
            return f"{fingerprint(resolve(path))}-{own.quantization}-{own.double_quantization}"
        return weights_fingerprint(path) if is_workdir(path) else fingerprint(resolve(path))


def reference_models(config: TrainConfig, objective: Objective) -> tuple[str, ...]:
    """The references that score the data before training; none where the base is asked at every step.

    Raises:
      UserError: for references that cannot be what the config asks.
    """
    wanted = config.reference
    if wanted.online:
        if config.adapter.kind == "none":
            raise UserError(
                "config.reference.online asks the base under an adapter, but config.adapter.kind is 'none'; leave "
                "it False: the reference then scores the data once, before training."
            )
        if wanted.models not in ((), (START,)):
            raise UserError("config.reference.online asks the base under the adapter; leave models empty.")
        if not objective.needs_reference:
            raise UserError(
                f"config.reference.online is True, but the objective {config.objective.name!r} reads no reference; "
                "leave it False. For the deviation alone set config.reference.models to ('start',)."
            )
    named = wanted.models or ((START,) if objective.needs_reference else ())
    models = () if wanted.online else named
    other = "set config.reference.online under an adapter" if objective.needs_reference else "leave models empty"
    if models and config.data.attention_unit != "example":
        raise UserError(
            "references score each example by itself, but config.data.attention_unit is "
            f"{config.data.attention_unit!r}; set it to 'example', or {other}."
        )
    if models and config.data.grouping == "domain" and config.data.truncation == "right":
        raise UserError(
            "references score each example whole, but config.data.truncation 'right' cuts members of long chunks; "
            f"set it to 'drop', or {other}."
        )
    if START in models and config.adapter.start:
        raise UserError(
            f"the reference {START!r} is the base alone, but the run starts from an adapter over it; set "
            f"config.reference.models to ({config.adapter.start!r},), or for the base to ({config.model.path!r},)."
        )
    if models and config.model.init == "random" and START in models:
        raise UserError("config.model.init is 'random', which is no reference; name a config.reference.models.")
    return models
