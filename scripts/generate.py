"""Continues prompts: python scripts/generate.py --model=DIR --prompt="..." [--temperature=0] [--max_new_tokens=N].

A model with a chat template (its tokenizer's, or the one it was trained with) answers the prompt as a user's message;
any other, or with --raw, continues it as text. Several --prompt, or a file of them by --prompts, are decoded together.

    python scripts/generate.py --model=DIR --input=FILE --output=FILE.jsonl

answers a whole data set in parts (docs/generate.md): killed and started again, it goes on.
"""

import time

import jax
from absl import flags
from etils import epath

from jaxsft import cli
from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.job import Job
from jaxsft.decoding.prompts import make_prompter, read_prompts
from jaxsft.errors import UserError
from jaxsft.files import as_json_lines, write_text
from jaxsft.sharding import make_mesh
from jaxsft.training.distributed import initialize, say
from jaxsft.training.restore import open_model

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder or hub name, a workdir, or world:chat.")
BASE = flags.DEFINE_string("base", "", "Of an adapter: its base, instead of the one that it names.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "File of records with `prompt` or `messages`.")
INPUT = flags.DEFINE_string("input", None, "Such a file, answered in parts; nothing is printed but progress.")
OUTPUT = flags.DEFINE_string("output", None, "JSON Lines file to which prompts and answers are written.")
PART_ROWS = flags.DEFINE_integer("part_rows", 1024, "With --input: prompts of a part.", lower_bound=1)
TEMPLATE = flags.DEFINE_string("template", "auto", "Chat template: auto, a built-in one, or a .jinja file.")
CONDITION = flags.DEFINE_string("condition", None, "What the template's prefixes are conditioned on; see C-RLFT.")
RAW = flags.DEFINE_bool("raw", False, "Continue the prompt as plain text.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens; 0 is all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that together reach this probability.")
MIN_P = flags.DEFINE_float("min_p", 0.0, "Draw from tokens of at least this share of the likeliest's probability.")
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Divides positive logits of tokens that were there; 1 is none.")
STOP = flags.DEFINE_multi_string("stop", [], "A text that ends an answer; may be given several times.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Where an answer ends at the latest.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Prompts decoded at once.", lower_bound=1)
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices that each layer's matrices are split over.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Compute dtype.")


def main() -> str:
    if not MODEL.value:
        raise UserError("--model is missing; name a Hugging Face folder, a hub name or a workdir.")
    prompts = [*PROMPT.value, *(read_prompts(PROMPTS.value) if PROMPTS.value else [])]
    if INPUT.value and (prompts or not OUTPUT.value):
        raise UserError("--input is answered to a file; give --output, and no --prompt or --prompts.")
    if OUTPUT.value and not INPUT.value and epath.Path(OUTPUT.value).exists():
        raise UserError(f"{OUTPUT.value} exists; nothing is overwritten, so name another file or remove it.")
    prompts = read_prompts(INPUT.value) if INPUT.value else prompts
    if not prompts:
        raise UserError("there is nothing to continue; give --prompt, --prompts or --input.")
    initialize()
    mesh = make_mesh(MeshConfig(tensor=TENSOR.value))
    model = open_model(MODEL.value, ModelConfig(path=MODEL.value, base=BASE.value, dtype=DTYPE.value), mesh)
    own = TEMPLATE.value == "auto" and not RAW.value
    condition = CONDITION.value if CONDITION.value is not None else model.condition if own else "auto"
    template = model.template if TEMPLATE.value == "auto" else TEMPLATE.value
    prompter = make_prompter(model.tokenizer, template, model.source, RAW.value, condition)
    sampling = prompter.sampling(
        STOP.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        min_p=MIN_P.value,
        repetition_penalty=PENALTY.value,
        max_new_tokens=MAX_NEW_TOKENS.value,
        seed=SEED.value,
    )
    sampler = Sampler(model.decoder, sampling, mesh, batch_size=BATCH_SIZE.value, text=prompter.text)
    described = {"model": MODEL.value, "base": BASE.value, "input": INPUT.value}
    job = Job(sampler, prompter, model.params, model.adapters, described, PART_ROWS.value)
    mode = prompter.mode + ("" if condition == "auto" else f" with the condition {condition!r}")
    count = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    say(f"{count}, {mode}, {sampling}")
    ids = [prompter.encode(prompt) for prompt in prompts]
    if note := prompter.unknown(ids):
        say(note)
    if INPUT.value:
        return job.run(prompts, ids, OUTPUT.value, say)
    began = time.monotonic()
    sampled = sampler.generate(model.params, ids, adapters=model.adapters)
    seconds = time.monotonic() - began
    records = [job.record(*each, i) for i, each in enumerate(zip(prompts, ids, sampled))]
    for prompt, answer in zip(prompts, [record["answer"] for record in records]):
        asked = prompt if isinstance(prompt, str) else prompt[-1].content
        say(f"\n> {asked}\n{answer.strip()}" if len(prompts) > 1 else f"\n{answer}")
    say("")
    if OUTPUT.value and jax.process_index() == 0:
        write_text(OUTPUT.value, as_json_lines(records))
    new = sum(record["tokens"] for record in records)
    return f"{new} new tokens for {count} in {seconds:.1f} s, compilation included"


if __name__ == "__main__":
    cli.main(main)
