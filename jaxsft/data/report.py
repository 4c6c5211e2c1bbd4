"""What became of the records, and the refusal of data of which too much would be lost."""

import dataclasses

from jaxsft.config import DataConfig
from jaxsft.errors import UserError

NO_TARGET = "no supervised token"
CUT_TARGET = "no supervised token left within max_length"
TOO_LONG = "longer than max_length"
UNWANTED = "of a class of weight 0"
LOST_VARIANT = "left without the other conversation of their record"


@dataclasses.dataclass
class Report:
    """What became of the records.

    Attributes:
      records: how many were read.
      examples: how many are trained on; plain text longer than a row gives several.
      cut: examples cut to `max_length`.
      dropped: reason -> records.
      tokens: tokens of all examples.
      supervised: how many of these have a loss weight.
      sources: name -> examples.
      task_types: name -> examples.
      notices: what looks like a mistake but may be meant -> examples.
      class_weights: class -> loss weight of its tokens, where classes differ.
      types: type, or "untyped" -> examples, where examples have types.
    """

    records: int
    examples: int
    cut: int
    dropped: dict[str, int]
    tokens: int
    supervised: int
    sources: dict[str, int]
    task_types: dict[str, int]
    notices: dict[str, int]
    class_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    types: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none"
        lines = [
            f"{self.records} records -> {self.examples} examples; cut: {self.cut}; dropped: {dropped}",
            f"{self.tokens} tokens, {self.supervised} supervised ({self.supervised / max(self.tokens, 1):.1%})",
        ]
        if len(self.sources) > 1:
            lines.append("sources: " + ", ".join(f"{name} {count}" for name, count in self.sources.items()))
        if any(self.task_types):
            lines.append("task types: " + ", ".join(f"{name or '(none)'} {n}" for name, n in self.task_types.items()))
        if self.class_weights:
            lines.append("class weights: " + ", ".join(f"{name} {w:.4g}" for name, w in self.class_weights.items()))
        if self.types:
            lines.append("types: " + ", ".join(f"{kind} {count}" for kind, count in self.types.items()))
        return "\n".join(lines + [f"note: {count} {what}" for what, count in self.notices.items()])


def check_dropped(report: Report, config: DataConfig, conversations: int) -> None:
    """Compares what was dropped with how many conversations the records gave."""
    mistakes = {reason: count for reason, count in report.dropped.items() if reason != UNWANTED}
    dropped = sum(mistakes.values())
    reasons = "; ".join(f"{count} {reason}" for reason, count in mistakes.items())
    if dropped and dropped > config.max_dropped * conversations:
        if report.dropped.get(NO_TARGET) == conversations:
            raise UserError(
                f"no token of any record is supervised with the template {config.template!r}: its generation tags or "
                "the records' weights mask everything; see scripts/inspect_data.py."
            )
        noun = "records" if conversations == report.records else "conversations"
        raise UserError(
            f"{dropped} of {conversations} {noun} would be dropped ({reasons}), more than config.data.max_dropped "
            f"{config.max_dropped:g} allows; raise config.data.max_length (now {config.max_length}) or mend the data."
        )
    if not report.examples:
        raise UserError("no example is left to train on; see the counts of scripts/inspect_data.py.")
