"""Rows to synthesise from, and a model that says what it is told to."""

from jaxsft.data.conversation import parse
from jaxsft.synthesis.method import Answer
from jaxsft.synthesis.rows import Row


def make_row(record, index=0):
    conversation = parse(record, f"record {index}")
    return Row(index, conversation, conversation.source or "here", f"record {index}")


def make_rows(*records):
    return [make_row(record, index) for index, record in enumerate(records)]


class Says:
    """Answers every prompt by a function of it, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, {}

    def __call__(self, name, prompts):
        self.asked[name] = list(prompts)
        found = [self.answer(prompt) for prompt in prompts]
        return [one if isinstance(one, Answer) else Answer(one, "token") for one in found]
