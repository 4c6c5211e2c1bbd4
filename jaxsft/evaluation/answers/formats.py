"""Forms of answers: whether a text is a Python dict, a JSON object or what a regular expression describes."""

import ast
import json
import re
from typing import Any

from jaxsft.config import FormatConfig
from jaxsft.errors import UserError

READERS = {"dict": ast.literal_eval, "json": json.loads}


class Format:
    """A form that texts have or have not.

    Args:
      config: which.

    Raises:
      UserError: for an expression that is none, or settings that the kind does not read.
    """

    def __init__(self, config: FormatConfig):
        where, self._config = "config.format", config
        if config.kind == "regex" and (config.keys or config.values or not config.pattern):
            raise UserError(f"{where}.kind is 'regex', which reads {where}.pattern alone; set that, and nothing else.")
        if config.kind != "regex" and config.pattern:
            raise UserError(f"{where}.pattern is set, but {where}.kind is {config.kind!r}; set the kind to 'regex'.")
        if strange := config.values.keys() - set(config.keys):
            raise UserError(f"{where}.values has {min(strange)!r}, which {where}.keys leave out; name it there.")
        try:
            self._pattern = re.compile(config.pattern, re.DOTALL)
            self._values = {key: re.compile(pattern, re.DOTALL) for key, pattern in config.values.items()}
        except re.error as error:
            raise UserError(f"{where} has an expression that is none: {error}.") from error

    def fits(self, text: str) -> bool:
        """Whether all of a text, less blanks around it, has the form."""
        text = text.strip()
        if self._config.kind == "regex":
            return self._pattern.fullmatch(text) is not None
        found = _read(self._config.kind, text)
        if not isinstance(found, dict) or (self._config.keys and set(found) != set(self._config.keys)):
            return False
        return all(pattern.fullmatch(str(found[key])) for key, pattern in self._values.items())


def _read(kind: str, text: str) -> Any:
    """The value that a text spells, None where it spells none."""
    try:
        return READERS[kind](text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as `ast.literal_eval` documents
        return None
