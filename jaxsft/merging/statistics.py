"""What data says of each model, for the methods that weigh by it: Fisher information, and Gram matrices of inputs.

Each model is opened whole once, one after the other, so this pass holds a model in float32 and as much again for its
Fisher information, or its maps' Gram matrices. What it finds is written to a folder, and then read tensor by tensor.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.adapters.full import Full
from jaxsft.config import DataConfig, MergeConfig, ModelConfig
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.grouping import GROUPINGS, longest
from jaxsft.data.loader import Loader
from jaxsft.data.templates import as_trained
from jaxsft.errors import UserError
from jaxsft.evaluation.rows import batches, read_examples
from jaxsft.models import layout, tensorfiles, weights
from jaxsft.models.weights import Tensor
from jaxsft.scoring.fisher import diagonal_fisher
from jaxsft.scoring.statistics import input_statistics
from jaxsft.training.restore import OpenModel, open_model
from jaxsft.training.runs import is_workdir, trained_by

BATCH = 8  # rows of a batch; no figure depends on it
NORM = "norm"


class Statistics:
    """Of one model, in a file.

    Attributes:
      norm: of the Fisher information over the whole model; 1 for Gram matrices.
    """

    def __init__(self, path: epath.PathLike):
        self._file = tensorfiles.TensorFile(path)
        self.norm = float(self._file.read(NORM)[0]) if NORM in self._file.entries else 1.0

    def read(self, tensor: Tensor) -> np.ndarray | None:
        """Fisher information of a tensor, like it; or the Gram matrix [in, in] of its inputs; None without."""
        return self._file.read(tensor.logical, mapped=False) if tensor.logical in self._file.entries else None


def measure(config: MergeConfig, kind: str, folder: epath.Path, mesh: Mesh) -> list[Statistics]:
    """The statistics of every model that `config` names, on `config.data` or on what each was trained on.

    Args:
      config: the merge's.
      kind: "fisher" or "gram".
      folder: where the files go.
      mesh: the devices.

    Raises:
      UserError: for data that is not named or cannot be read, with several processes, and for a full disk.
    """
    if jax.process_count() > 1:
        raise UserError(f"the method {config.method!r} measures models in one process; start it on one host.")
    datas = [_data(config, path) for path in config.models]
    found = []
    for k, (path, data) in enumerate(zip(config.models, datas)):
        model = open_model(path, ModelConfig(path=path, dtype="float32", param_dtype="float32"), mesh)
        with jax.set_mesh(mesh):
            model = dataclasses.replace(model, params=model.merged(), adapters=None, method=None, parts=None)
        arrays = (_fisher if kind == "fisher" else _grams)(model, data, config, mesh)
        file = folder / f"{k}.safetensors"
        try:
            tensorfiles.write(file, {n: (a.dtype, a.shape) for n, a in arrays.items()}, arrays.__getitem__)
        except OSError as error:
            raise UserError(
                f"what was measured of {path} cannot be written to {folder}: {error.strerror or error}; set TMPDIR to "
                "a folder with more room."
            ) from error
        found.append(Statistics(file))
    return found


def check_data(config: MergeConfig) -> None:
    """Refuses a merge whose models have no data.

    Raises:
      UserError: naming the first.
    """
    for path in config.models:
        _data(config, path)


def _data(config: MergeConfig, path: str) -> DataConfig:
    if config.data.path or config.data.sources:
        return config.data
    if not is_workdir(path):
        raise UserError(
            f"the method {config.method!r} asks data what matters to each model, and {path} is no run whose data is "
            "known; set config.data.path."
        )
    return trained_by(path).data


def _examples(model: OpenModel, data: DataConfig, config: MergeConfig) -> tuple[Dataset, np.ndarray]:
    """The data, each example by itself, and which of it are measured: some of those that training is given."""
    data = as_trained(data, model.template, model.condition)
    if not GROUPINGS[data.grouping].own_examples or (data.grouping == "preference" and data.part < 0):
        data = dataclasses.replace(data, grouping="example", attention_unit="example", max_length=longest(data))
    if data.part >= 0 or data.keep < 1:  # a selection is of examples of the length that the run cut them to
        dataset = prepare(data, model.tokenizer)
        dataset.check_vocabulary(model.decoder.arch.vocab_size)
    else:
        dataset = read_examples(data, model.tokenizer, model.decoder.arch)
    given = np.unique(dataset.epoch(0).members)
    count = min(config.examples, len(given))
    return dataset, np.sort(np.random.default_rng(config.seed).choice(given, count, replace=False))


def _fisher(model: OpenModel, data: DataConfig, config: MergeConfig, mesh: Mesh) -> dict[str, np.ndarray]:
    """Logical path -> Fisher information, as files hold the tensor; and its norm."""
    dataset, chosen = _examples(model, data, config)
    data = dataclasses.replace(data, packing=False, max_length=int(dataset.lengths.max()), grouping="example")
    rows = next(Loader(dataset, data, len(chosen)).evaluation_batches(examples=chosen))
    method = Full(model.decoder.arch)
    parts = method.split(model.params, jax.random.key(0))
    held = layout.flatten(model.decoder.arch, diagonal_fisher(model.decoder, method, parts, rows, mesh))
    arrays = {tensor.logical: _as_file(held[tensor.logical], tensor) for tensor in weights.tensors(model.decoder)}
    norm = sum(float(np.sum(array.astype(np.float64) ** 2)) for array in arrays.values()) ** 0.5
    return arrays | {NORM: np.array([norm or 1.0], np.float32)}


def _grams(model: OpenModel, data: DataConfig, config: MergeConfig, mesh: Mesh) -> dict[str, np.ndarray]:
    """Logical path of a kernel -> mean x x^T of its inputs."""
    arch = model.decoder.arch
    dataset, chosen = _examples(model, data, config)
    rows = batches(dataset, dataset.config, BATCH, mesh, "measuring inputs", chosen)
    targets = ("layers.*_proj",) if arch.tied else ("layers.*_proj", "head")
    tree, _ = input_statistics(model.decoder, model.params, None, rows, mesh, targets, gram=True)
    arrays = {}
    for tensor in weights.tensors(model.decoder):
        path, row = layout.locate(arch, tensor.logical)
        moments = layout.get(tree, path[:-1]) if path[-1] == "kernel" else None
        if moments is not None:
            own = moments.row(row)
            arrays[tensor.logical] = np.asarray(own.gram / jnp.maximum(own.count, 1), np.float32)
    return arrays


def _as_file(held: tuple[Any, int | None], tensor: Tensor) -> np.ndarray:
    leaf, row = held
    array = np.asarray(leaf if row is None else leaf[row], np.float32)
    return array.T if tensor.transposed else array
