"""From the records of a source to its token cache: conversations, rendered and tokenised once."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import tokenizers
from tqdm import tqdm

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data import classes, mixture
from jaxsft.data.cache import Entry, TokenCache, cache_folder, cached, hash_files
from jaxsft.data.conversation import Conversation, parse
from jaxsft.data.grouping import GROUPINGS
from jaxsft.data.render import Example, Renderer
from jaxsft.data.sources import Source, row_range
from jaxsft.data.templates import NO_TEMPLATE, Template, load_template
from jaxsft.data.tokenizer import Tokenizer

CHUNK = 256  # records rendered, then tokenised together


def tokenised(config: SourceConfig, source: Source, data: DataConfig, tokenizer: Tokenizer) -> TokenCache:
    """The token cache of a source, built unless it is there.

    Raises:
      UserError: for a record that cannot be read or rendered, saying which and why.
    """
    start, stop = row_range(config.rows, len(source))
    folder = cache_folder(data.cache_dir)
    plain = data.template == NO_TEMPLATE or (data.template == "auto" and tokenizer.chat_template is None)
    template = None if plain else load_template(data.template, tokenizer, data.condition)
    key = {
        "files": hash_files(source.files, folder),
        "selection": source.selection,
        "name": source.name,
        "rows": [start, stop],
        "fields": config.fields,
        "template": template.source if template else None,
        "tokenizer": tokenizer.fingerprint,
        "tokenizers": tokenizers.__version__,
        "supervise": data.supervise,
    }
    if GROUPINGS[data.grouping].own_examples:
        key["grouping"] = data.grouping
    if data.text_eos:
        key["text_eos"] = True
    if data.condition != classes.AUTO:
        key["condition"] = data.condition
    if data.classes.condition:
        key["conditions"] = [data.classes.by, data.classes.condition]
    if data.grouping == "dcot":
        key["dcot"] = dataclasses.asdict(data.dcot)
    if data.system or data.mixture.system:
        key["system"] = [data.system, data.mixture.by, data.mixture.system]
    return cached(data.cache_dir, key, _examples(config, source, range(start, stop), data, template, tokenizer))


def _examples(
    config: SourceConfig, source: Source, rows: range, data: DataConfig, template: Template | None, tokenizer: Tokenizer
) -> Iterator[Entry]:
    records = source.records(rows.start, rows.stop)
    progress = tqdm(total=len(rows), desc=f"tokenising {source.name}", unit="record", delay=1.0, disable=None)
    renderer = Renderer(template, tokenizer, data.supervise, data.text_eos)
    with progress:
        while chunk := list(itertools.islice(records, CHUNK)):
            several = [(_conversations(record, where, config, data), where) for record, where in chunk]
            pairs = [
                (mixture.add_system(conversation, data, source.name, where), where)
                for conversations, where in several
                for conversation in conversations
            ]
            for conversation, where in pairs:
                conversation.condition = classes.condition_of(conversation, source.name, data, where)
            variants = [variant for conversations, _ in several for variant in range(len(conversations))]
            if template is None and any(c.text is None for c, _ in pairs):
                load_template(data.template, tokenizer)  # says that there is none
            for (conversation, _), variant, example in zip(pairs, variants, renderer.examples(pairs)):
                notice = _notice(conversation, example, tokenizer)
                yield Entry(example, conversation.source or source.name, conversation.task_type, notice, variant)
            progress.update(len(chunk))


def _conversations(record: Any, where: str, source: SourceConfig, data: DataConfig) -> list[Conversation]:
    grouping = GROUPINGS[data.grouping]
    if grouping.read is not None:
        return grouping.read(record, where, source.fields, data)
    return grouping.expand(parse(record, where, source.fields), where)


def _notice(conversation: Conversation, example: Example, tokenizer: Tokenizer) -> str:
    if tokenizer.adds_bos and len(example.ids) and example.ids[0] != tokenizer.bos_id:
        return (
            f"without BOS {tokenizer.bos!r}, which the tokenizer adds to plain text but the template does not write; "
            "if the model was trained with it, begin the template with {{ bos_token }}"
        )
    if conversation.rejected:
        return "preference pairs, of which the preferred answer is used"
    answers = [m for m in conversation.messages if m.role == "assistant" and m.weight != 0 and not m.fields]
    if not all(answer.content is None or answer.content.strip() for answer in answers):
        return "with an empty answer, which teaches to end the turn at once"
    if tokenizer.unk_id is not None and tokenizer.unk_id in example.ids:
        return f"with {tokenizer.hf.unk_token!r}, which stands for what the tokenizer does not know"
    return ""
