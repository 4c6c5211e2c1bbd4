"""docs/config.md is what the dataclasses say, says something of every field, and its ranges are those of `validate`."""

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from jaxsft import config
from jaxsft.config import ObjectiveConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.validation import from_dict, validate
from tests.conftest import REPOSITORY
from tests.training.conftest import run

MODULE = runpy.run_path(str(REPOSITORY / "scripts" / "config_reference.py"))
PAGE = REPOSITORY / "docs" / "config.md"
LINE = re.compile(r"\| `--config\.(?P<path>\S+)` \| (?P<type>.*?), (its defaults.*|default `.*`) \| (?P<meaning>.*) \|")


def documented() -> list[dict[str, str]]:
    """The lines of the page's tables, with the first tree that each stands in."""
    _, *sections = PAGE.read_text().split("\n## ")
    found = []
    for section in sections:
        place = re.search(r"^It is `.*?` of (\w+)", section, flags=re.MULTILINE)
        root = place[1] if place else section.split()[0]
        lines = [line for line in section.splitlines() if line.startswith("| `--")]
        found += [LINE.fullmatch(line).groupdict() | {"root": root} for line in lines]
    return found


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == MODULE["reference"](), "run python scripts/config_reference.py and commit docs/config.md"


def test_every_field_is_there_and_described():
    kinds = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]
    assert len(kinds) > 10
    lines = documented()
    assert [line["path"] for line in lines if not line["meaning"].strip()] == []
    fields = [f.name for kind in MODULE["places"]() for f in dataclasses.fields(kind)]
    assert [line["path"].split(".")[-1] for line in lines] == fields
    known = {base for kind in MODULE["places"]() for base in kind.__mro__}
    assert set(kinds) <= known, "a dataclass is part of no tree"


def test_a_description_is_the_whole_entry_and_inherited():
    @dataclasses.dataclass
    class Longer(ObjectiveConfig):
        """More.

        Attributes:
          z_loss: another
            meaning: of two lines.
          extra: a number.
        """

        extra: int = 0

    meanings = MODULE["meanings"](Longer)
    assert meanings["z_loss"] == "another meaning: of two lines." and meanings["extra"] == "a number."
    assert meanings["chunk_size"] == "tokens per device whose logits exist at once."
    assert "over the whole global batch" in meanings["reduction"]


@pytest.mark.parametrize("line", documented(), ids=lambda line: line["path"])
def test_choices_and_ranges_are_those_of_validation(line):
    if line["type"].startswith("one of "):
        for choice in re.findall(r'`"(.*?)"`', line["type"]):
            assert accepts(line, choice)
        assert not accepts(line, "no such word")
    elif number := re.match(r"`(int|float)`(.*)", line["type"]):
        kind, limits = (int if number[1] == "int" else float), number[2].split(", ")[1:]
        assert accepts(line, kind(-1)) == (not limits)
        assert accepts(line, kind(0)) == ("> 0" not in limits)
        assert accepts(line, kind(1)) == ("< 1" not in limits)
        assert accepts(line, kind(2)) == (not {"< 1", "<= 1"} & set(limits))


def accepts(line: dict[str, str], value: object) -> bool:
    """Whether `validate` takes the value as the field of a line."""
    *steps, last = line["path"].split(".")
    values: dict = {last: value}
    for step in reversed(steps):
        values = {step.removesuffix("[i]"): [{"name": "x"} | values] if step.endswith("[i]") else values}
    tree = from_dict(getattr(config, line["root"]), values)
    try:
        validate(tree)
    except UserError as error:
        assert last in str(error)
        return False
    return True


def test_the_overrides_in_the_head_are_taken(tmp_path: Path):
    """As on the page, over a file that lists a source."""
    (overrides,) = re.findall(r"```\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxsft.config import SourceConfig, TrainConfig\n\n\ndef get_config():\n"
        "    config = TrainConfig()\n    config.data.sources = [SourceConfig('a.jsonl')]\n    return config\n"
    )
    script = tmp_path / "show.py"
    script.write_text(
        "import json\nfrom jaxsft import cli\nfrom jaxsft.config import TrainConfig\n"
        "from jaxsft.validation import to_dict\n"
        "cli.define_config()\ncli.main(lambda: json.dumps(to_dict(cli.get_config(TrainConfig))))\n"
    )
    done = run(["bash", "-c", f"{sys.executable} {script} --config={file} " + " ".join(overrides.split("\n"))])
    assert done.returncode == 0, done.stderr
    got = from_dict(TrainConfig, json.loads(done.stdout.splitlines()[-1]))
    assert got.optimizer.learning_rate == 2e-5 and not got.data.packing and got.data.template == "chatml"
    assert got.adapter.lora.targets == ("layers.*.attn.*_proj", "head") and got.data.sources[0].weight == 0.5
