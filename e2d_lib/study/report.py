"""One page to read of a run: ``report.html``. It holds all it shows, fetches nothing and runs no script.

A Jinja template over the executed notebooks, with nbconvert's Markdown and bleach for whatever HTML they hold: Jupyter
Book makes a site of many files with scripts, and nbconvert's own page has no place for the answers first.

Names of scans, paths and findings come from strangers' files. Markdown is rendered with HTML escaped, HTML outputs are
reduced to tables and text, everything else is escaped by the template, and the page's policy forbids scripts.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from e2d_lib import io, words
from e2d_lib.study.notebook import DATA_CHAPTER, StudyError, resolve, shown

PUBLISHED = "results/published/headlines.csv"
TAGS = "p br hr h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong a span table thead tbody tfoot tr th td caption"
ATTRIBUTES = {"a": ["href"], "th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"], "span": ["class"]}


def write(run_dir: str | Path, out: str | Path = "") -> Path:
    """Write the report of a run's folder, at ``<run>/report.html`` or at ``out``; its path.

    Raises StudyError where no chapter has been run.
    """
    run = resolve(run_dir)
    chapters = [read_chapter(folder) for folder in sorted(run.glob("[0-9][0-9]_*")) if _copy(folder)]
    if not chapters:
        raise StudyError(f"no executed chapter in {shown(run)}: e2d run makes them")
    path = resolve(out) if out else run / "report.html"
    values = {"run": run.name, "data": _data(run), "provenance": _json(run), "chapters": chapters}
    io.write_text(path, words.page(Path(__file__).parent / "report.html.jinja", html=True, **values))
    return path


def read_chapter(folder: Path) -> dict[str, Any]:
    """What the template shows of an executed chapter: title, question, answer, headline, figures, and its cells.

    A figure stands with the prose before it, once; in the cells its number stands in its place.
    """
    import nbformat

    cells = nbformat.read(_copy(folder), as_version=4).cells
    title, _, opening = cells[0].source.lstrip("# ").partition("\n")
    question = re.search(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|\Z)", opening, re.DOTALL)
    last = next((i for i, cell in enumerate(cells) if cell.source.strip() == "## Answer"), len(cells))
    number, _, heading = map(str.strip, title.partition("·"))
    figures: list[dict[str, Any]] = []
    blocks, prose = [("text", markdown(opening))], ""
    for cell in cells[1:last]:
        if cell.cell_type == "markdown":
            head = re.match(r"#+ (.+)\n?", cell.source)
            heading, prose = (head[1], cell.source[head.end() :]) if head else (heading, cell.source)
            blocks.append(("text", markdown(cell.source)))
        elif cell.source:
            blocks.append(("code", cell.source))
        for output in cell.get("outputs", []):
            kind, content = shown_as(output)
            if kind == "figure":
                figures.append({"id": f"{number}.{len(figures) + 1}", "png": content, "heading": heading})
                figures[-1]["prose"], prose = markdown(prose), ""  # said once, with the first of several figures
                content = figures[-1]["id"]
            blocks.append((kind, content))
    ends = [output for cell in cells[last:] for output in cell.get("outputs", [])]
    errors = [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    return {
        "id": folder.name,
        "title": title,
        "question": markdown(question[1]) if question else "",
        "answer": [markdown(o["data"]["text/markdown"]) for o in ends if "text/markdown" in o.get("data", {})],
        "stopped": [shown_as(error)[1] for error in errors],
        "data": _json(folder, "headline.json").get("data", ""),
        "headline": headline(folder),
        "parameters": _json(folder).get("parameters", {}),
        "figures": figures,
        "blocks": blocks,
    }


def headline(folder: Path) -> list[dict[str, str]]:
    """The chapter's numbers as text, with the published ones of ``PUBLISHED`` beside them."""
    file = resolve(PUBLISHED)
    known = pd.read_csv(file, dtype=str).set_index(["chapter", "headline"]) if file.is_file() else pd.DataFrame()
    return [
        {
            "name": words.phrase(name),
            "value": _number(entry["value"]),
            "interval": " to ".join(map(_number, entry["ci95"])) if entry["ci95"] else "",
            "n": "" if entry["n"] is None else _number(entry["n"]),
            "unit": entry["unit"],
            **(known.loc[(folder.name, name)].to_dict() if (folder.name, name) in known.index else {}),
        }
        for name, entry in _json(folder, "headline.json").get("headline", {}).items()
    ]


def shown_as(output: Mapping[str, Any]) -> tuple[str, Any]:
    """A cell's output as (kind, content): the richest form that a page without scripts can show."""
    if output["output_type"] == "stream":
        return "plain", output["text"]
    if output["output_type"] == "error":
        return "plain", f"{output['ename']}: {output['evalue']}"
    data = output["data"]
    if "image/png" in data:
        return "figure", re.sub(r"[^A-Za-z0-9+/=]", "", data["image/png"])
    if "text/markdown" in data:
        return "text", markdown(data["text/markdown"])
    if "text/html" in data:
        return "table", clean(data["text/html"])
    return "plain", data.get("text/plain", "")


def markdown(text: str):
    """Markdown as HTML one heading lower, the HTML in it escaped."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    html = MarkdownWithMath(renderer=IPythonRenderer(escape=True, exclude_anchor_links=True)).render(text)
    return clean(re.sub(r"(</?h)([1-5])\b", lambda tag: tag[1] + str(int(tag[2]) + 1), html))


def clean(html: str):
    """HTML reduced to text, tables and links; any other tag is shown as it is written.

    >>> clean('<em onclick="x()">a</em><script>b</script>')
    Markup('<em>a</em>&lt;script&gt;b&lt;/script&gt;')
    """
    import bleach
    from markupsafe import Markup

    html = re.sub(r"<style.*?</style>|</?div[^<>]*>", "", html, flags=re.DOTALL)  # what pandas puts around a table
    return Markup(bleach.clean(html, tags=TAGS.split(), attributes=ATTRIBUTES, protocols=["http", "https", "mailto"]))


def _copy(folder: Path) -> Path | None:
    """The executed notebook: the one that failed, if it failed last."""
    copies = (folder / "notebook.failed.ipynb", folder / "notebook.ipynb")
    return next((path for path in copies if path.is_file()), None)


def _json(folder: Path, name: str = "provenance.json") -> dict[str, Any]:
    return io.read_json(folder / name) if (folder / name).is_file() else {}


def _data(run: Path) -> str:
    """What the run is about; of a run without chapter 1, what its other chapters are about."""
    others = (_json(file.parent, file.name).get("data", "") for file in sorted(run.glob("*/headline.json")))
    return _json(run / DATA_CHAPTER, "cohort.json").get("data") or next(others, "")


def _number(value: Any) -> str:
    """A count with its thousands, a measure with three decimals, and a dash for what is not defined."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
