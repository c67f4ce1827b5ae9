"""The ``e2d`` command: a shell over the library's functions. Options and their help are the functions' own."""

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from e2d_lib.study import runner

if TYPE_CHECKING:
    import pandas as pd

app = App(
    name="e2d",
    help="The SSFL++ / KDS / E2D study: run its chapters.",
    help_format="plaintext",
    version_flags=[],
    default_parameter=Parameter(negative="", show_default=lambda value: value or None),
)
Assignments = Annotated[tuple[str, ...], Parameter(name="-p")]
Axes = Annotated[tuple[str, ...], Parameter(name="-g")]
Files = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


@Parameter(name="*")
@dataclasses.dataclass
class Study:
    """What the commands that run chapters share.

    Args:
        data_root: CT folder or CSV manifest; without it the phantom.
        out: the run's folder; without it results/<profile>.
        assignments: NAME=VALUE for every chapter that takes it, CHAPTER.NAME=VALUE for one; may be repeated.
        folder: the chapters' folder.
        dry_run: say what would run, and stop.
    """

    data_root: str = ""
    out: str = ""
    assignments: Assignments = ()
    folder: Annotated[str, Parameter(name="--notebooks")] = "notebooks"
    dry_run: bool = False


DEFAULTS = Study()


say = functools.partial(print, flush=True)


@app.command
def run(
    *, profile: str = "demo", only: str = "", fresh: bool = False, quiet: bool = False, junit: str = "",
    study: Study = DEFAULTS,
) -> None:  # fmt: skip
    """Run the study's notebooks in order into results/<name>/; what is unchanged is not run again.

    Args:
        profile: a shipped one's name, or a YAML file.
        only: chapters, such as 02,03; without it all.
        fresh: run also what is up to date, each chapter from an empty folder.
        quiet: no progress bars, as where stderr is no terminal.
        junit: a file for a CI: a test case a chapter, with its time and its error.
    """
    chosen = [item for item in only.split(",") if item]
    bars = not quiet and sys.stderr is not None and sys.stderr.isatty()
    runner.run(profile, only=chosen, fresh=fresh, progress=bars, junit=junit, say=say, **vars(study))


@app.command
def plan(*, profile: str = "paper", rate: float = 0.0, study: Study = DEFAULTS) -> None:
    """Memory, disk and hours of a profile's training, and what to set on a GPU of 16, 24, 40 or 80 GB.

    Args:
        profile: a shipped one's name, or a YAML file.
        rate: your card's images/s in training; without it this machine's is measured.
    """
    from e2d_lib.study import estimate

    asked = {name: value for name, value in vars(study).items() if name != "dry_run"}
    print(estimate.report(runner.prepare(profile, **asked).parameters, rate))


@app.command
def check(run_dir: str, *, against: str = "results/reference") -> None:
    """Compare the headline numbers of a run with an earlier one's, within its intervals; exit 1 where one left them.

    Args:
        run_dir: the run's folder.
        against: the folder of the earlier run.
    """
    from e2d_lib.study import summary

    table = summary.check(run_dir, against)
    off = table[~table["holds"]]
    if len(off):
        print(off.drop(columns="holds").to_string(index=False, na_rep=""), flush=True)
        raise runner.ChapterFailed(f"{len(off)} of {len(table)} numbers are not what {against} says")
    print(f"all {len(table)} numbers are what {against} says")


@app.command
def preprocess(data_root: str, out: str, *, assignments: Assignments = (), jobs: int = -1, scheduler: str = "") -> None:
    """SSFL++ alone, over your own CT: crop, window and resize every scan of DATA_ROOT into a cache at OUT; resumable.

    Args:
        data_root: CT folder or CSV manifest.
        out: the cache's folder.
        assignments: NAME=VALUE, a parameter of preprocess.Params, such as size=256, or labels="Pneumonia:0,X:1", what
            class folders or a manifest's labels mean; may be repeated.
        jobs: processes; -1 means all cores.
        scheduler: a Dask scheduler, such as tcp://host:8786.
    """
    from e2d_lib.method import preprocess
    from e2d_lib.scans.cohort import read_cohort

    values = runner.parse_assignments(assignments).get("all", {})
    labels = values.pop("labels", "")
    known = {field.name for field in dataclasses.fields(preprocess.Params)}
    if unknown := sorted(values.keys() - known):
        raise runner.StudyError(f"no preprocessing parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
    params = preprocess.Params(**values)
    done = preprocess.run(read_cohort(data_root, labels=labels), out, params, n_jobs=jobs, scheduler=scheduler or None)
    print(done.scans["status"].value_counts().to_string())
    print(f"cache: {done.folder.as_posix()}")


@app.command
def predict(
    *, checkpoint: Files, data: str, out: str, cache: str = "", threshold: float = 0.5, draws: int = 1,
    device: str = "auto", jobs: int = -1,
) -> None:  # fmt: skip
    """Score unlabeled scans: a row a scan with prediction and probability; one that cannot be scored has a reason.

    Args:
        checkpoint: model.safetensors files; several are an ensemble.
        data: CT folder or CSV manifest.
        out: the predictions, a CSV file.
        cache: folder of preprocessed slices; without it a temporary one.
        threshold: at which a scan is called positive.
        draws: draws of slices averaged for a scan.
        device: auto, cpu or cuda.
        jobs: processes; -1 means all cores.
    """
    import tempfile

    from e2d_lib import io
    from e2d_lib.network import prediction

    options = {"threshold": threshold, "draws": draws, "device": device, "n_jobs": jobs}
    with tempfile.TemporaryDirectory() as folder:
        table = prediction.predict(checkpoint, data, cache_dir=cache or folder, **options)
    io.write_csv(out, table)
    print(f"{table['prediction'].notna().sum()} of {len(table)} scans scored: {out}")
    print(prediction.caution(prediction.trained_on(checkpoint)))


@app.command
def sweep(
    *grid: str, axes: Axes = (), tier: Literal["trained", "frozen"] = "trained", profile: str = "ablation",
    jobs: int = -1, scheduler: str = "", study: Study = DEFAULTS,
) -> None:  # fmt: skip
    """Run the ablations' notebook for every cell of a grid, and compare them all; resumable.

    Args:
        grid: names of shipped grids, or YAML files.
        axes: NAME=A,B,C, a grid given here: a parameter's values; may be repeated, every combination is a cell.
        tier: frozen takes no grid; chapter 6 then fits every combination of choices on frozen features.
        profile: a shipped one's name, or a YAML file.
        jobs: cells at a time; -1 means one a core, or one where there is a GPU (CUDA_VISIBLE_DEVICES chooses which).
        scheduler: a Dask scheduler, such as tcp://host:8786.
    """
    from e2d_lib.study import sweep

    if tier == "frozen":
        return sweep.frozen(profile, say=say, **vars(study))
    grids = [sweep.load_grid(name, study.folder) for name in grid]
    grids += [sweep.parse_grid(axes)] if axes else []
    if not grids:
        raise runner.StudyError("give a grid: a shipped one's name, a YAML file, or -g name=a,b,c")
    for one in grids:
        how = {"profile": profile, "n_jobs": jobs, "scheduler": scheduler or None, "say": say}
        _show(sweep.run(one, **how, **vars(study)))


@app.command
def compare(*folders: str, out: str = ".", baseline: str = "") -> None:
    """Put any runs of the ablations' notebook into one table and figure; paired tests, Holm-corrected.

    Args:
        folders: sweeps, cells, or whole runs.
        out: where comparison.csv and comparison.png go.
        baseline: the cell that the others are compared with.
    """
    from e2d_lib.study import sweep

    if not folders:
        raise runner.StudyError("give folders: sweeps, cells, or whole runs")
    _show(sweep.compare(folders, out, baseline=baseline))


def _show(comparison: "pd.DataFrame") -> None:
    """The comparison as a terminal shows it; the file has every column."""
    columns = ["cell", "metric", "value", "low", "high", "seed_sd", "redraw_sd", "difference", "p_holm"]
    if len(comparison):
        print(comparison[columns].to_string(index=False, float_format="{:.3f}".format, na_rep=""))


@app.command
def fetch(
    cohort: str = "", folder: str = "", *, list_: Annotated[bool, Parameter("--list")] = False,
    patients: int = 0, seed: int = 0, accept_licence: bool = False, dry_run: bool = False, endpoint_url: str = "",
    index: str = "", jobs: int = -1,
) -> None:  # fmt: skip
    """Openly licensed chest CT of real patients, without an account: choose, download, check; resumable.

    Args:
        cohort: a name that --list shows.
        folder: where scans and manifest.csv go.
        list_: show the cohorts, and what is wrong with each.
        patients: at most so many, of both classes.
        seed: of the patients drawn, and of the split.
        accept_licence: you have read the images' licence and keep to it.
        dry_run: show what would be chosen, and stop.
        endpoint_url: another S3 server, such as a mirror.
        index: another index (parquet) than the shipped one.
        jobs: scans opened at a time; -1 means one a core.
    """
    from e2d_lib.scans import open_cohorts

    if list_:
        print(open_cohorts.listing(index or None))
        return
    if not cohort or not (folder or dry_run):
        raise runner.StudyError("give a cohort and a folder: e2d fetch ricord DIR; e2d fetch --list shows the cohorts")
    how = {"patients": patients, "accept_licence": accept_licence, "dry_run": dry_run, "seed": seed}
    where = {"endpoint_url": endpoint_url, "index": index or None, "n_jobs": jobs, "say": say}
    open_cohorts.fetch(cohort, folder, **how, **where)


@app.command
def manifest(layout: str, folder: str, *, seed: int = 0) -> None:
    """Write FOLDER/manifest.csv for a public CT collection, from its documented layout; a wrong one is told in a line.

    Args:
        layout: stoic, mosmed, covid-ct-md, covidx-ct or luna16.
        folder: where it was unpacked.
        seed: of the split, where the collection has none of its own.
    """
    from e2d_lib.scans import layouts

    layouts.manifest(layout, folder, seed=seed)


@app.command
def report(run_dir: str = "results/demo", *, out: str = "") -> None:
    """One page to read of a run: questions, answers, numbers, figures and folded code, for a browser without a network.

    Args:
        run_dir: the run's folder.
        out: the page; without it report.html in the run's folder.
    """
    from e2d_lib.study import report
    from e2d_lib.study.notebook import shown

    print(shown(report.write(Path(run_dir).absolute(), out and Path(out).absolute())))


@app.command
def parameters(*, notebooks: str = "notebooks") -> None:
    """List each chapter's parameters with their defaults.

    Args:
        notebooks: the chapters' folder.
    """
    for notebook in runner.notebooks(notebooks):
        print(notebook.name)
        for name, (default, kinds) in notebook.parameters.items():
            print(f"  {name}: {' | '.join(kind.__name__ for kind in kinds)} = {default!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a chapter failed or nobody reads the output, 2 asked wrongly, 130 interrupted."""
    # PyTorch's threads otherwise spin where others want their core: two trainings on two cores took 1.3 times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, ValueError) as error:  # the library's own errors, one line each, are ValueErrors
        return _told(runner.one_line(error), 2)
    except runner.ChapterFailed as error:
        return _told(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it once more
        return _told("nobody reads the output any more; the same command goes on from here", 1)
    except KeyboardInterrupt:
        return _told("interrupted; the same command goes on from here", 130)
    return 0


def _told(text: object, status: int) -> int:
    print(f"e2d: {text}", file=sys.stderr)
    return status
