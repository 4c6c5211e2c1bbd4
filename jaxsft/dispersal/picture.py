"""A page about the parts of a dispersed data set: where they lie, how large they are, what is typical of them."""

from html import escape
from importlib import resources
from typing import Any

import numpy as np

from jaxsft.report.charts import scatter
from jaxsft.report.ink import ink


def page(told: dict[str, Any], sample: tuple[np.ndarray, np.ndarray] | None) -> str:
    """HTML that needs nothing else.

    Args:
      told: the content of `dispersal.json`.
      sample: vectors float32 [n, D] and parts int32 [n] of the records to draw, or None where there are no vectors.
    """
    files = resources.files("jaxsft.report")
    style = "".join(files.joinpath(name).read_text(encoding="utf-8") for name in ("chart.css", "style.css"))
    parts = told["parts"]
    how = {
        "random": "a random permutation cut into equal parts",
        "iid": "a random draw for every record",
        "source": "their source",
        "task_type": "their task type",
        "kmeans": f"k-means on {told['vectors'] or 'mean hidden states of the ' + told['text']}",
    }[told["method"]]
    body = [
        f"<h1>{len(parts)} parts by {escape(how)}</h1>",
        f"<p>Seed {told['seed']}{', equal sizes' if told['balanced'] else ''}; data <code>{told['data']}</code>.</p>",
    ]
    if sample is not None:
        points, shares = projection(sample[0])
        inks = [ink(part) for part in range(len(parts))]
        drawing = scatter(points, sample[1], [f"part {p}" for p in range(len(parts))], inks)
        body.append(
            f"<figure>{drawing}<figcaption>{len(points)} records along the two directions in which their vectors "
            f"differ most, which hold {shares.sum():.0%} of the differences.</figcaption></figure>"
        )
    body.append(_table(parts))
    for part, one in enumerate(parts):
        kind = "Nearest to the centroid" if told["method"] == "kmeans" else "The first"
        texts = "".join(f"<pre>{escape(text)}</pre>" for text in one["examples_of_it"])
        body.append(f"<section><h2>Part {part}</h2><p>{kind}:</p>{texts}</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{len(parts)} parts</title><style>{style}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def projection(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two principal components of some vectors: float [n, 2], and the share of the variance that each holds."""
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    width = min(2, len(values))
    points = np.pad(centred @ directions[:width].T, ((0, 0), (0, 2 - width)))
    shares = np.square(values[:width]) / max(np.square(values).sum(), np.finfo(float).tiny)
    return points, shares


def _table(parts: list[dict[str, Any]]) -> str:
    columns = ("records", "examples", "tokens", "supervised")
    named = [name for name in ("sources", "task_types") if any(len(part[name]) for part in parts)]
    heads = "".join(f'<th scope="col">{name.replace("_", " ")}</th>' for name in (*columns, *named))
    rows = []
    for i, part in enumerate(parts):
        cells = "".join(f"<td>{part[name]:,}</td>" for name in columns)
        for name in named:
            most = sorted(part[name].items(), key=lambda item: -item[1])[:4]
            names = ", ".join(f"{n} {c:,}" for n, c in most) + (", …" if len(part[name]) > 4 else "")
            cells += f"<td>{escape(names)}</td>"
        rows.append(f'<tr><th scope="row">part {i}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="differences"><thead><tr><th scope="col"></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
