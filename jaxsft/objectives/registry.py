"""The objectives by name: what `config.objective.name` may be, each a class whose fields are the config's by name."""

import dataclasses

from jaxsft.config import ObjectiveConfig
from jaxsft.errors import UserError
from jaxsft.objectives.max_match import MaxMatch
from jaxsft.objectives.minor_sft import MinorSFT
from jaxsft.objectives.mrpo import MRPO
from jaxsft.objectives.objective import Objective
from jaxsft.objectives.preference import DPO, IPO, Hinge, MinorDPO
from jaxsft.objectives.regularizers import Regularized
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.sftmix import SFTMix
from jaxsft.validation import did_you_mean

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": SFT,
    "minor_sft": MinorSFT,
    "dpo": DPO,
    "ipo": IPO,
    "minor_dpo": MinorDPO,
    "hinge": Hinge,
    "mrpo": MRPO,
    "sftmix": SFTMix,
    "max_match": MaxMatch,
}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `config.name` names, with the config's value of each field that it has, and regularisers.

    Raises:
      UserError: for a name that is none, a field that was set and that this objective does not have, or one that it
        needs and that was not set.
    """
    if config.name not in OBJECTIVES:
        near = did_you_mean(config.name, OBJECTIVES) or "."
        raise UserError(f"config.objective.name is {config.name!r}; the objectives are: {', '.join(OBJECTIVES)}{near}")
    kind = OBJECTIVES[config.name]
    own = {field.name for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("name", "regularizers") and field.name not in own and value != field.default:
            raise UserError(
                f"config.objective.{field.name} is {value!r}, which the objective {config.name!r} does not read; "
                f"leave it at {field.default!r}, or choose another config.objective.name."
            )
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and getattr(config, field.name) is None:
            raise UserError(
                f"config.objective.{field.name} is not set, and the objective {config.name!r} has no default for it; "
                f"see docs/methods/{config.name}.md for what to try."
            )
    return _regularized(kind(**{name: getattr(config, name) for name in own}), config)


def _regularized(objective: Objective, config: ObjectiveConfig) -> Objective:
    """The objective itself where no regulariser is asked for."""
    wanted = config.regularizers
    fields = {name: getattr(wanted, name) for name in ("neftune_alpha", "kl_to_base", "l2_to_start", "ewc", "l1")}
    if wanted.l1_proximal and not wanted.l1:
        raise UserError("config.objective.regularizers.l1_proximal is True, but l1 is 0; give it a coefficient.")
    if not any(fields.values()):
        return objective
    fields |= {"l1_on": wanted.l1_on, "l1_proximal": wanted.l1_proximal}
    return Regularized(objective, **fields, chunk_size=config.chunk_size)
