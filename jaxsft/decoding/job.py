"""A file of prompts in, a file of answers out, in parts that a killed job need not write again.

Beside OUTPUT a folder OUTPUT.parts holds `job.json`, what the answers depend on, and a file of answers for each run of
prompts. Every file appears whole or not at all. At the end the parts become OUTPUT, then OUTPUT.manifest.json says how
it was made, and the folder goes. A job that is started again writes only the parts that are missing, and its output is
that of one that was never disturbed; with other settings it is refused.

With several processes all see the same file system, all decode, and the first one writes.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import jaxsft
from jaxsft.decoding.engine import Sampled, Sampler
from jaxsft.decoding.prompts import Prompt, Prompter, as_json, before_any
from jaxsft.errors import UserError
from jaxsft.files import as_json_lines, json_lines, write_json, write_text
from jaxsft.validation import flatten

PARTS, MANIFEST, JOB = ".parts", ".manifest.json", "job.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of a model.

    Attributes:
      sampler: of the model; its `sampling` is written to the manifest.
      prompter: the model's.
      params: the decoder's parameters.
      adapters: nodes of the adapters, or None.
      described: what else the manifest says, such as the model's name: JSON values. Not part of what is compared when a
        job goes on.
      part_rows: prompts of a part: what is lost at most when the job is killed.
    """

    sampler: Sampler
    prompter: Prompter
    params: Any
    adapters: Any
    described: dict[str, Any] = dataclasses.field(default_factory=dict)
    part_rows: int = 1024

    def run(
        self,
        prompts: Sequence[Prompt],
        asked: Sequence[Sequence[int]],
        output: epath.PathLike,
        say: Callable[[str], None] = print,
        ids: Sequence[int] | None = None,
    ) -> str:
        """Answers all prompts; see the module.

        Args:
          prompts: as of `read_prompts`.
          asked: their token ids.
          output: the file to write.
          say: is told of progress.
          ids: of the prompts, see `Sampler.generate`; None takes their places.

        Returns:
          a line on what was done.

        Raises:
          UserError: for a prompt that the model's context does not hold, an output that is there already, or parts of
            another job.
        """
        self._check_lengths(asked)
        output = epath.Path(output)
        parts, manifest = (output.parent / f"{output.name}{suffix}" for suffix in (PARTS, MANIFEST))
        settings = self._settings(asked)
        if ids is None:
            ids = range(len(prompts))
        else:
            settings["prompts"]["ids"] = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]
        writes = jax.process_index() == 0
        if manifest.exists():
            self._compare(settings, json.loads(manifest.read_text())["job"], manifest)
            if not output.exists():
                raise UserError(f"{manifest} is there, but not {output}; remove the first to write both again.")
            if writes:
                parts.rmtree(missing_ok=True)
            return f"{output}: done before, by the same job"
        if (parts / JOB).exists():
            self._compare(settings, json.loads((parts / JOB).read_text()), parts)
        elif output.exists():
            raise UserError(f"{output} exists; nothing is overwritten, so name another file or remove it.")
        elif writes:
            write_json(parts / JOB, settings)
        files = self._write_parts(parts, prompts, asked, ids, say)
        if not writes:
            return f"{output}: {len(prompts)} answers"
        write_text(output, "".join(file.read_text() for file in files))
        lines = json_lines(output.read_text())
        counts = collections.Counter(line["stopped_by"] for line in lines)
        tokens = sum(line["tokens"] for line in lines)
        result = {"answers": len(lines), "tokens": tokens, "stopped_by": dict(sorted(counts.items()))}
        write_json(manifest, {"kind": "generation", **self.described, "job": settings, "result": result})
        parts.rmtree()
        return f"{output}: {len(lines)} answers of {tokens} tokens in all; made as {manifest.name} says"

    def record(self, prompt: Prompt, asked: Sequence[int], one: Sampled, index: int) -> dict[str, Any]:
        """One answer as JSON.

        Returns:
          `prompt`, `answer` (without what ended it), `index` (the prompt's id), `tokens` (how many new ones, the end
          included), `logp` (the sum over them under the model, nats) and `stopped_by`.
        """
        answer = self.prompter.decode(asked, one.tokens)
        return {
            "prompt": as_json(prompt),
            "answer": before_any(answer, self.sampler.sampling.stop_strings),
            "index": index,
            "tokens": len(one.tokens),
            "logp": round(sum(one.logps), 4),
            "stopped_by": one.stopped_by,
        }

    def _write_parts(
        self,
        folder: epath.Path,
        prompts: Sequence[Prompt],
        asked: Sequence[Sequence[int]],
        ids: Sequence[int],
        say: Callable[[str], None],
    ) -> list[epath.Path]:
        """Answers what no part has yet; the files of all parts, in their order."""
        starts = range(0, len(prompts), self.part_rows)
        files = [folder / f"{n:06}.jsonl" for n in range(len(starts))]
        missing = [n for n, file in enumerate(files) if not file.exists()]  # before any is written, so all agree
        if len(missing) < len(files):
            say(f"{len(files) - len(missing)} of {len(files)} parts were written before")
        for n in missing:
            rows = range(starts[n], min(starts[n] + self.part_rows, len(prompts)))
            own = [ids[i] for i in rows]
            sampled = self.sampler.generate(self.params, [asked[i] for i in rows], own, adapters=self.adapters)
            lines = [self.record(prompts[i], asked[i], one, ids[i]) for i, one in zip(rows, sampled)]
            if jax.process_index() == 0:
                write_text(files[n], as_json_lines(lines))
            say(f"part {n + 1} of {len(files)}: {sum(len(one.tokens) for one in sampled)} new tokens")
        return files

    def _check_lengths(self, asked: Sequence[Sequence[int]]) -> None:
        context = self.sampler.decoder.arch.max_positions
        bad = [i for i, ids in enumerate(asked) if not 0 < len(ids) < context]
        if bad:
            raise UserError(
                f"{len(bad)} of {len(asked)} prompts cannot be continued, the first at place {bad[0]}, with "
                f"{len(asked[bad[0]])} tokens: a prompt has 1 to {context - 1}, below the model's context. "
                "Leave them out."
            )

    def _settings(self, asked: Sequence[Sequence[int]]) -> dict[str, Any]:
        """All that the answers depend on; what follows by rounding alone (batch size, mesh) is left out."""
        template = self.prompter.template
        return {
            "sampling": json.loads(json.dumps(dataclasses.asdict(self.sampler.sampling))),
            "template": None
            if template is None
            else {
                "name": template.name,
                "condition": template.variables.get("condition"),
                "digest": hashlib.sha256(template.source.encode()).hexdigest()[:16],
            },
            "weights": weights_digest((self.params, self.adapters)),
            "dtype": str(self.sampler.decoder.dtype),
            "processor": _described(self.sampler.processor),
            "prompts": {
                "rows": len(asked),
                "digest": hashlib.sha256(json.dumps(list(map(list, asked))).encode()).hexdigest()[:16],
            },
            "part_rows": self.part_rows,
            "versions": {"jaxsft": jaxsft.__version__, "jax": jax.__version__},
        }

    def _compare(self, settings: dict[str, Any], found: dict[str, Any], where: epath.Path) -> None:
        old, new = flatten(found), flatten(settings)
        for name in new | old:
            if old.get(name) != new.get(name):
                raise UserError(
                    f"{where} is of another job: its {name} is {json.dumps(old.get(name))}, here it is "
                    f"{json.dumps(new.get(name))}; name another output, or remove what is there."
                )


def _described(processor: Any) -> dict[str, Any] | None:
    """A logits processor's name, arrays and plain settings; what a closure holds is not seen."""
    if processor is None:
        return None
    made = processor.func if isinstance(processor, jax.tree_util.Partial) else type(processor)
    fields = dataclasses.fields(processor) if dataclasses.is_dataclass(processor) else ()
    values = {field.name: getattr(processor, field.name) for field in fields}
    return {
        "name": getattr(made, "__qualname__", type(made).__qualname__),
        "arrays": weights_digest(processor),
        **{name: value for name, value in values.items() if isinstance(value, str | int | float)},
    }


def weights_digest(tree: Any) -> str:
    """A name for the values, names and dtypes of arrays, hexadecimal, the same however they are sharded."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.dtype} {leaf.shape} {int(_mixed(leaf))} ".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _mixed(x: jax.Array) -> jax.Array:
    """A sum modulo 2**32 of all elements' bits, each multiplied by an odd number of its place."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}"))
    place = jnp.zeros(x.shape, jnp.uint32)  # not flattened, which would gather what is sharded
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = x.astype(jnp.uint32)
    return jnp.sum((bits ^ (bits >> 15)) * (place * np.uint32(2654435761) * 2 + 1), dtype=jnp.uint32)
