"""lm-evaluation-harness with `--model jaxsft`: python scripts/harness.py --model_args path=DIR --tasks arc_easy,gsm8k

All other flags are the harness's own (`lm_eval run --help`), such as --num_fewshot, --apply_chat_template, --limit,
--include_path and --output_path; see docs/harness.md. Needs `pip install 'jaxsft[eval]'`.
"""

import sys

from jaxsft import cli  # noqa: F401  quietens libraries that speak when they are imported
from jaxsft.errors import UserError


def main() -> None:
    from jaxsft.evaluation.harness import model as harness

    harness.main(sys.argv[1:])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
