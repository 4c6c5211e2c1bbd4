"""A tokenizer's files with new special tokens, which the texts of messages may hold."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers
from etils import epath

from jaxsft.data.tokenizer import CONTENT_TOKENS, Tokenizer
from jaxsft.errors import UserError

DEFINITION, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def new_ids(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[int]:
    """The ids that new tokens get: those that follow the largest.

    Raises:
      UserError: for no token, one that is there already, twice or blank at its ends.
    """
    if not tokens:
        raise UserError("config.tokens is empty; name the new tokens, such as ('<sep>',).")
    for i, token in enumerate(tokens):
        if not token or token != token.strip():
            raise UserError(f"config.tokens has {token!r}; a token is a text without blanks at its ends.")
        if token in tokens[:i]:
            raise UserError(f"config.tokens has {token!r} twice; name it once.")
        if tokenizer.hf.backend_tokenizer.token_to_id(token) is not None:
            raise UserError(f"config.tokens has {token!r}, which the tokenizer has already; choose another text.")
    return list(range(tokenizer.num_ids, tokenizer.num_ids + len(tokens)))


def write_tokens(folder: epath.Path, tokenizer: Tokenizer, tokens: Sequence[str], ids: Sequence[int]) -> None:
    """Adds tokens to the tokenizer's files in a folder, which hold it without them.

    Raises:
      UserError: for a tokenizer that gives its tokens other ids.
    """
    if not (folder / DEFINITION).exists():
        tokenizer.hf.save_pretrained(str(folder))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    new = [{"id": i, "content": token, **flags} for token, i in zip(tokens, ids)]
    definition = json.loads((folder / DEFINITION).read_text())
    definition["added_tokens"] += new
    check = tokenizers.Tokenizer.from_str(json.dumps(definition))
    if wrong := [token for token, i in zip(tokens, ids) if check.token_to_id(token) != i]:
        raise UserError(
            f"the tokenizer would give {wrong[0]!r} the id {check.token_to_id(wrong[0])}, as its ids have gaps; add "
            "ordinary tokens until they have none."
        )
    (folder / DEFINITION).write_text(json.dumps(definition, indent=2, ensure_ascii=False) + "\n")

    def add(settings: dict[str, Any]) -> None:
        settings["additional_special_tokens"] = [*settings.get("additional_special_tokens", []), *tokens]
        settings[CONTENT_TOKENS] = [*settings.get(CONTENT_TOKENS, []), *tokens]
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] |= {str(i): {"content": token, **flags} for token, i in zip(tokens, ids)}

    _edit(folder / SETTINGS, add)
    listed = lambda named: named.update(
        additional_special_tokens=[*named.get("additional_special_tokens", []), *tokens]
    )
    _edit(folder / "special_tokens_map.json", listed)
    _edit(folder / "added_tokens.json", lambda known: known.update(zip(tokens, ids)))


def _edit(file: epath.Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file, where there is one."""
    if file.exists():
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
