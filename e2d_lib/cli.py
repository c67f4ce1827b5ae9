"""The ``e2d`` command: a shell over the library's functions."""

import argparse
import sys
from collections.abc import Sequence

from e2d_lib import study


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="e2d", description="The SSFL++ / KDS / E2D study: run its chapters.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser(
        "run",
        help="run the chapters, each one unless it is up to date",
        description="Run the study's notebooks in order into results/<name>/; what is unchanged is not run again.",
    )
    run.add_argument("--profile", default="demo", help="demo, ci, paper, or a YAML file of yours (default: demo)")
    run.add_argument("--data-root", default="", metavar="DIR", help="CT folder or CSV manifest (default: the phantom)")
    run.add_argument("--out", default="", metavar="DIR", help="the run's folder (default: results/<profile>)")
    run.add_argument("--only", default="", metavar="LIST", help="chapters, such as 02,03 (default: all)")
    run.add_argument(
        "-p",
        dest="assignments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter for every chapter that takes it, or CHAPTER.NAME=VALUE for one; may be repeated",
    )
    run.add_argument("--notebooks", default="notebooks", metavar="DIR", help="the chapters' folder")
    run.add_argument(
        "--fresh", action="store_true", help="run also what is up to date, each chapter from an empty folder"
    )
    run.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(call=_run)

    show = commands.add_parser("parameters", help="list each chapter's parameters with their defaults")
    show.add_argument("--notebooks", default="notebooks", metavar="DIR", help="the chapters' folder")
    show.set_defaults(call=_parameters)
    return top


def _run(arguments: argparse.Namespace) -> None:
    study.run(
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


def _parameters(arguments: argparse.Namespace) -> None:
    for notebook in study.notebooks(arguments.notebooks):
        print(notebook.name)
        for name, (default, kinds) in notebook.parameters.items():
            print(f"  {name}: {' | '.join(kind.__name__ for kind in kinds)} = {default!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a chapter failed, 2 asked wrongly, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        arguments.call(arguments)
    except study.StudyError as error:
        print(f"e2d: {error}", file=sys.stderr)
        return 2
    except study.ChapterFailed as error:
        print(f"e2d: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("e2d: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
