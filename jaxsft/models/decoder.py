"""The decoder: one static object that turns parameters and tokens into hidden states and logits.

Parameters are nested dicts of plain arrays, layers stacked on a leading axis (see `jaxsft.models.layout`):

    {"embed": {"embedding": [V, D]}, "stacks": {"0": {"0": {...block, [layers, ...]}}}, "norm": {"scale": [D]},
     "head": {"kernel": [D, V]}}                                                        (head only where not tied)

`stacks[s][u]` holds the layers at position u of the unit that stack s repeats. A `Decoder` owns no arrays; jitted
functions close over it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsft.models.architecture import Architecture, LayerKind
from jaxsft.models.block import Block, Cache, Rows, cache_slots, named, rms_norm, rotary_tables
from jaxsft.models.projection import Context, dense, project
from jaxsft.sharding import constrain

Params = dict[str, Any]


class Output(NamedTuple):
    """What a forward pass returns.

    Attributes:
      hidden: [B, T, embed] after the final norm, in the compute dtype.
      aux: the adapters' reports, in the tree of the modules, those of layers stacked on a leading axis.
      cache: the cache with this call's tokens, or None.
      unnormed: [B, T, embed] before the final norm; costs nothing where it is not used.
    """

    hidden: jax.Array
    aux: dict[str, Any]
    cache: dict[str, Any] | None
    unnormed: jax.Array


class Decoder:
    """A causal language model.

    Args:
      arch: what it consists of.
      dtype: the compute dtype; norms, rotation, softmax and logits are computed in at least float32.
      remat: what the backward pass recomputes: "none", "dots" (everything but matrix products) or "block" (everything
        but the layers' inputs).
      attention: see `jaxsft.models.attention.attention`.
    """

    def __init__(self, arch: Architecture, *, dtype: Any = jnp.float32, remat: str = "block", attention: str = "auto"):
        self.arch, self.dtype, self.remat, self.attention = arch, jnp.dtype(dtype), remat, attention
        self._graphs: dict[LayerKind, Any] = {}
        self._block_states: dict[LayerKind, Any] = {}
        for kind in dict.fromkeys(arch.layers):
            split = nnx.split(nnx.eval_shape(lambda kind=kind: self._block(kind)))
            self._graphs[kind], self._block_states[kind] = split

    def init(self, key: jax.Array, embed_std: float | None = None, scaled: bool = False) -> Params:
        """New float32 parameters: matrices normal with deviation `arch.init_std`, biases 0, norms neutral.

        Args:
          key: of the draws.
          embed_std: deviation of the embedding instead, or None.
          scaled: the maps that write to the residual stream, `o_proj` and `down_proj`, have their deviation divided by
            sqrt(2 layers), in Pre-LN layers only.
        """
        arch = self.arch
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("embed", "head", "layers"))}
        normal = lambda name, shape, std: std * jax.random.normal(keys[name], shape)
        layer_keys = jax.vmap(lambda i: jax.random.fold_in(keys["layers"], i))(jnp.arange(arch.num_layers))

        def layers(kind: LayerKind, indices: jax.Array) -> Params:
            new = lambda key: nnx.to_pure_dict(nnx.state(self._block(kind, key)))
            params = jax.vmap(new)(layer_keys[indices])
            if scaled and not kind.post_ln:
                for linear in (params["attn"]["o_proj"], params["mlp"]["down_proj"]):
                    linear["kernel"] *= (2 * arch.num_layers) ** -0.5
            return params

        params = {
            "embed": {"embedding": normal("embed", (arch.vocab_size, arch.embed_dim), embed_std or arch.init_std)},
            "stacks": {
                str(s): {str(u): layers(kind, self._indices(s, u)) for u, kind in enumerate(stack.unit)}
                for s, stack in enumerate(arch.stacks)
            },
            "norm": {"scale": (jnp.zeros if arch.unit_offset else jnp.ones)(arch.embed_dim)},
        }
        if not arch.tied:
            params["head"] = {"kernel": normal("head", (arch.embed_dim, arch.vocab_size), arch.init_std)}
        return params

    def abstract_params(self, param_dtype: Any = jnp.float32) -> Params:
        """The tree of parameters as ShapeDtypeStructs."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(param_dtype)), shapes)

    def logical_axes(self) -> Params:
        """The tree of parameters as tuples of logical axis names, see `jaxsft.sharding.RULES`."""
        is_param = lambda x: isinstance(x, nnx.Variable)
        named = lambda p: ("layers", *p.get_metadata("axes"))
        block = lambda kind: nnx.to_pure_dict(jax.tree.map(named, self._block_states[kind], is_leaf=is_param))
        axes = {
            "embed": {"embedding": ("vocab", "embed")},
            "stacks": {
                str(s): {str(u): block(kind) for u, kind in enumerate(stack.unit)}
                for s, stack in enumerate(self.arch.stacks)
            },
            "norm": {"scale": ("norm",)},
        }
        return axes if self.arch.tied else axes | {"head": {"kernel": ("embed", "vocab")}}

    def forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        *,
        adapters: dict[str, Any] | None = None,
        ctx: Context = Context(),  # noqa: B008 (frozen)
        cache: dict[str, Any] | None = None,
        reach: int | None = None,
        embed_noise: jax.Array | None = None,
    ) -> Output:
        """Hidden states of packed rows.

        Args:
          params: see the module; kernels may be quantised.
          tokens, positions, segment_ids: int32 [B, T], see `jaxsft.data.batch.Batch`.
          adapters: nodes at the paths of the linear maps, {"stacks": {"0": {"0": {"attn": {"q_proj": node}}}}, "embed":
            node, "head": node}, leaves of stacked ones with a leading layer axis; None or missing is no adapter.
          ctx: what adapters may know; its key is folded with the layer and the name of the linear map.
          cache: from `init_cache` or an earlier call. The tokens are then appended at their positions, and see those
            cached before; a row is one segment, padding may stand anywhere.
          reach: slots of the cache that are read, which are all where every position is below it; None is all.
          embed_noise: [B, T, embed], added to the embeddings, or None.
        """
        arch, adapters, aux = self.arch, adapters or {}, {}
        x, report = project(tokens, params["embed"]["embedding"], adapters.get("embed"), named(ctx, "embed"))
        if report:
            aux["embed"] = report
        # The factor is rounded to the compute dtype, as it was when these models were trained.
        x = x.astype(self.dtype) * jnp.asarray(arch.embed_scale, self.dtype)
        x = x if embed_noise is None else x + embed_noise.astype(self.dtype)
        x = constrain(x, "batch", "length", "act_embed")
        ropes = dict.fromkeys(kind.rope for kind in arch.layers)
        rotary = {rope: rotary_tables(rope, arch.head_dim, positions, self.dtype) for rope in ropes}
        cached = None if cache is None else _mark(cache["segment_ids"], segment_ids, positions)
        rows = Rows(segment_ids, positions, rotary, cached if reach is None else cached[:, :reach])
        stacks = {}
        for s in range(len(arch.stacks)):
            held = {} if cache is None else cache["stacks"][str(s)]
            own = adapters.get("stacks", {}).get(str(s), {})
            x, reports, stacks[str(s)] = self._run_stack(s, params["stacks"][str(s)], x, rows, own, ctx, held)
            if reports:
                aux.setdefault("stacks", {})[str(s)] = reports
        cache = None if cache is None else {"segment_ids": cached, "stacks": stacks}
        return Output(self.final_norm(params, x), aux, cache, x)

    def final_norm(self, params: Params, unnormed: jax.Array) -> jax.Array:
        """The states that the head reads, [..., embed], from those of the last layer."""
        return rms_norm(unnormed, params["norm"]["scale"], self.arch.norm_eps, self.arch.unit_offset)

    def head(
        self,
        params: Params,
        hidden: jax.Array,
        adapters: dict[str, Any] | None = None,
        ctx: Context = Context(),  # noqa: B008 (frozen)
    ) -> jax.Array:
        """Logits [..., V], in at least float32.

        Args:
          params: all parameters, or `head_params` of them.
          hidden: [..., embed], from `forward`.
          adapters: as for `forward`; not needed with `head_params`, which hold the head's.
          ctx: see `forward`.
        """
        kernel = dense(params["embed"]["embedding"], hidden.dtype).T if self.arch.tied else params["head"]["kernel"]
        adapter = (adapters or {}).get("head", params.get("adapter"))
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        ctx = dataclasses.replace(named(ctx, "head"), out_dtype=wide)
        logits = project(hidden, kernel, adapter, ctx)[0].astype(wide)
        logits = constrain(logits, *("batch", "length")[: hidden.ndim - 1], "vocab") if hidden.ndim == 3 else logits
        cap = self.arch.final_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def head_params(self, params: Params, adapters: dict[str, Any] | None = None) -> Params:
        """What `head` needs of the parameters and adapters, so that a loss differentiates only that."""
        name = "embed" if self.arch.tied else "head"
        adapter = (adapters or {}).get("head")
        return {name: params[name]} | ({} if adapter is None else {"adapter": adapter})

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> dict[str, Any]:
        """An empty cache of `length` slots a row; `dtype` defaults to the compute dtype."""
        arch, dtype = self.arch, self.dtype if dtype is None else dtype
        return {
            "segment_ids": jnp.zeros((batch, length), jnp.int32),
            "stacks": {
                str(s): {str(u): Cache.empty(stack.repeats, batch, length, arch, dtype) for u in range(len(stack.unit))}
                for s, stack in enumerate(arch.stacks)
            },
        }

    def _run_stack(self, s, params, x, rows, adapters, ctx, cache):
        """Scans the repetitions of a stack's unit; the cache is carried, so that it is updated in place."""
        unit = self.arch.stacks[s].unit
        indices = {str(u): self._indices(s, u) for u in range(len(unit))}

        def apply(kind, params, x, adapters, index, row, cache):
            key = None if ctx.key is None else jax.random.fold_in(ctx.key, index)
            block = nnx.merge(self._graphs[kind], params)
            return block(x, rows, adapters, dataclasses.replace(ctx, key=key), cache, row)

        def repetition(carry, layer):
            (x, cache), reports, new = carry, {}, {}
            params, adapters, indices, row = layer
            for u, kind in enumerate(unit):
                block = self._rematerialised(lambda *args, kind=kind: apply(kind, *args))
                name = str(u)
                own = (params[name], x, adapters.get(name, {}), indices[name], row, cache.get(name))
                x, report, held = block(*own)
                reports |= {name: report} if report else {}
                new |= {name: held} if held is not None else {}
            return (x, new), reports

        layers = (params, adapters, indices, jnp.arange(self.arch.stacks[s].repeats))
        (x, cache), reports = jax.lax.scan(repetition, (x, cache), layers)
        return x, reports, cache

    def _rematerialised(self, block):
        if self.remat == "none":
            return block
        policies = jax.checkpoint_policies
        policy = {"dots": policies.dots_with_no_batch_dims_saveable, "block": policies.nothing_saveable}[self.remat]
        return jax.checkpoint(block, policy=policy, prevent_cse=False)

    def _block(self, kind: LayerKind, key: jax.Array | int = 0) -> Block:
        return Block(self.arch, kind, self.attention, nnx.Rngs(key))

    def _indices(self, s: int, u: int) -> jax.Array:
        stack = self.arch.stacks[s]
        return stack.layer(u, jnp.arange(stack.repeats))


def _mark(cached: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    """The slots' segment ids once the tokens are written."""
    slots = cache_slots(segment_ids, positions, cached.shape[1])
    return cached.at[jnp.arange(len(cached))[:, None], slots].set(segment_ids, mode="drop")
