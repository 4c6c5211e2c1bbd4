"""Chat templates: rendered in a sandbox, with the filters that the templates of published models expect."""

import datetime
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from etils import epath
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxsft.data.tokenizer import Tokenizer
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

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

GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
BUILT_IN = {"chatml": CHATML, "llama2": LLAMA2, "alpaca": ALPACA, "plain": PLAIN}
NEEDS_EOS = ("llama2", "alpaca", "plain")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Rendered(NamedTuple):
    """A rendered conversation, and the character spans of its `{% generation %}` blocks (none: no such tags)."""

    text: str
    spans: list[tuple[int, int]]


class Template:
    """A compiled chat template.

    Attributes:
      source: its Jinja text.
      has_tags: whether it marks what the model writes by `{% generation %}`.
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
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{name} is no valid Jinja: {error}.") from error

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
        values = {**self.variables, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            for piece in self._template.generate(
                messages=[_named(m) for m in messages], jaxsft_tracker=tracker, **values
            ):
                pieces.append(piece)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise UserError(f"{self.name} cannot render it: {error}") from error
        return Rendered("".join(pieces), spans)


def load_template(name: str, tokenizer: Tokenizer) -> Template:
    """The template that `config.data.template` names.

    Raises:
      UserError: if there is none, or the tokenizer lacks the tokens that it writes.
    """
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
        return Template(BUILT_IN[name], tokenizer.variables, f"the template {name!r}")
    path = epath.Path(name)
    if path.suffix not in (".jinja", ".jinja2"):
        raise UserError(
            f"config.data.template is {name!r}{did_you_mean(name, ['auto', *BUILT_IN]) or '.'} Choose auto, "
            f"{', '.join(BUILT_IN)}, or a .jinja file."
        )
    if not path.exists():
        raise UserError(f"config.data.template: no file {name}.")
    return Template(path.read_text(), tokenizer.variables, name)


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
