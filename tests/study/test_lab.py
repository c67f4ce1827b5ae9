"""JupyterLab's side without a browser: sentences in place of tracebacks, and what git stores of a notebook."""

import os
import shutil
import subprocess

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from e2d_lib.study import lab
from e2d_lib.study.chapter import MissingInput, NotApplicable
from tests.conftest import ROOT, stored_notebook

CHAPTER = "03_reduction_statistics"


@pytest.fixture
def opened(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", f"notebooks/{CHAPTER}.ipynb")


def error_of(source: str) -> NameError:
    with pytest.raises(NameError) as raised:
        exec(source, {})
    return raised.value


def test_a_name_that_is_not_there_yet_names_the_cell_that_makes_it(opened):
    text = lab.sentence(error_of("per_scan.mean()"), "per_scan.mean()")
    assert "'per_scan'" in text and "per_scan = reduction.total_reduction(done.slices, done.scans)" in text
    assert "    import numpy as np" in lab.sentence(error_of("intervals"), "intervals")  # by the cell's first line
    assert lab.sentence(error_of("tpyo"), "tpyo") is None  # a mistake of the user's own keeps its traceback
    assert lab.sentence(KeyboardInterrupt(), "anything") == lab.INTERRUPTED


def test_without_jupyters_server_the_chapter_is_known_by_its_cell_and_other_notebooks_are_left_alone(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    cells = nbformat.read(ROOT / "notebooks" / f"{CHAPTER}.ipynb", as_version=4).cells
    cell = next(c.source for c in cells if c.source.startswith("both = "))
    assert "exact = " in lab.sentence(error_of("exact"), cell) or "rng = " in lab.sentence(error_of("exact"), cell)
    assert lab.sentence(error_of("exact"), "x = exact") is None
    assert lab.sentence(KeyboardInterrupt(), "x = exact") is None


def test_the_extension_shows_the_sentence_and_leaves_other_errors_as_they_are(opened, monkeypatch):
    shell = InteractiveShell.instance()
    shown = []
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, error, lines: shown.append((kind, "\n".join(lines))))
    try:
        lab.load_ipython_extension(shell)
        for source in ("per_scan.mean()", "tpyo", "1 / 0"):
            shell.run_cell(source, store_history=True)
        refusal = "from e2d_lib.study.notebook import StudyError\nraise StudyError('count is too much')"
        shell.run_cell(refusal, store_history=True)
    finally:
        InteractiveShell.clear_instance()
    kinds, texts = zip(*shown, strict=True)
    assert [kind.__name__ for kind in kinds] == ["NameError", "NameError", "ZeroDivisionError", "StudyError"]
    assert "run the cell that makes it" in texts[0] and "Traceback" not in texts[0]
    assert "Traceback" in texts[1] and "Traceback" in texts[2]
    assert texts[3] == "StudyError: count is too much"


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of one notebook, with the filter that ``make env`` sets up."""
    for name in ("Makefile", ".gitattributes"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").symlink_to((ROOT / ".venv").resolve())
    for folder in ("notebooks", "results/x"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(ROOT / "notebooks" / f"{CHAPTER}.ipynb", tmp_path / folder)
    if not (ROOT / ".venv" / "bin" / "nbstripout").exists():
        pytest.skip("the environment is not in .venv, where make env puts it")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["make", "filter"], cwd=tmp_path, check=True)
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all")
    return tmp_path


def git(folder, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def run_in_lab(path, version="3.99.0") -> None:
    """What JupyterLab writes into a notebook that it opened and ran."""
    notebook = nbformat.read(path, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.execution_count = 1
    code.outputs = [nbformat.v4.new_output("stream", text="out\n")]
    notebook.metadata.language_info = {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
        "name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": version,
    }  # fmt: skip
    nbformat.write(notebook, path)


def test_a_notebook_that_was_run_leaves_no_diff_and_an_executed_copy_is_stored_whole(checkout):
    path = checkout / "notebooks" / f"{CHAPTER}.ipynb"
    run_in_lab(path)
    run_in_lab(checkout / "results" / "x" / path.name)
    assert git(checkout, "diff", "--stat", "--", "notebooks") == ""
    assert "execution_count" in git(checkout, "diff", "--", "results")
    lab.saved({"type": "notebook"}, str(path))
    status = git(checkout, "status", "--short")
    assert status.split() == ["M", f"results/x/{path.name}"]
    path.write_text(path.read_text().replace("n_boot: int = 2000", "n_boot: int = 300"))
    lab.saved({"type": "notebook"}, str(path))
    changed = [
        line for line in git(checkout, "diff", "-U0", "--", "notebooks").splitlines() if line[:2] in ("- ", "+ ")
    ]
    assert len(changed) == 2 and all("n_boot" in line for line in changed)
    assert git(checkout, "diff", "--cached") == ""  # what the user changed is the user's to add


def test_lint_reads_what_git_would_store(checkout):
    path = checkout / "notebooks" / f"{CHAPTER}.ipynb"
    run_in_lab(path)
    recipe = (checkout / "Makefile").read_text()
    (checkout / "Makefile").write_text(recipe.replace("$(BIN)/ruff check . && $(BIN)/ruff format --check .", "true"))
    lint = ["make", "-s", "-o", ".venv/.ready", "lint"]
    assert subprocess.run(lint, cwd=checkout, capture_output=True).returncode == 0
    git(checkout, "config", "--remove-section", "filter.notebooks")
    assert subprocess.run(lint, cwd=checkout, capture_output=True).returncode != 0
    assert not any(cell.get("outputs") for cell in stored_notebook(ROOT / "notebooks" / path.name).cells)


def test_nothing_is_set_up_where_there_is_no_git(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(["make", "filter"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "" and [p.name for p in tmp_path.iterdir()] == ["Makefile"]


def test_chapters_errors_are_one_line_in_any_tool():
    for error in (MissingInput("there is none"), NotApplicable("no labels")):
        assert error._render_traceback_() == [f"{type(error).__name__}: {error}"]
