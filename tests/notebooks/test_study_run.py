"""Every chapter, end to end at ci size: what it recorded, against what can be known beforehand or recomputed."""

import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from e2d_lib import io
from e2d_lib.method import preprocess
from e2d_lib.study import cli
from tests.conftest import ROOT
from tests.notebooks.conftest import Results

pytestmark = pytest.mark.notebook


def test_every_chapter_is_executed_and_leaves_its_record(ci_run, chapters):
    assert len(chapters) >= 5
    provenance = io.read_json(ci_run.dir / "provenance.json")
    for chapter in chapters:
        folder = ci_run.dir / chapter
        executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
        code = [cell for cell in executed.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code), chapter
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
        assert provenance["chapters"][chapter]["status"] == "done"
        headline = io.read_json(folder / "headline.json")
        assert headline["data"] == "phantom" and headline["headline"]
        assert list((folder / "figures").glob("*.png")) and list((folder / "tables").glob("*.csv"))
    assert not list(ci_run.dir.rglob("*.tmp")) and not list(ci_run.dir.rglob("*.pkl"))


def test_a_second_run_does_nothing(ci_run, chapters, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = {p: p.stat().st_mtime_ns for p in ci_run.dir.rglob("*") if p.is_file() and p.name != "provenance.json"}
    assert cli.main(["run", "--profile", "ci", "--out", str(ci_run.dir), "--quiet"]) == 0
    assert capsys.readouterr().out.count("up to date") == len(chapters)
    after = {p: p.stat().st_mtime_ns for p in ci_run.dir.rglob("*") if p.is_file() and p.name != "provenance.json"}
    assert before == after


def test_01_counts_what_is_on_disk(ci_run):
    folder = ci_run.dir / "phantom"
    scans = [p for split in ("train", "valid") for p in (folder / split).glob("*/*") if p.is_dir()]
    headline = ci_run.headline("01_data_exploration")
    assert headline["scans"]["value"] == len(scans)
    assert headline["positive"]["value"] == sum(p.parent.name == "positive" for p in scans)
    folds = ci_run.table("01_data_exploration", "folds")
    assert list(folds["fold"]) == [1, 2, 3, 4, 5]
    training = folds[folds["fold"] <= 4]
    assert training["scans"].max() - training["scans"].min() <= 2  # stratified: a scan of each class at most
    assert training["positive"].max() - training["positive"].min() <= 1


def test_01_finds_the_dirt_that_was_put_in(ci_run):
    findings = ci_run.table("01_data_exploration", "findings")
    twins = list((ci_run.dir / "phantom").rglob("._*"))
    assert twins and findings["reason"].str.startswith("macOS").sum() == len(twins)


def test_02_keeps_or_explains_every_scan(ci_run):
    cohort = pd.read_parquet(ci_run.dir / "01_data_exploration" / "cohort.parquet")
    headline = ci_run.headline("02_ssflpp_preprocessing")
    table = ci_run.table("02_ssflpp_preprocessing", "excluded_or_warned")
    assert headline["kept"]["value"] + headline["excluded"]["value"] == len(cohort)
    assert (table["status"] == "excluded").sum() == headline["excluded"]["value"] > 0
    assert (table["reason"].str.len() > 0).all()


def test_03_window_is_half_of_each_scan_and_crop_smaller_than_the_slice(ci_run):
    per_scan = ci_run.table("03_reduction_statistics", "per_scan")
    cache = next((ci_run.dir / "02_ssflpp_preprocessing" / "cache").glob("*/scans.parquet"))
    scans = pd.read_parquet(cache).set_index("scan_id").loc[per_scan["scan_id"]]
    n = scans["n_slices"].to_numpy()
    np.testing.assert_allclose(per_scan["length_delta"], 1 - np.ceil(n / 2) / n)
    assert per_scan["area_delta"].between(0, 1, inclusive="left").all()
    both = 1 - (1 - per_scan["area_delta"]) * (1 - per_scan["length_delta"])
    assert (per_scan["total_delta"] - both).abs().max() < 0.15  # crop and window are nearly independent


def test_03_finds_the_two_wrong_published_rows_and_no_other(ci_run):
    wrong = ci_run.table("03_reduction_statistics", "published_cells_that_disagree")
    assert set(wrong["row"]) == {"(T+V) Positive", "Testing"}


def test_04_learns_something_at_ci_size(ci_run):
    history = ci_run.table("04_training", "history")
    for _, run in history.groupby("run"):
        assert run["loss"].iloc[-1] < run["loss"].iloc[0]
    runs = ci_run.table("04_training", "runs").set_index("fraction")
    assert runs.loc[0.3, "train"] < runs.loc[1.0, "train"] and runs["valid"].nunique() == 1


def test_05_reports_the_scores_that_its_predictions_give(ci_run):
    scores = ci_run.table("05_evaluation", "scan_scores")
    headline = ci_run.headline("05_evaluation")
    auc, f1 = headline["roc_auc"], headline["macro_f1"]
    assert auc["value"] == pytest.approx(roc_auc_score(scores["label"], scores["probability"]))
    assert f1["value"] == pytest.approx(f1_score(scores["label"], scores["probability"] >= 0.5, average="macro"))
    assert auc["ci95"][0] <= auc["value"] <= auc["ci95"][1] and auc["n"] == len(scores)


def test_06_compares_the_scores_that_it_saved(ci_run):
    scores = pd.read_parquet(ci_run.dir / "06_ablations" / "scores.parquet")
    first = scores[scores["draw"] == 0]
    table = ci_run.table("06_ablations", "comparison").set_index(["cell", "metric"])
    auc = table.loc[("as set", "roc_auc"), "value"]
    assert auc == pytest.approx(roc_auc_score(first["label"], first["probability"]))
    # the same training as chapter 4's, found and not repeated; and one more for the variation
    assert len(list((ci_run.dir / "04_training" / "runs").iterdir())) == len(ci_run.table("04_training", "runs")) + 1
    other = table.loc[("method = random", "roc_auc")]
    assert other["value"] - auc == pytest.approx(float(other["difference"])) and other["baseline"] == "as set"


def test_06_measures_random_sampling_as_theory_has_it(ci_run):
    """A simple random sample of 8 has no bias, and its mean varies by sd sqrt((1/8 - 1/n) n / (n - 1))."""
    table = ci_run.table("06_ablations", "sampler_quality")
    random = table[(table["method"] == "random") & (table["n_samples"] == 8)].set_index("measure")["value"]
    scans = ci_run.scans()
    n = (scans["stop"] - scans["start"])[scans["status"] != "excluded"]
    sd = np.sqrt(np.maximum(1 / 8 - 1 / n, 0) * n / (n - 1))
    assert random["mean_area_sd"] == pytest.approx(sd.mean(), rel=1e-6)
    assert random["mean_area_bias"] == pytest.approx(0, abs=1e-9)


@pytest.mark.shared
def test_real_ct_goes_through_exploration_preprocessing_and_reduction(shared, tmp_path, monkeypatch, capsys):
    """DICOM slices and a NIfTI volume from a manifest; the crops must average to what the golden values say."""
    data = shared / "data"
    dicom = pd.read_csv(data / "golden_slices_dicom.csv")
    nifti = pd.read_csv(data / "golden_slices_nifti.csv")
    rows = [{"scan_id": name, "path": data / "tcia-covid-19-ny-sbu" / name} for name in dicom["slice"]]
    rows.append({"scan_id": "volume", "path": data / "totalsegmentator-example" / "example_ct.nii.gz"})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "real"
    arguments = ["run", "--profile", "ci", "--data-root", str(tmp_path / "manifest.csv"), "--out", str(out), "--quiet"]
    assert cli.main([*arguments, "-p", "min_slices=1"]) == 0
    assert capsys.readouterr().out.count("not applicable") == 3  # training, evaluation, ablations: no labels
    golden = pd.concat([dicom, nifti])
    delta = 1 - (golden["row1"] - golden["row0"]) * (golden["col1"] - golden["col0"]) / (
        golden["height"] * golden["width"]
    )
    headline = Results(out).headline("03_reduction_statistics")
    assert headline["area_delta"]["value"] == pytest.approx(delta.mean(), abs=1e-12)
    made = io.read_json(out / "02_ssflpp_preprocessing" / "preprocessed.json")
    slices = preprocess.load(made["cache"], preprocess.Params(**made["params"])).slices
    columns = ["row0", "row1", "col0", "col1"]
    np.testing.assert_array_equal(slices[columns], golden[columns])
    np.testing.assert_array_equal(slices["area"], golden["lung_area_full"])
