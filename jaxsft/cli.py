"""What every script shares: flags, typed configs with dotted overrides, one-sentence errors, quiet libraries."""

import logging
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jaxsft.errors import UserError
from jaxsft.host import keep_freed_memory
from jaxsft.validation import did_you_mean, validate

T = TypeVar("T")


def _quiet() -> None:
    """Silences libraries unless something is wrong; some speak when they are imported, so scripts import this first."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forks after threads warn
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in ("absl", "orbax", "jax", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


_quiet()
keep_freed_memory()


def define_config(default: str | None = None) -> None:
    """Declares `--config=FILE.py`, whose `get_config()` returns a dataclass, and `--config.a.b=value` overrides."""
    config_flags.DEFINE_config_file("config", default, "A Python file with get_config(), such as configs/sft.py.")


def get_config(*kinds: type[T]) -> T:
    """The parsed and validated config, of one of the kinds.

    Raises:
      UserError: if it is missing, of another kind, or a field is wrong.
    """
    config = flags.FLAGS.config
    if config is None:
        raise UserError("--config is missing; name a file such as --config=configs/sft.py.")
    if not isinstance(config, kinds):
        names = " or a ".join(kind.__name__ for kind in kinds)
        raise UserError(f"the config is a {type(config).__name__}, but this script takes a {names}.")
    validate(config)
    return config


def main(function: Callable[[], str]) -> None:
    """Parses the flags, runs `function`, prints its one-line result.

    A `UserError` is printed as one sentence, with exit status 1, and Ctrl-C as a word, with 130; any other exception is
    a defect and keeps its traceback.
    """
    try:
        app.run(lambda _: _run(function), flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        if not any("gs://" in argument for argument in sys.argv):
            raise
        print(f"error: gs:// paths need a library for them: {error}; pip install 'jaxsft[gcs]'.", file=sys.stderr)
        sys.exit(1)


def _run(function: Callable[[], str]) -> None:
    # Orbax logs every save, and every error that it also raises; absl resets the level when flags are parsed.
    absl_logging.set_verbosity(absl_logging.FATAL)
    print(function())


def _parse(argv: Sequence[str]) -> list[str]:
    for file, *_ in _config_files(argv):
        if not os.path.exists(file):
            raise UserError(f"--config={file} does not exist; the configs are in configs/.")
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _explain_overrides(argv)
        raise UserError(f"{str(error).rstrip('.')}; --help lists the flags.") from error
    except (OSError, ImportError) as error:
        raise UserError(f"--config could not be read: {error}.") from error
    except (
        KeyError,
        AttributeError,
        IndexError,
    ) as error:  # an override of what is not there; ml_collections names no near match
        _explain_overrides(argv)
        raise UserError(f"a --config override names no field: {error}.") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"a --config override does not fit its field: {error}.") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; flags are written --name=value.")
    return rest


def _explain_overrides(argv: Sequence[str]) -> None:
    """Raises for the first override of a field that does not exist, naming the nearest one, or that no flag can set."""
    for file, *argument in _config_files(argv):
        config = runpy.run_path(file)["get_config"](*argument)
        for override in (a.lstrip("-") for a in argv):
            if override.startswith("config."):
                _check_path(config, override.split("=")[0])


def _config_files(argv: Sequence[str]) -> list[list[str]]:
    """[file, argument of get_config if given] of each --config."""
    arguments = [argument.lstrip("-") for argument in argv]
    return [a.removeprefix("config=").split(":", 1) for a in arguments if a.startswith("config=")]


def _check_path(config: Any, path: str) -> None:
    """Refuses an override of a field that does not exist, naming the nearest one, or that is a dict."""
    node, done = config, "config"
    for part in path.split(".")[1:]:
        name = part.split("[")[0]
        if hasattr(node, "__dataclass_fields__") and name not in node.__dataclass_fields__:
            known = node.__dataclass_fields__
            hint = did_you_mean(name, known) or f"; it has {', '.join(known)}."
            raise UserError(f"{done}.{name} is no field of {type(node).__name__}{hint}")
        node = getattr(node, name, None)
        if "[" in part and isinstance(node, (list, tuple)):
            index = int(part.split("[")[1].rstrip("]"))
            if index >= len(node):
                raise UserError(f"{done}.{part} does not exist; {done}.{name} has {len(node)} entries.")
            node = node[index]
        done = f"{done}.{part}"
    if isinstance(node, dict):
        raise UserError(f"{done} is a dict, which no flag can set; copy the config's file and set it there.")
