"""Merges models: python scripts/merge.py --config=configs/merge/ties.py --output=DIR [--config.models=...] [--dry_run].

Models are Hugging Face folders, hub names or workdirs. What it writes is a folder that every script opens.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import MergeConfig
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder
from jaxsft.merging.merge import plan

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan, check what can be checked, and write nothing.")


def main() -> str:
    config = cli.get_config(MergeConfig)
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    check_new_folder(OUTPUT.value)
    planned = plan(config)
    print(f"merging into {OUTPUT.value}\n" + "\n".join(planned.describe()), flush=True)
    return f"{OUTPUT.value}: nothing written (--dry_run)" if DRY_RUN.value else planned.carry_out(OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
