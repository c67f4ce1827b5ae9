"""Sweeps over a notebook of a few lines made here: which cells there are, which run, what is left."""

from pathlib import Path

import pandas as pd
import pytest

from e2d_lib.study import cli, runner, sweep
from tests.study.test_runner import make_notebook

CELL = """
import json, numpy as np, pandas as pd
count = chapter.read("01_data_exploration", "headline.json")["headline"]["count"]["value"]
with open(chapter.run_dir / "ran", "a") as file:
    file.write(f"{scale:g} ")
assert scale != bad, "told to fail"
labels = np.array([0, 1] * 20)
noise = np.random.default_rng(0).random(40)
scores = pd.DataFrame({"seed": 0, "fold": 5, "draw": 0, "scan_id": [f"s{k:02d}" for k in range(40)], "label": labels,
                       "probability": (scale * labels + count * noise) / (scale + count)})
(chapter.dir / "setting.json").write_text(json.dumps({"scale": scale}))
scores.to_parquet(chapter.dir / "scores.parquet")
chapter.finish(scale=scale)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "grids").mkdir()
    (folder / "profiles" / "small.yaml").write_text("01_data_exploration: {count: 3}\n")
    (folder / "grids" / "scales.yaml").write_text("grid: {scale: [1, 2.5]}\nbaseline: {scale: 2.5}\n")
    make_notebook(
        folder,
        "01_data_exploration",
        'run_dir: str = "results/x"\ndata_root: str = ""\ncount: int = 5',
        'chapter.save_json("cohort.json", {"data": "phantom", "data_root": chapter.run_dir / "phantom"})\n'
        "chapter.finish(count=count)",
    )
    make_notebook(folder, "02_more", 'run_dir: str = "results/x"', "chapter.finish(ok=1)")
    make_notebook(
        folder,
        "06_ablations",
        'run_dir: str = "results/x"\ncell: str = ""\nscale: float = 1.0\nbad: float = 0.0',
        CELL,
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def e2d(*arguments: str) -> int:
    return cli.main(["sweep", "--profile", "small", "--jobs", "1", *arguments])


def ran() -> list[str]:
    return sorted(Path("results/small/ran").read_text().split())


class TestGrid:
    def test_every_combination_is_a_cell(self):
        grid = sweep.parse_grid(["a=1,2,3", "b=x,true"])
        assert len(grid.cells) == 6 and {"a": 2, "b": True} in grid.cells.values()
        assert grid.baseline == "a=1,b=x"

    @pytest.mark.parametrize("name", sorted(p.stem for p in Path("notebooks/grids").glob("*.yaml")))
    def test_shipped_grids_ask_for_parameters_that_exist(self, name):
        grid = sweep.load_grid(name)
        chapters = runner.notebooks()
        for cell, values in grid.cells.items():
            runner.plan(chapters, ("base", {sweep.NOTEBOOK: grid.base}), (cell, {sweep.NOTEBOOK: values}))
        assert grid.baseline in grid.cells and runner.load_yaml("grid", name)[1]["description"]
        assert len(set(grid.base["seeds"])) >= 5  # each trains for a conclusion

    def test_sampler_grid_is_the_paper_s(self):
        """3 samplers, 4 and 8 intervals, 4, 8 and 16 slices: random has no intervals, and 8 intervals want 8 slices."""
        assert len(sweep.load_grid("sampler").cells) == 2 * 2 * 2 + 2 + 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{}", "a grid has 'grid' or 'cells'"),
            ("grid: {a: [1]}\nbasis: {}", "a grid has no 'basis'"),
            ("grid: {a: 1}", "'grid' maps names to lists of values"),
            ("grid: {a: [1, 2]}\nbaseline: {a: 3}", "no cell"),
            ("cells: {one: {}}\nagainst: {one: two}", "no cell 'two'; there are one"),
            ("grid: [", "not YAML"),
        ],
    )
    def test_wrong_grid(self, tmp_path, text, message):
        (tmp_path / "g.yaml").write_text(text)
        with pytest.raises(runner.StudyError, match=message):
            sweep.load_grid(tmp_path / "g.yaml")

    def test_wrong_axis(self):
        with pytest.raises(runner.StudyError, match="expected name=value"):
            sweep.parse_grid(["scale"])


@pytest.mark.notebook
def test_cells_run_once_and_are_compared(project, capsys):
    assert e2d("scales") == 0
    assert ran() == ["1", "2.5"]
    folder = Path("results/small/ablations/scales")
    table = pd.read_csv(folder / "comparison.csv").set_index(["cell", "metric"])
    assert (folder / "comparison.png").stat().st_size > 1000
    assert table.loc[("scale=1", "roc_auc"), "baseline"] == "scale=2.5"
    assert table.loc[("scale=1", "roc_auc"), "difference"] < 0  # the same noise on a smaller signal
    for cell in ("scale=1", "scale=2.5"):
        assert (folder / cell / "notebook.ipynb").is_file() and (folder / cell / "headline.json").is_file()
    state = Path("results/small/ablations/done.json").read_text()
    assert e2d("scales") == 0
    assert ran() == ["1", "2.5"]  # up to date
    assert cli.main(["sweep", "--profile", "small", "--jobs", "2", "-g", "scale=2.5,4"]) == 0  # two cells at a time
    assert ran() == ["1", "2.5", "2.5", "4"]  # another sweep has its own folder
    assert Path("results/small/ablations/done.json").read_text() != state
    capsys.readouterr()
    assert cli.main(["compare", "results/small/ablations", "--out", "both"]) == 0
    assert len(pd.read_csv("both/comparison.csv")) == 2 * 4
    assert "scales/scale=1" in capsys.readouterr().out


def test_a_cell_has_the_limit_of_its_profile(project, monkeypatch):
    limits = []
    done = {"status": "done"}
    monkeypatch.setattr(runner, "run", lambda *_, **__: None)  # the chapters that the cells need
    monkeypatch.setattr(runner.Run, "execute", lambda own, notebook, **_: limits.append(own.minutes) or done)
    Path("notebooks/profiles/small.yaml").write_text("minutes: 7\n01_data_exploration: {count: 3}\n")
    e2d("scales")
    assert limits == [7, 7]


@pytest.mark.notebook
def test_a_failing_cell_is_named_and_the_others_are_kept(project, capsys):
    assert e2d("scales", "-p", "bad=1") == 1
    assert "1 of 2 cells failed: scale=1: 06_ablations failed in cell" in capsys.readouterr().err
    assert e2d("scales", "-p", "bad=7") == 0  # other parameters: both run
    Path("results/small/ran").unlink()
    assert e2d("scales", "-p", "bad=7") == 0
    assert not Path("results/small/ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a grid"),
        (("scale",), "no grid 'scale': the shipped ones are scales"),
        (("-g", "scael=1,2"), "does not take a parameter 'scael'; did you mean scale"),
        (("-g", "scale=1,x"), "scale is 'x' (str); expected float"),
    ],
)
def test_wrong_sweeps_are_told_before_anything_runs(project, capsys, arguments, message):
    assert e2d(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.notebook
def test_the_command_line_goes_before_the_grid_s_base_and_cells_before_both(project):
    Path("one.yaml").write_text("base: {scale: 7, bad: 9}\ncells: {a: {}, b: {scale: 3}}\n")
    assert e2d("one.yaml", "-p", "scale=5") == 0
    assert ran() == ["3", "5"]


@pytest.mark.parametrize(("gpu", "asked", "cells", "used"), [(True, -1, 9, 1), (True, 2, 9, 2), (False, 2, 1, 1)])
def test_a_gpu_has_one_cell_at_a_time_unless_asked(monkeypatch, gpu, asked, cells, used):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert sweep.processes(asked, cells) == used


@pytest.mark.notebook
@pytest.mark.slow
def test_dask_gives_the_same_scores(project):
    distributed = pytest.importorskip("distributed")
    assert e2d("scales", "--out", "results/here") == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert e2d("scales", "--out", "results/there", "--scheduler", cluster.scheduler_address) == 0
    for cell in ("scale=1", "scale=2.5"):
        one, other = (Path("results", run, "ablations/scales", cell, "scores.parquet") for run in ("here", "there"))
        assert one.read_bytes() == other.read_bytes()
