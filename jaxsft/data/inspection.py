"""Data for human eyes: how full rows are, and examples with what is supervised marked."""

import itertools

from jaxsft.config import DataConfig
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import Tokenizer

COLOUR, MARKS = ("\033[32m", "\033[0m"), ("⟦", "⟧")


def describe(config: DataConfig, tokenizer: Tokenizer, seed: int = 0) -> tuple[Dataset, str]:
    """The data set, and one line on its rows.

    Raises:
      UserError: see `prepare`.
    """
    dataset = prepare(config, tokenizer, seed)
    loader = Loader(dataset, config, 1, seed)
    kind = "packed " if config.packing else ""
    rows = f"{loader.rows()} {kind}rows of {config.max_length} tokens"
    summary = f"{len(dataset)} examples in {rows}, {loader.fill_rate():.1%} full"
    if config.packing and (bound := loader.rows_without_slot()):
        summary += (
            f"; {bound} rows hold config.data.max_examples_per_row {config.max_examples_per_row} and take no more"
        )
    return dataset, summary


def show(dataset: Dataset, tokenizer: Tokenizer, i: int, colour: bool) -> str:
    """Example i as text, supervised tokens in colour or between marks; weights other than 1 are written out."""
    ids, weights, extras = dataset.example(i)
    begin, end = COLOUR if colour else MARKS
    pieces = []
    for weight, run in itertools.groupby(zip(ids.tolist(), weights.tolist()), key=lambda pair: pair[1]):
        text = tokenizer.decode([token for token, _ in run])
        pieces.append(f"{begin}{text}{end}" + ("" if weight == 1 else f"(weight {weight:g})") if weight else text)
    names = [f"{len(ids)} tokens", f"source {dataset.sources[extras['source']]}"]
    if extras.get("task_type") is not None:
        names.append(f"task type {dataset.task_types[extras['task_type']] or '(none)'}")
    return "".join(pieces) + f"\n[{', '.join(names)}]"
