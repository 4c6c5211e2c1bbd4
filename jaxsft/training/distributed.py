"""Joining the processes of a pod, or of several on one machine."""

import os

import jax

# Environments in which jax finds the other processes by itself: TPU pods and slices, Slurm, Open MPI.
_SEVERAL = (
    lambda e: "," in e.get("TPU_WORKER_HOSTNAMES", ""),
    lambda e: "MEGASCALE_COORDINATOR_ADDRESS" in e,
    lambda e: int(e.get("SLURM_NTASKS", 1)) > 1,
    lambda e: int(e.get("OMPI_COMM_WORLD_SIZE", 1)) > 1,
)


def initialize() -> None:
    """Calls `jax.distributed.initialize` where there are several processes; to be called before any device is used.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name them explicitly.
    """
    environment = os.environ
    if "JAX_NUM_PROCESSES" in environment:
        jax.distributed.initialize(
            environment["JAX_COORDINATOR_ADDRESS"],
            int(environment["JAX_NUM_PROCESSES"]),
            int(environment["JAX_PROCESS_ID"]),
        )
    elif any(several(environment) for several in _SEVERAL):
        jax.distributed.initialize()
