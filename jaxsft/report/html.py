"""Templates of pages that need nothing but themselves: their style is in them, and they have no script."""

from importlib import resources

import jinja2
from markupsafe import Markup

from jaxsft.report.charts import marker


def load(package: str, name: str) -> jinja2.Template:
    """A package's template. What is put into it is escaped; a name that it does not get is an error."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["breakable"] = lambda text: Markup("_<wbr>").join(text.split("_"))
    environment.globals["marker"] = lambda kind: Markup(marker(kind, 6, 6, 4.6))
    return environment.from_string(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def style(*more: tuple[str, str]) -> Markup:
    """The style sheet of plots and pages, and those of (package, name) behind it."""
    files = [("jaxsft.report", "chart.css"), ("jaxsft.report", "style.css"), *more]
    return Markup(
        "".join(resources.files(package).joinpath(name).read_text(encoding="utf-8") for package, name in files)
    )
