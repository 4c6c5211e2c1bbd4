"""What docs/formats.md says that a task's figures are."""

import re

from tests.conftest import REPOSITORY


def figures_on_the_page(task: str) -> set[str]:
    """The names in the row of a task."""
    page = (REPOSITORY / "docs" / "formats.md").read_text().split("\n## Evaluations\n")[1]
    row = next(line for line in page.splitlines() if line.startswith(f"| `{task}` |"))
    named = set(re.findall(r"`(\w+)`", row.split("|")[2])) - {"NAME_error"}
    if "`NAME_error`" in row:
        named |= {f"{name}_error" for name in ("separation", "utility", "probe_in_data", "agreement")}
    return named
