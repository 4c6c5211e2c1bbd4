"""The kinds of stages: what each takes, how it is done, and how what it leaves is told from another's."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath

from jaxsft.compression.run import compress_or_find
from jaxsft.config import (
    CompressConfig,
    DisperseConfig,
    ExportConfig,
    ForgettingConfig,
    MergeConfig,
    MixConfig,
    RewordConfig,
    ScoreConfig,
    SearchConfig,
    SuiteConfig,
    SynthesisConfig,
    TokensConfig,
    TrainConfig,
)
from jaxsft.dispersal.run import PARTS, disperse
from jaxsft.evaluation.suite import evaluate
from jaxsft.forgetting.report import REPORT, forgetting
from jaxsft.merging.merge import merge_or_find
from jaxsft.merging.search import MERGED, search
from jaxsft.mixing.mix import mix
from jaxsft.mixing.reword import reword
from jaxsft.models.checkpoint import fingerprint
from jaxsft.scoring.confidence import score_confidence
from jaxsft.scoring.context import score_context
from jaxsft.synthesis.rows import RECORDS
from jaxsft.synthesis.run import synthesize
from jaxsft.tokens.add import add_or_find
from jaxsft.training.exported import export_or_find
from jaxsft.training.runs import weights_fingerprint
from jaxsft.training.train import train

SCORES, EVALUATION = "scores.parquet", "evaluation.json"


class Kind(NamedTuple):
    """A kind of stage.

    Attributes:
      config: the type of its config.
      run: (config, folder) -> one line on the result. Called again after it was broken off, it goes on; all that it
        writes is in the folder.
      fingerprint: folder -> fingerprint of what later stages read of it.
    """

    config: type
    run: Callable[[Any, epath.Path], str]
    fingerprint: Callable[[epath.Path], str]


def _score(config: ScoreConfig, folder: epath.Path) -> str:
    score = score_context if config.context else score_confidence
    return score(config, folder / SCORES)


def _evaluate(config: SuiteConfig, folder: epath.Path) -> str:
    found = evaluate(config)
    if jax.process_index() == 0:
        found.write(folder / EVALUATION)
    return "; ".join(f"{name}: {line}" for name, line in found.headlines.items())


def _digest(name: str) -> Callable[[epath.Path], str]:
    """The fingerprint of one file of a folder."""
    return lambda folder: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:32]


KINDS: dict[str, Kind] = {
    "train": Kind(TrainConfig, lambda config, folder: train(config, str(folder)), weights_fingerprint),
    "score": Kind(ScoreConfig, _score, _digest(SCORES)),
    "disperse": Kind(DisperseConfig, disperse, _digest(PARTS)),
    "merge": Kind(MergeConfig, merge_or_find, fingerprint),
    "search": Kind(SearchConfig, search, lambda folder: fingerprint(folder / MERGED)),
    "compress": Kind(CompressConfig, compress_or_find, fingerprint),
    "tokens": Kind(TokensConfig, add_or_find, fingerprint),
    "reword": Kind(RewordConfig, reword, _digest(RECORDS)),
    "mix": Kind(MixConfig, mix, _digest(RECORDS)),
    "evaluate": Kind(SuiteConfig, _evaluate, _digest(EVALUATION)),
    "synthesize": Kind(SynthesisConfig, synthesize, _digest(RECORDS)),
    "export": Kind(ExportConfig, export_or_find, fingerprint),
    "forgetting": Kind(ForgettingConfig, forgetting, _digest(REPORT)),
}
