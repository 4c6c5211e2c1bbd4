"""Explained answers under system messages: Orca's way (Mukherjee et al. 2023, arXiv:2306.02707), as OpenBezoar takes it
(arXiv:2404.12195, section 3).

To every record a system message is drawn that asks for an explanation (`wordings.SYSTEMS`); the teacher answers the
record's question under it, and all three are the new record. The given answer is not shown.
"""

from collections.abc import Sequence

import numpy as np

from jaxsft.config import OrcaConfig
from jaxsft.data.conversation import Message
from jaxsft.synthesis.method import Ask, Made, Prompt, dropped, kept
from jaxsft.synthesis.rows import Row, written
from jaxsft.synthesis.wordings import SYSTEMS

NAME = "orca"


class Orca:
    """See the module."""

    asks = True

    def __init__(self, settings: OrcaConfig, seed: int):
        self.systems, self.seed = settings.systems or SYSTEMS, seed

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One outcome a record."""
        prompts = [self.prompt(row) for row in rows]
        outcomes = []
        for row, prompt, answer in zip(rows, prompts, ask("answers", prompts)):
            if answer.fault:
                outcomes.append(dropped(answer.fault))
                continue
            messages = written([*prompt.messages, answer.message])
            outcomes.append(kept(row.record(messages=messages, source=NAME), NAME, row=row.index))
        return Made(outcomes, {})

    def prompt(self, row: Row) -> Prompt:
        """The row's prompt under the system message that is drawn for it, instead of one of its own."""
        drawn = np.random.default_rng((self.seed, row.index)).integers(len(self.systems))
        system = self.systems[drawn]
        asked = [message for message in row.prompt if message.role != "system"]
        return Prompt(row.index, [Message("system", system)] * bool(system) + asked, tools=row.conversation.tools)
