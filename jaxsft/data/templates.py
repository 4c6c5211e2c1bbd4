"""Chat templates: rendered in a sandbox, with the filters that the templates of published models expect.

Besides what transformers gives them, templates may read two variables:

    condition   text for the prefixes of turns, such as the class of a record (`jaxsft.data.classes`)
    piece       written between two texts that are tokenised each by itself; nothing of it is in the rendered text. A
                template that reads it is *by piece*; control tokens separate texts there too.
"""

import bisect
import copy
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from etils import epath
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxsft.config import DataConfig
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean
from jaxsft.world import PREFIX as WORLD
from jaxsft.world.vocabulary import TEMPLATES as WORLD_TEMPLATES

CHATML = """\
{{- '' if bos_token == '<|im_start|>' else bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = """\
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endgeneration %}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + ns.system + message.content | trim + ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- raise_exception('it has no form for the role ' + message.role) }}
    {%- endif %}
{%- endfor %}"""

PLAIN = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content + '\\n\\n' }}
    {%- elif message.role == 'user' %}
        {{- '### Instruction:\\n' + message.content + '\\n\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '### Response:\\n' }}
        {%- generation %}{{ message.content + eos_token }}{% endgeneration %}
        {{- '' if loop.last else '\\n\\n' }}
    {%- else %}
        {{- raise_exception('it has no form for the role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""

RAW = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}"""

ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA = (
    """\
{%- if messages[0].role != 'system' %}
    {%- set messages = [{'role': 'system', 'content': ALPACA_SYSTEM}] + messages %}
{%- endif %}
""".replace("ALPACA_SYSTEM", repr(ALPACA_SYSTEM))
    + PLAIN
)

# OpenBezoar's (arXiv:2404.12195; its model cards): ALPACA with a heading before the system prompt.
OPENBEZOAR = ALPACA.replace("{{- message.content + '\\n\\n' }}", "{{- '### System:\\n' + message.content + '\\n\\n' }}")

# OpenChat's (arXiv:2309.11235; github.com/imoneoi/openchat, versions 3.2 and 3.5): the condition stands in both
# prefixes of every turn, and each prefix and message is tokenised by itself. A word-start mark, where the tokenizer has
# one, is the blank behind the colon.
OPENCHAT = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content + end_of_turn }}
    {%- elif message.role == 'user' %}
        {{- (condition ~ ' User:') | trim ~ piece + message.content + end_of_turn }}
    {%- elif message.role == 'assistant' %}
        {{- (condition ~ ' Assistant:') | trim ~ piece }}
        {%- generation %}{{ message.content + end_of_turn }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('it has no form for the role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ (condition ~ ' Assistant:') | trim }}{% endif %}"""
END_OF_TURN = "<|end_of_turn|>"

SEPARATOR = chr(0x100001)  # what `piece` writes while rendering
GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
BUILT_IN = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "alpaca": ALPACA,
    "plain": PLAIN,
    "raw": RAW,
    "openchat": OPENCHAT,
    "openbezoar": OPENBEZOAR,
}
NEEDS_EOS = ("llama2", "alpaca", "plain", "raw", "openbezoar")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Rendered(NamedTuple):
    """A rendered conversation.

    Attributes:
      text: what the template wrote.
      spans: of the characters of its `{% generation %}` blocks (none: no such tags).
      cuts: where `piece` separates texts, as places in `text`.
    """

    text: str
    spans: list[tuple[int, int]]
    cuts: list[int]


class Template:
    """A compiled chat template.

    Attributes:
      source: its Jinja text.
      name: for messages.
      variables: what it may read besides the messages.
      reads: names of the variables that it reads.
      has_tags: whether it marks what the model writes by `{% generation %}`.
      by_piece: whether its texts are tokenised each by itself; see the module's docstring.
    """

    def __init__(self, source: str, variables: dict[str, Any] | None = None, name: str = "the chat template"):
        """Compiles.

        Args:
          source: Jinja text.
          variables: what it may read besides the messages, such as `bos_token`.
          name: for messages.

        Raises:
          UserError: if it is no Jinja.
        """
        self.source, self.name, self.variables = source, name, variables or {}
        self.has_tags = GENERATION_TAG.search(source) is not None
        try:
            self.reads = jinja2.meta.find_undeclared_variables(_environment().parse(source))
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{name} is no valid Jinja: {error}.") from error
        self.by_piece = "piece" in self.reads

    def given(self, condition: str | None) -> "Template":
        """The template with a condition; itself for None. Without a condition to write, any template writes "".

        Raises:
          UserError: if it does not read one.
        """
        if condition is None or condition == self.variables.get("condition"):
            return self
        if "condition" not in self.reads:
            if not condition:
                return self
            raise UserError(
                f"{self.name} does not write a condition; use 'openchat', or put {{{{ condition }}}} into the prefixes "
                "of its turns."
            )
        conditioned = copy.copy(self)
        conditioned.variables = {**self.variables, "condition": condition}
        return conditioned

    def render(
        self, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> Rendered:
        """Renders messages (as from `Message.for_template`).

        Raises:
          UserError: what the template refuses, in its words.
        """
        spans: list[tuple[int, int]] = []
        pieces: list[str] = []
        tracker = _Tracker(pieces, spans)
        values = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        values |= {**self.variables, "piece": SEPARATOR}
        try:
            for piece in self._template.generate(
                messages=[_named(m) for m in messages], jaxsft_tracker=tracker, **values
            ):
                pieces.append(piece)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise UserError(f"{self.name} cannot render it: {error}") from error
        return _without_separators("".join(pieces), spans) if self.by_piece else Rendered("".join(pieces), spans, [])


NO_TEMPLATE = "none"


def as_trained(data: DataConfig, template: str, condition: str) -> DataConfig:
    """The data as a model is asked about it: what `template` and `condition` "auto" stand for.

    Args:
      data: a task's.
      template: what the model was trained with, as `DataConfig.template`.
      condition: likewise; it belongs to that template, so data with a template of its own keeps what it says.
    """
    if data.template != "auto":
        return data
    return dataclasses.replace(
        data, template=template, condition=condition if data.condition == "auto" else data.condition
    )


def load_template(name: str, tokenizer: Tokenizer, condition: str = "auto") -> Template:
    """The template that `config.data.template` names, with what `config.data.condition` says.

    Raises:
      UserError: if there is none, it reads no condition, or the tokenizer lacks the tokens that it writes.
    """
    return _load(name, tokenizer).given(None if condition == "auto" else condition)


def _load(name: str, tokenizer: Tokenizer) -> Template:
    if name == NO_TEMPLATE:
        raise UserError(
            f"config.data.template is {name!r}, which is for plain text alone; for conversations choose auto, "
            f"{', '.join(BUILT_IN)}, or a .jinja file."
        )
    if name == "auto":
        if tokenizer.chat_template is None:
            raise UserError(
                "config.data.template is 'auto', but the tokenizer has no chat template; choose one of "
                f"{', '.join(BUILT_IN)}, or name a .jinja file."
            )
        return Template(tokenizer.chat_template, tokenizer.variables, "the tokenizer's chat template")
    if name in BUILT_IN:
        if name in NEEDS_EOS and not tokenizer.eos:
            raise UserError(
                f"the template {name!r} ends answers with EOS, which the tokenizer does not define; use 'chatml'."
            )
        own = {"end_of_turn": _end_of_turn(tokenizer)} if name == "openchat" else {}
        return Template(BUILT_IN[name], {**tokenizer.variables, **own}, f"the template {name!r}")
    if name.removeprefix(WORLD) in WORLD_TEMPLATES and name.startswith(WORLD):
        return Template(WORLD_TEMPLATES[name.removeprefix(WORLD)], tokenizer.variables, f"the template {name!r}")
    path = epath.Path(name)
    if path.suffix not in (".jinja", ".jinja2"):
        raise UserError(
            f"config.data.template is {name!r}{did_you_mean(name, ['auto', *BUILT_IN]) or '.'} Choose auto, "
            f"{', '.join(BUILT_IN)}, a .jinja file, or none for plain text."
        )
    if not path.exists():
        raise UserError(f"config.data.template: no file {name}.")
    return Template(path.read_text(), tokenizer.variables, name)


def _end_of_turn(tokenizer: Tokenizer) -> str:
    """OpenChat's own end-of-turn token, or EOS."""
    if END_OF_TURN in tokenizer.hf.get_added_vocab():
        return END_OF_TURN
    if not tokenizer.eos:
        raise UserError(
            f"the template 'openchat' ends turns with {END_OF_TURN} or EOS, and the tokenizer has neither; add one."
        )
    return tokenizer.eos


def _without_separators(text: str, spans: list[tuple[int, int]]) -> Rendered:
    """Takes the separators out, and keeps their places."""
    at = [match.start() for match in re.finditer(SEPARATOR, text)]
    moved = lambda place: place - bisect.bisect_left(at, place)
    return Rendered(text.replace(SEPARATOR, ""), [(moved(a), moved(b)) for a, b in spans], [*map(moved, at)])


def _named(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning goes by several names; templates read one or the other."""
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _Tracker:
    """Measures where a generation block begins: behind all that was rendered before."""

    def __init__(self, pieces: list[str], spans: list[tuple[int, int]]):
        self._pieces, self._spans = pieces, spans

    def record(self, text: str) -> None:
        start = sum(map(len, self._pieces))
        self._spans.append((start, start + len(text)))


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: renders its body and tells the tracker."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, context: jinja2.runtime.Context, caller: Any) -> str:
        text = caller()
        context.resolve("jaxsft_tracker").record(text)
        return text


# Templates that write today's date get this one: tokens that change from day to day would change a run that resumes.
TODAY = datetime.datetime(2024, 7, 26)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As JSON; unlike Jinja's own filter it leaves `<`, `>` and `&` alone."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
