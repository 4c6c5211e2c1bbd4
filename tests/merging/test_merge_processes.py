"""Two real processes: models that are spread over them are merged and compressed as by one."""

import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
from safetensors.numpy import load_file

from jaxsft.compression.run import compress
from jaxsft.config import CompressConfig, MergeConfig
from jaxsft.merging.merge import merge
from jaxsft.models.checkpoint import save_hf
from tests.evaluation.folders import make_folder
from tests.training.conftest import devices, environment

BOTH = """
    import sys
    from jaxsft.training.distributed import initialize
    initialize()
    from jaxsft.compression.run import compress_or_find
    from jaxsft.config import CompressConfig, MergeConfig
    from jaxsft.merging.merge import merge
    start, small, merged, again = sys.argv[1:]
    merge(MergeConfig(models=(start, small)), merged)
    compress_or_find(CompressConfig(model=small, base=start, bits=(16,), columns=(5,)), again)
"""


def test_a_model_that_is_opened_whole(tmp_path):
    decoder, params = make_folder(tmp_path / "start")
    tuned = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    save_hf(tmp_path / "tuned", decoder, tuned, tokenizer_from=tmp_path / "start")
    config = CompressConfig(str(tmp_path / "tuned"), str(tmp_path / "start"), bits=(16,), columns=(5,))
    compress(config, tmp_path / "small")  # opened whole, and split over all devices
    merge(MergeConfig(models=(str(tmp_path / "start"), str(tmp_path / "small"))), tmp_path / "alone")

    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    paths = [str(tmp_path / name) for name in ("start", "small", "merged", "again")]
    logs = [tmp_path / f"log.{i}" for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(BOTH), *paths],
            env=environment(XLA_FLAGS=devices(2), JAX_PROCESS_ID=str(i), **job),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for i, log in enumerate(logs)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0], "".join(log.read_text() for log in logs)
    alone, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "merged"))
    for name, tensor in alone.items():
        np.testing.assert_allclose(merged[name], tensor, rtol=1e-6, atol=1e-7)
    files = sorted(file.name for file in (tmp_path / "small").glob("delta-*"))
    assert files == sorted(file.name for file in (tmp_path / "again").glob("delta-*")) and files
    for name in files:
        assert load_file(tmp_path / "small" / name).keys() == load_file(tmp_path / "again" / name).keys()
