"""Makes what the instruction following score needs, of any conversations:

    python scripts/make_ifs.py --data=conversations.jsonl --output=runs/ifs

The folder gets prompts.jsonl (instructions, about half of them cut, of the conversations held out) and classifier.npz,
trained on texts made of the others; its accuracy on texts made of those held out is printed. Then

    python scripts/evaluate.py --config=configs/eval/instruction_following.py --model=MODEL --output=OUT.json \
        --config.data.path=runs/ifs/prompts.jsonl --config.classifier=runs/ifs/classifier.npz
"""

import numpy as np
from absl import flags
from etils import epath

from jaxsft import cli
from jaxsft.config import SourceConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.papers.answer_classifier import train_classifier
from jaxsft.evaluation.papers.instruction_cuts import examples, first_turns, prompts
from jaxsft.files import as_json_lines, write_text

DATA = flags.DEFINE_string("data", "", "Conversations: a file, a folder, a glob.")
ROWS = flags.DEFINE_string("rows", "", "Which of them, as config.data.rows.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for prompts and classifier.")
HELD_OUT = flags.DEFINE_float("held_out", 0.2, "Share of the conversations held out.", 0.0, 1.0)
SEED = flags.DEFINE_integer("seed", 0, "Of the cuts, and of which conversations are held out.", lower_bound=0)


def main() -> str:
    if not DATA.value or not OUTPUT.value:
        raise UserError("--data or --output is missing; name conversations, and a folder for what is made of them.")
    turns = first_turns(SourceConfig(path=DATA.value, rows=ROWS.value))
    order = np.random.default_rng(SEED.value).permutation(len(turns))
    count = round(HELD_OUT.value * len(turns))
    if not 0 < count < len(turns):
        raise UserError(f"--held_out={HELD_OUT.value} of {len(turns)} conversations leaves none on one side.")
    held_out, kept = ([turns[i] for i in places] for places in (np.sort(order[:count]), np.sort(order[count:])))
    print(f"{len(turns)} first turns, {count} of them held out", flush=True)
    classifier = train_classifier(examples(kept, SEED.value), examples(held_out, SEED.value))
    folder = epath.Path(OUTPUT.value)
    asked = prompts(held_out, SEED.value)
    lines = [
        {"prompt": prompt.text, "partial": prompt.partial, "source": turn.source, "task_type": turn.task_type}
        for prompt, turn in zip(asked, held_out)
    ]
    write_text(folder / "prompts.jsonl", as_json_lines(lines))
    classifier.save(folder / "classifier.npz")
    quality = "{accuracy:.3f}, precision {precision:.3f}, recall {recall:.3f} on {texts} held-out texts"
    partial = sum(prompt.partial for prompt in asked)
    made = f"{len(asked)} prompts ({partial} partial)"
    return f"{folder}: {made}; classifier accuracy {quality.format(**classifier.quality)}"


if __name__ == "__main__":
    cli.main(main)
