"""The project holds together: environment files, notebooks, profiles, the light half of the library."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from e2d_lib.study import runner
from e2d_lib.study.notebook import Notebook
from tests.conftest import ROOT, stored_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    return [r for r in map(Requirement, lines) if r.name != project["name"]]


def pins(name: str) -> list[Requirement]:
    return [r for r in LOCK if canonicalize_name(r.name) == canonicalize_name(name)]


def test_the_lock_is_exact_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--" not in text and " @ " not in text
    for requirement in LOCK:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement


@pytest.mark.parametrize("requirement", declared(), ids=lambda r: r.name)
def test_every_declared_dependency_is_locked_within_its_bounds(requirement):
    locked = pins(requirement.name)
    if requirement.name == "dask-jobqueue":  # the one extra that only makes sense on a SLURM cluster
        assert not locked
        return
    assert locked
    for pin in locked:
        assert requirement.specifier.contains(next(iter(pin.specifier)).version)


def test_every_dependency_says_why_it_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line for line in block.splitlines() if re.match(r'\s+"[a-z]', line) and "e2d-study[" not in line]
    assert len(lines) == len(declared())
    assert [line for line in lines if not re.search(r",\s+# \w+", line)] == []


def test_what_is_installed_is_what_is_locked():
    for pin in LOCK:
        if pin.marker is None or pin.marker.evaluate():
            assert pin.specifier.contains(importlib.metadata.version(pin.name), prereleases=True), pin


def test_conda_users_get_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(python.partition("=")[2])
    others = {d for d in environment["dependencies"] if isinstance(d, str)} - {python}
    assert others == {"pip"}  # nothing outside the lock


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_a_chapter(path):
    notebook = stored_notebook(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].source.startswith(f"# {int(path.stem[:2])} · ")
    assert "**Question.**" in notebook.cells[0].source and "**Reads**" in notebook.cells[0].source
    assert any(cell.source.startswith("## Answer") for cell in notebook.cells)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])] == [0]
    trees = [ast.parse(cell.source) for cell in code]
    imports = [any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(tree)) for tree in trees]
    assert [i for i, found in enumerate(imports) if found] == [1]  # one imports cell, after the parameters
    assert max(len(cell.source.splitlines()) for cell in code[1:]) <= 45
    assert f'Chapter.open("{path.stem}", globals())' in code[2].source
    assert "chapter.finish(" in code[-1].source
    # papermill's parser loses a parameter line with a second "="
    assert all(line.count("=") == 1 for line in code[0].source.splitlines() if line.strip())


def test_every_parameter_is_used_and_explained():
    for path in NOTEBOOKS:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        body = "\n".join(cell.source for cell in cells[1:])
        used = {n.id for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Name)} | {"run_dir"}
        assert Notebook(path).parameters.keys() <= used, path.name
        assert all("  # " in line for line in cells[0].source.splitlines()), path.name


@pytest.mark.parametrize("profile", sorted((ROOT / "notebooks" / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_profile_names_known_parameters_and_holds_only_what_differs(profile):
    chapters = runner.notebooks(ROOT / "notebooks")
    content = runner.load_profile(profile)
    runner.plan(chapters, (profile.stem, content))
    defaults = {chapter.name: chapter.parameters for chapter in chapters}
    for section, values in content.items():
        if section in defaults:
            assert {k for k, v in values.items() if defaults[section][k].default == v} == set()


def test_readme_names_every_chapter_profile_and_target():
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        assert path.stem in readme
    for word in ("make study", "make test", "make lab", "e2d run", "--profile", "demo", "ci", "paper"):
        assert word in readme


def test_preprocessing_imports_neither_torch_nor_the_notebook_side():
    code = (
        "import sys\nfrom e2d_lib import readers, ssfl, kds, preprocess, reduction, phantom\n"
        "heavy = {'torch', 'timm', 'matplotlib', 'seaborn', 'sklearn', 'papermill', 'IPython', 'statsmodels'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_pickle_and_no_global_random_state():
    forbidden = re.compile(r"\bpickle\b\.|np\.random\.(seed|rand|normal|choice)\(|weights_only=False|yaml\.load\(")
    for path in (ROOT / "e2d_lib").rglob("*.py"):
        assert not forbidden.search(path.read_text()), path.name


LAYERS = ("scans", "method", "network", "evaluation", "figures", "study")
LEAVES = ("phantom", "audit", "elsewhere")


def library_imports() -> dict[str, set[str]]:
    """Every module of the library, and the library's modules that it imports, wherever in the file."""
    paths = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in ROOT.glob("e2d_lib/**/*.py")}
    found = {}
    for name, path in paths.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level], f"{name}: a relative import"
        named = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = named & paths.keys()
    return found


def test_imports_go_one_way_through_the_layers():
    """scans -> method -> network -> evaluation -> study; what is beside the folders knows none of them."""
    wrong = []
    for name, imported in library_imports().items():
        if name in ("e2d_lib.__init__", "e2d_lib.__main__"):
            continue
        own = name.split(".")[1]
        for other in imported:
            to = other.split(".")[1]
            if own in LAYERS:
                fine = to not in LEAVES and (to not in LAYERS or LAYERS.index(to) <= LAYERS.index(own))
                fine |= own == "study" and to in LEAVES
            elif own in LEAVES:  # chapter 7 spoils the phantom's volumes
                fine = to == own or to not in (*LEAVES, "study") or (own, to) == ("elsewhere", "phantom")
            else:
                fine = to not in LAYERS + LEAVES
            if not fine:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_imports_never_go_in_a_circle_nor_deeper_than_now():
    imports = library_imports()
    depth = {}

    def of(name, above=()):
        assert name not in above, " -> ".join([*above, name])
        if name not in depth:
            depth[name] = 1 + max((of(other, (*above, name)) for other in imports[name]), default=0)
        return depth[name]

    assert max(map(of, imports)) <= 15  # modules on the longest chain, imports inside functions included
