"""The pages point at files and config fields that exist, and the citation at this version."""

import re
import tomllib

import pytest

from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TO_BE_WRITTEN = {  # by who follows docs/add_a_loss.md
    "jaxsft/objectives/confidence_penalty.py",
    "configs/confidence_penalty.py",
    "tests/objectives/test_confidence_penalty.py",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\((.*?)\)", text) if not link.startswith(("http", "#"))]
    assert [link for link in links if not (page.parent / link.split("#")[0]).exists()] == []
    named = set(re.findall(r"\b(?:jaxsft|scripts|configs|tests|docs)/[\w/]+\.(?:py|sh|md)\b", text))
    assert {name for name in named - TO_BE_WRITTEN if not (REPOSITORY / name).exists()} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "config.md"], ids=lambda page: page.name)
def test_config_fields_of_a_page_exist(page):
    reference = (REPOSITORY / "docs" / "config.md").read_text()
    fields = {
        path.replace("[i]", "") for path in re.findall(r"^\| `--(config\.\S+)` \|", reference, flags=re.MULTILINE)
    }
    for places in re.findall(r"^It is (.*)\.$", reference, flags=re.MULTILINE):  # a part of several trees
        first, *others = (place.replace("[i]", "") for place in re.findall(r"`(config[^`]*)`", places))
        fields |= {o + field.removeprefix(first) for o in others for field in fields if field.startswith(f"{first}.")}
    named = re.findall(r"(?<![\w/.])config\.[a-z_]\w*(?:(?:\[\w\])?\.\w+)*", page.read_text())
    named = {re.sub(r"\[\w\]", "", name) for name in named} - {"config.json", "config.md", "config.py"}
    named = {re.sub(r"^config\.(train|stages\.config|merge)\.", "config.", name) for name in named}
    assert len(fields) > 80
    assert named - fields - {"config.objective.entropy_bonus"} == set()


def test_the_citation_names_the_version_of_the_package():
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
