"""Shared fixtures. Real data is read from `JAXSFT_TEST_DATA` or `../shared/data`; its tests skip where it is absent."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Eight fake devices; and the suite compiles far more than it computes, so the compiler need not try hard: without its
# fusion emitters it takes a quarter of the time. A collective holds a thread of XLA's pool on each device; with no more
# threads than devices none is left for the matrix product of the device that the others wait for. A machine that is
# busy elsewhere may also take longer than the usual 40 s. XLA ends a process that gives it a flag it does not know, as
# jax 0.12 does not know that of the emitters.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    + "--xla_cpu_use_fusion_emitters=false " * (int(version("jax").split(".")[1]) < 12)
    + "--xla_cpu_parallel_codegen_split_count=1",
)
# Kept programs serve runs that go on, the other worker and processes of their own.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MOST_MEMORY = float(os.environ.get("JAXSFT_TEST_MEMORY", 3.0))  # GiB that a worker may hold before it is tidied
REAL_DATA = Path(os.environ.get("JAXSFT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights, tokenizers and data."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set JAXSFT_TEST_DATA to a folder that has it")
    return REAL_DATA


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder; nothing may write there."""
    from tests.evaluation.folders import make_folder

    path = tmp_path_factory.mktemp("models") / "source"
    make_folder(path)
    return path


@pytest.fixture(scope="session")
def mesh():
    """One device's."""
    import jax

    from jaxsft.config import MeshConfig
    from jaxsft.sharding import make_mesh

    return make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


@pytest.fixture(autouse=True)
def tidied() -> Iterator[None]:
    """Lets compiled programs go, and their memory, where they have become many: a worker makes thousands of them."""
    yield
    if resident_gib() > MOST_MEMORY:
        import jax

        jax.clear_caches()
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_gib() -> float:
    """What this process holds of the machine's memory; 0 where that cannot be asked so."""
    if not sys.platform.startswith("linux"):
        return 0.0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
