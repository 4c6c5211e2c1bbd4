"""The same story in a few lines of plain text, for the end of a command."""

from jaxsft.report.figures import MISSING, write
from jaxsft.report.questions import samples
from jaxsft.report.story import Story, columns

SHARE = ", %"


def summary(story: Story, answers: int = 4) -> str:
    """The table of figures, a row a task and a column a group, and a few questions with every group's answer.

    Args:
      story: see `jaxsft.report.page.tell`.
      answers: questions at most, in turn of what was learnt and what was kept; the most contested ones.
    """
    groups = story.all_groups
    rows = [["", *(group.name for group in groups)]]
    for column in columns(story):
        name = column.task if column.kind == story.metric(column.task) else f"{column.task} {column.kind.label}"
        cells = (column.figure(group) for group in groups)
        rows.append([name + SHARE * column.kind.share, *(write(c.value, column.kind) if c else MISSING for c in cells)])
    return "\n\n".join([_aligned(rows), *_questions(story, answers)])


def _questions(story: Story, count: int) -> list[str]:
    asked = [group for group in story.all_groups if group.runs[0].answers]
    runs = [group.runs[0] for group in asked]
    half = [samples(runs, task, (count + 1) // 2) for task in (story.learnt, story.kept) if task]
    texts = []
    for key in [key for keys in half for key in keys][:count]:
        answers = [run.answers[key] for run in runs]
        rows = [
            [f"  {group.name}", answer.answer or "(nothing)", "" if answer.correct else "wrong"]
            for group, answer in zip(asked, answers)
        ]
        texts.append(f"{key[0]}: {answers[0].prompt}  [{answers[0].reference}]\n{_aligned(rows, left=2)}")
    return texts


def _aligned(rows: list[list[str]], left: int = 1) -> str:
    """Columns of equal width; those after the first `left` ones end at the same place."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cell = lambda i, text: text.ljust(widths[i]) if i < left else text.rjust(widths[i])
    return "\n".join("  ".join(cell(i, text) for i, text in enumerate(row)).rstrip() for row in rows)
