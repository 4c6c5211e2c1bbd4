"""From a model folder to a model folder with new tokens: what `scripts/add_tokens.py` and the stage "tokens" do.

Exactly the new ids get new rows: all others are those of the source bit for bit, also where its matrices are padded and
have room for the new ids already. Rows that only pad are zero, and never drawn in generation
(`jaxsft.decoding.sampling.Sampling.vocabulary`).
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxsft.config import TokensConfig
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder, new_folder, write_json
from jaxsft.models import checkpoint
from jaxsft.models.architecture import NEW_IDS
from jaxsft.models.decoder import Decoder
from jaxsft.models.tensorfiles import DTYPES
from jaxsft.tokens.files import new_ids, write_tokens
from jaxsft.tokens.rows import new_rows, padded, with_rows
from jaxsft.validation import to_dict

MATRICES = ("model.embed_tokens.weight", "lm_head.weight")  # of a row a token
MANIFEST = "new_tokens.json"  # the config, and the line on the result
PROBE = "The quick brown fox, 0 1 2; {x: [y, z]}."


def add_tokens(config: TokensConfig, output: epath.PathLike) -> str:
    """Writes the model that `config` names, with its new tokens, into a new folder; returns a line on the result.

    One process writes. `config.json` gets `new_token_ids`, by which `config.adapter.rows` finds the new rows.

    Raises:
      UserError: for a model or tokens that cannot be, a description that is missing, and a folder that holds something.
    """
    if jax.process_index() == 0:  # whose folder the others may see already
        check_new_folder(output)
    source = checkpoint.resolve(config.model)
    arch, tokenizer = checkpoint.load_architecture(source), load_tokenizer(str(source))
    ids, known = new_ids(tokenizer, config.tokens), min(tokenizer.num_ids, arch.vocab_size)
    described = _described(config, tokenizer)
    size = padded(ids[-1] + 1, arch.vocab_size, config.multiple)
    files = checkpoint.open_tensors(source, Decoder(arch))
    fields = json.loads(arch.source)
    fields[NEW_IDS] = {**fields.get(NEW_IDS, {}), **dict(zip(config.tokens, ids))}
    grown = dataclasses.replace(arch, vocab_size=size, source=json.dumps(fields, sort_keys=True))
    entries = {}
    for name, (file, key) in files.items():
        shape = file.entries[key].shape
        entries[name] = (DTYPES[file.entries[key].dtype], (size, *shape[1:]) if name in MATRICES else shape)

    def produce(name: str) -> np.ndarray:
        file, key = files[name]
        table = file.read(key)
        if name not in MATRICES:
            return table
        head = name != MATRICES[0]
        rng = np.random.default_rng((config.seed, int(head)))
        init = "normal0.02" if head and config.init == "unit_normal" else config.init
        return with_rows(table, size, ids, new_rows(table[:known], len(ids), init, rng, described))

    named = ", ".join(f"{token} = {i}" for token, i in zip(config.tokens, ids))
    line = f"{output}: {named}, by {config.init}; {arch.vocab_size} rows became {size}"
    if jax.process_index() == 0:
        with new_folder(output) as folder:
            checkpoint.write_tensors(folder, entries, produce)
            checkpoint.copy_companions(source, folder)
            write_tokens(folder, tokenizer, config.tokens, ids)
            _check(load_tokenizer(str(folder)), tokenizer, config.tokens, ids)
            dtype = entries[MATRICES[0]][0].name
            contents = grown.to_hf(dtype)
            write_json(folder / MANIFEST, {"config": to_dict(config), "result": line})
            (folder / checkpoint.CONFIG).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n")
    return line


def add_or_find(config: TokensConfig, output: epath.PathLike) -> str:
    """`add_tokens`, or what the same config left there before.

    Raises:
      UserError: as `add_tokens`, and for a folder that another config has left.
    """
    file = epath.Path(output) / MANIFEST
    if not file.exists():
        return add_tokens(config, output)
    found = json.loads(file.read_text())
    if found["config"] != json.loads(json.dumps(to_dict(config))):
        raise UserError(f"{output} holds other new tokens; remove it, or choose another folder.")
    return found["result"]


def _described(config: TokensConfig, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of the descriptions, where they are wanted."""
    if config.init != "mean_of_text":
        if config.descriptions:
            raise UserError(f"config.descriptions are set, but config.init is {config.init!r}; set it to mean_of_text.")
        return []
    found = [tokenizer.encode_text(config.descriptions.get(token, "").strip()) for token in config.tokens]
    if missing := [token for token, ids in zip(config.tokens, found) if not ids]:
        raise UserError(f"config.init is 'mean_of_text', but config.descriptions has no text for {missing[0]!r}.")
    return found


def _check(after: Tokenizer, before: Tokenizer, tokens: tuple[str, ...], ids: list[int]) -> None:
    """What is read back knows the new tokens, and texts without them as before.

    Raises:
      UserError: if it does not.
    """
    found: list[Any] = [after.encode(token).ids for token in tokens]
    if found != [[i] for i in ids] or after.encode(PROBE).ids != before.encode(PROBE).ids:
        raise UserError(f"the tokenizer's files, read back, give the new tokens the ids {found}, not {ids}.")
