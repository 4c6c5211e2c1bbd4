"""The text that ends a command: the page's figures, aligned, and the most contested questions."""

from pathlib import Path

from jaxsft.report import page
from jaxsft.report.read import read_runs
from jaxsft.report.terminal import summary
from tests.report import made


def test_it_has_the_pages_figures_and_every_runs_answers(tmp_path: Path):
    story = page.tell(read_runs(made.three(tmp_path)))
    text = summary(story, answers=2)
    table, *questions = text.split("\n\n")
    lines = table.splitlines()
    assert lines[0].split() == [group.name for group in story.all_groups]
    assert len({len(line) for line in lines}) == 1, "columns end at the same place"
    kind = story.metric(story.learnt)
    (seen,) = [line for line in lines if line.startswith(f"{story.learnt}, %")]
    expected = [f"{100 * group.figure(story.learnt, kind.key).value:.1f}" for group in story.all_groups]
    assert seen.split()[2:] == expected
    assert len(questions) == 2
    for question in questions:
        assert all(f"  {group.name}" in question for group in story.all_groups)
        assert "wrong" in question, "the most contested questions come first"
