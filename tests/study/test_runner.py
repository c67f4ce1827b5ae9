"""The runner, on chapters of a few lines made here."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import papermill
import pytest

import e2d_lib
from e2d_lib.scans import open_cohorts
from e2d_lib.study import cli, runner
from e2d_lib.study.chapter import Chapter, data_fingerprint, environment
from e2d_lib.study.notebook import Notebook, Parameter, checked, resolve, root
from tests.conftest import ROOT

OPENING = "from e2d_lib.study.chapter import Chapter\nchapter = Chapter.open({name!r}, globals())"


def make_notebook(folder: Path, name: str, parameters: str, body: str) -> Path:
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(OPENING.format(name=name)),
        nbformat.v4.new_code_cell(body),
    ]
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"
    path = folder / f"{name}.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A study of three chapters: one writes, one reads and can be made to fail, one may not apply."""
    folder = tmp_path / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles" / "small.yaml").write_text("01_data_exploration: {count: 3}\n")
    make_notebook(
        folder,
        "01_data_exploration",
        'run_dir: str = "results/x"\ndata_root: str = ""\ncount: int = 5  # of things = many',
        'data_root = chapter.store(chapter.run_dir / "phantom")\n'
        'chapter.save_json("cohort.json", {"data": "phantom", "data_root": data_root})\n'
        "chapter.finish(count=count)",
    )
    make_notebook(
        folder,
        "02_double",
        'run_dir: str = "results/x"\nscale: float = 2.0\nfail_file: str = ""',
        'count = chapter.read("01_data_exploration", "headline.json")["headline"]["count"]["value"]\n'
        "import pathlib\n"
        'pathlib.Path(chapter.path("ran")).open("a").write("x")\n'
        "assert not (fail_file and pathlib.Path(fail_file).exists()), 'told to\\nfail'\n"
        "chapter.finish(double=scale * count)",
    )
    make_notebook(
        folder,
        "03_optional",
        'run_dir: str = "results/x"\nlabels: bool = True',
        'chapter.require(labels, "no labels")\nchapter.input("02_double", "headline.json")\nchapter.finish(ok=1)',
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def e2d(*arguments: str) -> int:
    profile = [] if "--profile" in arguments else ["--profile", "small"]
    return cli.main(["run", *profile, "--quiet", *arguments])


def headline(chapter: str, run: str = "results/small") -> dict:
    return json.loads(Path(run, chapter, "headline.json").read_text())["headline"]


@pytest.mark.notebook
def test_a_run_takes_profile_and_command_line_records_both_and_skips_what_is_current(project, capsys):
    assert e2d("-p", "scale=4") == 0
    assert headline("02_double")["double"]["value"] == 12.0  # 3 of the profile, 4 of the command line
    provenance = json.loads(Path("results/small/provenance.json").read_text())
    assert provenance["parameters"]["01_data_exploration"]["count"] == 3
    assert provenance["environment"]["packages"]["papermill"]
    assert {c["status"] for c in provenance["chapters"].values()} == {"done"}
    chapter = json.loads(Path("results/small/02_double/provenance.json").read_text())
    assert chapter["inputs"] == ["01_data_exploration"] and chapter["parameters"]["scale"] == 4.0
    executed = nbformat.read("results/small/02_double/notebook.ipynb", as_version=4)
    assert any(cell.get("execution_count") for cell in executed.cells)
    assert str(project) not in Path("results/small/02_double/notebook.ipynb").read_text()

    assert capsys.readouterr().out.splitlines()[-1] == "report: results/small/report.html"
    assert "12.000" in Path("results/small/report.html").read_text()
    assert e2d("-p", "scale=4") == 0
    assert capsys.readouterr().out.count("up to date") == 3
    assert e2d("-p", "scale=5") == 0  # the second and what reads it, not the first
    assert capsys.readouterr().out.count("up to date") == 1
    assert Path("results/small/02_double/ran").read_text() == "xx"


@pytest.mark.notebook
def test_a_failing_chapter_is_named_kept_and_gone_on_from(project, capsys):
    Path("stop").touch()
    assert e2d("-p", "fail_file=stop") == 1
    message = capsys.readouterr().err.strip()
    assert "told to\nfail" in Path("results/small/report.html").read_text()
    assert "\n" not in message
    for part in (
        "02_double",
        "cell 5",
        "AssertionError",
        "told to fail",
        "results/small/02_double/notebook.failed.ipynb",
    ):
        assert part in message
    assert Path("results/small/02_double/notebook.failed.ipynb").is_file()
    assert not Path("results/small/03_optional").exists()
    Path("stop").unlink()
    assert e2d("-p", "fail_file=stop") == 0
    assert capsys.readouterr().out.count("up to date") == 1
    assert not Path("results/small/02_double/notebook.failed.ipynb").exists()


@pytest.mark.notebook
def test_a_chapter_that_does_not_apply_is_no_failure(project, capsys):
    assert e2d("-p", "labels=false") == 0
    assert "not applicable: no labels" in capsys.readouterr().out
    assert e2d("-p", "labels=false") == 0
    assert capsys.readouterr().out.count("up to date") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "smal"], "no profile 'smal'"),
        (["-p", "scael=2"], "did you mean scale?"),
        (["-p", "03_optional.scale=2"], "does not take a parameter 'scale'"),
        (["-p", "09_none.scale=2"], "no chapter '09_none'"),
        (["-p", "count=many"], "count is 'many' (str); expected int"),
        (["-p", "count=2.5"], "expected int"),
        (["-p", "labels=1"], "expected bool"),
        (["-p", "scale"], "expected name=value"),
        (["--only", "07"], "no chapter '07'"),
        (["--data-root", "nowhere"], "nowhere"),
        (["--notebooks", "results"], "no chapters"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_runs_nothing(project, capsys, arguments, message):
    assert e2d(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("results").exists()


def test_a_bad_profile_file_is_one_line(project, capsys):
    Path("bad.yaml").write_text("01_data_exploration: [1,\n")
    assert e2d("--profile", "bad.yaml") == 2
    Path("flat.yaml").write_text("count: 3\n")
    assert e2d("--profile", "flat.yaml") == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_data_that_a_profile_is_made_for_and_are_not_there(project, capsys):
    Path("mine.yaml").write_text("first: e2d fetch it data/it\n01_data_exploration: {data_root: data/it/all.csv}\n")
    assert e2d("--profile", "mine.yaml") == 2
    assert capsys.readouterr().err == "e2d: data/it/all.csv is not there yet; first run: e2d fetch it data/it\n"
    assert e2d("--profile", "mine.yaml", "--data-root", "nowhere") == 2  # the user's own data
    assert "nowhere' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["open", "open-cpu"])
def test_profiles_on_fetched_data_name_the_command_that_fetches_them(profile):
    settings = runner.load_profile(ROOT / "notebooks" / "profiles" / f"{profile}.yaml")
    folder = Path(settings["01_data_exploration"]["data_root"]).parent.as_posix()
    command = settings["first"].split()
    assert command[:2] == ["e2d", "fetch"] and command[2] in open_cohorts.COHORTS and command[3] == folder
    assert settings["first"] in (ROOT / "README.md").read_text()


def test_parameters_are_read_despite_a_second_equals_sign(project):
    first, *_ = runner.notebooks()
    defaults = {name: parameter.default for name, parameter in first.parameters.items()}
    assert defaults == {"run_dir": "results/x", "data_root": "", "count": 5}


def test_a_parameter_of_two_types_takes_either_and_no_third(project):
    make_notebook(Path("notebooks"), "04_more", 'run_dir: str = ""\nweights: bool | str = False\nseeds: list = [0]', "")
    chapters = runner.notebooks()
    for text, value in (("weights=true", True), ("weights=a.pth", "a.pth"), ("seeds=[1, 2]", [1, 2])):
        name = text.partition("=")[0]
        assert runner.plan(chapters, ("-p", runner.parse_assignments([text])))["04_more"][name] == value
    for text in ("weights=3", "seeds=3", "seeds=[a]"):
        with pytest.raises(runner.StudyError, match="expected"):
            runner.plan(chapters, ("-p", runner.parse_assignments([text])))


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2", 2.0), ("0.5", 0.5)])
def test_a_float_parameter_takes_what_reads_as_one(project, text, value):
    layer = runner.parse_assignments([f"scale={text}"])
    parameters = runner.plan(runner.notebooks(), ("-p", layer))
    assert parameters["02_double"]["scale"] == value and type(parameters["02_double"]["scale"]) is float


@pytest.mark.parametrize("name", ["ssfl.py", "table.yaml"])
def test_a_changed_library_makes_a_chapter_run_again(project, monkeypatch, name):
    source = project / "library" / "method" / name
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(e2d_lib, "__file__", str(project / "library" / "__init__.py"))
    chapters, keys = runner.notebooks(), []
    for text in ("threshold = 1", "threshold = 2", "threshold = 2"):
        source.write_text(text)
        keys.append([chapter.key({"seed": 0}) for chapter in chapters])
    assert keys[1] == keys[2] and not set(keys[0]) & set(keys[1])


def test_the_fingerprint_sees_a_changed_an_added_and_a_removed_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"1")
    seen = [data_fingerprint(tmp_path)]
    (tmp_path / "a" / "1.jpg").write_bytes(b"12")
    seen.append(data_fingerprint(tmp_path))
    (tmp_path / "a" / "2.jpg").write_bytes(b"1")
    seen.append(data_fingerprint(tmp_path))
    (tmp_path / "a" / "1.jpg").unlink()
    seen.append(data_fingerprint(tmp_path))
    assert len(set(seen)) == 4
    assert data_fingerprint(tmp_path / "none") == ""


def by_hand(name: str, cwd: Path | str, **parameters) -> None:
    """A chapter as plain papermill runs it, from any folder; its copy goes nowhere."""
    path = Path.cwd() / "notebooks" / f"{name}.ipynb"
    papermill.execute_notebook(str(path), None, parameters=parameters, cwd=str(cwd), progress_bar=False)


@pytest.mark.notebook
def test_a_chapter_run_by_hand_is_recognised_with_its_parameters(project, capsys):
    assert e2d("--out", "results/small") == 0
    by_hand("02_double", "notebooks", run_dir="results/small", scale=7.0)
    assert headline("02_double")["double"]["value"] == 21.0
    assert not Path("notebooks/results").exists()
    capsys.readouterr()
    assert e2d("-p", "scale=7", "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert "up to date" in said[2] and "by hand" in said[2] and "would run" in said[3]  # what read the old one is not
    assert e2d() == 0
    assert headline("02_double")["double"]["value"] == 6.0  # the runner's own parameters are another result


@pytest.mark.notebook
def test_a_chapter_with_a_changed_cell_or_left_in_the_middle_is_run_again(project, capsys):
    assert e2d() == 0
    shell = get_ipython_like(Path("notebooks/02_double.ipynb"))
    for cells, current in (
        (shell, True),
        ([*shell[:-1], shell[-1].replace("scale * count", "scale + count")], False),
        (shell[:-1], False),
        ([*shell[:-1], "scale = 5", shell[-1]], False),
        ([shell[-1], *shell], True),  # a cell of an earlier round, before all was run again
    ):
        assert Notebook.of_chapter("02_double").was_run(cells, last=True) is current
    assert Notebook.of_chapter("02_double").was_run(shell[:2], last=False)
    Chapter("02_double", {"run_dir": "results/small"})  # opened in JupyterLab, and no further
    capsys.readouterr()
    assert e2d("--dry-run") == 0
    assert "would run" in capsys.readouterr().out.splitlines()[2]


def get_ipython_like(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.notebook
def test_a_run_that_was_moved_is_up_to_date_and_on_its_own(project, capsys):
    assert e2d() == 0
    stored = json.loads(Path("results/small/01_data_exploration/cohort.json").read_text())
    assert stored["data_root"] == "phantom"  # relative to the run
    Path("results/small").rename("elsewhere")
    capsys.readouterr()
    assert e2d("--out", "elsewhere") == 0
    assert capsys.readouterr().out.count("up to date") == 3
    assert not Path("results/small").exists()


def test_the_study_is_found_from_below_and_paths_of_the_command_line_mean_the_working_directory(project, monkeypatch):
    monkeypatch.chdir(project / "notebooks" / "profiles")
    assert root() == project and resolve("results/x") == project / "results" / "x"
    assert runner.given_parameters("demo", "", "")["run_dir"] == "results/demo"
    assert runner.given_parameters("demo", "../../data", "here") == {
        "run_dir": "notebooks/profiles/here",
        "data_root": "data",
    }
    monkeypatch.chdir("/")
    assert runner.given_parameters("demo", "data", "")["data_root"] == "/data"


def test_a_folder_of_notebooks_that_are_no_chapters_is_not_the_study(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert root() == ROOT  # the checkout that the library is installed from
    assert resolve("~") == Path.home()


@pytest.mark.notebook
def test_without_a_terminal_a_chapter_is_one_line_and_a_heartbeat(project, capsys, monkeypatch):
    """In a folder with braces in its name, and with notebooks whose kernel is not on this machine."""
    monkeypatch.setattr(runner, "HEARTBEAT", 0.2)
    for path in Path("notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.kernelspec.name = "no-such-kernel"
        nbformat.write(notebook, path)
    assert cli.main(["run", "--profile", "small", "--out", "{x}", "--junit", "junit.xml"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "small -> {x}" and shown.err == "" and "\x1b" not in shown.out and "\r" not in shown.out
    ends = [line for line in lines[1:] if re.fullmatch(r"\[\d/3\] \w+: \d+ s", line)]
    beats = [line for line in lines[1:] if re.fullmatch(r"\[\d/3\] \w+: \d+ min, in (cell \d|its start)", line)]
    assert len(ends) == 3 and beats and len(ends) + len(beats) == len(lines) - 2
    assert any("in cell" in line for line in beats) and lines[-1].startswith("report: ")
    assert headline("02_double", "{x}")["double"]["value"] == 6.0
    summary = json.loads(Path("{x}/summary.json").read_text())["chapters"]
    assert summary["02_double"]["headline"]["double"]["value"] == 6.0 and summary["02_double"]["seconds"] > 0
    suite = ElementTree.parse("junit.xml").getroot()
    assert suite.attrib["tests"] == "3" and suite.attrib["failures"] == "0"
    assert [case.attrib["name"] for case in suite] == ["01_data_exploration", "02_double", "03_optional"]


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "Kernel died"),
        ("import time\ntime.sleep(600)", "the limit of 0.1 minutes a chapter is over"),
    ],
    ids=["dies", "hangs"],
)
def test_a_kernel_that_dies_or_hangs_is_one_line_with_its_cell(project, capsys, body, message):
    Path("notebooks/profiles/small.yaml").write_text("minutes: 0.1\n" if "time" in body else "")
    make_notebook(Path("notebooks"), "01_data_exploration", 'run_dir: str = "x"\ndata_root: str = ""', body)
    assert e2d("--junit", "junit.xml", "--out", "run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert re.search(r"01_data_exploration failed in cell [45]", error)  # a slow start is in the limit too
    assert json.loads(Path("run/summary.json").read_text())["chapters"]["01_data_exploration"]["status"] == "failed"
    suite = ElementTree.parse("junit.xml").getroot()
    assert message in suite.find("testcase/failure").attrib["message"]
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("1", "2")


@pytest.mark.notebook
def test_plain_papermill_refuses_what_the_runner_refuses_before_any_work(project):
    e2d("--only", "01")
    for parameters, message in (
        ({"n_bot": 200}, "StudyError: 02_double: does not take a parameter 'n_bot'"),
        ({"scale": "abc"}, "StudyError: 02_double: scale is 'abc' (str); expected float"),
    ):
        with pytest.raises(papermill.PapermillExecutionError) as error:
            by_hand("02_double", ".", run_dir="results/small", **parameters)
        (line,) = error.value.traceback
        assert line.startswith(message)
    assert not Path("results/small/02_double").exists()


@pytest.mark.parametrize(
    ("name", "value", "default", "good"),
    [
        ("n_boot", -5, 2000, False),
        ("n_boot", 1, 2000, True),
        ("fraction", 0.0, 0.5, False),
        ("fraction", 1, 0.5, True),
        ("fraction", float("nan"), 0.5, False),
        ("fractions", [0.1, 2], [0.5], False),
        ("seeds", [0, -1], [0], False),
        ("lr", "-1e-3", 0.1, False),
        ("n_jobs", -1, -1, True),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, value, default, good):
    parameter = Parameter(default, (type(default),))
    if good:
        assert checked("here", name, value, parameter) == value
    else:
        with pytest.raises(runner.StudyError, match=rf"here: {name}.* is .*; expected .*\d"):
            checked("here", name, value, parameter)


def test_a_rerun_is_checked_against_the_intervals_of_an_earlier_run(project, capsys):
    def write(run: str, **numbers) -> None:
        entries = {name: {"value": value, "ci95": ci, "n": 5, "unit": ""} for name, (value, ci) in numbers.items()}
        path = Path(run, "05_x", "headline.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"chapter": "05_x", "data": "phantom", "headline": entries}))

    write(
        "old", auc=(0.8, [0.7, 0.9]), scans=(40, None), sd=(0.02, None), undefined=(None, None), ece=(0.1, [None, None])
    )
    write(
        "same", auc=(0.9, None), scans=(40, None), sd=(0.0209, None), undefined=(None, None), ece=(0.104, [None, None])
    )
    write("other", auc=(0.91, [0.8, 1.0]), scans=(41, None), sd=(0.0211, None), ece=(0.106, [0.0, 1.0]))
    assert cli.main(["check", "same", "--against", "old"]) == 0
    assert "all 5 numbers" in capsys.readouterr().out
    assert cli.main(["check", "other", "--against", "old"]) == 1
    shown = capsys.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines()[1:]] == ["auc", "scans", "sd", "undefined", "ece"]
    assert "5 of 5" in shown.err and shown.err.count("\n") == 1
    assert cli.main(["check", "other", "--against", "nowhere"]) == 2


def test_a_closed_output_is_one_line(project):
    command = [sys.executable, "-m", "e2d_lib", "parameters", "--notebooks", str(ROOT / "notebooks")]
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nobody reads" in done.stderr


@pytest.mark.parametrize("arguments", [["--dryrun"], ["--only"], ["05"]])
def test_options_that_do_not_exist_are_one_line(project, capsys, arguments):
    assert e2d(*arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.notebook
def test_bars_are_drawn_on_the_terminal_and_leave_nothing_in_the_executed_copy(project):
    body = "import sys\nfrom e2d_lib import progress\nfor k in progress.bar(range(2), desc='outer'):\n"
    body += "    for i in progress.bar(range(2), desc='inner'):\n        print('10 %\\r20 %', k, i)\n"
    make_notebook(Path("notebooks"), "02_double", 'run_dir: str = "x"', body + "chapter.finish(ok=1)")
    command = [sys.executable, "-m", "e2d_lib", "run", "--profile", "small", "--only", "01,02"]
    environment = {k: v for k, v in os.environ.items() if k != "E2D_PROGRESS"} | {"PYTHONPATH": str(ROOT)}
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    shown = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, env=environment) as process:
        os.close(writer)
        with contextlib.suppress(OSError):  # the terminal's end, on Linux
            while part := os.read(reader, 4096):
                shown.append(part.decode(errors="replace"))
    os.close(reader)
    assert process.returncode == 0 and all(name in "".join(shown) for name in ("outer: ", "inner: ", "02_double"))
    cells = nbformat.read("results/small/02_double/notebook.ipynb", as_version=4).cells
    streams = [output.text for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"]
    assert streams == ["20 % 0 0\n20 % 0 1\n20 % 1 0\n20 % 1 1\n"]


def test_the_provenance_has_the_commit_and_does_not_filter_notebooks_to_get_it(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *own, *arguments], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / "01_one.ipynb"
    notebook.write_text("{}")
    (tmp_path / ".gitattributes").write_text("notebooks/*.ipynb filter=notebooks\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (tmp_path / "other.txt").write_text("new")
    git("config", "filter.notebooks.clean", f"touch {tmp_path}/filtered; cat")
    notebook.touch()  # git has to look into it
    monkeypatch.chdir(tmp_path)
    assert environment()["git"] == {"commit": git("rev-parse", "HEAD"), "changed_files": 1}
    assert not (tmp_path / "filtered").exists()
