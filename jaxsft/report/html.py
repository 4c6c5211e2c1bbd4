"""Templates of pages that need nothing but themselves: their style is in them, and they have no script."""

from importlib import resources

import jinja2
from markupsafe import Markup

from jaxsft.report.charts import marker

STYLES = ("report/chart.css", "report/style.css")


def load(name: str) -> jinja2.Template:
    """A template, by its place in the package. What is put into it is escaped; a name that it does not get is an
    error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxsft", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["breakable"] = lambda text: Markup("_<wbr>").join(text.split("_"))
    environment.globals["marker"] = lambda kind: Markup(marker(kind, 6, 6, 4.6))
    return environment.get_template(name)


def style(*more: str) -> Markup:
    """The style sheet of plots and pages, and other ones behind it, by their places in the package."""
    package = resources.files("jaxsft")
    return Markup("".join(package.joinpath(name).read_text(encoding="utf-8") for name in (*STYLES, *more)))
