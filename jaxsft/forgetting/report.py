"""From a config, or from evaluations that are there already, to a folder with the report."""

import jax
from etils import epath

from jaxsft.config import ForgettingConfig
from jaxsft.files import as_json_lines, write_json, write_text
from jaxsft.forgetting import page, plots
from jaxsft.forgetting.differences import Report, Settings, compare
from jaxsft.forgetting.evaluations import Evaluation
from jaxsft.forgetting.measure import measure
from jaxsft.forgetting.progress import read_progress
from jaxsft.report.charts import standalone

REPORT, QUESTIONS, PAGE, PLOT = "report.json", "questions.jsonl", "report.html", "differences.svg"


def forgetting(config: ForgettingConfig, folder: epath.PathLike) -> str:
    """Measures base and models, and writes the report: a stage of a recipe.

    Returns:
      One line on the result; "" on processes other than 0.

    Raises:
      UserError: see `jaxsft.forgetting.measure.measure` and `jaxsft.forgetting.differences.compare`.
    """
    evaluations, remarks = measure(config, folder)
    if jax.process_index() != 0:
        return ""
    report = tell(evaluations, Settings(config.draws, config.confidence, config.seed), remarks)
    write(report, folder)
    return headline(report)


def tell(evaluations: list[Evaluation], settings: Settings, remarks: list[str]) -> Report:
    """The report on evaluations, the base's first, and on what the models' runs measured on their way."""
    base, *models = evaluations
    report = compare(base, models, settings)
    report.progress = [item for model in models for item in read_progress(model.model, model.name)]
    report.remarks = [*remarks, *report.remarks]
    return report


def write(report: Report, folder: epath.PathLike, shown: int = 5) -> None:
    """Writes the page, the plot, every question, and last the figures.

    Args:
      report: what is told.
      folder: `report.json`, `questions.jsonl`, `report.html` and `differences.svg` go there.
      shown: questions of each subject that stand on the page.
    """
    folder = epath.Path(folder)
    write_text(folder / PAGE, page.render(report, shown))
    if drawn := plots.tasks(report):
        write_text(folder / PLOT, standalone(plots.above(plots.legend(report), drawn)))
    write_text(folder / QUESTIONS, as_json_lines(report.questions))
    write_json(folder / REPORT, report.as_json())


def headline(report: Report) -> str:
    """What every model lost and won for sure, in one line."""
    clauses = []
    for model in report.models:
        told = "; ".join(clause["text"] + clause["after"] for clause in page.verdict(report, model))
        clauses.append(f"{model} {told}" if told else f"{model}: no questions in common with the base")
    return ". ".join(clauses)
