"""Chapter 2: what is kept, cropped and windowed, against the cohort, the files and the cached tables."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.notebooks.conftest import asked, in_order, read_json, tokens

pytestmark = pytest.mark.notebook
CHAPTER = "02_ssflpp_preprocessing"


@pytest.fixture(scope="module")
def cached(ci_run):
    """Scans with at least five slices, and their slices with the share that the crop leaves."""
    scans, slices = ci_run.cached("scans"), ci_run.cached("slices")
    kept = scans[scans["n_slices"] >= asked(CHAPTER)["min_slices"]]
    box = (slices["row1"] - slices["row0"]) * (slices["col1"] - slices["col0"])
    slices = slices.assign(left=box / (slices["height"] * slices["width"]))
    return scans, kept, slices, slices[slices["scan_id"].isin(kept["scan_id"])]


def test_headline_follows_from_the_cached_tables(ci_run, cached):
    _, kept, slices, inside = cached
    values = ci_run.values(CHAPTER)
    assert values.pop("area_kept") == pytest.approx(inside["left"].mean(), rel=1e-12)
    assert values == {
        "kept": len(kept),
        "excluded": len(ci_run.cohort()) - len(kept),
        "slices": len(slices),
        "window_slices": (kept["stop"] - kept["start"]).sum(),
    }
    assert values["excluded"] > 0
    assert ci_run.headline(CHAPTER)["area_kept"]["n"] == len(inside)


def test_parameters_are_those_that_were_asked_for(ci_run):
    params, wanted = read_json(ci_run.dir / CHAPTER / "preprocessed.json")["params"], asked(CHAPTER)
    assert params == {name: wanted[name] for name in params} and params["size"] == 64


def test_window_is_the_run_of_its_width_with_most_lung(cached):
    _, kept, slices, _ = cached
    areas = {name: part["area"].to_numpy() for name, part in slices.groupby("scan_id")}
    for scan in kept.itertuples():
        width = int(np.ceil(scan.n_slices / 2))
        sums = [areas[scan.scan_id][k : k + width].sum() for k in range(scan.n_slices - width + 1)]
        assert scan.stop - scan.start == width and sums[scan.start] == max(sums)


def test_every_scan_is_kept_or_explained(ci_run, cached):
    scans, kept, *_ = cached
    table = ci_run.table(CHAPTER, "excluded_or_warned")
    assert set(table.loc[table["status"] == "excluded", "scan_id"]) == set(scans["scan_id"]) - set(kept["scan_id"])
    assert set(table["scan_id"]) == set(scans.loc[scans["status"] != "kept", "scan_id"])
    assert (table["reason"].str.len() > 0).all()
    pd.testing.assert_frame_equal(
        ci_run.table(CHAPTER, "findings"), ci_run.cached("findings").fillna(""), check_dtype=False
    )


def test_size_on_disk_is_that_of_the_files(ci_run):
    table = ci_run.table(CHAPTER, "size_on_disk").set_index("part")
    images = [p for split in ("train", "valid") for p in (ci_run.dir / "phantom" / split).rglob("*.jpg")]  # twins too
    assert table.loc["originals", "bytes"] == sum(p.stat().st_size for p in images)
    np.testing.assert_allclose(table["share"], table["bytes"] / table.loc["originals", "bytes"])
    assert table.loc["tables", "share"] < table.loc["cached pixels", "share"] < 1


def test_answer_says_what_the_tables_say(ci_run, cached):
    scans, kept, _, inside = cached
    window = (kept["stop"] - kept["start"]).sum() / kept["n_slices"].sum()
    warned = (scans["status"] == "warned").sum()
    numbers = [f"{len(scans):,}", f"{len(kept):,}", f"{warned:,}", f"{inside['left'].mean():.1%}", f"{window:.1%}"]
    assert warned > 0 and in_order(ci_run.said(CHAPTER)[-1], *numbers)


def test_picture_is_of_a_typical_scan(ci_run, cached, tmp_path_factory):
    """The first figure's slice is of the scan in the middle, by the pixels that both steps remove."""
    _, kept, _, inside = cached
    example, removed = middle(kept, inside)
    said = next(said for said in ci_run.said(CHAPTER) if said.startswith("The slice with most lung"))
    own = inside[inside["scan_id"] == example["scan_id"]]
    assert in_order(said, f"{1 - own['left'].mean():.0%}", f"{removed[example['scan_id']]:.0%}")
    picture = ci_run.figures(CHAPTER, tmp_path_factory.mktemp("figures"))["spatial_step"].axes[0].get_title()
    assert f"{1 - example['left']:.0%} of the area" in picture


def middle(kept, inside):
    """The slice of most lung of the scan in the middle, and what both steps remove of each scan."""
    pixels = inside["height"] * inside["width"]
    place = inside.groupby("scan_id").cumcount()
    windows = kept.set_index("scan_id")[["start", "stop"]].loc[inside["scan_id"]].to_numpy()
    stays = inside["left"] * pixels * ((place >= windows[:, 0]) & (place < windows[:, 1]))
    removed = 1 - stays.groupby(inside["scan_id"]).sum() / pixels.groupby(inside["scan_id"]).sum()
    scan = removed.loc[kept["scan_id"]].sort_values(kind="stable").index[len(kept) // 2]
    return inside.loc[inside.loc[inside["scan_id"] == scan, "area"].idxmax()], removed


def test_plain_code_says_what_the_cache_holds(ci_run, cached):
    """The three cells of plain SciPy ran (each asserts that the library agrees), on the slice of the first figure."""
    box, window, drawn = (said for said in ci_run.said(CHAPTER) if said.startswith("By the definition"))
    _, kept, _, inside = cached
    example, _ = middle(kept, inside)
    assert in_order(box, *example[["row0", "row1", "col0", "col1"]], f"{example['area']:,}")
    areas = inside.loc[inside["scan_id"] == example["scan_id"], "area"].to_numpy()
    width = int(np.ceil(len(areas) / 2))
    start = int(np.argmax([areas[k : k + width].sum() for k in range(len(areas) - width + 1)]))
    share = areas[start : start + width].sum() / areas.sum()
    assert in_order(window, start, start + width, len(areas), f"{share:.1%}")
    numbers = [int(number) for number in tokens(drawn)]
    assert numbers == sorted(set(numbers)) and 4 <= len(numbers) <= 8
    assert start <= numbers[0] and numbers[-1] < start + width


def test_plain_code_is_compared_with_the_library():
    """A reader may take the cells for the method: each asserts so, and none borrows from the library."""
    cells = nbformat.read(ROOT / "notebooks" / f"{CHAPTER}.ipynb", as_version=4).cells
    plain = [cell.source for cell in cells if "By the definition" in cell.source]
    assert len(plain) == 3
    for source, function in zip(plain, ("ssfl.measure", "ssfl.slice_window", "kds.sample"), strict=True):
        own, compared = source.split("assert ")
        assert compared.count(function) == 1 and "==" in compared.splitlines()[0]
        assert "ssfl." not in own and "kds." not in own
