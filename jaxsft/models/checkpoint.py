"""Hugging Face checkpoints in and out: `config.json` and safetensors, never anything that can run code.

Loading allocates the stacked arrays in their target sharding and writes every tensor of the files into its row, in
pieces, by donated updates (`jaxsft.models.filling`), quantised on the way if asked. Each process reads only what its
devices hold, and memory above the final one is a piece or two.
"""

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxsft import world
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder, new_folder
from jaxsft.models import layout, tensorfiles, weights
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder, Params
from jaxsft.models.filling import fill
from jaxsft.models.quantized import quantize_params
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.sharding import AXES, tree_shardings
from jaxsft.validation import did_you_mean

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Of an adapter's folder, of which this library or PEFT reads.
ADAPTER_CONFIGS = ("adapter.json", "adapter_config.json", "adapter_base.json")
COMPRESSED = "compression.json"  # of a folder that holds what changed of a base, see `jaxsft.compression`
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_SHARD_SIZE = 5 * 10**9  # bytes of a weight file
SAMPLES, SAMPLE_BYTES = 1024, 4096  # of a weight file, for its fingerprint: files up to 4 MiB are read whole
# What an export takes over from the folder it came from.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def resolve(path: epath.PathLike) -> epath.Path:
    """The folder of a checkpoint: `path` itself if it is one (local or `gs://`), else the download of that hub name.

    `world:base` and `world:chat` are the built-in models.

    Raises:
      UserError: if it is neither.
    """
    if not os.fspath(path):
        raise UserError("no model was named; set config.model.path to a folder or a Hugging Face hub name.")
    folder = epath.Path(path)
    if folder.is_dir():
        return folder
    name = str(path)
    if name.startswith(world.PREFIX):
        return _world_model(name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise UserError(f"{name} is no folder; give a checkpoint's folder or a Hugging Face hub name.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return epath.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*COMPANIONS, CONFIG, *ADAPTER_CONFIGS, COMPRESSED, "*.safetensors*"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"{name} is no folder, and it cannot be had from the Hugging Face hub: {why}") from error


def _world_model(name: str) -> epath.Path:
    known = sorted(folder.name for folder in world.MODELS.iterdir() if folder.is_dir())
    if name.removeprefix(world.PREFIX) not in known:
        raise UserError(f"{name} is no model of the world; known are {', '.join(world.PREFIX + n for n in known)}.")
    return epath.Path(world.MODELS / name.removeprefix(world.PREFIX))


def load_architecture(path: epath.PathLike) -> Architecture:
    """The architecture that a checkpoint's `config.json` describes.

    Raises:
      UserError: see `Architecture.from_hf`; also if there is no such file, or it is not JSON.
    """
    file = resolve(path) / CONFIG
    if (file.parent / COMPRESSED).exists():
        raise UserError(
            f"{file.parent} holds what changed of a base, no whole model; write that out (scripts/export.py --model="
            f"{file.parent} --output=FOLDER), and name FOLDER."
        )
    return Architecture.from_hf(_read_json(file, "a checkpoint's folder has one"), str(file))


def fingerprint(path: epath.PathLike) -> str:
    """A name for what a checkpoint, or an adapter's folder, holds: hexadecimal, of its config and of blocks spread over
    its weight files."""
    folder, configs = resolve(path), (CONFIG, *ADAPTER_CONFIGS, COMPRESSED)
    names = sorted(file.name for file in folder.iterdir() if file.name in configs or file.name.endswith(".safetensors"))
    digest = hashlib.sha256()
    for name in names:
        size = (folder / name).stat().length
        digest.update(f"{name} {size} ".encode())
        with (folder / name).open("rb") as file:
            for start in range(0, size, max(size // SAMPLES, SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def load_params(
    path: epath.PathLike,
    decoder: Decoder,
    mesh: Mesh | None = None,
    param_dtype: Any = None,
    quantization: str = "none",
    double_quantization: bool = True,
    files: Mapping[str, tuple[Any, str]] | None = None,
) -> Params:
    """Reads a checkpoint straight into its target sharding.

    Args:
      path: folder or hub name.
      decoder: the model, of the checkpoint's architecture.
      mesh: where the parameters go, by `jaxsft.sharding.RULES`; None is the default device.
      param_dtype: default float32.
      quantization, double_quantization: see `jaxsft.config.ModelConfig`.
      files: what the tensors are read from, as `open_tensors` has it; default the files in the folder.

    Raises:
      UserError: naming the file and tensor, for anything missing, left over, misshapen, cut off or pickled.
    """
    files = open_tensors(path, decoder) if files is None else files
    wanted = weights.tensors(decoder)
    plain = decoder.abstract_params(param_dtype or jnp.float32)
    shapes = jax.eval_shape(lambda params: quantize_params(params, quantization, double_quantization), plain)
    place = (
        jax.make_mesh((1,) * len(AXES), AXES, (AxisType.Auto,) * len(AXES), devices=jax.local_devices()[:1])
        if mesh is None
        else mesh
    )
    shardings = tree_shardings(decoder.logical_axes(), shapes, place)
    zeros = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), out_shardings=shardings)()
    arrays = dict(layout.leaves(zeros))
    del zeros  # or its arrays could not be donated
    for tensor in wanted:
        target, row = layout.locate(decoder.arch, tensor.logical)
        arrays[target] = fill(arrays[target], row, tensor, files[tensor.name])
    params = layout.map_leaves(lambda path, _: arrays[path], shapes)
    return jax.device_put(params, SingleDeviceSharding(place.devices.item())) if mesh is None else params


def open_tensors(path: epath.PathLike, decoder: Decoder) -> dict[str, tuple[TensorFile, str]]:
    """Name of every tensor of a checkpoint, as `weights.tensors` has it -> the file and the key in it.

    Args:
      path: folder or hub name.
      decoder: the model, of the checkpoint's architecture.

    Raises:
      UserError: as `load_params`.
    """
    folder = resolve(path)
    files = _open_files(folder)
    _check_tensors(decoder.arch, folder, files, weights.tensors(decoder))
    return files


def save_hf(
    path: epath.PathLike,
    decoder: Decoder,
    params: Params,
    dtype: Any = None,
    tokenizer_from: epath.PathLike | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes a checkpoint that `transformers` (4 and 5) and `load_params` read: all of it, or nothing.

    Every process calls it; process 0 writes.

    Args:
      path: a new or empty folder.
      decoder: the model.
      params: its parameters, plain arrays, wherever they live.
      dtype: of the tensors in the files; None keeps each one's own.
      tokenizer_from: folder or hub name whose tokenizer and generation config are copied.
      max_shard_size: bytes of a file, above which there are several and an index.

    Raises:
      UserError: if the folder holds something, or cannot be written (a full disk leaves nothing behind).
    """
    check_new_folder(path)
    held = layout.flatten(decoder.arch, params)
    wanted = {tensor.name: tensor for tensor in weights.tensors(decoder)}
    dtypes = {name: np.dtype(dtype or held[tensor.logical][0].dtype) for name, tensor in wanted.items()}

    def produce(name: str) -> np.ndarray:
        leaf, row = held[wanted[name].logical]
        return _fetch(leaf, row, wanted[name].transposed, dtypes[name])

    if jax.process_index():
        for name in wanted:  # takes part in gathering what is sharded over processes
            produce(name)
        return
    with new_folder(path) as folder:
        write_tensors(folder, {n: (dtypes[n], tensor.shape) for n, tensor in wanted.items()}, produce, max_shard_size)
        if tokenizer_from is not None:
            copy_companions(tokenizer_from, folder)
        config = decoder.arch.to_hf(dtypes[next(iter(wanted))].name)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tensors(
    folder: epath.Path,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    produce: Callable[[str], np.ndarray],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes a checkpoint's weights, one tensor at a time, into one file, or into several and an index.

    Args:
      folder: where there are none yet.
      entries: name -> (dtype, shape), in the order of writing.
      produce: called once for each name, in that order.
      max_shard_size: bytes of a file, above which there are several.

    Raises:
      OSError: if they cannot be written.
    """
    sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in entries.items()}
    files = tensorfiles.shards(sizes, max_shard_size)
    if len(files) == 1:
        tensorfiles.write(folder / SINGLE, entries, produce)
        return
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {}}
    for i, names in enumerate(files):
        name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        tensorfiles.write(folder / name, {n: entries[n] for n in names}, produce)
        index["weight_map"] |= dict.fromkeys(names, name)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def copy_companions(source: epath.PathLike, folder: epath.Path) -> None:
    """Copies tokenizer, chat template and generation config, those that there are."""
    source = resolve(source)
    for name in COMPANIONS:
        if (source / name).exists():
            (source / name).copy(folder / name, overwrite=True)


def _read_json(file: epath.Path, why: str) -> dict[str, Any]:
    if not file.exists():
        raise UserError(f"{file.parent} has no {file.name}; {why}.")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object.")
    return content


def _open_files(folder: epath.Path) -> dict[str, tuple[TensorFile, str]]:
    """Plain name -> (file, key in it), of all tensors of the language model."""
    if (folder / SINGLE).exists():
        files, index = [TensorFile(folder / SINGLE)], None
    elif (folder / INDEX).exists():
        index = _read_json(folder / INDEX, "it names the files").get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise UserError(f"{folder / INDEX} has no weight_map from tensors to files.")
        for name in sorted(set(index.values())):
            if not (folder / name).exists():
                raise UserError(f"{folder / INDEX} names {name}, which is not in the folder.")
        files = [TensorFile(folder / name) for name in sorted(set(index.values()))]
    else:
        pickled = sorted(p.name for p in folder.iterdir() if p.name.endswith(PICKLED))
        if pickled:
            raise UserError(
                f"{folder} holds only pickled weights ({pickled[0]}), which can run code and are never loaded; convert "
                "them to safetensors first."
            )
        raise UserError(
            f"{folder} has neither {SINGLE} nor {INDEX}; to train a new model, set config.model.init to 'random'."
        )
    found: dict[str, tuple[TensorFile, str]] = {}
    for file in files:
        for key in file.entries:
            name = weights.plain_name(key)
            if name in found:
                raise UserError(f"{key} is both in {found[name][0].path} and in {file.path}.")
            if name is not None:
                found[name] = (file, key)
    for key, name in (index or {}).items():
        plain = weights.plain_name(key)
        if plain is not None and plain not in found:
            raise UserError(f"{folder / INDEX} says that {key} is in {name}, but it is not.")
    return found


def _check_tensors(
    arch: Architecture, folder: epath.Path, files: dict[str, tuple[TensorFile, str]], wanted: list[weights.Tensor]
) -> None:
    """The files hold exactly the model's tensors, in the right shapes; a tied model's redundant head is forgotten."""
    if arch.tied and "lm_head.weight" in files:
        if not _equal(files["lm_head.weight"], files.get("model.embed_tokens.weight")):
            raise UserError(
                f"{folder}: lm_head.weight differs from model.embed_tokens.weight although {CONFIG} says "
                "tie_word_embeddings; set that to false to keep both, or delete lm_head.weight."
            )
        del files["lm_head.weight"]
    for tensor in wanted:
        if tensor.name not in files:
            hint = "; is tie_word_embeddings missing in config.json?" if tensor.logical == "head.kernel" else ""
            hint = hint or _other_order(tensor, files)
            raise UserError(f"{folder} has no tensor {tensor.name}{hint or did_you_mean(tensor.name, files) or '.'}")
        file, key = files[tensor.name]
        if file.entries[key].shape != tensor.shape:
            raise UserError(
                f"{file.path}: {key} has shape {list(file.entries[key].shape)}, but {CONFIG} makes it "
                f"{list(tensor.shape)}."
            )
    extra = sorted(set(files) - {tensor.name for tensor in wanted})
    if extra:
        more = f" and {len(extra) - 1} more tensors" if extra[1:] else ""
        raise UserError(
            f"{folder}: {extra[0]}{more} belong to no part of a {arch.family} model as {CONFIG} describes it."
        )


def _other_order(tensor: weights.Tensor, files: Mapping[str, Any]) -> str:
    """What is wrong where the files hold the norms of the other order of norm and sum."""
    layer, _, norm = tensor.name.rpartition(".weight")[0].rpartition(".")
    other = {"post_feedforward_layernorm": ("input_layernorm", "Pre-LN", "Post-LN")}
    other["input_layernorm"] = ("post_feedforward_layernorm", "Post-LN", "Pre-LN")
    if norm not in other or f"{layer}.{other[norm][0]}.weight" not in files:
        return ""
    _, held, asked = other[norm]
    return (
        f": that layer was trained as {held}, and {CONFIG} makes it {asked}, which would compute something else; a "
        "trained model keeps the layers it was trained with, and Mix-LN is for training from random weights."
    )


def _equal(one: tuple[TensorFile, str], other: tuple[TensorFile, str] | None) -> bool:
    if other is None or one[0].entries[one[1]][:2] != other[0].entries[other[1]][:2]:
        return False
    rows = one[0].entries[one[1]].shape[0]
    parts = [(slice(start, start + 4096),) for start in range(0, rows, 4096)]
    return all(np.array_equal(one[0].read(one[1], part), other[0].read(other[1], part)) for part in parts)


def _fetch(leaf: Any, row: int | None, transposed: bool, dtype: np.dtype) -> np.ndarray:
    """One tensor on the host, as the file wants it."""
    if isinstance(leaf, np.ndarray):
        array = leaf if row is None else leaf[row]
        return (array.T if transposed else array).astype(dtype)
    whole = leaf.sharding
    if isinstance(whole, NamedSharding):
        whole = NamedSharding(whole.mesh, PartitionSpec())
    return np.asarray(_fetcher(whole, row is not None, transposed, dtype)(leaf, np.int32(row or 0)))


@functools.cache
def _fetcher(sharding: Any, stacked: bool, transposed: bool, dtype: np.dtype):
    def fetch(leaf, row):
        array = jax.lax.dynamic_index_in_dim(leaf, row, 0, keepdims=False) if stacked else leaf
        return (array.T if transposed else array).astype(dtype)

    return jax.jit(fetch, out_shardings=sharding)
