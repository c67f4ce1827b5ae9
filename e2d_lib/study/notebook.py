"""The stored notebooks: where the study lies, its chapters, their parameters, and what a chapter depends on."""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import e2d_lib
from e2d_lib import io

DATA_CHAPTER = "01_data_exploration"  # the one that says which data the run is about
KINDS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
RANGES: dict[str, list[float]] = io.shipped("e2d_lib.study", "ranges.yaml")
"""What a number of that name may be, in every chapter: shares of something in (0, 1], counts from 1."""


class OneLine(Exception):
    """An error that its message explains: IPython shows it without a traceback, whatever tool runs the notebook."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class StudyError(OneLine, ValueError):
    """Something the user can mend; one line."""


def root() -> Path:
    """The study's folder, which relative paths in parameters mean, whatever folder a notebook is run from.

    The nearest one, from the working directory upwards, that holds the chapters; else the checkout that the library is
    installed from; else the working directory.
    """
    here = Path.cwd().resolve()
    checkout = Path(e2d_lib.__file__).resolve().parents[1]
    chapters = (folder for folder in (here, *here.parents, checkout) if any(_chapters(folder / "notebooks")))
    return next(chapters, here)


def _chapters(folder: Path) -> Iterable[Path]:
    return folder.glob("[0-9][0-9]_*.ipynb")


def resolve(path: str | Path) -> Path:
    """``path``, absolute; a relative one is meant from the study's `root`."""
    return Path(os.path.normpath(root() / Path(path).expanduser()))


def shown(path: str | Path, start: Path | None = None) -> str:
    """``path`` from ``start``, for messages the working directory, where it lies below it, else absolute."""
    full, start = resolve(path), start or Path.cwd()
    return (full.relative_to(start) if full.is_relative_to(start) else full).as_posix()


class Cell(NamedTuple):
    """A cell as it is stored: its kind ("code", "markdown"), source and tags."""

    kind: str
    source: str
    tags: list[str]


def stored_cells(path: Path) -> list[Cell]:
    """A notebook's cells. Raises StudyError for a file that is none.

    Read as the JSON it is: nbformat takes over a second to import, in every chapter's kernel.
    """
    try:
        cells = io.read_json(path)["cells"]
        return [Cell(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{shown(path)} is no Jupyter notebook: {error!r}") from None


class Parameter(NamedTuple):
    """A notebook's parameter: its default, and the types that a value may have."""

    default: Any
    kinds: tuple[type, ...]


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A chapter's notebook and its declared parameters."""

    path: Path

    @classmethod
    def of_chapter(cls, name: str) -> "Notebook":
        """The stored notebook of a chapter: in the folder that the runner uses, else in the study's ``notebooks/``."""
        path = resolve(os.environ.get("E2D_NOTEBOOKS", "notebooks")) / f"{name}.ipynb"
        if not path.is_file():
            raise StudyError(f"there is no {shown(path)}: run the chapters from the study's folder, or from below it")
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def _cells(self) -> list[tuple[str, str]]:
        """Type and source of every cell but the parameters': their values are told apart from the cells."""
        return [(cell.kind, cell.source) for cell in stored_cells(self.path) if "parameters" not in cell.tags]

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The assignments in the one cell tagged ``parameters``, such as ``size: int = 96``; defaults are literals.

        Read here, as papermill's own reader drops lines with a second ``=`` and annotations such as ``bool | str``.
        """
        cells = [cell for cell in stored_cells(self.path) if "parameters" in cell.tags]
        if len(cells) != 1:
            raise StudyError(f"{self.path.name} has {len(cells)} cells tagged 'parameters'; a chapter has one")
        found = {}
        for line in ast.parse(cells[0].source).body:
            if not isinstance(line, ast.AnnAssign) or line.value is None:
                raise StudyError(f"{self.path.name}: line {line.lineno} of the parameters is not 'name: type = value'")
            kinds = tuple(KINDS[node.id] for node in ast.walk(line.annotation) if isinstance(node, ast.Name))
            found[line.target.id] = Parameter(ast.literal_eval(line.value), kinds)
        return found

    def key(self, parameters: Mapping[str, Any]) -> str:
        """What the chapter's results depend on besides the chapters it reads: cells, parameters, the library."""
        values = {name: value for name, value in parameters.items() if name != "run_dir"}
        return io.digest([self._cells, values, library_hash()])

    def was_run(self, cells: list[str], *, last: bool) -> bool:
        """Whether ``cells``, sources in the order they were run, end as this notebook does from its opening cell on.

        last: up to its last cell. A cell that was changed, left out, added or run twice makes it another notebook.
        """
        stored = [source.strip() for kind, source in self._cells if kind == "code"]
        first = next((i for i, source in enumerate(stored) if "Chapter.open(" in source), len(stored))
        ran = [source.strip() for source in cells]
        opened = [i for i, source in enumerate(ran) if source in stored[first : first + 1]]
        since = ran[opened[-1] :] if opened else []
        return bool(since) and since == (stored[first:] if last else stored[first : first + len(since)])

    def values(self, namespace: Mapping[str, Any], cells: Iterable[str]) -> dict[str, Any]:
        """The declared parameters' values in a notebook's ``globals()``, checked.

        cells: the sources of the cells run so far. Raises StudyError for a value that is none, and for a name in
        papermill's injected cell that the notebook does not declare: papermill itself would only warn, and run on.
        """
        injected = [source for source in cells if source.startswith("# Parameters\n")]
        for name in names_made("\n".join(injected[-1:])):
            if name not in self.parameters:
                raise StudyError(f"{self.name}: does not take a parameter {name!r}{hint(name, self.parameters)}")
        return {
            name: checked(self.name, name, namespace.get(name, parameter.default), parameter)
            for name, parameter in self.parameters.items()
        }


def notebooks(folder: str | Path = "notebooks") -> list[Notebook]:
    """The chapters in ``folder``, in order: every ``NN_name.ipynb``, with its parameters read from its tagged cell."""
    paths = sorted(_chapters(resolve(folder)))
    if not paths:
        raise StudyError(f"no chapters (NN_name.ipynb) in {shown(folder)}: run from the checkout, or give --notebooks")
    return [Notebook(path) for path in paths]


def checked(where: str, name: str, value: Any, parameter: Parameter) -> Any:
    """``value`` if it has a declared type; an int will do for a float, and the items of a list are as the default's."""
    default, kinds = parameter
    if type(value) is tuple:
        value = list(value)
    if float in kinds and type(value) in (int, str) and not (type(value) is str and str in kinds):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3, which lacks the dot, as text
            value = float(value)
    if type(value) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise StudyError(
            f"{where}: {name} is {value!r} ({type(value).__name__}); expected {expected}, like {default!r}"
        )
    low, high = RANGES.get(name.partition(" ")[0], (-math.inf, math.inf))
    if type(value) in (int, float) and not low <= value <= high:
        least = "more than 0" if 0 < low < 1 else f"{low} or more"
        most = "" if high == math.inf else f", at most {high}"
        raise StudyError(f"{where}: {name} is {value!r}; expected {least}{most}")
    if isinstance(value, list) and default:
        item = Parameter(default[0], (type(default[0]),))
        return [checked(where, f"{name} (an item)", one, item) for one in value]
    return value


def names_made(source: str) -> Iterable[str]:
    """The names that a cell assigns or imports; none where it is no Python.

    >>> sorted(names_made("import numpy as np\\ntable = np.zeros(3)"))
    ['np', 'table']
    """
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:  # a cell with magics
        return set()
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return made | {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}


def hint(name: str, known: Iterable[str]) -> str:
    """What was meant, or else what there is."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(known))}"


def library_hash() -> str:
    """Of the library's source and data, sub-folders too: results are made again when what makes them changes."""
    folder = Path(e2d_lib.__file__).parent
    sources = sorted(p for p in folder.rglob("*.*") if p.is_file() and p.suffix not in (".pyc", ".md"))
    return io.digest(
        [[path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()] for path in sources]
    )
