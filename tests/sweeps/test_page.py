"""The page of a report: as text, and in a real Chromium, which is asked what it shows. Ten seconds."""

import html
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lmlab.__main__ import main
from lmlab.sweeps import page
from lmlab.sweeps.page import Cell, Table
from tests.sweeps import made

BROWSERS = (
    "chromium",
    "chromium-headless-shell",
    "google-chrome",
    "google-chrome-stable",
    "chromium-browser",
)
QUIET = (  # without much of what a browser asks of the network on its own behalf
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
)
OWN = re.compile(
    r"\w+ (http://)?[\w.]+\.google(apis)?\.com[:/]"
)  # the rest of it, which nothing switches off
RATE = "optimizer.learning_rate"
WORSE = '<script>document.title="bad"</script> & "quoted" <img src=http://example.invalid/x.png>'

# -- as text --------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """(tag, attributes) of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def made_up(tmp_path, title="a page"):
    rows = [
        [Cell("1", 1), Cell(WORSE, WORSE), Cell("–", "")],
        [Cell("2", 2), Cell("b", "b"), Cell("0.5", 0.5)],
    ]
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    parts = [
        Table("Runs", WORSE, ["rank", "name", WORSE], rows, 0),
        page.Picture(tmp_path / "red.png", "curves", "mean & band"),
    ]
    page.write(tmp_path / "page.html", title, {"command": WORSE, "varies": ["a: 1, 2", "b: <3>"]}, parts)
    return (tmp_path / "page.html").read_text()


def test_every_word_is_escaped(tmp_path):
    text = made_up(tmp_path, title=WORSE)
    assert WORSE not in text and text.count(html.escape(WORSE)) >= 5
    assert html.unescape(text).count(WORSE) >= 6
    assert [tag for tag, _ in Elements(text).found].count("script") == 1
    assert "b: &lt;3&gt;" in text


def test_nothing_outside_is_named(tmp_path):
    found = Elements(made_up(tmp_path)).found
    asked = [
        attrs[name] for _, attrs in found for name in ("src", "href", "srcset", "action") if name in attrs
    ]
    assert len(asked) == 2 and all(address.startswith("data:") for address in asked)
    assert {tag for tag, _ in found} & {"a", "iframe", "object", "embed", "base", "form"} == set()
    assert "url(" not in page.STYLE and "@import" not in page.STYLE and "http" not in page.STYLE + page.SCRIPT
    policy = next(a["content"] for _, a in found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_values_are_kept_to_sort_by(tmp_path):
    found = [attrs["data-value"] for tag, attrs in Elements(made_up(tmp_path)).found if tag == "td"]
    assert found == ["1", WORSE, "", "2", "b", "0.5"]


# -- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """`browser(path, *flags)`: (its DOM, what it said on its console, the requests it made of a proxy)."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox

    def look(path, profile, *flags):
        with Proxy() as proxy:
            told = subprocess.run(
                [found, "--headless", *root, *QUIET, "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
                + [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
                + [f"--proxy-server={proxy.address}", "--proxy-bypass-list=<-loopback>", *flags]
                + [path.absolute().as_uri()],
                capture_output=True,
                text=True,
                timeout=120,
            )
        assert told.returncode == 0, told.stderr
        console = [line for line in told.stderr.splitlines() if "CONSOLE" in line]
        return told.stdout, console, [line for line in proxy.asked if not OWN.match(line)]

    return look


class Proxy:
    """Writes down the first line of each request and answers none."""

    def __enter__(self):
        self.asked = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        return self

    def _serve(self):
        while True:
            connection, _ = self.server.accept()
            with connection:
                line = connection.recv(4096).decode(errors="replace").partition("\r\n")[0]
                if line == "stop":
                    return
                self.asked.append(line)

    def __exit__(self, *_):
        with socket.create_connection(self.server.getsockname()) as last:
            last.sendall(b"stop")
        self.thread.join()
        self.server.close()


SEEN = """
const seen = () => [...document.querySelectorAll("table")].map(table => ({
  title: table.closest("section").querySelector("h2").innerText,
  heads: [...table.tHead.rows[0].cells].map(head => head.innerText),
  sorted: [...table.tHead.rows[0].cells].map(head => head.getAttribute("aria-sort")),
  rows: [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText)),
}));
const click = (title, head) => [...document.querySelectorAll("section")]
  .find(section => section.querySelector("h2").innerText === title)
  .querySelectorAll("th button")[head].click();
addEventListener("load", () => {
  const resources = performance.getEntriesByType("resource").map(entry => entry.name);
  parent.postMessage(JSON.stringify([act(), resources.filter(name => !name.startsWith("data:"))]), "*");
});
"""

HEARD = """<script>addEventListener("message", event => {
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = event.data;
  document.body.append(told);
});</script>"""


@pytest.fixture
def ask(browser, tmp_path):
    """`ask(path, "JavaScript that returns something", *flags)`: what it returned in the page, once it is shown.

    width: of the screen, made by a frame, since a window of Chromium's is never narrower than 500 pixels.
    """

    def ask(path, script, *flags, width=0):
        acting = f"<script>{SEEN} const act = () => {{ {script} }};</script>"
        shown = tmp_path / "shown.html"
        shown.write_text(path.read_text().replace("</body>", HEARD + acting + "</body>"))
        if width:
            frame = f"<iframe src=shown.html style='width: {width}px; height: 1500px; border: 0'></iframe>"
            shown = tmp_path / "framed.html"
            shown.write_text(f"<!doctype html><body style='margin: 0'>{HEARD}{frame}</body>")
        dom, console, asked = browser(shown, tmp_path / "profile", *flags)
        assert console == [] and asked == []
        told = re.search('<pre id="told">(.*?)</pre>', dom, re.DOTALL).group(1)
        answer, resources = json.loads(html.unescape(told))
        assert resources == []
        return answer

    return ask


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """index.html of a sweep of 2 x 3 settings and two seeds, in which one run failed and one diverged."""
    folder = tmp_path_factory.mktemp("sweeps") / "line"
    cells = made.sweep(folder, "--seeds=2", grid=[f"{RATE}=0.001,0.03,0.1", "model.power=2,10"], seeds=2)
    for (rate, power, seed), cell in cells.items():
        if (rate, power, seed) == (0.001, 2, 1):
            made.failure(folder / cell.name, f"lmlab train: {WORSE}")
        elif (rate, power) == (0.1, 10):
            made.run(folder / cell.name, cell.overrides, made.curve(9.0, None))
        else:
            end = {0.001: 1.5, 0.03: 0.5, 0.1: 1.0}[rate] + power / 100 + seed / 10
            rows = made.curve(4 * end, 2 * end, 1.2 * end, end)
            made.run(folder / cell.name, cell.overrides, rows)
    assert main(["report", f"--workdir={folder}"]) == 0
    return folder / "report" / "index.html"


def test_the_browser_would_tell_of_errors_and_requests(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src=http://example.invalid/x.png><script>null.x</script>")
    dom, console, asked = browser(bad, tmp_path / "profile")
    assert "<img" in dom
    assert any("TypeError" in line for line in console)
    assert asked == ["GET http://example.invalid/x.png HTTP/1.1"]


def test_the_policy_holds_back_a_request(browser, tmp_path):
    made_up(tmp_path)
    bad = tmp_path / "page.html"
    bad.write_text(bad.read_text().replace("</main>", "<img src=http://example.invalid/x.png></main>"))
    _, console, asked = browser(bad, tmp_path / "profile")
    assert asked == [] and any("Content Security Policy" in line for line in console)


def test_tables_are_shown_best_first_and_sorted_by_a_click(report, ask):
    before, by_rate, down, runs_too = ask(
        report,
        """const all = [seen()];
        click("Settings", 1); all.push(seen());
        click("Settings", 1); all.push(seen());
        click("Runs", 0); all.push(seen());
        return all;""",
    )
    assert [table["title"] for table in before] == ["Settings", "What failed", "Runs"]
    settings, failed, runs = before
    assert settings["heads"][:4] == ["rank", "learning_rate", "power", "validation/loss, last"]
    assert settings["sorted"][:2] == ["ascending", None]
    settings_rows = [row[:4] for row in settings["rows"]]
    assert settings_rows == [
        ["1", "0.03", "2", "0.57000 ± 0.071"],
        ["2", "0.03", "10", "0.65000 ± 0.071"],
        ["3", "0.1", "2", "1.0700 ± 0.071"],
        ["4", "0.001", "2", "1.5200"],
        ["5", "0.001", "10", "1.6500 ± 0.071"],
        ["", "0.1", "10", "diverged"],
    ]
    assert settings["rows"][3][-2:] == ["1", "1 failed"] and settings["rows"][5][-2:] == ["0", "2 diverged"]
    assert len(runs["rows"]) == 12 and [row[0] for row in runs["rows"]] == [
        *map(str, range(1, 10)),
        "",
        "",
        "",
    ]
    assert failed["rows"][0][1:] == ["failed", f"lmlab train: {WORSE}"], "as text, not as HTML"
    rates = [float(row[1]) for row in by_rate[0]["rows"]]
    assert rates == sorted(rates) == [0.001] * 2 + [0.03] * 2 + [0.1] * 2
    assert by_rate[0]["sorted"][:2] == [None, "ascending"] and down[0]["sorted"][1] == "descending"
    assert [float(row[1]) for row in down[0]["rows"]] == rates[::-1]
    assert runs_too[0] == down[0], "each table is sorted by itself"
    assert [row[0] for row in runs_too[2]["rows"]] == [*map(str, range(9, 0, -1)), "", "", ""]


def test_numbers_are_sorted_as_numbers_and_what_is_unknown_comes_last(tmp_path, ask):
    values = [10, 9, "", -1.5, 1e-3]
    rows = [[Cell(str(value), value), Cell(word, word)] for value, word in zip(values, "bca10", strict=True)]
    page.write(tmp_path / "page.html", "numbers", {}, [Table("T", "", ["number", "word"], rows)])
    script = "return [0, 0, 1, 1].map(head => { click('T', head); return seen()[0].rows; });"
    up, down, words, back = ask(tmp_path / "page.html", script)
    assert [row[0] for row in up] == ["-1.5", "0.001", "9", "10", ""]
    assert [row[0] for row in down] == ["10", "9", "0.001", "-1.5", ""]
    assert [row[1] for row in words] == ["0", "1", "a", "b", "c"] == [row[1] for row in back][::-1]


def test_the_whole_page_is_there(report, ask):
    text, images, title = ask(
        report,
        """return [document.body.innerText,
        [...document.images].map(image => [image.naturalWidth, image.alt]), document.title];""",
    )
    assert title == "line:demo" and len(images) == 2
    assert all(width > 500 for width, _ in images), "pictures are decoded"
    for words in (
        "12 runs: 9 done, 2 diverged, 1 failed",
        "--seeds=2",
        "optimizer.learning_rate: 0.001, 0.03, 0.1",
        "seed: 0, 1",
        "learning_rate=0.03,power=2,seed=0: 0.52000",
        made.where()["python"],
        made.where()["host"]["processor"].removesuffix(" Processor"),
    ):
        assert words in text, words


@pytest.mark.parametrize("width", [1200, 360])
def test_it_fits_the_screen(report, ask, tmp_path, width):
    shot = tmp_path / "shot.png"
    script = "return [innerWidth, document.documentElement.scrollWidth];"
    flags = [f"--window-size={max(width, 500)},1500", f"--screenshot={shot}"]
    inner, wanted = ask(report, script, *flags, width=width)
    assert inner == width and wanted <= inner, "nothing lies beyond the right edge"
    pixels = np.asarray(Image.open(shot).convert("L"))[:, :width]
    assert pixels.shape == (1500, width) and (pixels > 200).mean() > 0.7 and (pixels < 100).mean() > 0.003
