"""The report of a run made here, whose names come from a stranger; then in a browser, without a network."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image

from e2d_lib.study import cli, report
from e2d_lib.study.notebook import StudyError
from tests.conftest import ROOT

EVIL = "<script>document.title='caught'</script>"
BROWSER = Path("/usr/bin/chromium")


def png(shade: int) -> str:
    with io.BytesIO() as file:
        Image.new("L", (30, 20), shade).save(file, "png")
        return base64.encodebytes(file.getvalue()).decode()


def output(data: dict):
    return new_output("display_data", data=data | {"text/plain": "plain"})


@pytest.fixture
def run(tmp_path) -> Path:
    """A chapter that was finished and one that stopped, with a scan whose name is a script."""
    folder = tmp_path / "results" / "mine"
    table = pd.DataFrame({"scan": [EVIL], "slices": [7]})
    cells = [
        new_markdown_cell("# 1 · Data exploration\n\n**Question.** Which scans,\nand how clean?\n\n**Reads** CT."),
        new_code_cell("size: int = 3", metadata={"tags": ["parameters"]}),
        new_markdown_cell("## The cohort\n\nOne row a scan."),
        new_code_cell(f"table  # {EVIL}", outputs=[output({"text/html": table._repr_html_()})]),
        new_code_cell("first()", outputs=[output({"image/png": png(10)}), output({"image/png": png(20)})]),
        new_markdown_cell("## The slices"),
        new_code_cell("second()", outputs=[output({"image/png": png(30)})]),
        new_code_cell("print()", outputs=[new_output("stream", name="stdout", text=f"read {EVIL}")]),
        new_code_cell(
            "html()",
            outputs=[output({"text/html": '<img src=x onerror="document.title=1"><a href="javascript:x">y</a>'})],
        ),
        new_markdown_cell("## Answer"),
        new_code_cell(
            "say()", outputs=[output({"text/markdown": f"**150 scans**, and {EVIL}, [x](javascript:alert(1))"})]
        ),
        new_code_cell(
            "finish()", outputs=[output({"text/html": "<table><tr><td>the headline again</td></tr></table>"})]
        ),
    ]
    headline = {
        "scans": {"value": 1500, "ci95": None, "n": None, "unit": EVIL},
        "area_delta": {"value": 0.51239, "ci95": [0.5, 0.52], "n": 40, "unit": "share removed"},
    }
    write(folder / "01_data_exploration", "notebook", cells, headline)
    (folder / "01_data_exploration" / "cohort.json").write_text(json.dumps({"data": "phantom"}))
    stopped = [
        new_markdown_cell("# 2 · More"),
        new_code_cell("1 / 0", outputs=[new_output("error", ename="ZeroDivisionError", evalue=EVIL, traceback=[])]),
    ]
    write(folder / "02_more", "notebook.failed", stopped, {})
    return folder


def write(folder: Path, name: str, cells: list, headline: dict) -> None:
    folder.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    about = {"chapter": folder.name, "data": "phantom", "headline": headline}
    (folder / "headline.json").write_text(json.dumps(about))
    (folder / "provenance.json").write_text(json.dumps({"parameters": {"data_root": EVIL}}))


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.texts, self.text = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append((self.tags[-1] if self.tags else "", data))
        self.text += data


@pytest.fixture
def page(run) -> Page:
    return Page(report.write(run).read_text(encoding="utf-8"))


def test_the_answer_stands_before_numbers_figures_and_cells(page):
    chapter = page.text[page.text.index("Which scans,") :]  # after the contents
    order = [
        "150 scans",
        "1,500",
        "Figure 1.1. The cohort",
        "One row a scan.",
        "Figure 1.3. The slices",
        "The whole chapter",
    ]
    places = [chapter.index(part) for part in order]
    assert places == sorted(places)
    assert "the headline again" not in page.text and ("strong", "150 scans") in page.texts


def test_numbers_with_interval_and_count(page):
    cells = [text for tag, text in page.texts if tag == "td"]
    start = cells.index("area removed, share of the slice")
    assert cells[start + 1 : start + 5] == ["0.512", "0.500 to 0.520", "40", "share removed"]


def test_every_picture_is_in_the_page_once(page):
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    shades = [Image.open(io.BytesIO(base64.b64decode(s.partition("base64,")[2]))).getpixel((0, 0)) for s in sources]
    assert shades == [10, 20, 30] and all(source.startswith("data:image/png;base64,") for source in sources)
    described = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert described == ["Figure 1.1: The cohort", "Figure 1.2: The cohort", "Figure 1.3: The slices"]


def test_what_strangers_named_is_text(page):
    assert (
        "script" not in page.tags and page.text.count(EVIL) >= 7
    )  # table, code, print, answer, unit, parameter, error
    assert not [a for a in page.attributes if a[1].startswith("on") or "javascript" in a[2]]
    assert page.tags.count("img") == 3


def data(cell) -> list[dict]:
    return [output.get("data", {}) for output in cell.get("outputs", [])]


def test_a_whole_run(tmp_path):
    """Of the run that the repository keeps every answer and every picture is there."""
    reference = ROOT / "results" / "reference"
    page = Page(report.write(reference, tmp_path / "page.html").read_text())
    text = " ".join(page.text.split())
    pictures = 0
    for copy in sorted(reference.glob("0*/notebook.ipynb")):
        cells = nbformat.read(copy, as_version=4).cells
        assert cells[0].source.partition("\n")[0].lstrip("# ") in text
        pictures += sum("image/png" in output for cell in cells for output in data(cell))
        said = (out["text/markdown"] for c in reversed(cells) if "chapter.say(" in c.source for out in data(c))
        answer = next(said)
        first = re.split(r"[*`|\n]", answer)[0].strip("- ")
        assert " ".join(first.split()) in text
    assert page.tags.count("img") == pictures > 20


def test_nothing_is_fetched(page):
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    policy = next(value for tag, _, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    links = [value for _, name, value in page.attributes if name == "href"]
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert links and all(link[1:] in targets for link in links if link.startswith("#"))


def test_what_a_chapter_stopped_on_is_said_and_phantoms_are_labelled(page):
    assert f"This chapter stopped: ZeroDivisionError: {EVIL}" in page.text
    assert "Phantom data." in page.text and "data: phantom" in page.text and "not for diagnosis" in page.text


def test_patients_scans_are_not_called_phantoms(run):
    (run / "01_data_exploration" / "cohort.json").write_text(json.dumps({"data": "hospital <b>A</b>"}))
    text = Page(report.write(run).read_text()).text
    assert (
        "Phantom data." not in text and "Data: hospital <b>A</b>." in text and "as the terms of the data allow" in text
    )


def test_published_numbers_stand_beside(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PUBLISHED", tmp_path / "headlines.csv")
    (tmp_path / "headlines.csv").write_text(
        "chapter,headline,published,what\n01_data_exploration,area_delta,0.4182,row <Total>\n"
    )
    text = Page(report.write(run).read_text()).text
    assert re.search(r"share removed\s*0\.4182 row <Total>", text) and text.count("0.4182") == 1
    assert "published, on COV19-CT-DB" in text
    monkeypatch.setattr(report, "PUBLISHED", tmp_path / "none.csv")
    assert "published, on COV19-CT-DB" not in Page(report.write(run).read_text()).text


def test_a_report_is_written_where_it_is_asked_for(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "results/mine", "--out", "site/index.html"]) == 0
    assert capsys.readouterr().out == "site/index.html\n" and (tmp_path / "site" / "index.html").is_file()
    with pytest.raises(StudyError, match="no executed chapter"):
        report.write(tmp_path)


def test_the_published_headlines_are_the_published_tables():
    folder = ROOT / "results" / "published"
    table = pd.read_csv(folder / "headlines.csv", dtype=str).set_index(["chapter", "headline"])["published"]
    cohort = pd.read_csv(folder / "cohort.csv")
    for name in ("scans", "slices", "positive", "negative"):
        assert table["01_data_exploration", name] == f"{int(cohort[name].sum()):,}"
    total = pd.read_csv(folder / "reduction_table.csv", dtype=str).set_index("row").loc["Total"]
    for name in ("area_delta", "length_delta", "volume_delta"):
        assert table["03_reduction_statistics", name] == total[name]
    assert table["07_generalizability", "axial_area_delta"] == total["area_delta"]
    assert table["07_generalizability", "axial_length_delta"] == total["length_delta"]
    saved = pd.read_csv(folder / "saved_scores.csv")
    saved = saved[saved["validated_on"] == "validation split"].groupby("metric")["value"].max()
    for chapter, name in (("05_evaluation", "roc_auc"), ("05_evaluation", "macro_f1"), ("06_ablations", "roc_auc")):
        assert table[chapter, name] == f"{saved[name]:.3f}"


@pytest.mark.skipif(not BROWSER.exists(), reason="no Chromium at /usr/bin/chromium")
def test_in_a_browser_without_a_network(run):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = report.write(run)
    asked, said = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(BROWSER), args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 400, "height": 800})
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(path.as_uri())
        assert tab.title() == "SSFL++, KDS and E2D: mine"  # the script would have written "caught"
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] and said == []
        assert tab.evaluate("document.scripts.length") == 0
        widths = tab.evaluate("[...document.images].map(i => i.complete ? i.naturalWidth : 0)")
        assert widths == [30, 30, 30]
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400  # a phone scrolls one way
        rows = "[...document.querySelectorAll('p')].filter(p => p.textContent == 'One row a scan.')"
        seen = f"{rows}.map(p => p.checkVisibility())"
        assert tab.evaluate(seen) == [True, False]  # the chapter is folded
        tab.get_by_text("The whole chapter").first.click()
        assert tab.evaluate(seen) == [True, True]
        browser.close()
