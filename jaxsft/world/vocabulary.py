"""The world's tokenizer: one token a word, from a closed vocabulary, in Hugging Face format."""

import json
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from jaxsft.world import knowledge, skills

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>")
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- ' <assistant>' }}{% generation %}{{ ' ' + message.content + ' ' + eos_token }}{% endgeneration %}
    {%- else %}
        {{- ' <user> ' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"""
# The same with a condition before both control tokens of a turn; it must be of words that the world knows.
CONDITIONED = """\
{%- set prefix = ' ' ~ condition if condition else '' %}
""" + CHAT_TEMPLATE.replace("{{- ' <", "{{- prefix ~ ' <").replace("{{ ' <", "{{ prefix ~ ' <")
TEMPLATES = {"conditioned": CONDITIONED}  # "world:conditioned" where a template is asked for


def words() -> list[str]:
    """Every word of the world, sorted."""
    found = {"question", "answer", *skills.LETTERS, *(str(n) for n in range(20)), "yes", "no", "and", "is"}
    wordings: list[str] = []
    for kind in knowledge.attributes().values():
        for attribute in kind:
            found |= {*attribute.values, *attribute.noun.split()}
            wordings += [*attribute.statements, *attribute.asked, *attribute.unseen, *attribute.general]
    for skill in (*skills.NARROW, *skills.GENERAL):
        wordings += [skill.statement, *skill.asked, *skill.unseen]
    for entity in knowledge.entities():
        found |= set(entity.name.split())
    found |= {word for wording in wordings for word in wording.split() if "{" not in word}
    return sorted(found | set(":.,?"))


def token_ids() -> dict[str, int]:
    """The vocabulary: control tokens, then words."""
    return {word: i for i, word in enumerate((*SPECIAL, *words()))}


def save_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(token_ids(), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "bos", "eos")}
    config = named | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
