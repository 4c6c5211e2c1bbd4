"""One way to prompt base and models, so that a difference between them is one of weights and of nothing else."""

from typing import NamedTuple

from etils import epath

from jaxsft.adapters.folder import is_adapter, read_card
from jaxsft.compression.folder import is_compressed, read_manifest
from jaxsft.data.classes import inference_condition
from jaxsft.data.templates import NO_TEMPLATE, load_template
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.files import write_text
from jaxsft.models.checkpoint import resolve
from jaxsft.training.restore import tokenizer_source
from jaxsft.training.runs import is_workdir, trained_by


class Prompting(NamedTuple):
    """How a model is asked.

    Attributes:
      template: as `DataConfig.template`.
      condition: as `DataConfig.condition`.
      source: the template's Jinja text; None without one.
      tokenizer: fingerprint of the tokenizer.
    """

    template: str
    condition: str
    source: str | None
    tokenizer: str


def prompting(path: str) -> Prompting:
    """How the model that `path` names was trained to be asked, without opening it.

    Raises:
      UserError: if there is no such model.
    """
    template, condition = "auto", "auto"
    if is_workdir(path):
        data = trained_by(path).data
        template, condition = data.template, inference_condition(data)
    elif is_adapter(folder := resolve(path)):
        card = read_card(folder)
        template, condition = card.template, card.condition
    elif is_compressed(folder):
        manifest = read_manifest(folder)
        template, condition = manifest["template"], manifest["condition"]
    tokenizer = load_tokenizer(str(resolve(tokenizer_source(path))))
    silent = template == NO_TEMPLATE or (template == "auto" and tokenizer.chat_template is None)
    source = None if silent else load_template(template, tokenizer).source
    return Prompting(template, condition, source, tokenizer.fingerprint)


def common(base: Prompting, models: dict[str, Prompting], folder: epath.PathLike) -> tuple[str, str]:
    """The template and the condition that "auto" stands for, for the base as for the models.

    Args:
      base: the base's own.
      models: path -> that of each model.
      folder: where a template is written that only the tokenizer of a model names.

    Raises:
      UserError: for models that were trained with different ones.
    """
    (first, own), *others = models.items()
    for path, other in others:
        if (other.source, other.condition) != (own.source, own.condition):
            raise UserError(
                f"{first} and {path} were trained with different chat templates or conditions, so no prompt is the "
                "same for both; name one as `data.template` in every task of the config, or make a report for each."
            )
    if any(model.template == NO_TEMPLATE for model in models.values()):
        return NO_TEMPLATE, own.condition
    if own.source is None or (own.source, own.condition) == (base.source, base.condition):
        return "auto", own.condition
    if named := [model.template for model in models.values() if model.template != "auto"]:
        return named[0], own.condition
    file = epath.Path(folder) / "chat_template.jinja"
    write_text(file, own.source)
    return str(file), own.condition
