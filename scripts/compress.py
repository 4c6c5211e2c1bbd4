"""Stores a model as what changed of its base:

python scripts/compress.py --config=configs/compress/delta_come.py --output=DIR --config.model=... [--dry_run]

`--dry_run` prints what would be kept and its bytes. Every script opens what this writes, and scripts/export.py makes a
plain model folder of it.
"""

from absl import flags

from jaxsft import cli
from jaxsft.compression.plan import make_plan
from jaxsft.compression.run import carry_out
from jaxsft.config import CompressConfig
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan, check what can be checked, and write nothing.")


def main() -> str:
    config = cli.get_config(CompressConfig)
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    check_new_folder(OUTPUT.value)
    plan = make_plan(config)
    print(f"compressing into {OUTPUT.value}\n" + "\n".join(plan.describe()), flush=True)
    return f"{OUTPUT.value}: nothing written (--dry_run)" if DRY_RUN.value else carry_out(plan, OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
