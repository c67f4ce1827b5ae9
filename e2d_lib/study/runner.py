"""The runner: chapters through papermill, with checked parameters, resumed where they stopped.

A profile is a YAML file: ``description``, ``minutes`` (the longest that a chapter may take), ``first`` (the command
that makes its data), ``all`` (parameters for every chapter that takes them), and a mapping for each chapter. What it
leaves out is the notebook's default.
"""

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2d_lib import io
from e2d_lib.study import report, summary
from e2d_lib.study.chapter import DONE, RunFolder, environment, record
from e2d_lib.study.notebook import DATA_CHAPTER, Notebook, StudyError, checked, hint, notebooks, resolve, root, shown

ABOUT = {"description", "minutes", "first"}  # what a profile says besides parameters
HEARTBEAT = 60.0  # seconds between two lines of a chapter that no terminal shows a bar for


class ChapterFailed(RuntimeError):
    """A notebook stopped with an error; the message says which, where, why, and where its executed copy is."""


def load_yaml(kind: str, source: str | Path, folder: str | Path = "notebooks") -> tuple[Path, Any]:
    """A YAML file's path and content: a shipped one by name (``<kind>s/`` beside the notebooks), or any by path."""
    path = Path(source).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = resolve(folder) / f"{kind}s" / f"{source}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (resolve(folder) / f"{kind}s").glob("*.yaml")))
        raise StudyError(f"no {kind} {str(source)!r}: the shipped ones are {known}; or give a path to a YAML file")
    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not YAML: {one_line(error)}") from None


def load_profile(profile: str | Path, folder: str | Path = "notebooks") -> dict[str, dict[str, Any]]:
    """A profile by name (``profiles/<name>.yaml`` beside the notebooks) or by path."""
    path, content = load_yaml("profile", profile, folder)
    content = content or {}
    if not isinstance(content, dict) or not all(isinstance(content[key], dict) for key in content.keys() - ABOUT):
        raise StudyError(f"{path}: a profile maps 'all' and chapter names to parameters")
    if not isinstance(minutes := content.get("minutes", 1), int | float) or not minutes > 0:
        raise StudyError(f"{path}: minutes is {minutes!r}; expected a number above 0")
    return content


def parse_assignments(assignments: Iterable[str], option: str = "-p") -> dict[str, dict[str, Any]]:
    """``name=value`` for every chapter that takes the name, ``chapter.name=value`` for one; values are YAML.

    >>> parse_assignments(["epochs=3", "04_training.device=cpu"])
    {'all': {'epochs': 3}, '04_training': {'device': 'cpu'}}
    """
    found: dict[str, dict[str, Any]] = {}
    for item in assignments:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise StudyError(f"{option} {item!r}: expected name=value or chapter.name=value")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise StudyError(f"{option} {item!r}: the value is not YAML") from None
        chapter, dot, short = name.rpartition(".")
        found.setdefault(chapter if dot else "all", {})[short] = value
    return found


def plan(chapters: list[Notebook], *layers: tuple[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each chapter's values: its defaults, then each layer (where it is from, profile-like mapping).

    Papermill would run on with a misspelt name; here an unknown chapter or name, or a value of another type than the
    default's, is a StudyError.
    """
    result = {c.name: {name: parameter.default for name, parameter in c.parameters.items()} for c in chapters}
    for where, layer in layers:
        for section, values in layer.items():
            if section in ABOUT:
                continue
            meant = chapters if section == "all" else named(chapters, section, where=f"{where}: ")
            known = {name for notebook in meant for name in notebook.parameters}
            for name, value in values.items():
                if name not in known:
                    none = "no chapter takes" if section == "all" else f"{meant[0].name} does not take"
                    raise StudyError(f"{where}: {none} a parameter {name!r}{hint(name, known)}")
                for notebook in meant:
                    if name in notebook.parameters:
                        result[notebook.name][name] = checked(where, name, value, notebook.parameters[name])
    return result


def named(chapters: list[Notebook], name: str, *, where: str = "") -> list[Notebook]:
    """The chapters that a whole name or a number, such as 03, means. Raises StudyError where there is none."""
    meant = [notebook for notebook in chapters if name == notebook.name or name.zfill(2) == notebook.name[:2]]
    if not meant:
        raise StudyError(f"{where}no chapter {name!r}{hint(name, [notebook.name for notebook in chapters])}")
    return meant


def prepare(
    profile: str,
    *,
    data_root: str = "",
    out: str = "",
    assignments: Iterable[str] = (),
    folder: str | Path = "notebooks",
    between: Iterable[tuple[str, Mapping]] = (),
) -> "Run":
    """The run that a command asks for: the profile's settings, ``between``, the -p's, the options, later over earlier.

    Raises StudyError for what the user asked wrongly.
    """
    chapters, settings = notebooks(folder), load_profile(profile, folder)
    given = given_parameters(profile, data_root, out)
    last = [("-p", parse_assignments(assignments)), ("arguments", {"all": given})]
    parameters = plan(chapters, (f"profile {profile}", settings), *between, *last)
    check_data(parameters, settings)
    return Run(chapters, parameters, resolve(given["run_dir"]), settings.get("minutes"))


@dataclass(frozen=True)
class Run:
    """One study run: the chapters' parameters and folder, and which chapters are up to date."""

    chapters: list[Notebook]
    parameters: dict[str, dict[str, Any]]
    dir: Path
    minutes: float | None = None

    def chapter(self, name: str) -> Notebook:
        return next(chapter for chapter in self.chapters if chapter.name == name)

    def folder(self, name: str) -> Path:
        """Of a chapter: its own, or the cell of a sweep that its parameters name."""
        return self.dir / (self.parameters.get(name, {}).get("cell") or name)

    def current(self, notebook: Notebook) -> dict[str, Any]:
        """The record of the chapter's last run, if doing it again would give the same; empty if it has to run."""
        done = record(self.folder(notebook.name))
        same = (
            done
            and done["key"] == notebook.key(self.parameters[notebook.name])
            and done["data_state"] == RunFolder(self.dir).data_state(notebook.name)
            and all(record(self.dir / name).get("result") == result for name, result in done["inputs"].items())
        )
        return done if same else {}

    def execute(self, notebook: Notebook, *, progress: bool = True) -> dict[str, Any]:
        """Run one chapter and record it. Raises ChapterFailed; the executed copy is kept either way."""
        import papermill
        from nbclient.exceptions import CellTimeoutError

        folder = self.folder(notebook.name)
        folder.mkdir(parents=True, exist_ok=True)
        running, good, bad = (folder / f"notebook{tail}.ipynb" for tail in (".running", "", ".failed"))
        running.unlink(missing_ok=True)
        started = time.perf_counter()
        left = lambda _: self.minutes and max(1, self.minutes * 60 - (time.perf_counter() - started))  # noqa: E731
        why = ""
        # Papermill's own parser warns about a parameter line with a second "="; ours has read it already.
        logging.getLogger("papermill").setLevel(logging.ERROR)
        try:
            papermill.execute_notebook(
                *(os.path.relpath(path).replace("{", "{{").replace("}", "}}") for path in (notebook.path, running)),
                parameters=self.parameters[notebook.name],
                kernel_name="python3",
                language="python",
                kernel_manager_class=_this_interpreter(
                    E2D_PROGRESS=_terminal() if progress else "off", E2D_NOTEBOOKS=str(notebook.path.parent)
                ),
                timeout_func=left,
                shutdown_kernel="immediate",  # all is written; to leave of itself takes it seconds with torch loaded
                cwd=str(root()),
                progress_bar={"desc": notebook.name, "leave": False} if progress else False,
                stderr_file=sys.stderr if progress else None,
                coalesce_streams=True,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            if error.ename != "NotApplicable":
                where = f"cell {error.cell_index + 1}, [{error.exec_count}]"
                why = f"{where}: {error.ename}: {one_line(error.evalue)}"
        except CellTimeoutError:
            why = f"{_reached(running)}: the limit of {self.minutes:g} minutes a chapter is over"
        except RuntimeError as error:  # the kernel died, or did not start
            why = f"{_reached(running)}: {one_line(error)}"
        if why:
            with contextlib.suppress(FileNotFoundError):
                running.replace(bad)
            (folder / DONE).unlink(missing_ok=True)  # where it failed before it was opened
            raise ChapterFailed(f"{notebook.name} failed in {why}; executed copy: {shown(bad)}")
        bad.unlink(missing_ok=True)
        running.replace(good)
        done = record(folder)
        if not done:
            raise ChapterFailed(f"{notebook.name} ended without chapter.finish(…), so nothing is recorded")
        return done | {"seconds": round(time.perf_counter() - started, 1)}  # the kernel's start is in it

    def write_provenance(self, profile: str) -> None:
        """``<run>/provenance.json``: what ran, with which parameters, on what, for how long."""
        chapters = {c.name: record(self.folder(c.name)) or None for c in self.chapters}
        about = {"profile": profile, "parameters": self.parameters, "environment": environment(), "chapters": chapters}
        io.write_json(self.dir / "provenance.json", about)


def run(
    profile: str = "demo",
    *,
    only: Iterable[str] = (),
    fresh: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    junit: str = "",
    say=print,
    **asked: Any,
) -> Run:
    """Run the study's chapters in order, each one unless it is up to date.

    ``only`` names chapters ("03" or whole names); ``fresh`` runs also what is up to date, each chapter from an empty
    folder; ``dry_run`` only says what would run. ``progress``: bars; without them, one line a chapter and a heartbeat.
    ``junit``: a file for a CI's report of the chapters. ``asked``: data_root, out, assignments and folder of `prepare`.

    Raises StudyError for what the user asked wrongly, before anything runs, and ChapterFailed when a notebook stops.
    """
    study = prepare(profile, **asked)
    wanted = [notebook for item in only for notebook in named(study.chapters, item)]
    chosen = [notebook for notebook in study.chapters if not wanted or notebook in wanted]
    say(f"{profile} -> {shown(study.dir)}")
    for number, notebook in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {notebook.name}"
        done = {} if fresh else study.current(notebook)
        if done:
            say(f"{head}: up to date ({_state(done)}{', run by hand' if done['by_hand'] else ''})")
        elif dry_run:
            say(f"{head}: would run")
        else:
            if progress:
                say(f"{head} …")
            if fresh:
                shutil.rmtree(study.dir / notebook.name, ignore_errors=True)
            try:
                with contextlib.nullcontext() if progress else _heartbeat(study, notebook, head, say):
                    done = study.execute(notebook, progress=progress)
            except ChapterFailed as error:
                summary.write(study.dir, chosen, junit, failed=notebook.name, error=str(error))
                with contextlib.suppress(StudyError):  # nothing to show where the first chapter's kernel did not start
                    report.write(study.dir)
                raise
            finally:
                study.write_provenance(str(profile))
            say(f"{head}: {_state(done)}")
    if not dry_run:
        summary.write(study.dir, chosen, junit)
        say(f"report: {shown(report.write(study.dir))}")
    return study


@contextlib.contextmanager
def _heartbeat(study: Run, notebook: Notebook, head: str, say):
    """A line now and then while a chapter runs: a CI stops what says nothing for long."""
    over, started = threading.Event(), time.perf_counter()

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            reached = _reached(study.folder(notebook.name) / "notebook.running.ipynb")
            with contextlib.suppress(OSError):  # nobody reads it any more
                say(f"{head}: {(time.perf_counter() - started) / 60:.0f} min, in {reached}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _reached(running: Path) -> str:
    """The last cell that was begun, in words, as papermill's copy has it."""
    with contextlib.suppress(OSError, ValueError):
        cells = io.read_json(running)["cells"]
        begun = [i for i, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
        return f"cell {begun[-1]}" if begun else "its start"
    return "its start"


def _this_interpreter(**environment: str) -> type:
    """A kernel manager that starts the interpreter that runs this, whatever kernels are installed where.

    The environment is the kernel's, over the one it inherits.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = property(lambda self: KernelSpec(**get_kernel_dict(), env=literal))

    literal = {name: value.replace("$", "$$") for name, value in environment.items()}  # it is read as a template
    return ThisInterpreter


def _terminal() -> str:
    """The device where a kernel's bars are drawn, and not in its notebook, where they would stay; "off" for none."""
    try:
        return os.ttyname(sys.stderr.fileno())
    except OSError:
        return "off"


def _state(done: Mapping[str, Any]) -> str:
    return f"{done['seconds']:.0f} s" if done["status"] == "done" else f"{done['status']}: {done['reason']}"


def given_parameters(profile: str, data_root: str, out: str) -> dict[str, str]:
    """The parameters that the commands' own options give, for every chapter that takes them.

    Paths on the command line mean the working directory, as everywhere; in parameters they mean the study's `root`.
    """
    paths = {"run_dir": out, "data_root": data_root}
    given = {name: shown(os.path.abspath(Path(path).expanduser()), root()) for name, path in paths.items() if path}
    default = f"results/{Path(profile).stem}" + (f"-{Path(data_root).resolve().stem}" if data_root else "")
    return {"run_dir": default} | given


def check_data(parameters: Mapping[str, Mapping[str, Any]], profile: Mapping[str, Any]) -> None:
    """A wrong data root is told before anything runs, and how to have the data that a profile is made for."""
    first = parameters.get(DATA_CHAPTER, {})
    if data_root := first.get("data_root"):
        expected = profile.get(DATA_CHAPTER, {}).get("data_root") == data_root
        if expected and "first" in profile and not resolve(data_root).exists():
            raise StudyError(f"{data_root} is not there yet; first run: {profile['first']}")
        from e2d_lib.scans.cohort import CohortError, read_cohort

        try:
            read_cohort(resolve(data_root), labels=first.get("labels", ""))
        except CohortError as error:
            raise StudyError(one_line(error)) from None


def one_line(text: object) -> str:
    return " ".join(str(text).split())
