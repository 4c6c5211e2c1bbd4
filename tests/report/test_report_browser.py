"""The page in a real browser: nothing scrolls sideways, on a desk or a phone, and something is to be seen."""

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from jaxsft.report import page
from tests.report import made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1280, 375)
LONG = "a-run-whose-name-goes-on_and_on-" * 3
MEASURE = '<script>parent.postMessage(document.documentElement.scrollWidth, "*")</script></body>'
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe src="page.html" style="border:0;width:{width}px;height:2400px">
</iframe><script>addEventListener("message", event => document.title = "width " + event.data)</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page about runs with long names, long answers and many seeds; and frames of either width around it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; on Debian, apt-get install chromium")
    here = tmp_path_factory.mktemp("browser")
    paths = made.three(here / "runs")
    made.answers(here / "runs" / "full", made.CORRECT["full"], "an-answer-without-a-space" * 20)
    for seed in range(3):
        for rate in (1e-4, 1e-3):
            run = made.train_record(
                here / "runs" / f"{LONG}{rate}-s{seed}", seed=seed, **{"optimizer.learning_rate": rate}
            )
            made.evaluation(
                run, made.seen_and_cloze(0.4 + rate * 200 + 0.02 * seed, 0.9 - rate * 300) | {LONG: {"accuracy": 0.5}}
            )
            made.metrics(run, [{"step": s, "split": LONG, "accuracy": s / 100} for s in range(100)])
            paths.append(str(run))
    # Everything is opened: what is folded away must not scroll sideways either.
    html = page.build(paths).replace("<details>", "<details open>")
    (here / "page.html").write_text(html.replace("</body>", MEASURE))
    (here / "blank.html").write_text("<!DOCTYPE html><title>blank</title>")
    for width in WIDTHS:  # a window cannot be as narrow as a phone, a frame can
        (here / f"frame{width}.html").write_text(FRAME.format(width=width))
    return here


def chromium(*arguments: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def detail(folder: Path, name: str, *arguments: str) -> float:
    """The share of bytes of a screenshot that differ from what their neighbours foretell (PNG's filters)."""
    file = folder / "shot.png"
    chromium(*arguments, f"--screenshot={file}", "--window-size=1280,2400", (folder / name).as_uri())
    data, at, body = file.read_bytes(), 8, b""
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body += data[at + 8 : at + 8 + size] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += size + 12
    pixels = zlib.decompress(body)
    return 1 - pixels.count(0) / len(pixels)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways(folder, width):
    dom = chromium(
        "--dump-dom", "--virtual-time-budget=5000", "--window-size=1400,2400", (folder / f"frame{width}.html").as_uri()
    )
    (measured,) = re.findall(r"<title>width (\d+)</title>", dom)
    assert int(measured) == width


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", [0, 1])  # dark, light
def test_something_is_to_be_seen(folder, width, scheme):
    assert detail(folder, "blank.html") < 0.001
    assert detail(folder, f"frame{width}.html", f"--blink-settings=preferredColorScheme={scheme}") > 0.01
