"""The objectives by name."""

from jaxsft.config import ObjectiveConfig
from jaxsft.errors import UserError
from jaxsft.objectives.objective import Objective
from jaxsft.objectives.sft import SFT


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `config.name` names.

    Raises:
      UserError: for a name that is none.
    """
    if config.name == "sft":
        return SFT(config.reduction, config.z_loss, config.label_smoothing, config.chunk_size)
    raise UserError(f"config.objective.name is {config.name!r}; the objectives are: sft.")
