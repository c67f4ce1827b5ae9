"""The ``e2d`` command: a shell over the library's functions."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from e2d_lib.study import runner

if TYPE_CHECKING:
    import pandas as pd


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="e2d", description="The SSFL++ / KDS / E2D study: run its chapters.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser(
        "run",
        help="run the chapters, each one unless it is up to date",
        description="Run the study's notebooks in order into results/<name>/; what is unchanged is not run again.",
    )
    _study_options(run, "demo", "a parameter for every chapter that takes it, or CHAPTER.NAME=VALUE for one")
    run.add_argument("--only", default="", metavar="LIST", help="chapters, such as 02,03 (default: all)")
    run.add_argument(
        "--fresh", action="store_true", help="run also what is up to date, each chapter from an empty folder"
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(call=_run)

    prepare = commands.add_parser(
        "preprocess",
        help="SSFL++ alone, over your own CT",
        description="Crop, window and resize every scan of DATA into a cache at OUT, in parallel; resumable.",
    )
    prepare.add_argument("data_root", metavar="DATA", help="CT folder or CSV manifest")
    prepare.add_argument("out", metavar="OUT", help="the cache's folder")
    _assignments(prepare, "a parameter of preprocess.Params, such as size=256")
    _workers(prepare, "processes (default: all cores)")
    prepare.set_defaults(call=_preprocess)

    predict = commands.add_parser(
        "predict",
        help="score unlabeled scans with trained checkpoints",
        description="One row a scan: scan_id, prediction, probability; a scan that cannot be scored has a reason.",
    )
    predict.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="FILE", help="model.safetensors; an ensemble"
    )
    predict.add_argument("--data", required=True, metavar="DIR", help="CT folder or CSV manifest")
    predict.add_argument("--out", required=True, metavar="CSV", help="the predictions")
    predict.add_argument(
        "--cache", default=None, metavar="DIR", help="preprocessed slices (default: a temporary folder)"
    )
    predict.add_argument("--threshold", type=float, default=0.5, help="at which a scan is called positive")
    predict.add_argument("--draws", type=int, default=1, help="draws of slices averaged for a scan")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda")
    predict.add_argument("--jobs", type=int, default=-1, help="processes (default: all cores)")
    predict.set_defaults(call=_predict)

    sweep = commands.add_parser(
        "sweep",
        help="run the ablations' notebook over a grid of parameters",
        description="Every cell of the grid is a run of notebook 06_ablations; then all are compared. Resumable.",
    )
    sweep.add_argument("grid", nargs="*", metavar="GRID", help="names of shipped grids, or YAML files")
    sweep.add_argument(
        "-g",
        dest="axes",
        action="append",
        default=[],
        metavar="NAME=A,B,C",
        help="a grid given here: a parameter's values; may be repeated, every combination is a cell",
    )
    _study_options(sweep, "ablation", "a parameter of every cell")
    _workers(sweep, "cells at a time (default: one a core; a GPU wants 1)")
    sweep.set_defaults(call=_sweep)

    compare = commands.add_parser(
        "compare",
        help="put any runs of the ablations' notebook into one table and figure",
        description="Finds every result below the folders; paired tests against the baseline, Holm-corrected.",
    )
    compare.add_argument("folders", nargs="+", metavar="DIR", help="sweeps, cells, or whole runs")
    compare.add_argument("--out", default=".", metavar="DIR", help="where comparison.csv and .png go (default: here)")
    compare.add_argument("--baseline", default="", metavar="CELL", help="what the others are compared with")
    compare.set_defaults(call=_compare)

    fetch = commands.add_parser(
        "fetch",
        help="openly licensed chest CT of real patients, without an account",
        description="Choose one chest series a patient, download and check it, write DIR/manifest.csv; resumable.",
    )
    fetch.add_argument("cohort", nargs="?", default="", metavar="COHORT", help="a name that --list shows")
    fetch.add_argument("folder", nargs="?", default="", metavar="DIR", help="where scans and manifest.csv go")
    fetch.add_argument("--list", action="store_true", help="show the cohorts, and what is wrong with each")
    fetch.add_argument("--patients", type=int, default=0, metavar="N", help="at most so many, of both classes")
    fetch.add_argument("--seed", type=int, default=0, help="of the patients drawn, and of the split")
    fetch.add_argument("--accept-licence", action="store_true", help="you have read the images' licence and keep to it")
    fetch.add_argument("--dry-run", action="store_true", help="show what would be chosen, and stop")
    fetch.add_argument("--endpoint-url", default="", metavar="URL", help="another S3 server, such as a mirror")
    fetch.add_argument("--index", default=None, metavar="FILE", help="another index (parquet) than the shipped one")
    fetch.add_argument("--jobs", type=int, default=-1, help="scans opened at a time (default: one a core)")
    fetch.set_defaults(call=_fetch)

    listing = commands.add_parser(
        "manifest",
        help="a manifest for a public CT collection that you downloaded elsewhere",
        description="Write DIR/manifest.csv from the collection's documented layout; a wrong layout is told in a line.",
    )
    listing.add_argument("layout", metavar="NAME", help="stoic, mosmed, covid-ct-md, covidx-ct or luna16")
    listing.add_argument("folder", metavar="DIR", help="where it was unpacked")
    listing.add_argument("--seed", type=int, default=0, help="of the split, where the collection has none of its own")
    listing.set_defaults(call=_manifest)

    report = commands.add_parser(
        "report",
        help="one page to read of a run, for a browser without a network",
        description="Questions, answers, numbers, figures and folded code of a run's executed chapters, in one file.",
    )
    report.add_argument("run", nargs="?", default="results/demo", metavar="RUN", help="a run's folder (results/demo)")
    report.add_argument("--out", default="", metavar="HTML", help="the page (default: RUN/report.html)")
    report.set_defaults(call=_report)

    show = commands.add_parser("parameters", help="list each chapter's parameters with their defaults")
    show.add_argument("--notebooks", default="notebooks", metavar="DIR", help="the chapters' folder")
    show.set_defaults(call=_parameters)
    return top


def _assignments(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument(
        "-p", dest="assignments", action="append", default=[], metavar="NAME=VALUE", help=f"{meaning}; may be repeated"
    )


def _study_options(command: argparse.ArgumentParser, profile: str, meaning: str) -> None:
    """What the commands that run chapters share."""
    command.add_argument(
        "--profile", default=profile, help=f"a shipped one's name, or a YAML file (default: {profile})"
    )
    command.add_argument(
        "--data-root", default="", metavar="DIR", help="CT folder or CSV manifest (default: the phantom)"
    )
    command.add_argument("--out", default="", metavar="DIR", help="the run's folder (default: results/<profile>)")
    _assignments(command, meaning)
    command.add_argument("--notebooks", default="notebooks", metavar="DIR", help="the chapters' folder")
    command.add_argument("--dry-run", action="store_true", help="say what would run, and stop")


def _workers(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument("--jobs", type=int, default=-1, help=meaning)
    command.add_argument(
        "--scheduler", default=None, metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786"
    )


def _run(arguments: argparse.Namespace) -> None:
    runner.run(
        arguments.profile,
        data_root=arguments.data_root,
        out=arguments.out,
        only=[item for item in arguments.only.split(",") if item],
        assignments=arguments.assignments,
        folder=arguments.notebooks,
        fresh=arguments.fresh,
        dry_run=arguments.dry_run,
        progress=not arguments.quiet,
        say=lambda line: print(line, flush=True),
    )


def _preprocess(arguments: argparse.Namespace) -> None:
    from e2d_lib.method import preprocess
    from e2d_lib.scans.cohort import read_cohort

    values = runner.parse_assignments(arguments.assignments).get("all", {})
    known = {field.name for field in dataclasses.fields(preprocess.Params)}
    if unknown := sorted(values.keys() - known):
        raise runner.StudyError(f"no preprocessing parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
    params = preprocess.Params(**values)
    done = preprocess.run(
        read_cohort(arguments.data_root),
        arguments.out,
        params,
        n_jobs=arguments.jobs,
        scheduler=arguments.scheduler,
    )
    print(done.scans["status"].value_counts().to_string())
    print(f"cache: {done.folder.as_posix()}")


def _predict(arguments: argparse.Namespace) -> None:
    import tempfile

    from e2d_lib import io
    from e2d_lib.network import prediction

    with tempfile.TemporaryDirectory() as folder:
        table = prediction.predict(
            arguments.checkpoint,
            arguments.data,
            cache_dir=arguments.cache or folder,
            threshold=arguments.threshold,
            draws=arguments.draws,
            device=arguments.device,
            n_jobs=arguments.jobs,
        )
    io.write_csv(arguments.out, table)
    print(f"{table['prediction'].notna().sum()} of {len(table)} scans scored: {arguments.out}")
    print(prediction.caution(prediction.trained_on(arguments.checkpoint)))


def _sweep(arguments: argparse.Namespace) -> None:
    from e2d_lib.study import sweep

    grids = [sweep.load_grid(name, arguments.notebooks) for name in arguments.grid]
    grids += [sweep.parse_grid(arguments.axes)] if arguments.axes else []
    if not grids:
        raise runner.StudyError("give a grid: a shipped one's name, a YAML file, or -g name=a,b,c")
    for grid in grids:
        table = sweep.run(
            grid,
            profile=arguments.profile,
            data_root=arguments.data_root,
            out=arguments.out,
            assignments=arguments.assignments,
            folder=arguments.notebooks,
            n_jobs=arguments.jobs,
            scheduler=arguments.scheduler,
            dry_run=arguments.dry_run,
            say=lambda line: print(line, flush=True),
        )
        _show(table)


def _compare(arguments: argparse.Namespace) -> None:
    from e2d_lib.study import sweep

    _show(sweep.compare(arguments.folders, arguments.out, baseline=arguments.baseline))


def _show(comparison: "pd.DataFrame") -> None:
    """The comparison as a terminal shows it; the file has every column."""
    columns = ["cell", "metric", "value", "low", "high", "seed_sd", "redraw_sd", "difference", "p_holm"]
    if len(comparison):
        print(comparison[columns].to_string(index=False, float_format="{:.3f}".format, na_rep=""))


def _fetch(arguments: argparse.Namespace) -> None:
    from e2d_lib.scans import open_cohorts

    if arguments.list:
        print(open_cohorts.listing(arguments.index))
    elif not arguments.cohort or not (arguments.folder or arguments.dry_run):
        raise runner.StudyError("give a cohort and a folder: e2d fetch ricord DIR; e2d fetch --list shows the cohorts")
    else:
        open_cohorts.fetch(
            arguments.cohort,
            arguments.folder,
            patients=arguments.patients,
            accept_licence=arguments.accept_licence,
            dry_run=arguments.dry_run,
            seed=arguments.seed,
            endpoint_url=arguments.endpoint_url,
            index=arguments.index,
            n_jobs=arguments.jobs,
            say=lambda line: print(line, flush=True),
        )


def _manifest(arguments: argparse.Namespace) -> None:
    from e2d_lib.scans import layouts

    layouts.manifest(arguments.layout, arguments.folder, seed=arguments.seed)


def _report(arguments: argparse.Namespace) -> None:
    from e2d_lib.study import report
    from e2d_lib.study.notebook import shown

    print(shown(report.write(Path(arguments.run).absolute(), arguments.out and Path(arguments.out).absolute())))


def _parameters(arguments: argparse.Namespace) -> None:
    for notebook in runner.notebooks(arguments.notebooks):
        print(notebook.name)
        for name, (default, kinds) in notebook.parameters.items():
            print(f"  {name}: {' | '.join(kind.__name__ for kind in kinds)} = {default!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a chapter failed, 2 asked wrongly, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        arguments.call(arguments)
    except ValueError as error:  # the library's own errors, one line each, are ValueErrors
        print(f"e2d: {runner.one_line(error)}", file=sys.stderr)
        return 2
    except runner.ChapterFailed as error:
        print(f"e2d: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("e2d: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
