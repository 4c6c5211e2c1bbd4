"""The Fisher information that elastic weight consolidation needs: made before the first step, and kept for a resume."""

import dataclasses
import json

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxsft import files
from jaxsft.config import TrainConfig
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.errors import UserError
from jaxsft.scoring.fisher import diagonal_fisher
from jaxsft.training.program import Program
from jaxsft.training.state import Frozen

KEY = "key.json"  # written last: where it is, the rest is whole
ARRAYS = "diagonal"


class Fisher:
    """The Fisher information of a run's start, where its config asks for it."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, folder: epath.Path):
        """Reads the data.

        Args:
          config: the run's.
          tokenizer: the model's.
          folder: where the Fisher information is kept.

        Raises:
          UserError: for settings that contradict each other, and data that cannot be read.
        """
        wanted = config.objective.regularizers
        self._config, self._folder, self._dataset = config, folder, None
        path = folder if "://" in str(folder) else folder.absolute()
        self._arrays, self._key_file = path / ARRAYS, path / KEY
        named = bool(wanted.ewc_data.path or wanted.ewc_data.sources)
        where = "config.objective.regularizers"
        if not wanted.ewc:
            if named:
                raise UserError(f"{where}.ewc_data is set, but {where}.ewc is 0; give it a coefficient.")
            return
        if config.adapter.kind != "none":
            raise UserError(
                f"{where}.ewc weighs the weights of full fine-tuning, but config.adapter.kind is "
                f"{config.adapter.kind!r}; use l2_to_start or kl_to_base under an adapter."
            )
        if not named:
            raise UserError(f"{where}.ewc needs data that the start should not forget; set {where}.ewc_data.path.")
        self._dataset = prepare(wanted.ewc_data, tokenizer, config.seed)
        if jax.process_index() == 0:
            print(f"data of the Fisher information: {self._dataset.report}", flush=True)

    def fingerprints(self) -> dict[str, str]:
        """Of the data, for the record of the run."""
        return {} if self._dataset is None else {"ewc_data": self._dataset.fingerprint}

    def add(self, program: Program, frozen: Frozen) -> Frozen:
        """The frozen arrays with the Fisher information, read or made; as they are where no term asks for it."""
        if program.frozen.fisher is None:
            return frozen
        if self._key_file.exists() and json.loads(self._key_file.read_text()) == self._key():
            return dataclasses.replace(frozen, fisher=ocp.load(self._arrays, program.frozen.fisher))
        self._dataset.check_vocabulary(program.decoder.arch.vocab_size)
        fisher = diagonal_fisher(
            program.decoder,
            program.method,
            frozen.parts(frozen.start, {}),
            self._rows(),
            program.mesh,
            self._config.objective.chunk_size,
        )
        ocp.save(self._arrays, fisher, overwrite=True)
        if jax.process_index() == 0:
            files.write_json(self._key_file, self._key())
        return dataclasses.replace(frozen, fisher=fisher)

    def _rows(self) -> Batch:
        """Examples drawn at random without repetition, one a row; all of them where there are fewer than asked for."""
        wanted = self._config.objective.regularizers
        longest = int(self._dataset.lengths.max())
        data = dataclasses.replace(wanted.ewc_data, packing=False, max_length=longest, grouping="example")
        loader = Loader(self._dataset, data, min(wanted.ewc_examples, len(self._dataset)), self._config.seed)
        return loader.batch(0)

    def _key(self) -> dict[str, object]:
        """What decides the numbers besides the model, which the run's record holds."""
        wanted, model = self._config.objective.regularizers, self._config.model
        return {"data": self._dataset.fingerprint, "examples": wanted.ewc_examples, "dtype": model.dtype}
