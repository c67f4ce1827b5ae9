"""Chapter 1: counts, folds and findings, against what is on disk."""

import re

import pandas as pd
import pytest

from tests.notebooks.conftest import asked, in_order, read_json

pytestmark = pytest.mark.notebook
CHAPTER = "01_data_exploration"


@pytest.fixture(scope="module")
def disk(ci_run) -> pd.DataFrame:
    """The scans as the folders have them: scan_id, split, label, slices (images that are no ._ twins)."""
    folder = ci_run.dir / "phantom"
    rows = []
    for path in (p for split in ("train", "valid") for p in sorted((folder / split).glob("*/*")) if p.is_dir()):
        images = [p for p in path.glob("*.jpg") if not p.name.startswith("._")]
        label = "positive" if path.parent.name == "positive" else "negative"
        rows.append((path.relative_to(folder).as_posix(), path.parent.parent.name, label, len(images)))
    return pd.DataFrame(rows, columns=["scan_id", "split", "label", "slices"])


def test_headline_and_counts_are_what_is_on_disk(ci_run, disk):
    values = ci_run.values(CHAPTER)
    assert values == {
        "scans": len(disk),
        "slices": disk["slices"].sum(),
        "positive": (disk["label"] == "positive").sum(),
        "negative": (disk["label"] == "negative").sum(),
        "short_scans": (disk["slices"] < 5).sum(),
        "findings": len(ci_run.table(CHAPTER, "findings")),
    }
    assert values["positive"] != values["negative"]  # or this test would not see them exchanged
    groups = disk.groupby(["split", "label"])["slices"]
    expected = groups.agg(scans="size", slices="sum", fewest="min", most="max").reset_index()
    pd.testing.assert_frame_equal(ci_run.table(CHAPTER, "counts"), expected, check_dtype=False)


def test_cohort_is_what_is_on_disk(ci_run, disk):
    cohort = ci_run.cohort().set_index("scan_id").loc[disk["scan_id"]]
    assert len(ci_run.cohort()) == len(disk)
    assert list(cohort["split"]) == list(disk["split"])
    assert list(cohort["label"] == 1) == list(disk["label"] == "positive")
    assert read_json(ci_run.dir / CHAPTER / "cohort.json") == {"data": "phantom", "data_root": "phantom"}


def test_phantom_is_as_asked(ci_run, disk):
    wanted = asked(CHAPTER)
    whole = disk["slices"][disk["slices"] >= 5]
    assert len(disk) == wanted["n_scans"]
    assert whole.min() >= wanted["slices_min"] - 2 and whole.max() <= wanted["slices_max"]
    assert (disk["split"] == "valid").mean() == pytest.approx(wanted["valid"], abs=1 / len(disk))


def test_folds_are_stratified_and_the_last_is_the_validation_split(ci_run):
    folds, cohort = ci_run.table(CHAPTER, "folds"), ci_run.cohort()
    assert list(folds["fold"]) == [1, 2, 3, 4, 5]
    for fold, scans, positive in folds[["fold", "scans", "positive"]].itertuples(index=False):
        part = cohort[cohort["fold"] == fold]
        assert (scans, positive) == (len(part), (part["label"] == 1).sum())
        assert set(part["split"]) == {"valid" if fold == 5 else "train"}
    training = folds[folds["fold"] <= 4]
    assert training["scans"].max() - training["scans"].min() <= 2  # stratified: a scan of each class at most
    assert training["positive"].max() - training["positive"].min() <= 1


def test_finds_the_dirt_that_was_put_in(ci_run):
    findings = ci_run.table(CHAPTER, "findings")
    twins = list((ci_run.dir / "phantom").rglob("._*"))
    assert twins and findings["reason"].str.startswith("macOS").sum() == len(twins)
    (shown,) = [o for o in tables(ci_run) if "times" in o]
    numbers = [int(n) for n in re.findall(r"<td>(\d+)</td>", shown)]
    assert sum(numbers[::2]) == len(findings)  # the table beneath, by reason


def tables(ci_run) -> list[str]:
    import nbformat

    cells = nbformat.read(ci_run.dir / CHAPTER / "notebook.ipynb", as_version=4).cells
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    return [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]


def test_answer_says_what_was_counted(ci_run, disk):
    findings = ci_run.table(CHAPTER, "findings")
    positive = (disk["label"] == "positive").sum()
    numbers = [len(disk), disk["slices"].sum(), positive, len(disk) - positive, 0, len(findings)]
    numbers += [findings["scan_id"].replace("", None).nunique() + ("" in set(findings["scan_id"]))]
    numbers += [(disk["slices"] < 5).sum()]
    (answer,) = ci_run.said(CHAPTER)
    assert in_order(answer, *(f"{n:,}" for n in numbers))
