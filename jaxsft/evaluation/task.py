"""What every task has in common: prepared once, then asked for the figures of parameters as often as one likes.

A task is prepared from the data and everything of a model but its numbers. Asked again, with the parameters of a later
step, it reads and tokenises nothing and compiles nothing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.config import TypesConfig
from jaxsft.data.tokenizer import Tokenizer


class Subject(NamedTuple):
    """A model that is to be measured, less its parameters.

    Attributes:
      decoder: a `jaxsft.models.decoder.Decoder`.
      tokenizer: the model's.
      source: the Hugging Face folder that its tokenizer and names come from.
      mesh: where its parameters live.
      adapted: whether the parameters come with an adapter, without which they are the base.
      method: how a run trained it, a `jaxsft.adapters.method.Method`; None for a plain model folder.
      types: of the examples of that run (`DataConfig.types`), likewise.
      name: what the model is called where its answers are read by others.
    """

    decoder: Any
    tokenizer: Tokenizer
    source: epath.Path
    mesh: Mesh
    adapted: bool = False
    method: Any = None
    types: TypesConfig | None = None
    name: str = ""


class Result(NamedTuple):
    """What a task says of a model.

    Attributes:
      figures: names and numbers; and tables of them by part of the data, `by_source` and `by_task_type`, where there
        are several parts.
      records: one for each question, as JSON; empty for tasks that ask none.
      files: what else is written, for other programs: name -> (suffix of the file, text).
      examples: of tasks that score examples, what their figures are sums of: name -> float64 [examples], in the order
        of the data.
    """

    figures: dict[str, Any]
    records: list[dict[str, Any]]
    files: dict[str, tuple[str, str]] = {}  # noqa: RUF012 (never changed)
    examples: dict[str, np.ndarray] = {}  # noqa: RUF012 (likewise)

    @property
    def numbers(self) -> dict[str, float]:
        """The figures that are single numbers."""
        return {name: value for name, value in self.figures.items() if isinstance(value, int | float)}


class Task(NamedTuple):
    """A prepared task.

    Attributes:
      name: what its figures are called.
      report: a line or more on the data.
      fingerprint: of the data as the model sees it.
      measure: `fn(params, adapters)` -> `Result`, with the parameters and the adapter tree of `Decoder.forward` (or
        None). With several processes all call it, and all get the same.
    """

    name: str
    report: str
    fingerprint: str
    measure: Callable[[Any, Any], Result]


def digest(values: Any) -> str:
    """A fingerprint of JSON values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def question_ids(contents: Sequence[Any]) -> list[str]:
    """A name for each question of a task, by which the answers of two models to it are paired.

    It is a hash of the question's content, as JSON values, and so survives other models, prompts, orders and selections
    of rows. A question that is asked again has another name each time.

    Returns:
      16 hexadecimal digits for each.
    """
    seen: dict[str, int] = {}
    ids = []
    for content in contents:
        whole = digest(content)
        seen[whole] = seen.get(whole, 0) + 1
        ids.append((whole if seen[whole] == 1 else digest([whole, seen[whole]]))[:16])
    return ids


def by_part(
    parts: dict[str, Sequence[str]], summarize: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Tables of figures, for each division of the questions that has several parts.

    Args:
      parts: name of the table -> for each question the part it belongs to.
      summarize: the figures of the questions of given places.
    """
    tables = {}
    for table, of in parts.items():
        if len(names := sorted(set(of))) > 1:
            tables[table] = {name: summarize(np.flatnonzero([part == name for part in of])) for name in names}
    return tables
