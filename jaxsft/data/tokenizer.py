"""A Hugging Face tokenizer with character offsets, and with control strings inside contents kept ordinary text."""

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from etils import epath

from jaxsft.errors import UserError

PRIVATE = 0xF0000  # plane 15, private use: no normaliser changes it and no vocabulary has it

CONTENT_TOKENS = "content_tokens"  # in `tokenizer_config.json`: special tokens that texts of messages may hold
FILES = ("*token*", "vocab*", "merges*", "chat_template*", "config.json")


class Encoding(NamedTuple):
    """Token ids and, for each, the first character and the one after the last of its text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def load_tokenizer(path: str | os.PathLike) -> "Tokenizer":
    """Loads the tokenizer of a Hugging Face folder, local or `gs://`, or of a hub name; needs no torch.

    Raises:
      UserError: if there is none, or it does not tell the characters of its tokens.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # at import it warns that torch is absent
    from transformers import AutoTokenizer

    if not str(path):
        raise UserError("no tokenizer was named; set config.model.path to a folder that holds one.")
    folder = epath.Path(path)
    files = [file for file in folder.iterdir() if any(file.match(p) for p in FILES)] if folder.is_dir() else []
    if folder.is_dir() and not any(file.match(p) for file in files for p in ("*token*", "vocab*")):
        raise UserError(f"{path} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy one into it.")
    try:
        if "://" in str(path):
            with tempfile.TemporaryDirectory() as local:
                for file in files:
                    file.copy(epath.Path(local) / file.name)
                loaded = AutoTokenizer.from_pretrained(local)
        else:
            loaded = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, ImportError, json.JSONDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the tokenizer of {path} could not be loaded: {reason}") from error
    if not getattr(loaded, "is_fast", False):
        raise UserError(
            f"the tokenizer of {path} ({type(loaded).__name__}) gives no character offsets, which masks need; "
            "convert it to a tokenizer.json."
        )
    return Tokenizer(loaded)


class Tokenizer:
    """What the data needs from a tokenizer.

    Attributes:
      hf: transformers' tokenizer; saved beside exported models.
      bos_id, eos_id, pad_id: ids, None where the tokenizer defines none.
      unk_id: the id of what is in no vocabulary; None too where it is BOS or EOS, as in GPT-2's.
      bos, eos: their strings, "" where the tokenizer defines none.
      variables: the named special tokens that templates may write (`bos_token`, `eos_token`, ...).
      chat_template: its own chat template, None if it has none.
      adds_bos: whether it begins every text with BOS by itself.
      num_ids: one more than the largest id; a model may have more rows, which then only pad its matrices.
      content_tokens: special tokens that stand for something in the texts of messages (`jaxsft.tokens`), where all
        others are ordinary text.
    """

    def __init__(self, hf):
        self.hf = hf
        self.bos_id, self.eos_id, self.pad_id = hf.bos_token_id, hf.eos_token_id, hf.pad_token_id
        self.unk_id = None if hf.unk_token_id in (self.bos_id, self.eos_id) else hf.unk_token_id
        self.bos, self.eos = hf.bos_token or "", hf.eos_token or ""
        self.variables = dict(hf.special_tokens_map)
        template = hf.chat_template
        self.chat_template = template.get("default") if isinstance(template, dict) else template
        self.adds_bos = self.bos_id is not None and hf("a").input_ids[:1] == [self.bos_id]
        self.num_ids = max(hf.backend_tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.content_tokens = tuple(hf.init_kwargs.get(CONTENT_TOKENS, ()))
        self._definition = hf.backend_tokenizer.to_str()
        self._added = sorted(hf.added_tokens_decoder.items())

    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""
        return len(self.hf)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides ids."""
        decides = self._definition + json.dumps(self.variables, sort_keys=True)
        decides += json.dumps(self.content_tokens) if self.content_tokens else ""
        return hashlib.sha256(decides.encode()).hexdigest()

    def encode(self, text: str) -> Encoding:
        """Ids and offsets of a text, as it stands: no BOS or EOS is added, control strings become control ids."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """`encode` of each."""
        return [Encoding(e.ids, e.offsets) for e in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def encode_guarded(self, text: str, guarded: Sequence[tuple[int, int]]) -> Encoding:
        """Ids and offsets of a text in which the control strings inside the `guarded` spans are ordinary text.

        Each control string outside is written as one private character, which a copy of the tokenizer knows as that
        control token; the copy knows no other. So a text without guarded spans gives the same ids as `encode`.

        Raises:
          UserError: if the vocabulary has the control string as an ordinary token, so that it cannot be kept apart.
        """
        if taken := [c for c in self._private.values() if c in text]:
            raise UserError(f"a text holds the private-use character {taken[0]!a}, which is needed here; remove it.")
        guard = np.zeros(len(text) + 1, bool)
        for start, stop in guarded:
            guard[start:stop] = True
        pieces, places, done, at = [], [], 0, 0  # `places`: for each character written, where it is in the text
        while match := self._control.search(text, at):
            start, stop = match.span()
            if guard[start:stop].any():
                at = start + 1
                continue
            pieces += [text[done:start], self._private[match.group()]]
            places += range(done, start + 1)
            done = at = stop
        pieces.append(text[done:])
        places += range(done, len(text) + 1)
        encoding = self._guarded.encode("".join(pieces), add_special_tokens=False)
        ids, offsets = [], []
        for i, (start, stop) in zip(encoding.ids, encoding.offsets):
            if i in self._special_ids - {self.unk_id} and i not in self._original:
                raise UserError(
                    f"the control string {self.hf.convert_ids_to_tokens(i)!r} occurs inside a text, and this tokenizer "
                    "cannot write it as ordinary text; remove it from the data."
                )
            ids.append(self._original.get(i, i))
            offsets.append((places[start], places[stop]))
        return Encoding(ids, offsets)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text that holds no control tokens, whatever strings are in it."""
        if guarded := [match.span() for match in self._special.finditer(text)]:
            return self.encode_guarded(text, guarded).ids
        return self.encode(text).ids

    def encode_ordinary(self, texts: Sequence[str]) -> list[Encoding]:
        """Ids and offsets of texts that hold no control tokens, whatever strings are in them."""
        plain = iter(self.encode_batch([text for text in texts if not self._control.search(text)]))
        guarded = lambda text: self.encode_guarded(text, [(0, len(text))])
        return [guarded(text) if self._control.search(text) else next(plain) for text in texts]

    def control_strings(self, template: str) -> list[str]:
        """The added tokens that steer the model: special ones, and those that the template itself writes; no content
        tokens."""
        written = lambda t: t.content in template and not t.content.isspace()
        return [t.content for _, t in self._steering if t.special or written(t)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids."""
        return self.hf.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return _backend(json.loads(self._definition))

    @functools.cached_property
    def _guarded(self) -> tokenizers.Tokenizer:
        definition = json.loads(self._definition)
        for token in definition["added_tokens"]:
            token["content"] = self._private[token["content"]]
        return _backend(definition)

    @functools.cached_property
    def _private(self) -> dict[str, str]:
        return {token.content: chr(PRIVATE + i) for i, (_, token) in enumerate(self._added)}

    @functools.cached_property
    def _special_ids(self) -> set[int]:
        return {i for i, token in self._added if token.special}

    @functools.cached_property
    def _original(self) -> dict[int, int]:
        """Ids of the private characters in the copy -> ids of the control tokens they stand for."""
        return {self._guarded.token_to_id(self._private[token.content]): i for i, token in self._added}

    @functools.cached_property
    def _control(self) -> re.Pattern:
        return any_of([token.content for _, token in self._added])

    @functools.cached_property
    def _special(self) -> re.Pattern:
        return any_of([token.content for _, token in self._steering if token.special])

    @property
    def _steering(self) -> list:
        return [(i, token) for i, token in self._added if token.content not in self.content_tokens]


def any_of(strings: Iterable[str]) -> re.Pattern:
    """A pattern of the given strings, of which the longest matches."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)")


def _backend(definition: dict) -> tokenizers.Tokenizer:
    """A bare tokenizer: nothing is added, cut or padded, and offsets are those of the text."""
    return tokenizers.Tokenizer.from_str(
        json.dumps({**definition, "post_processor": None, "truncation": None, "padding": None})
    )
