"""Checkpoints of the train state, with Orbax: asynchronous, atomic, keep-latest and keep-best."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxsft.config import CheckpointConfig
from jaxsft.errors import UserError
from jaxsft.training.state import TrainState

Tree = Any
BEST = "eval_loss"
LARGE = 1 << 24  # bytes of a stack of layers above which each layer is stored, and can be read, on its own


class Checkpoints:
    """The folder `checkpoints/` of a workdir.

    A save that did not finish leaves only a temporary folder, which is never listed and is removed at the next start.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        config: CheckpointConfig,
        read_only: bool = False,
        snapshots: Sequence[int] = (),
    ):
        """Opens the folder.

        Args:
          directory: it.
          config: what is kept.
          read_only: whether another process may be writing it.
          snapshots: steps that are kept whatever comes after them.
        """
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(config.keep_latest), policies.CustomSteps(snapshots)]
        if config.keep_best:
            best = policies.BestN(
                get_metric_fn=lambda m: m[BEST],
                reverse=True,
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        path = epath.Path(directory)
        # Orbax writes arrays to absolute paths only; what epath calls absolute would drop the scheme of gs://.
        self._directory = path if "://" in os.fspath(path) else path.absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
        )

    @property
    def latest(self) -> int | None:
        """The last whole checkpoint's step."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Tree, counters: dict[str, Any], eval_loss: float | None = None) -> None:
        """Starts a save: the arrays are copied before it returns, and written in the background.

        Args:
          step: steps done.
          state: the tree to save.
          counters: JSON values of the host that go with the state.
          eval_loss: what keep-best compares.

        Raises:
          UserError: if this or the save before it could not be written (say, the disk is full).
        """
        metrics = None if eval_loss is None else {BEST: eval_loss}
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _storage
        with context:
            self._guard(
                lambda: self._checkpointer.save_async(
                    step, state, metrics=metrics, custom_metadata=counters, force=True
                )
            )

    def wait(self) -> None:
        """Until everything saved is whole on disk; errors as in `save`."""
        self._guard(self._checkpointer.wait)

    def restore(self, step: int, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
        """The state of a step, each array straight into its sharding, and its counters.

        Args:
          step: a step of `checkpoints/`.
          abstract: tree of ShapeDtypeStructs with shardings.
        """
        try:
            state = self._checkpointer.load(step, abstract)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"checkpoint {step} in {self._directory} does not fit this config's state: {error}"
            ) from error
        return state, dict(self._checkpointer.metadata(step).custom_metadata or {})

    def restore_parameters(self, step: int, state: TrainState) -> TrainState:
        """The parameters and `aux` of a step alone; its optimizer state is neither read nor held.

        Args:
          step: a step of `checkpoints/`.
          state: abstract, as for `restore`.
        """
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            loaded, _ = self.restore(step, {"params": state.params, "aux": state.aux})
        return dataclasses.replace(state, **loaded, opt_state=None)

    def shapes(self, step: int) -> Tree:
        """What a step's state holds: a tree of objects with `shape` and `dtype`."""
        return self._checkpointer.metadata(step).metadata

    def read(self, step: int, path: Sequence[str], row: int | None = None) -> np.ndarray:
        """One array of a step's state, or one row of it; of a large stack no other row is read.

        Args:
          step: a step of `checkpoints/`.
          path: of the array in the state, such as ("params", "embed", "embedding").
          row: along the first axis; None is all of it.
        """
        folder = os.fspath(self._directory / str(step) / "state")
        base = folder if "://" in folder else f"file://{folder}"
        store = {"driver": "ocdbt", "base": base, "path": ".".join(path) + "/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True, read=True).result()
        return (array if row is None else array[row]).read().result()

    @property
    def steps(self) -> list[int]:
        """Of the whole checkpoints, in rising order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def close(self) -> None:
        """Waits, and releases the background threads."""
        self._guard(self._checkpointer.close)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            raise UserError(
                f"a checkpoint could not be written to {self._directory}: {str(error).splitlines()[0]}; "
                "free or choose another disk and run the same command again."
            ) from error


def _storage(path: Any, value: Any) -> Any:
    """A chunk a layer for large stacks; else whoever wants one layer would read them all."""
    stacked = any(getattr(key, "key", None) == "stacks" for key in path)
    if not stacked or getattr(value, "nbytes", 0) <= LARGE:
        return None
    layer = value.nbytes // value.shape[0]
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=layer, shard_axes=(0,))


def snapshot_steps(count: int, steps: int) -> list[int]:
    """The steps after which a run of so many steps keeps snapshots: at equal distances, none at 0, one at the end."""
    return sorted({max(1, round((i + 1) * steps / count)) for i in range(count)})


def abstract_like(shapes: Tree, shardings: Tree) -> Tree:
    """ShapeDtypeStructs with shardings, as `restore` and ahead-of-time compilation want them."""
    return jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)
