import jax
import numpy as np

from jaxsft.config import CheckpointConfig
from jaxsft.training.checkpoint import Checkpoints


def test_a_relative_folder_is_saved_to_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"kernel": jax.numpy.arange(6.0).reshape(2, 3)}
    checkpoints = Checkpoints("runs/first/checkpoints", CheckpointConfig())
    checkpoints.save(3, state, {"num_tokens": 7})
    checkpoints.close()
    assert (tmp_path / "runs/first/checkpoints/3").is_dir()

    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    reader = Checkpoints("runs/first/checkpoints", CheckpointConfig(), read_only=True)
    restored, counters = reader.restore(reader.latest, abstract)
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    assert counters == {"num_tokens": 7}
    reader.close()
