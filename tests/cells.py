"""Single cells of the chapters as they are stored, run on made-up tables: what they draw, save, say and leave."""

from types import SimpleNamespace
from typing import Any

from e2d_lib.study.notebook import stored_cells
from tests.conftest import ROOT


class Chapter:
    """What a cell asks of its chapter; keeps what it is given."""

    data = "phantom"

    def __init__(self) -> None:
        self.figures, self.tables, self.said = {}, {}, []

    def save_figure(self, name, figure, **options):
        return self.figures.setdefault(name, figure)

    def save_table(self, name, table):
        return self.tables.setdefault(name, table)

    save_parquet = save_table

    def say(self, text):
        self.said.append(text)


def run(stem: str, /, *holds: str, **given: Any) -> SimpleNamespace:
    """What is left by the cells of a chapter that hold these texts, each one cell's: every name, and ``chapter``.

    They see the chapter's imports, its parameters at their defaults, and ``given``, which goes before both.
    """
    code = [cell.source for cell in stored_cells(ROOT / "notebooks" / f"{stem}.ipynb") if cell.kind == "code"]
    space: dict[str, Any] = {"display": lambda *shown: None, "chapter": Chapter()}
    for source in code[:2]:
        exec(source, space)
    space |= given
    for text in holds:
        (source,) = (source for source in code if text in source)
        exec(compile(source, f"{stem}, {text}", "exec"), space)
    return SimpleNamespace(**{name: value for name, value in space.items() if name != "__builtins__"})
