"""Sweeps: a grid of parameters fanned out as runs of one notebook, in parallel, each in a folder of its own.

A grid is a YAML file (``notebooks/grids/<name>.yaml``)::

    description: what it asks
    base: {seeds: [0, 1, 2]}          # parameters of every cell
    grid: {method: [kds, random]}     # every combination is a cell; a list of such mappings is their union
    cells: {wide: {fraction: 0.7}}    # or named cells
    baseline: {method: kds}           # the cell that the others are compared with (default: the first)
    against: {wide: ours}             # another one for some

The results are ``<run>/ablations/<name>/<cell>/`` (executed notebook, ``setting.json``, ``scores.parquet``) and, beside
the cells, ``comparison.csv`` and ``comparison.png``. What is up to date is not run again.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import effective_n_jobs
from sklearn.model_selection import ParameterGrid

from e2d_lib import io, parallel, progress
from e2d_lib.study import runner
from e2d_lib.study.chapter import DONE
from e2d_lib.study.notebook import shown

ABLATIONS = "ablations"
"""Folder of a run's sweeps; its ``done.json`` changes with their results, so that chapter 6 is then out of date."""
NOTEBOOK = "06_ablations"
NEEDED = ("01", "02")
"""Chapters that the notebook reads: they are run first, where they are not up to date."""


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep: name to parameters; and which one each is compared with."""

    name: str
    cells: dict[str, dict[str, Any]]
    base: dict[str, Any] = field(default_factory=dict)
    baseline: str = ""
    against: dict[str, str] = field(default_factory=dict)


def cell_name(values: Mapping[str, Any]) -> str:
    """
    >>> cell_name({"method": "kds", "n_samples": 8})
    'method=kds,n_samples=8'
    """
    text = ",".join(f"{name}={value}" for name, value in values.items())
    return re.sub(r"[^\w=,.+-]+", "_", text) or "base"


def load_grid(source: str | Path, folder: str | Path = "notebooks") -> Grid:
    """A grid by name (``grids/<name>.yaml`` beside the notebooks) or by path. Raises StudyError."""
    path, content = runner.load_yaml("grid", source, folder)
    return _grid(path.stem, content, str(path))


def parse_grid(assignments: Iterable[str]) -> Grid:
    """Of ``name=a,b,c``, each value YAML: every combination is a cell.

    >>> list(parse_grid(["n_samples=4,8", "method=kds"]).cells)
    ['method=kds,n_samples=4', 'method=kds,n_samples=8']
    """
    bracketed = (re.sub("=(.*)", r"=[\1]", item, count=1, flags=re.DOTALL) for item in assignments)
    found = runner.parse_assignments(bracketed, "-g")
    axes = {name if of == "all" else f"{of}.{name}": v for of, values in found.items() for name, v in values.items()}
    return _grid(cell_name({name: "-".join(map(str, values)) for name, values in axes.items()}), {"grid": axes}, "-g")


def _grid(name: str, content: Any, where: str) -> Grid:
    known = {"description", "base", "grid", "cells", "baseline", "against"}
    if not isinstance(content, dict) or not {"grid", "cells"} & content.keys():
        raise runner.StudyError(f"{where}: a grid has 'grid' or 'cells', or both")
    if unknown := sorted(map(str, content.keys() - known)):
        raise runner.StudyError(f"{where}: a grid has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    try:
        cells = {cell_name(values): values for values in ParameterGrid(content.get("grid", []))}
    except (TypeError, ValueError) as error:
        raise runner.StudyError(f"{where}: 'grid' maps names to lists of values: {error}") from None
    cells |= {str(key): dict(values or {}) for key, values in (content.get("cells") or {}).items()}
    baseline = content.get("baseline") or next(iter(cells))
    if isinstance(baseline, dict):
        baseline = next((n for n, v in cells.items() if all(v.get(k) == w for k, w in baseline.items())), str(baseline))
    against = {str(key): str(value) for key, value in (content.get("against") or {}).items()}
    if unknown := sorted({baseline, *against, *against.values()} - cells.keys()):
        raise runner.StudyError(f"{where}: no cell {unknown[0]!r}; there are {', '.join(cells)}")
    return Grid(name, cells, content.get("base") or {}, baseline, against)


def run(
    grid: Grid,
    *,
    profile: str = "ablation",
    n_jobs: int = -1,
    scheduler: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], Any] = print,
    **asked: Any,
) -> pd.DataFrame:
    """Run every cell that is not up to date, compare them all, and give the comparison (`ablation.compare`).

    n_jobs: cells at a time, each with its share of the cores. scheduler: a Dask scheduler's address, whose workers see
    the same folders. Other arguments as in `runner.run`. A cell that fails does not stop the others.

    Raises StudyError for a wrong grid before anything runs, and ChapterFailed, naming them, when cells failed.
    """
    base = (f"grid {grid.name}: base", {NOTEBOOK: grid.base})  # the command line goes before it, cells before both
    study = runner.prepare(profile, between=[base], **asked)
    runs = {}
    for name, values in grid.cells.items():
        own = (f"grid {grid.name}, cell {name}", {NOTEBOOK: {**values, "cell": f"{ABLATIONS}/{grid.name}/{name}"}})
        runs[name] = replace(study, parameters=runner.plan(study.chapters, ("", study.parameters), own))
    folder = study.dir / ABLATIONS / grid.name
    say(f"{grid.name} -> {shown(folder)}: {len(runs)} cells")
    runner.run(profile, only=NEEDED, dry_run=dry_run, progress=False, say=say, **asked)
    todo = {name: one for name, one in runs.items() if not one.current(one.chapter(NOTEBOOK))}
    if dry_run:
        for name in runs:
            say(f"{name}: {'would run' if name in todo else 'up to date'}")
        return pd.DataFrame()
    failed, n_jobs = [], processes(n_jobs, len(todo))
    done = parallel.unordered(_cell, list(todo.items()), n_jobs=n_jobs, scheduler=scheduler, alone=0)
    with progress.bar(total=len(runs), initial=len(runs) - len(todo), desc=grid.name, unit="cell") as bar:
        for name, error in done:
            if error:
                failed.append(error)
            bar.set_postfix_str(f"{name}{': failed' if error else ''}", refresh=False)
            bar.update()
    finished = sorted(io.read_json(path)["result"] for path in folder.parent.glob(f"*/*/{DONE}"))
    io.write_json(folder.parent / DONE, {"result": io.digest(finished)})
    if failed:
        raise runner.ChapterFailed(f"{len(failed)} of {len(runs)} cells failed: " + "; ".join(failed))
    return compare([folder / name for name in runs], folder, baseline=grid.baseline, against=grid.against)


def processes(n_jobs: int, cells: int) -> int:
    """How many cells at a time: each has its share of the cores, and a GPU, whose free memory a cell fills, has one."""
    import torch

    return min(1 if n_jobs < 0 and torch.cuda.is_available() else effective_n_jobs(n_jobs), max(1, cells))


def frozen(profile: str = "ablation", *, assignments: Iterable[str] = (), **options: Any) -> None:
    """Chapter 6, and what it reads, with the full factorial of the frozen tier. Arguments as in `runner.run`."""
    from e2d_lib.evaluation.frozen import AXES

    axes = f"{NOTEBOOK[:2]}.frozen={io.dumps(AXES, indent=None)}"
    runner.run(profile, only=(*NEEDED, NOTEBOOK[:2]), assignments=[axes, *assignments], **options)


def compare(
    folders: Iterable[str | Path], out: str | Path, *, baseline: str = "", against: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Compare every result at or below the folders; writes ``comparison.csv`` and ``comparison.png`` into ``out``."""
    from e2d_lib.evaluation import ablation
    from e2d_lib.figures import intervals

    results = ablation.find(list(folders))
    table = ablation.compare(results, baseline, against=against, rng=np.random.default_rng(0), n_boot=2000)
    io.write_csv(Path(out) / "comparison.csv", table)
    io.write_figure(Path(out) / "comparison.png", intervals.ablation(table))
    return table


def _cell(item: tuple[str, runner.Run]) -> tuple[str, str]:
    """One cell, in whatever process: its name, and in one line why it failed, or ""."""
    name, one = item
    shutil.rmtree(one.folder(NOTEBOOK), ignore_errors=True)
    try:
        done = one.execute(one.chapter(NOTEBOOK), progress=False)
    except runner.ChapterFailed as error:
        return name, f"{name}: {error}"
    return name, "" if done["status"] == "done" else f"{name}: {done['reason']}"
