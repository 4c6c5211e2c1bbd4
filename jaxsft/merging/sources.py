"""Models read tensor by tensor: Hugging Face folders, and workdirs of full and LoRA runs, of which no model is made.

Tensors are as files hold them (kernels [out, in]), one layer's at a time, whatever the source. Of a folder of LoRA
factors only these are in memory. Of any other workdir or adapter the model is opened whole, and is in memory until the
merge is done.
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.adapters.folder import Arrays, is_adapter, load_adapter, read_card
from jaxsft.adapters.full import Full
from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.registry import make_method
from jaxsft.compression.folder import is_compressed
from jaxsft.config import AdapterConfig, ModelConfig, TrainConfig
from jaxsft.data.classes import inference_condition
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.merging.linear import on_host
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import fingerprint, load_architecture, open_tensors, resolve
from jaxsft.models.decoder import Decoder
from jaxsft.models.weights import Tensor
from jaxsft.training.program import architecture
from jaxsft.training.restore import companions, open_model
from jaxsft.training.runs import SavedRun, is_workdir, saved_run, weights_fingerprint
from jaxsft.training.saved import find_base

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Source(Protocol):
    """A model.

    Attributes:
      path: as the config names it.
      arch: its sizes.
      folder: the Hugging Face folder of its tokenizer, or of what it was tuned from.
      fingerprint: of its weights.
      tokenizer: its.
      template: the chat template it was trained with; "auto" for that of the folder.
      condition: likewise.
      by_part: whether a part of a tensor is read without the rest.
      whole: whether it is in memory as a whole, in float32, until the merge is done.
    """

    path: str
    arch: Architecture
    folder: Any
    fingerprint: str
    tokenizer: Tokenizer
    template: str
    condition: str
    by_part: bool
    whole: bool

    def read(self, tensor: Tensor, index: Sequence[slice] = ()) -> Any:
        """One tensor, or the part of it that `index` names, in the dtype in which it is held."""


def open_source(path: str, mesh: Mesh) -> Source:
    """The model that a config names.

    Raises:
      UserError: if there is none, or it is not whole.
    """
    if not is_workdir(path):
        folder = resolve(path)
        if is_adapter(folder) and FactorSource.reads(folder):
            return FactorSource(path)
        return WholeSource(path, mesh) if is_adapter(folder) or is_compressed(folder) else FolderSource(path)
    run = saved_run(path)
    method = make_method(run.config, load_architecture(run.source), 1)
    model = run.config.model
    changed = architecture(model, run.source) != load_architecture(run.source)
    plain = not changed and model.init != "random" and model.quantization == "none"
    if type(method) in (Full, LoRA) and plain:
        return RunSource(path, run, method)
    run.checkpoints.close()
    return WholeSource(path, mesh)


def source_dtype(source: Source) -> np.dtype:
    """The dtype that the `config.json` of the source's folder names; float32 if it names none."""
    config = json.loads(source.arch.source)
    return jnp.dtype(config.get("dtype") or config.get("torch_dtype") or "float32")


class FolderSource:
    """A Hugging Face folder."""

    by_part, whole = True, False
    template = condition = "auto"

    def __init__(self, path: str):
        self.path, self.folder = path, resolve(path)
        self.arch = load_architecture(self.folder)
        self._files = open_tensors(self.folder, Decoder(self.arch))
        self.tokenizer = load_tokenizer(str(self.folder))
        self.fingerprint = fingerprint(self.folder)

    def read(self, tensor: Tensor, index: Sequence[slice] = ()) -> np.ndarray:
        """The head of a tied model is its embedding."""
        file, key = self._files[EMBEDDING if tensor.name == HEAD and self.arch.tied else tensor.name]
        return file.read(key, index, mapped=False)


class RunSource:
    """The workdir of a full or a LoRA run: what was trained comes from its checkpoint, the rest from where it began."""

    by_part = whole = False

    def __init__(self, path: str, run: SavedRun, method: Full | LoRA):
        self.path, self.folder = path, run.source
        self._run, self._method, self._base = run, method, FolderSource(str(run.source))
        self.arch, self.tokenizer = self._base.arch, self._base.tokenizer
        self.fingerprint = weights_fingerprint(path)
        self.template, self.condition = run.config.data.template, inference_condition(run.config.data)
        state = run.checkpoints.shapes(run.step)
        self._root = ("aux", "ema") if "ema" in state["aux"] else ("params",)
        self._held = {path for path, _ in layout.leaves(layout.get(state, self._root))}

    def read(self, tensor: Tensor, index: Sequence[slice] = ()) -> Any:
        """In float32 where it was trained."""
        path, row = layout.locate(self.arch, EMBED if self._tied(tensor) else tensor.logical)
        if path in self._held:
            array = self._run.checkpoints.read(self._run.step, (*self._root, *path), row)
            return (array.T if tensor.transposed and not self._tied(tensor) else array)[tuple(index)]
        if (*path[:-1], "lora_a") in self._held and path[-1] in ("kernel", "embedding"):
            read = lambda leaf: self._run.checkpoints.read(self._run.step, (*self._root, *path[:-1], leaf), row)
            kernel = jnp.asarray(self._base.read(tensor), jnp.float32)
            kernel = kernel.T if tensor.transposed else kernel
            merged = self._method.merged(kernel, {leaf: read(leaf) for leaf in ("lora_a", "lora_b")})
            return (merged.T if tensor.transposed else merged)[tuple(index)]
        return self._base.read(tensor, index)

    def _tied(self, tensor: Tensor) -> bool:
        return tensor.name == HEAD and self.arch.tied


EMBED = "embed.embedding"


class FactorSource:
    """The folder of a LoRA over an unquantised base: factors are in memory, and each kernel is merged as it is read."""

    by_part = whole = False

    def __init__(self, path: str):
        folder = resolve(path)
        card = read_card(folder)
        self._base = FolderSource(str(find_base(folder)))
        self.path, self.arch, self.fingerprint = path, self._base.arch, fingerprint(folder)
        self.folder = companions(folder, self._base.folder)
        self.tokenizer, self.template, self.condition = load_tokenizer(str(self.folder)), card.template, card.condition
        saved = load_adapter(folder, self.arch)
        run = TrainConfig(adapter=AdapterConfig("lora", lora=saved.settings))
        self._method, self._factors = make_method(run, self.arch, 1), saved.params
        _check_factors(self._method, self._factors, str(folder))

    @staticmethod
    def reads(folder: epath.Path) -> bool:
        """Whether it can read this adapter's folder."""
        card = read_card(folder)
        return card.kind == "lora" and card.stored.quantization == "none"

    def read(self, tensor: Tensor, index: Sequence[slice] = ()) -> Any:
        """In float32 where there is an adapter."""
        tied = tensor.name == HEAD and self.arch.tied
        module = (EMBED if tied else tensor.logical).rpartition(".")[0]
        if f"{module}.lora_a" not in self._factors:
            return self._base.read(tensor, index)
        kernel = jnp.asarray(self._base.read(tensor), jnp.float32)
        kernel = kernel.T if tensor.transposed and not tied else kernel
        merged = self._method.merged(kernel, {leaf: self._factors[f"{module}.{leaf}"] for leaf in ("lora_a", "lora_b")})
        return (merged.T if tensor.transposed and not tied else merged)[tuple(index)]


def _check_factors(method: LoRA, factors: Arrays, where: str) -> None:
    """They are those of the maps that the adapter targets.

    Raises:
      UserError: naming the first that is too much, lacks, or has another shape.
    """
    base = Decoder(method.arch).abstract_params()
    params = jax.eval_shape(method.split, base, jax.random.key(0)).params
    held = {name: leaf.shape[row is not None :] for name, (leaf, row) in layout.flatten(method.arch, params).items()}
    shapes = {name: shape for name, shape in held.items() if layout.matches(method.config.targets, name)}
    for name in sorted(shapes.keys() | factors.keys()):
        if name not in factors:
            raise UserError(f"{where} lacks {name} of this adapter on this model; copy the folder again.")
        if name not in shapes:
            raise UserError(f"{where}: {name} is no array of this adapter on this model; use its own base.")
        if factors[name].shape != shapes[name]:
            raise UserError(
                f"{where}: {name} is {factors[name].dtype}{list(factors[name].shape)}, but this adapter on this model "
                f"has {list(shapes[name])}."
            )


class WholeSource:
    """Any other workdir, or folder of an adapter or a compressed change, opened whole and merged into a plain model."""

    by_part, whole = False, True

    def __init__(self, path: str, mesh: Mesh):
        model = open_model(path, ModelConfig(path=path, dtype="float32", param_dtype="float32"), mesh)
        with jax.set_mesh(mesh):
            params = model.merged()
        self.path, self.folder, self.arch = path, model.companions or model.source, model.decoder.arch
        self.tokenizer, self.template, self.condition = model.tokenizer, model.template, model.condition
        self.fingerprint = weights_fingerprint(path) if is_workdir(path) else fingerprint(path)
        self._held = layout.flatten(self.arch, params)

    def read(self, tensor: Tensor, index: Sequence[slice] = ()) -> Any:
        """In float32; of several processes all must read it, in one order."""
        tied = tensor.name == HEAD and self.arch.tied
        leaf, row = self._held[EMBED if tied else tensor.logical]
        array = leaf if row is None else leaf[row]
        array = array if array.is_fully_addressable else on_host(array)
        return (array.T if tensor.transposed and not tied else array)[tuple(index)]


class AlignedSource:
    """A model whose embedding and head have the rows of another's vocabulary, token by token.

    Rows of tokens that it does not know, and rows that no token has, are the other's.
    """

    by_part = False

    def __init__(self, source: Source, like: Source):
        self.path, self.folder, self.fingerprint = source.path, source.folder, source.fingerprint
        self.arch, self.tokenizer = source.arch, source.tokenizer
        self.template, self.condition, self.whole = source.template, source.condition, source.whole
        self._source, self._like = source, like
        own = source.tokenizer.hf.get_vocab()
        self._rows = np.full(like.arch.vocab_size, -1)
        for token, i in like.tokenizer.hf.get_vocab().items():
            if i < like.arch.vocab_size and own.get(token, source.arch.vocab_size) < source.arch.vocab_size:
                self._rows[i] = own[token]

    @property
    def known(self) -> int:
        """How many rows are its own."""
        return int((self._rows >= 0).sum())

    def read(self, tensor: Tensor, index: Sequence[slice] = ()) -> np.ndarray:
        """Gathered on the host."""
        if tensor.name not in (EMBEDDING, HEAD):
            return self._source.read(tensor, index)
        array = np.array(self._like.read(tensor))
        there = self._rows >= 0
        array[there] = np.asarray(self._source.read(tensor))[self._rows[there]]
        return array[tuple(index)]
