"""One chapter of the study: where its notebook finds its inputs and leaves its artefacts.

A run is a folder, a chapter a folder in it::

    results/<run>/<chapter>/  headline.json  provenance.json  done.json  tables/*.csv  figures/*.png  …

and whatever parquet, CSV, JSON, npy or safetensors files the next chapter reads. A path that is written into a run is
relative to the run's folder where it lies inside, so that a run can be moved or copied, and else absolute. Who runs the
notebook, and from which folder, makes no difference: ``done.json`` says what the chapter's folder really holds.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil

from e2d_lib import io, progress
from e2d_lib.study.notebook import DATA_CHAPTER, Notebook, OneLine, resolve, root, shown

if TYPE_CHECKING:
    from e2d_lib.method import preprocess

DONE = "done.json"


class MissingInput(OneLine, FileNotFoundError):
    """A chapter's input is not there; the message names the chapter that makes it."""


class NotApplicable(OneLine):
    """The chapter has nothing to say about these data (no labels, say): the runner notes it and goes on."""


def estimate(
    value: float, low: float | None = None, high: float | None = None, *, n: int | None = None, unit: str = ""
) -> dict[str, Any]:
    """A headline number: the value, its 95 % interval where there is one, what it counts.

    >>> estimate(0.42, 0.40, 0.44, n=60, unit="share of the area")["ci95"]
    [0.4, 0.44]
    """
    interval = None if low is None or high is None else [_number(low), _number(high)]
    return {"value": _number(value), "ci95": interval, "n": n, "unit": unit}


def _number(value: Any) -> Any:
    """A plain int or float; NaN and infinities, which JSON lacks, become None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """Commit, package versions and hardware, for the provenance of a run."""
    return {
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu_name(),
    }


def _git_state() -> dict[str, Any] | None:
    plain = ["git", "-c", "filter.notebooks.clean=cat"]  # to strip all notebooks, only to compare them, takes seconds
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            [*plain, *args], cwd=root(), capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
        return {"commit": run("rev-parse", "HEAD"), "changed_files": len(run("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git


def _versions() -> dict[str, str]:
    wanted, found = ["e2d-study"], {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout that is not installed
        wanted += [re.match(r"[\w.-]+", line)[0] for line in importlib.metadata.requires("e2d-study")]
    for name in wanted:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")  # asked only where the chapter uses it: importing takes seconds
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _close(figure: Any) -> None:
    """Or the notebook shows it a second time."""
    import matplotlib.pyplot as plt

    plt.close(figure)


def record(folder: Path) -> dict[str, Any]:
    """What a chapter's folder, or the sweeps', holds, its ``result`` in one word; {} while nothing is finished."""
    try:
        return io.read_json(folder / DONE)
    except (OSError, ValueError):
        return {}


def data_fingerprint(folder: Path) -> str:
    """Names, sizes and times of change of all files at or below ``folder``; "" where there is nothing."""
    if not folder.exists():
        return ""
    listing = hashlib.sha256()
    files = [Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names]
    for path in sorted(files) or [folder]:
        with contextlib.suppress(OSError):  # a dangling link, or a loop of them, is the readers' to report
            stat, name = path.stat(), os.path.relpath(path, folder)
            listing.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()[:16]


class RunFolder:
    """What the chapters of a run have left in its folder."""

    def __init__(self, run_dir: str | Path):
        self.run_dir = resolve(run_dir)
        self.inputs: set[str] = set()  # the chapters that were read

    def store(self, path: str | Path) -> str:
        """How a path is written into the run: relative to its folder where it lies inside, else absolute."""
        return shown(path, self.run_dir)

    def locate(self, stored: str | Path) -> Path:
        """Where a path that `store` wrote is now."""
        return self.run_dir / stored

    def input(self, chapter: str, file: str = "") -> Path:
        """The path of a chapter's artefact; MissingInput, naming that chapter, where it is not there."""
        path = self.run_dir / chapter / file
        if not path.exists():
            raise MissingInput(f"there is no {shown(path)}, which chapter {chapter} makes: run that first")
        self.inputs.add(chapter)
        return path

    def read(self, chapter: str, file: str) -> Any:
        """A chapter's table (parquet, CSV) or JSON."""
        path = self.input(chapter, file)
        readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": io.read_json}
        return readers[path.suffix](path)

    @property
    def data_root(self) -> Path:
        """The folder or manifest that chapter 1 read: the user's, or the phantom that it wrote."""
        return self.locate(self.read(DATA_CHAPTER, "cohort.json")["data_root"])

    def data_state(self, chapter: str) -> str:
        """Of chapter 1, the fingerprint of the data that it read; "" of other chapters, and where it is not known."""
        if chapter == DATA_CHAPTER:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return data_fingerprint(self.data_root)
        return ""

    @property
    def cohort(self) -> pd.DataFrame:
        """Chapter 1's cohort, its paths absolute."""
        table = self.read(DATA_CHAPTER, "cohort.parquet")
        return table.assign(path=[str(self.locate(path)) for path in table["path"]])

    def preprocessed(self, *, wait: bool = False) -> "preprocess.Preprocessed":
        """Chapter 2's cache; ``wait`` where another run is writing to it."""
        from e2d_lib.method import preprocess

        made = self.read("02_ssflpp_preprocessing", "preprocessed.json")
        return preprocess.load(self.locate(made["cache"]), preprocess.Params(**made["params"]), wait=wait)


class Chapter(RunFolder):
    """The artefacts of one notebook. Open it right after the imports: ``chapter = Chapter.open(NAME, globals())``."""

    def __init__(self, name: str, parameters: Mapping[str, Any], notebook: Notebook | None = None):
        super().__init__(parameters["run_dir"])
        self.name, self.notebook = name, notebook
        self.parameters = dict(parameters)
        self.dir = self.run_dir / (self.parameters.get("cell") or name)  # a sweep's cell has a folder of its own
        self._started, self._clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
        self.dir.mkdir(parents=True, exist_ok=True)
        (self.dir / DONE).unlink(missing_ok=True)  # until it is finished, the folder holds no result

    @classmethod
    def open(cls, name: str, namespace: Mapping[str, Any]) -> "Chapter":
        """``namespace`` is the notebook's ``globals()``: the parameters that its stored cell declares are read from it.

        So whatever way the notebook is run, what it ran with is checked and on record. Raises StudyError for a value of
        another type than the declared one, or out of its range, and for an injected name that is not declared.
        """
        notebook = Notebook.of_chapter(name)
        return cls(name, notebook.values(namespace, _cells_run()), notebook)

    def require(self, condition: bool, reason: str) -> None:
        """Stop the chapter, as not applicable to these data, unless ``condition`` holds."""
        if not condition:
            self._record("not applicable", reason)
            raise NotApplicable(reason)

    def has(self, chapter: str, file: str) -> bool:
        """Whether another chapter left this artefact, for chapters that may not apply to the data.

        Asking counts as reading: this chapter is out of date when the other's results come or change.
        """
        self.inputs.add(chapter)
        return (self.run_dir / chapter / file).exists()

    @cached_property
    def data(self) -> str:
        """What the run is about: "phantom", or the name of the user's data. A chapter on other data sets its own."""
        return self.read(DATA_CHAPTER, "cohort.json")["data"]

    def path(self, name: str) -> Path:
        """A path in this chapter's folder."""
        return self.dir / name

    def save_table(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Write ``tables/<name>.csv`` and give the table back, for the cell to show."""
        io.write_csv(self.dir / "tables" / f"{name}.csv", table)
        return table

    def save_figure(self, name: str, figure, *, of_published: bool = False):
        """Write ``figures/<name>.png`` and give the picture back to show.

        It is stamped where the run is of a phantom, unless it is made from published numbers alone.
        """
        from IPython.display import Image

        if self.data == "phantom" and not of_published:
            figure.text(0.995, -0.005, "phantom data", ha="right", va="top", fontsize=7, color="0.45")
        path = self.dir / "figures" / f"{name}.png"
        io.write_figure(path, figure)
        _close(figure)
        return Image(data=path.read_bytes())

    def view(self, scans: Any, params: Any = None, **options: Any):
        """The slice viewer (`viewer.show`), stamped where the run is of a phantom."""
        from e2d_lib.study import viewer

        note = "phantom data" if self.data == "phantom" else ""
        return viewer.show(scans, params or viewer.DEFAULT, note=note, **options)

    def live(self, figure_of: Callable[[pd.DataFrame], Any]) -> Callable[[pd.DataFrame], None]:
        """A function that shows ``figure_of(table)`` in place, at most once in five seconds.

        Only where someone may be looking: not under the runner, where the last figure is all that stays.
        """
        if not progress.someone_looks():
            return lambda table: None
        from IPython.display import display

        handle, due = display(display_id=True), 0.0

        def show(table: pd.DataFrame) -> None:
            nonlocal due
            if time.perf_counter() >= due:
                figure = figure_of(table)
                handle.update(figure)
                _close(figure)
                due = time.perf_counter() + 5

        return show

    def save_json(self, name: str, value: Any) -> None:
        io.write_json(self.dir / name, value)

    def save_parquet(self, name: str, table: pd.DataFrame) -> None:
        io.write_parquet(self.dir / name, table)

    def say(self, text: str):
        """Prose with computed numbers, as Markdown."""
        from IPython.display import Markdown

        return Markdown(text)

    def finish(self, **headline: Any) -> pd.DataFrame:
        """Write ``headline.json`` (the numbers the chapter stands for) and ``provenance.json``; show the former."""
        entries = {name: value if isinstance(value, dict) else estimate(value) for name, value in headline.items()}
        io.write_json(self.dir / "headline.json", {"chapter": self.name, "data": self.data, "headline": entries})
        about = {"chapter": self.name, "parameters": self.parameters, "inputs": sorted(self.inputs - {self.name})}
        about |= {"started": self._started.isoformat(timespec="seconds")}
        about |= {"seconds": round(time.perf_counter() - self._clock, 2), "environment": environment()}
        io.write_json(self.dir / "provenance.json", about)
        self._record("done")
        return pd.DataFrame(entries.values(), index=pd.Index(entries, name="headline"))

    def _record(self, status: str, reason: str = "") -> None:
        """Write ``done.json``, the last file of a chapter: what its results depend on, and what they are.

        By hand, cells may have been changed or left out: then ``key`` is empty, and the runner runs the chapter again.
        """
        if self.notebook is None:
            return
        as_stored = self.notebook.was_run(_cells_run(), last=status == "done")
        done: dict[str, Any] = {
            "key": self.notebook.key(self.parameters) if as_stored else "",
            "parameters": self.parameters,
            "inputs": {name: record(self.run_dir / name).get("result") for name in sorted(self.inputs - {self.name})},
            "data_state": self.data_state(self.name),
            "by_hand": "E2D_NOTEBOOKS" not in os.environ,
            "status": status,
            "reason": " ".join(reason.split()),
            "seconds": round(time.perf_counter() - self._clock, 1),
        }
        # What chapters that read this one depend on: the recipe, all the way up.
        recipe = [done["key"] or [self._started.isoformat(), done["parameters"]], done["inputs"], done["data_state"]]
        io.write_json(self.dir / DONE, done | {"result": io.digest(recipe)})


def _cells_run() -> list[str]:
    """The sources of the cells that this kernel has run, in order; none outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    return list(shell.history_manager.input_hist_raw) if shell else []
