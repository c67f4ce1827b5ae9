"""The runner: chapters through papermill, with checked parameters, resumed where they stopped.

A profile is a YAML file: ``description``, ``all`` (parameters for every chapter that takes them), and a mapping for
each chapter. What it leaves out is the notebook's default.
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml

import e2d_lib
from e2d_lib import files
from e2d_lib.chapter import DATA_CHAPTER, environment, resolve, root

DONE = "done.json"


class StudyError(ValueError):
    """Something the user can mend; one line."""


class ChapterFailed(RuntimeError):
    """A notebook stopped with an error; the message says which, where, why, and where its executed copy is."""


KINDS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


class Parameter(NamedTuple):
    """A notebook's parameter: its default, and the types that a value may have."""

    default: Any
    kinds: tuple[type, ...]


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A chapter's notebook and its declared parameters."""

    path: Path
    parameters: dict[str, Parameter]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def source_hash(self) -> str:
        cells = nbformat.read(self.path, as_version=4).cells
        return files.digest([[cell.cell_type, cell.source] for cell in cells])


def notebooks(folder: str | Path = "notebooks") -> list[Notebook]:
    """The chapters in ``folder``, in order: every ``NN_name.ipynb``, with its parameters read from its tagged cell."""
    paths = sorted(resolve(folder).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise StudyError(
            f"no chapters (NN_name.ipynb) in {resolve(folder)}: run from the checkout, or give --notebooks"
        )
    return [Notebook(path, declared_parameters(path)) for path in paths]


def declared_parameters(path: Path) -> dict[str, Parameter]:
    """The assignments in the one cell tagged ``parameters``, such as ``size: int = 96``; defaults are literals.

    Read here, as papermill's own reader drops lines with a second ``=`` and annotations such as ``bool | str``.
    """
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise StudyError(f"{path.name} has {len(cells)} cells tagged 'parameters'; a chapter has one")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if not isinstance(statement, ast.AnnAssign) or statement.value is None:
            raise StudyError(f"{path.name}: line {statement.lineno} of the parameters is not 'name: type = value'")
        names = [node.id for node in ast.walk(statement.annotation) if isinstance(node, ast.Name)]
        kinds = tuple(KINDS[name] for name in names)
        found[statement.target.id] = Parameter(ast.literal_eval(statement.value), kinds)
    return found


def load_yaml(kind: str, source: str | Path, folder: str | Path = "notebooks") -> tuple[Path, Any]:
    """A YAML file's path and content: a shipped one by name (``<kind>s/`` beside the notebooks), or any by path."""
    path = Path(source).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = resolve(folder) / f"{kind}s" / f"{source}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (resolve(folder) / f"{kind}s").glob("*.yaml"))
        raise StudyError(
            f"no {kind} {str(source)!r}: the shipped ones are {', '.join(known)}; or give a path to a YAML file"
        )
    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not YAML: {one_line(error)}") from None


def load_profile(profile: str | Path, folder: str | Path = "notebooks") -> dict[str, dict[str, Any]]:
    """A profile by name (``profiles/<name>.yaml`` beside the notebooks) or by path."""
    path, content = load_yaml("profile", profile, folder)
    content = content or {}
    if not isinstance(content, dict) or not all(
        isinstance(value, dict) for key, value in content.items() if key != "description"
    ):
        raise StudyError(f"{path}: a profile maps 'all' and chapter names to parameters")
    return content


def parse_assignments(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """``name=value`` for every chapter that takes the name, ``chapter.name=value`` for one; values are YAML.

    >>> parse_assignments(["epochs=3", "04_training.device=cpu"])
    {'all': {'epochs': 3}, '04_training': {'device': 'cpu'}}
    """
    found: dict[str, dict[str, Any]] = {}
    for item in assignments:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise StudyError(f"-p {item!r}: expected name=value or chapter.name=value")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise StudyError(f"-p {item!r}: the value is not YAML") from None
        chapter, dot, short = name.rpartition(".")
        found.setdefault(chapter if dot else "all", {})[short if dot else name] = value
    return found


def _checked(where: str, name: str, value: Any, parameter: Parameter) -> Any:
    """``value`` if it has a declared type; an int will do for a float, and the items of a list are as the default's."""
    default, kinds = parameter
    if type(value) is tuple:
        value = list(value)
    if float in kinds and type(value) in (int, str) and not (type(value) is str and str in kinds):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3, which lacks the dot, as text
            return float(value)
    if type(value) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise StudyError(
            f"{where}: {name} is {value!r} ({type(value).__name__}); expected {expected}, like {default!r}"
        )
    if isinstance(value, list) and default:
        item = Parameter(default[0], (type(default[0]),))
        return [_checked(where, f"{name} (an item)", one, item) for one in value]
    return value


def plan(chapters: list[Notebook], *layers: tuple[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each chapter's values: its defaults, then each layer (where it is from, profile-like mapping) over them.

    Papermill would run on with a misspelt name; here an unknown chapter or name, or a value of another type than the
    default's, is a StudyError.
    """
    names = {notebook.name for notebook in chapters}
    takers = {name for notebook in chapters for name in notebook.parameters}
    result = {c.name: {name: parameter.default for name, parameter in c.parameters.items()} for c in chapters}
    for where, layer in layers:
        for section, values in layer.items():
            if section == "description":
                continue
            short = [name for name in names if name == section or name[:2] == section]
            if section != "all" and not short:
                raise StudyError(f"{where}: no chapter {section!r}{_hint(section, names)}")
            allowed = takers if section == "all" else result[short[0]].keys()
            for name, value in values.items():
                if name not in allowed:
                    whose = "no chapter" if section == "all" else short[0]
                    verb = "takes" if section == "all" else "does not take"
                    raise StudyError(f"{where}: {whose} {verb} a parameter {name!r}{_hint(name, allowed)}")
                for notebook in chapters:
                    if (section == "all" or notebook.name in short) and name in notebook.parameters:
                        result[notebook.name][name] = _checked(where, name, value, notebook.parameters[name])
    return result


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(known))}"


def _library_hash() -> str:
    """Of the library's source: results are made again when what makes them changes."""
    folder = Path(e2d_lib.__file__).parent
    sources = sorted(folder.glob("*.py"))
    return files.digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in sources])


def data_fingerprint(folder: Path) -> str:
    """Names, sizes and times of change of all files at or below ``folder``; "" where there is nothing."""
    if not folder.exists():
        return ""
    listing = hashlib.sha256()
    stack = [folder]
    while stack:
        here = stack.pop()
        entries = sorted(os.scandir(here), key=lambda e: e.name) if here.is_dir() else [here]
        for entry in entries:
            if not isinstance(entry, Path) and entry.is_dir():
                stack.append(Path(entry.path))
            else:
                with contextlib.suppress(FileNotFoundError):  # a dangling link is the readers' to report
                    stat = entry.stat()
                    listing.update(f"{os.fspath(entry)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return listing.hexdigest()[:16]


class Run:
    """One study run: the chapters' parameters and folder, and which chapters are up to date."""

    def __init__(self, chapters: list[Notebook], parameters: dict[str, dict[str, Any]], run_dir: Path):
        self.chapters, self.parameters, self.dir = chapters, parameters, run_dir
        self._library = _library_hash()

    def key(self, notebook: Notebook) -> str:
        """What the chapter's results depend on besides the chapters it reads."""
        parameters = {k: v for k, v in self.parameters[notebook.name].items() if k != "run_dir"}
        return files.digest([notebook.source_hash, parameters, self._library])

    def folder(self, name: str) -> Path:
        """Of a chapter: its own, or the cell of a sweep that its parameters name."""
        return self.dir / (self.parameters.get(name, {}).get("cell") or name)

    def _done(self, name: str) -> dict[str, Any] | None:
        try:
            return files.read_json(self.folder(name) / DONE)
        except (OSError, ValueError):
            return None

    def _result(self, name: str) -> str | None:
        """What a chapter that read ``name`` depends on; None while there is nothing."""
        return (self._done(name) or {}).get("result")

    def _data_state(self) -> str:
        """The state of the files that chapter 01 describes: the user's data, or the phantom it wrote."""
        try:
            return data_fingerprint(resolve(files.read_json(self.dir / DATA_CHAPTER / "cohort.json")["data_root"]))
        except (OSError, ValueError, KeyError):
            return ""

    def current(self, notebook: Notebook) -> dict[str, Any] | None:
        """The record of the chapter's last run, if doing it again would give the same; None if it has to run."""
        done = self._done(notebook.name)
        if done is None or done["key"] != self.key(notebook):
            return None
        if notebook.name == DATA_CHAPTER and done["data_state"] != self._data_state():
            return None
        return done if all(self._result(name) == key for name, key in done["inputs"].items()) else None

    def execute(self, notebook: Notebook, *, progress: bool = True) -> dict[str, Any]:
        """Run one chapter and record it. Raises ChapterFailed; the executed copy is kept either way."""
        import papermill

        folder = self.folder(notebook.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DONE).unlink(missing_ok=True)
        running, good, bad = (folder / f"notebook{tail}.ipynb" for tail in (".running", "", ".failed"))
        started = time.perf_counter()
        status, reason = "done", ""
        with _plain_progress(progress):
            try:
                papermill.execute_notebook(
                    os.path.relpath(notebook.path),
                    os.path.relpath(running),
                    parameters=self.parameters[notebook.name],
                    kernel_name="python3",
                    cwd=str(root()),
                    progress_bar={"desc": notebook.name, "leave": False} if progress else False,
                    stderr_file=sys.stderr if progress else None,
                    extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                )
            except papermill.PapermillExecutionError as error:
                if error.ename != "NotApplicable":
                    running.replace(bad)
                    raise ChapterFailed(
                        f"{notebook.name} failed in cell {error.cell_index + 1}, [{error.exec_count}]: "
                        f"{error.ename}: {one_line(error.evalue)}; executed copy: {bad.as_posix()}"
                    ) from None
                status, reason = "not applicable", one_line(error.evalue)
        bad.unlink(missing_ok=True)
        _tidy(running)
        running.replace(good)
        return self._record(notebook, status, reason, time.perf_counter() - started)

    def _record(self, notebook: Notebook, status: str, reason: str, seconds: float) -> dict[str, Any]:
        folder = self.folder(notebook.name)
        try:
            inputs = files.read_json(folder / "provenance.json")["inputs"] if status == "done" else []
        except OSError:
            raise ChapterFailed(f"{notebook.name} ended without chapter.finish(…), so nothing is recorded") from None
        if status != "done":  # it said so after reading what came before it
            inputs = [c.name for c in self.chapters if c.name < notebook.name and self._done(c.name)]
        done = {
            "key": self.key(notebook),
            "inputs": {name: self._result(name) for name in inputs},
            "data_state": self._data_state() if notebook.name == DATA_CHAPTER else "",
            "status": status,
            "reason": reason,
            "seconds": round(seconds, 1),
        }
        # What chapters that read this one depend on: the recipe, all the way up.
        done["result"] = files.digest([done["key"], done["inputs"], done["data_state"]])
        files.write_json(folder / DONE, done)
        return done

    def write_provenance(self, profile: str) -> None:
        """``<run>/provenance.json``: what ran, with which parameters, on what, for how long."""
        files.write_json(
            self.dir / "provenance.json",
            {
                "profile": profile,
                "parameters": self.parameters,
                "environment": environment(),
                "chapters": {c.name: self._done(c.name) for c in self.chapters},
            },
        )


def run(
    profile: str = "demo",
    *,
    data_root: str = "",
    out: str = "",
    only: Iterable[str] = (),
    assignments: Iterable[str] = (),
    folder: str | Path = "notebooks",
    fresh: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    say=print,
) -> Run:
    """Run the study's chapters in order, each one unless it is up to date.

    ``only`` names chapters ("03" or whole names); ``assignments`` are ``name=value`` over the profile; ``fresh`` runs
    also what is up to date, each chapter from an empty folder; ``dry_run`` only says what would run.

    Raises StudyError for what the user asked wrongly, before anything runs, and ChapterFailed when a notebook stops.
    """
    chapters = notebooks(folder)
    layers = [(f"profile {profile}", load_profile(profile, folder)), ("-p", parse_assignments(assignments))]
    given = given_parameters(profile, data_root, out)
    parameters = plan(chapters, *layers, ("arguments", {"all": given}))
    chosen = _chosen(chapters, only)
    _check_data(parameters)
    study = Run(chapters, parameters, resolve(given["run_dir"]))
    say(f"{profile} -> {study.dir.as_posix()}")
    for number, notebook in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {notebook.name}"
        done = None if fresh else study.current(notebook)
        if done:
            say(f"{head}: up to date ({_state(done)})")
        elif dry_run:
            say(f"{head}: would run")
        else:
            say(f"{head} …")
            if fresh:
                shutil.rmtree(study.dir / notebook.name, ignore_errors=True)
            try:
                done = study.execute(notebook, progress=progress)
            finally:
                study.write_provenance(str(profile))
            say(f"{head}: {_state(done)}")
    return study


def _state(done: Mapping[str, Any]) -> str:
    return f"{done['seconds']:.0f} s" if done["status"] == "done" else f"{done['status']}: {done['reason']}"


def given_parameters(profile: str, data_root: str, out: str) -> dict[str, str]:
    """The parameters that the commands' own options give, for every chapter that takes them."""
    stem = Path(profile).stem
    default = f"results/{stem}" + (f"-{Path(data_root).resolve().stem}" if data_root else "")
    return {"run_dir": out or default, **({"data_root": data_root} if data_root else {})}


def _check_data(parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """A wrong data root is told before anything runs."""
    data_root = parameters.get(DATA_CHAPTER, {}).get("data_root")
    if data_root:
        from e2d_lib.cohort import CohortError, read_cohort

        try:
            read_cohort(resolve(data_root))
        except CohortError as error:
            raise StudyError(one_line(error)) from None


def _chosen(chapters: list[Notebook], only: Iterable[str]) -> list[Notebook]:
    names = [notebook.name for notebook in chapters]
    wanted = []
    for item in only:
        match = [name for name in names if name == item or name[:2] == item.zfill(2)]
        if not match:
            raise StudyError(f"no chapter {item!r}{_hint(item, names)}")
        wanted += match
    return [notebook for notebook in chapters if not wanted or notebook.name in wanted]


def one_line(text: object) -> str:
    return " ".join(str(text).split())


@contextlib.contextmanager
def _plain_progress(progress: bool):
    """Ask the kernel, through the environment it inherits, for bars that a terminal shows."""
    # Papermill's own parser warns about a parameter line with a second "="; ours has read it already.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    before = os.environ.get("E2D_PROGRESS")
    os.environ["E2D_PROGRESS"] = "plain" if progress else "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["E2D_PROGRESS"]
        else:
            os.environ["E2D_PROGRESS"] = before


def _tidy(path: Path) -> None:
    """Drop the traces of progress bars from an executed notebook: whatever a carriage return wrote over."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and "\r" in output.text:
                lines = [line.rpartition("\r")[2] for line in output.text.replace("\r\n", "\n").split("\n")]
                output.text = "\n".join(line for line in lines if line.strip())
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
    with files.replacing(path) as tmp, open(tmp, "w", encoding="utf-8") as file:
        nbformat.write(notebook, file)
