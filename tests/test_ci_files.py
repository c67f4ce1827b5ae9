"""The workflows, the citation and the container: valid by their published schemas, and of commands that exist."""

import itertools
import re
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

GITHUB, GITLAB = ROOT / ".github" / "workflows" / "study.yml", ROOT / ".gitlab-ci.yml"
SCHEMAS = {"vendor.github-workflows": GITHUB, "vendor.gitlab-ci": GITLAB, "vendor.citation-file-format": "CITATION.cff"}


def commands(path) -> list[str]:
    """Every line of shell that the jobs of a workflow run."""
    read = yaml.safe_load(path.read_text())
    if path == GITHUB:
        steps = [step for job in read["jobs"].values() for step in job["steps"]]
        return [line for step in steps for line in step.get("run", "").splitlines()]
    jobs = [job for name, job in read.items() if name != "variables"]
    return [line for job in jobs for key in ("before_script", "script") for line in job.get(key, [])]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_valid_by_the_published_schema(schema):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / SCHEMAS[schema])]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_the_jobs_run_what_there_is(path):
    lines = commands(path)
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert {"env", "lint", "test"} <= set(made) <= set(targets)
    study = [line for line in lines if ".venv/bin/e2d run" in line]
    asked = subprocess.run([sys.executable, "-m", "e2d_lib", "run", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert len(study) == 1 and all(option in asked.stdout for option in re.findall(r"--[a-z]+", study[0]))


def test_both_say_the_same():
    github, gitlab = (yaml.safe_load(path.read_text()) for path in (GITHUB, GITLAB))
    assert set(github["jobs"]) == set(gitlab) - {"variables", "default"} == {"tests", "study", "newest"}
    inputs = github[True]["workflow_dispatch"]["inputs"]  # `on` is a boolean to YAML 1.1
    assert {name.upper(): what["default"] for name, what in inputs.items()} == {
        name: what["value"] for name, what in gitlab["variables"].items()
    }
    # What somebody types in a form is a value of the environment, never a piece of the script.
    assert not [line for line in commands(GITHUB) if "${{" in line]


@pytest.mark.parametrize("typed", ["", "fraction=0.3 06.n_samples=4", "out=$(touch gone) * a;b"])
@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_parameters_reach_the_command_as_typed(path, typed, tmp_path):
    lines = commands(path)
    first = next(k for k, line in enumerate(lines) if line.startswith("set -f"))
    last = next(k for k, line in enumerate(lines) if ".venv/bin/e2d run" in line)
    script = "\n".join(lines[first : last + 1]).replace(".venv/bin/e2d run", r"printf '%s\n'")
    environment = {"PROFILE": "ci", "PARAMETERS": typed, "PATH": "/usr/bin:/bin"}
    shell = ["bash", "-e", "-c", script]
    got = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    got = got.splitlines()
    assert got[:2] == ["--profile", "ci"] and not list(tmp_path.iterdir())
    assert [value for option, value in itertools.pairwise(got) if option == "-p"] == typed.split()


def test_the_citation_names_the_paper_of_the_readme():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme and str(paper["year"]) in readme and f"{paper['start']}-{paper['end']}" in readme
    names = re.search(r"author\s*=\s*\{(.*?)\},\n", readme, re.S).group(1)
    authors = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    assert re.sub(r"\s+", " ", names).split(" and ") == authors


def test_the_container_copies_what_there_is_and_takes_another_base():
    recipe = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+\nFROM \$\{BASE\}$", recipe, re.M)
    named = re.search(r"^COPY (.+) \./$", recipe, re.M).group(1).split()
    assert all((ROOT / name).is_file() for name in named)
