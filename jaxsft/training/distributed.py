"""The processes of a pod, or several on one machine: joining them, waiting for all, speaking once."""

import glob
import os
from typing import Any

import jax

from jaxsft.errors import UserError

NAMED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Calls `jax.distributed.initialize` where there may be several processes, before any device is used.

    The environment names them (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), or jax finds them by
    itself: on TPU VMs (always, for one host too: preemption notices come that way), under Slurm and Open MPI.

    Raises:
      UserError: if the environment names them in part.
    """
    environment = os.environ
    given = [name for name in NAMED if name in environment]
    if given:
        if missing := [name for name in NAMED if name not in environment]:
            raise UserError(f"{given[0]} is set but {missing[0]} is not; set all of {', '.join(NAMED)}, or none.")
        address, count, index = (environment[name] for name in NAMED)
        jax.distributed.initialize(address, int(count), int(index))
    elif _tpu_attached() or any(int(environment.get(n, 1)) > 1 for n in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        jax.distributed.initialize()


def wait_for_all(name: str) -> None:
    """Until every process is here: what one has written, the others may read."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def say(text: Any) -> None:
    """Prints, once."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _tpu_attached() -> bool:
    """Whether TPU chips are in this machine and meant to be used."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    return "tpu" in wanted and bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
