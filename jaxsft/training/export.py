"""A model leaves as a Hugging Face checkpoint, or the adapter alone: in a folder of its own, or for PEFT if a LoRA."""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.adapters.folder import Card, Saved, Stored, collect, save_adapter, save_stored
from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.peft import save_peft
from jaxsft.adapters.spiel.method import SpIEL
from jaxsft.adapters.spiel.tensors import save_sft, tuned_weights
from jaxsft.data.conversation import Message
from jaxsft.data.templates import BUILT_IN, NO_TEMPLATE, Template, load_template
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.decoding.prompts import Prompter
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder, new_folder
from jaxsft.models import layout
from jaxsft.models.checkpoint import copy_companions, fingerprint, save_hf
from jaxsft.models.families import MIX_LN
from jaxsft.models.quantized import QuantizedKernel, quantize

PROBE = "The quick brown fox jumps over the lazy dog. 0 1 2 3 4 5 6 7 8 9 {x: [y, z]} Ünïcödé"

CHAT = [
    {"role": "user", "content": "Hello, are you there?"},
    {"role": "assistant", "content": "Yes.\n\nI am."},
    {"role": "user", "content": "good, é"},
]


def export_hf(
    model: Any, path: epath.PathLike, mesh: Mesh, dtype: str | None = None, merge_base: str = "dequantised"
) -> str:
    """Writes a checkpoint that transformers loads, adapters merged, with tokenizer and chat template.

    Adapters are added to the weights in float32, and the sum is rounded once.

    Args:
      model: a `jaxsft.training.restore.OpenModel`.
      path: a new or empty folder.
      mesh: the model's.
      dtype: of the tensors in the files; None is that of the checkpoint that the model came from.
      merge_base: what an adapter over a quantised base is added to, see `OpenModel.merged`.

    Returns:
      A line that says how much merging and rounding changed the logits, and over a quantised base a warning of what
      quantising does to the adapter's update.

    Raises:
      UserError: for a merge base that the model does not have, if the folder holds something or cannot be written.
    """
    check_new_folder(path)
    dtype = jnp.dtype(dtype or source_dtype(model))
    with jax.set_mesh(mesh):
        merged = model.merged(merge_base)
        change = logit_change(model, merged, dtype)
        warning = _drift_warning(model, merged, merge_base)
    with new_folder(path) as folder:
        save_hf(folder, model.decoder, merged, dtype, tokenizer_from=model.companions or model.source)
        note = write_template(model, folder)
    line = f"{path}: {dtype.name} checkpoint; the largest change of a logit by merging and rounding is {change:.2g}"
    return line + note + _own_format(model) + warning


def export_peft(model: Any, path: epath.PathLike) -> str:
    """Writes the adapter as `peft` loads it, with tokenizer and chat template.

    Args:
      model: a `jaxsft.training.restore.OpenModel` of a LoRA run.
      path: a new or empty folder.

    Raises:
      UserError: if the model is no LoRA run, or the folder holds something or cannot be written.
    """
    if not isinstance(model.method, LoRA):
        other = "hf" if model.adapters is None else "adapter"
        raise UserError(f"the model is not a LoRA run, so PEFT has no format for it; use --format={other}.")
    with new_folder(path) as folder:
        copy_companions(model.companions or model.source, folder)
        note = write_template(model, folder) + _base_note(model)
        save_stored(folder, _stored(model))
        save_peft(folder, model.decoder.arch, model.adapter_params, model.method.config, str(model.source))
    return f"{path}: LoRA adapter of rank {model.method.config.rank} for {model.source}{note}{_own_format(model)}"


def _own_format(model: Any) -> str:
    """What is to be known of a model that transformers does not have."""
    count = model.decoder.arch.n_post_layers
    if not count:
        return ""
    return (
        f"; note: transformers cannot run a model with {count} Post-LN layer{'s' if count > 1 else ''} and refuses its "
        f"model_type {MIX_LN}; jaxsft's own scripts read it"
    )


def export_sft(model: Any, path: epath.PathLike) -> str:
    """Writes tuned weights as the authors of SpIEL do, with tokenizer and chat template.

    Args:
      model: a `jaxsft.training.restore.OpenModel` of a SpIEL run.
      path: a new or empty folder.

    Raises:
      UserError: if the model is no SpIEL run, or the folder holds something or cannot be written.
    """
    if not isinstance(model.method, SpIEL):
        raise UserError("the model is not a SpIEL run, so it has no tuned weights by themselves; use --format=adapter.")
    tuned = tuned_weights(model.method, model.parts.params, model.parts.aux)
    with new_folder(path) as folder:
        copy_companions(model.companions or model.source, folder)
        note = write_template(model, folder) + _base_note(model)
        save_sft(folder, model.decoder.arch, tuned, model.method.config, str(model.source))
    return f"{path}: {sum(len(idx) for idx, _ in tuned.values()):,} tuned weights for {model.source}{note}"


def export_adapter(model: Any, path: epath.PathLike) -> str:
    """Writes the adapter, of whatever kind, as `--model` and `config.adapter.start` read it.

    Args:
      model: a `jaxsft.training.restore.OpenModel` of an adapter.
      path: a new or empty folder.

    Raises:
      UserError: if there is no adapter, or the folder holds something or cannot be written.
    """
    if model.adapters is None or model.parts is None:
        raise UserError("the model has no adapter that could be written by itself; use --format=hf.")
    arch, method = model.decoder.arch, model.method
    params = collect(arch, model.parts.params, method.update_mask(model.parts.params))
    saved = Saved(method.name, method.config, params, collect(arch, model.parts.aux))
    built_in = model.template in (*BUILT_IN, NO_TEMPLATE, "auto")
    template = model.template if built_in else "auto"
    base = str(model.source), fingerprint(model.source)
    card = Card(*base, template, model.condition, _stored(model), model.types)
    with new_folder(path) as folder:
        copy_companions(model.companions or model.source, folder)
        note = write_template(model, folder) + _base_note(model)
        save_adapter(folder, saved, card)
    numbers = sum(array.size for array in params.values())
    return f"{path}: adapter of the kind {method.name}, {numbers:,} trained numbers, for {model.source}{note}"


def source_dtype(model: Any) -> str:
    """The dtype that the `config.json` of the model's source names; float32 if it names none."""
    config = json.loads(model.decoder.arch.source)
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def merge_drift(model: Any, merged: Any, merge_base: str) -> float:
    """What quantising does to the weights of a run over a quantised base, relative to what its adapter does to them.

    Both are norms over all quantised kernels. Of a merge into the full-precision base: what quantising had changed, for
    by that the result differs from what was trained. Else: what it will change if the result is quantised again.
    """
    trained = merged if merge_base == "dequantised" else model.merged()

    @jax.jit
    def squares(kernel: QuantizedKernel, now: jax.Array, then: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        now = now.astype(jnp.float32)
        if then is None:
            then = quantize(now, kernel.kind, kernel.groups is not None).dequantize(jnp.float32)
        change, error = now - kernel.dequantize(jnp.float32), then.astype(jnp.float32) - now
        return jnp.sum(jnp.square(change)), jnp.sum(jnp.square(error))

    sums = np.zeros(2)
    for path, kernel in layout.leaves(model.params):
        if isinstance(kernel, QuantizedKernel):
            other = None if merge_base == "dequantised" else layout.get(merged, path)
            sums += [float(x) for x in squares(kernel, layout.get(trained, path), other)]
    return float(np.sqrt(sums[1] / sums[0])) if sums[0] else math.inf


def _stored(model: Any) -> Stored:
    """How the model's base is stored."""
    kernels = (leaf for _, leaf in layout.leaves(model.params) if isinstance(leaf, QuantizedKernel))
    return next((Stored(kernel.kind, kernel.groups is not None) for kernel in kernels), Stored())


def _base_note(model: Any) -> str:
    stored = _stored(model)
    if stored.quantization == "none":
        return ""
    return f"; note: it was trained over a base stored {stored.words}, so use it over one like that"


def _drift_warning(model: Any, merged: Any, merge_base: str) -> str:
    if model.adapters is None or _stored(model).quantization == "none":
        return ""
    drift = merge_drift(model, merged, merge_base)
    if merge_base == "dequantised":
        return (
            "; warning: the adapter is merged into the dequantised base, with which it was trained; quantising the "
            f"result again would change the weights by {drift:.2g} of what the adapter did"
        )
    return (
        "; warning: the adapter was trained over quantised weights; those that it is merged into differ from them by "
        f"{drift:.2g} of what the adapter did"
    )


def logit_change(model: Any, merged: Any, dtype: Any) -> float:
    """The largest absolute difference of a logit between the model and its merged, rounded form, on a short text."""
    ids = model.tokenizer.encode(PROBE).ids[: model.decoder.arch.max_positions]

    @functools.partial(jax.jit, static_argnames="rounded")
    def logits(params: Any, adapters: Any, rounded: bool) -> jax.Array:
        params = jax.tree.map(lambda p: p.astype(dtype), params) if rounded else params
        row = jnp.array([ids])
        hidden = model.decoder.forward(params, row, jnp.arange(len(ids))[None], jnp.ones_like(row), adapters=adapters)
        return model.decoder.head(model.decoder.head_params(params, adapters), hidden.hidden)

    before, after = logits(model.params, model.adapters, False), logits(merged, None, True)
    return float(np.abs(np.asarray(before, np.float64) - np.asarray(after, np.float64)).max())


def standalone(template: Template, tokenizer: Tokenizer) -> tuple[str, bool]:
    """A chat template as Jinja text that needs nothing of this library.

    What only this library defines, such as the condition, gets its value as a default in the text. transformers
    tokenises a conversation as a whole; for a template that is by piece, the blank or the nothing between two texts
    with which that gives the same ids is found by trying. A byte-level tokenizer may still join a colon with
    punctuation that a message begins with.

    Args:
      template: with its condition.
      tokenizer: the model's.

    Returns:
      The text, and whether transformers prompts with it by the same ids, on a probe.
    """
    own = {name: value for name, value in template.variables.items() if name not in tokenizer.variables}
    if not template.by_piece:
        return _with_defaults(template, own), True
    prompt = Prompter(tokenizer, template, (), "").encode([Message(**turn) for turn in CHAT])
    sources = [_with_defaults(template, {**own, "piece": piece}) for piece in (" ", "")]
    same = [source for source in sources if _ids(tokenizer, source) == prompt]
    return (same or sources)[0], bool(same)


def _with_defaults(template: Template, values: dict[str, str]) -> str:
    """The template's text, behind lines that give its variables these values where they have none."""
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items() if name in template.reads}
    return "".join(f"{{%- set {n} = {n} | default({value}) %}}\n" for n, value in quoted.items()) + template.source


def _ids(tokenizer: Tokenizer, source: str) -> list[int]:
    """How transformers prompts with a chat template."""
    return tokenizer.hf.apply_chat_template(CHAT, chat_template=source, add_generation_prompt=True, return_dict=False)


def write_template(model: Any, folder: epath.Path) -> str:
    """The chat template that the run trained with, so that whoever loads the folder prompts as it learnt.

    Args:
      model: a `jaxsft.training.restore.OpenModel`, or what has its tokenizer, template and condition.
      folder: an exported checkpoint.

    Returns:
      What is to be known of it, "" for nothing.
    """
    if model.template == NO_TEMPLATE or model.template == model.condition == "auto":
        return ""
    template = load_template(model.template, model.tokenizer, model.condition)
    source, same = standalone(template, model.tokenizer)
    (folder / "chat_template.jinja").write_text(source)
    if same:
        return ""
    return "; note: transformers tokenises the chat template to other ids than the model was trained with"
