"""jaxsft as a model of lm-evaluation-harness, under the name `jaxsft`; needs `pip install 'jaxsft[eval]'`.

    python scripts/harness.py --model_args path=DIR --tasks arc_easy,gsm8k --output_path=OUT

or, where the harness is called from Python, `import jaxsft.evaluation.harness.model` and
`simple_evaluate(model="jaxsft", model_args={"path": ...}, ...)`. The harness itself finds no models outside its own
package, so something has to import this module.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax

from jaxsft import __version__
from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.harness.requests import Responder
from jaxsft.models.checkpoint import fingerprint
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from jaxsft.training.runs import is_workdir, weights_fingerprint
from jaxsft.validation import did_you_mean, validate

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise UserError(f"lm-evaluation-harness is not installed ({error}); pip install 'jaxsft[eval]'.") from error


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `--model_args name=value,...` may name.

    Attributes:
      path: a Hugging Face folder or hub name, an adapter's folder, a workdir, or world:base.
      base: of an adapter: its base, instead of the one that it names.
      dtype: compute dtype, see `ModelConfig.dtype`.
      param_dtype: see `ModelConfig.param_dtype`.
      quantization: see `ModelConfig.quantization`.
      tensor: devices that split each matrix; the others split rows and parameters (`MeshConfig`).
      batch_size: rows scored at once, and prompts continued at once; "auto" is 16. `--batch_size` says the same.
      max_length: tokens of a context and what follows; 0 is the model's own context.
      template: chat template for `--apply_chat_template`; "auto" is the one of the model's training, or else its
        tokenizer's.
      condition: what that template's prefixes are conditioned on, see `DataConfig.condition`.
      seed: of what is drawn.
    """

    path: str = ""
    base: str = ""
    dtype: str = "auto"
    param_dtype: str = "auto"
    quantization: str = "none"
    tensor: int = 1
    batch_size: int | str = "auto"
    max_length: int = 0
    template: str = "auto"
    condition: str = "auto"
    seed: int = 0

    def __post_init__(self):
        if not self.path:
            raise UserError("--model_args names no model; give path=DIR, a Hugging Face folder or a workdir.")
        for name in ("tensor", "max_length", "seed", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) or str(value).isdigit() or (name, value) == ("batch_size", "auto")):
                raise UserError(f"--model_args: {name} is {value!r}; it is a number.")


@register_model("jaxsft")
class JaxSFT(LM):
    """A model folder, an adapter or a workdir, on all devices.

    For the harness there is one worker (`world_size` 1): requests are split over devices here. Nothing is kept between
    calls, unless the harness is asked to (`--use_cache`).
    """

    def __init__(self, device: str | None = None, max_batch_size: int | None = None, **arguments: Any):
        """Opens the model.

        Args:
          device: what the harness passes; JAX takes what there is (`JAX_PLATFORMS`).
          max_batch_size: likewise; batches have the size that they have.
          **arguments: see `Arguments`.

        Raises:
          UserError: for a name or value that is none, or a model that cannot be opened.
        """
        super().__init__()
        chosen = _arguments(arguments)
        mesh = make_mesh(MeshConfig(tensor=int(chosen.tensor)))
        kept = ("path", "base", "dtype", "param_dtype", "quantization")
        config = ModelConfig(**{name: str(getattr(chosen, name)) for name in kept})
        validate(config, "--model_args")
        self._path, self._model = config.path, open_model(config.path, config, mesh)
        self.batch_size = 16 if chosen.batch_size == "auto" else int(chosen.batch_size)
        self._responder = Responder(
            self._model,
            mesh,
            batch_size=self.batch_size,
            max_length=int(chosen.max_length),
            template=str(chosen.template),
            condition=str(chosen.condition),
            seed=int(chosen.seed),
        )

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        answers: list[Any] = [None] * len(pairs)
        for index, answer in self._responder.loglikelihood(pairs):
            answers[index] = tuple(answer)
            self.cache_hook.add_partial("loglikelihood", pairs[index], answers[index])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """The log-likelihood in nats of each whole text."""
        return self._responder.loglikelihood_rolling([request.args[0] for request in requests])

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What the model writes behind each prompt, up to the first of its stop strings."""
        return self._responder.generate_until([request.args for request in requests])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the prompt of the model's next turn, or of the rest of the last one."""
        return self._responder.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's Jinja text, which the harness reports with its hash; None if none is asked for.

        Raises:
          UserError: for a name, which belongs into the model's arguments.
        """
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str) and chat_template:
            raise UserError(f"--apply_chat_template takes no name here; use --model_args template={chat_template}.")
        return None if self._responder.template is None else self._responder.template.source

    @property
    def tokenizer_name(self) -> str:
        """What the harness knows cached requests by: the tokenizer, and the template that it is used with."""
        named = self._responder.template
        parts = [str(self._model.source), self._model.tokenizer.fingerprint[:12], "" if named is None else named.name]
        return "__".join(parts).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What of the model goes into the harness's results."""
        weights = weights_fingerprint(self._path) if is_workdir(self._path) else fingerprint(self._path)
        leaves = jax.tree.leaves((self._model.params, self._model.adapter_params))
        return {
            "model_num_parameters": sum(x.size for x in leaves),
            "model_dtype": str(self._model.decoder.dtype),
            "model_revision": "",
            "model_sha": weights,
            "jaxsft_version": __version__,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }


def main(argv: Sequence[str]) -> None:
    """The harness's own command line, with this model chosen; see `lm_eval run --help`."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", "run", "--model", "jaxsft", "--batch_size", "auto", *argv]
    cli_evaluate()


def _arguments(given: dict[str, Any]) -> Arguments:
    known = [field.name for field in dataclasses.fields(Arguments)]
    if unknown := [name for name in given if name not in known]:
        hint = did_you_mean(unknown[0], known) or f"; there are {', '.join(known)}"
        raise UserError(f"--model_args: no argument is called {unknown[0]!r}{hint}.")
    return Arguments(**given)
