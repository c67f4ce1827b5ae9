"""Chapter 7: what is measured on one volume and its spoilt copies, and the verdicts, recomputed."""

import re

import numpy as np
import pandas as pd
import pytest

from tests.notebooks.conftest import asked, in_order, phantom_volume

pytestmark = pytest.mark.notebook
CHAPTER = "07_generalizability"
WHOLE, THORAX = "whole scan", "thorax"
VIEWS = ["axial", "coronal", "sagittal"]


@pytest.fixture(scope="module")
def measured(ci_run) -> pd.DataFrame:
    return ci_run.numbers(CHAPTER, "measured").fillna({"breaks": "", "warning": ""})


@pytest.fixture(scope="module")
def whole(measured) -> pd.DataFrame:
    return measured[measured["volume"] == WHOLE].set_index("view")


@pytest.fixture(scope="module")
def verdicts(measured) -> pd.DataFrame:
    """Recomputed: what breaks, by volume and view; warned and silent."""
    shown = measured[measured["volume"] != THORAX]
    table = shown.pivot(index="volume", columns="view", values="breaks").loc[shown["volume"].unique(), VIEWS]
    warned = shown.groupby("volume")["warning"].agg(lambda texts: (texts != "").any())
    return table.assign(warned=warned, silent=(table != "").any(axis=1) & ~warned.loc[table.index])


@pytest.fixture(scope="module")
def subject():
    wanted = asked(CHAPTER)
    return phantom_volume(wanted["seed"], matrix=wanted["matrix"], n_slices=wanted["n_slices"])


def test_every_volume_is_measured_in_every_view(measured):
    pairs = measured[["volume", "view"]]
    assert not pairs.duplicated().any() and (pairs.groupby("volume")["view"].nunique() == 3).all()
    assert pairs["volume"].nunique() >= 17 and list(measured["view"].unique()) == VIEWS == asked(CHAPTER)["views"]
    assert (measured["stop"] - measured["start"] == np.ceil(measured["n_slices"] / 2)).all()
    width = measured["stop"] - measured["start"]
    np.testing.assert_allclose(measured["length_delta"], 1 - width / measured["n_slices"])
    assert (measured["lung_kept"].dropna() <= measured[["lung_in_crop", "lung_in_window"]].min(axis=1).dropna()).all()


def test_lung_of_the_whole_scan_is_counted_in_its_windows(ci_run, whole, subject):
    for axis, view in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        per_slice = subject.lung.sum(axis=tuple({0, 1, 2} - {axis}))
        row = whole.loc[view]
        best = max(per_slice[k : k + row["stop"] - row["start"]].sum() for k in range(len(per_slice)))
        spans = [per_slice[row["start"] : row["stop"]], per_slice[::-1][row["start"] : row["stop"]]]  # either end first
        shares = [span.sum() / per_slice.sum() for span in spans]
        assert row["n_slices"] == len(per_slice)
        assert min(abs(row["lung_in_window"] - share) for share in shares) < 1e-12
        assert row["of_best"] == pytest.approx(row["lung_in_window"] * per_slice.sum() / best)
    assert in_order(ci_run.said(CHAPTER)[0], *subject.hu.shape, f"{subject.lung.mean():.1%}")


def test_what_breaks_is_what_lies_beyond_the_bounds(measured):
    """One bound divides what holds from what breaks, for all volumes and views."""
    there = measured["lung_in_crop"].notna()
    lost = measured["breaks"].str.contains("crop loses lung")
    assert measured.loc[there & ~lost, "lung_in_crop"].min() > measured.loc[lost, "lung_in_crop"].max()
    beside = measured["breaks"].str.contains("window beside")
    found = there & (measured["area"] > 0)
    assert measured.loc[found & ~beside, "of_best"].min() > measured.loc[beside, "of_best"].max()
    assert (measured["breaks"].str.contains("no lung found") == (there & (measured["area"] == 0))).all()
    assert (measured["breaks"].str.contains("where there is none") == (~there & (measured["area"] > 0))).all()


def test_verdicts_and_parts_are_rows_of_the_measured(ci_run, measured, verdicts):
    table = ci_run.table(CHAPTER, "verdicts").set_index("volume")
    pd.testing.assert_frame_equal(table[[*VIEWS, "warned", "silent"]], verdicts, check_names=False, check_dtype=False)
    parts = ci_run.numbers(CHAPTER, "reduction_by_view_and_part")
    assert set(parts["volume"]) == {WHOLE, THORAX, "abdomen"}
    same = parts[["volume", "view", "area_delta", "length_delta", "total_delta"]].merge(measured)
    assert len(same) == len(parts) == 3 * parts["volume"].nunique()


def test_headline(ci_run, whole, verdicts):
    others = verdicts.drop(WHOLE)
    headline = ci_run.headline(CHAPTER)
    expected = {f"{v}_{n}": whole.loc[v, n] for v in VIEWS for n in ("area_delta", "length_delta", "total_delta")}
    assert all(headline[f"{v}_{n}"]["n"] == whole.loc[v, "n_slices"] for v in VIEWS for n in ("area_delta",))
    expected |= {f"{view}_lung_in_crop": whole.loc[view, "lung_in_crop"] for view in VIEWS}
    expected |= {
        "cases": len(others),
        "cases_that_hold": (others[VIEWS] == "").all(axis=1).sum(),
        "cases_that_break_silently": others["silent"].sum(),
    }
    assert {name: entry["value"] for name, entry in headline.items()} == expected


def test_answer_says_what_the_tables_say(ci_run, whole, verdicts):
    said = ci_run.said(CHAPTER)
    empty = next(text for text in said if "coronal" in text and "sagittal" in text)
    assert in_order(empty, *(f"{whole.loc[view, 'uncropped']:.0%}" for view in VIEWS))
    answer = next(text for text in said if "To run is not to hold" in text)
    numbers = [f"{whole.loc[view, 'total_delta']:.1%}" for view in VIEWS]
    numbers += [f"{whole.loc[v, name]:.0%}" for v in VIEWS for name in ("lung_in_crop", "of_best")]
    assert in_order(answer, *numbers, len(verdicts) - 1)
    for view in VIEWS:
        assert (whole.loc[view, "breaks"] or view) in answer


def test_answer_names_every_case_as_its_row_in_the_table_has_it(ci_run, verdicts):
    """Each case is in one of three lists by how many views it breaks in, and in one of two if it breaks at all."""
    answer = next(text for text in ci_run.said(CHAPTER) if "To run is not to hold" in text)
    lists = {}
    for line in answer.splitlines():
        if line.startswith("- "):
            what, count, names = re.fullmatch(r"- (.+): \*\*(\d+)\*\*(?: \((.+)\))?", line).groups()
            lists[what] = re.sub(r" \([a-z, ]+\)", "", names or "").split(", ") if names else []
            assert len(lists[what]) == int(count)
    others = verdicts.drop(WHOLE)
    broken = (others[VIEWS] != "").sum(axis=1)
    expected = {
        "hold in every view": broken == 0,
        "break in some views": (broken > 0) & (broken < 3),
        "break in every view": broken == 3,
        "the library warns": others["warned"],
        "break without a word from it": (broken > 0) & ~others["warned"],
    }
    assert lists == {what: list(others.index[rows.astype(bool)]) for what, rows in expected.items()}
    for name in others.index[expected["break in some views"]]:
        assert f"{name} ({', '.join(view for view in VIEWS if others.loc[name, view])})" in answer


def test_without_masks_the_chapter_says_how_to_get_some(ci_run):
    assert any("e2d fetch nsclc-radiomics" in text for text in ci_run.said(CHAPTER))
    assert not any("patients_" in name for name in ci_run.headline(CHAPTER))
    assert not (ci_run.dir / CHAPTER / "tables" / "against_masks.csv").exists()


def test_figure_draws_each_volumes_lung(ci_run, measured, tmp_path_factory):
    figures = ci_run.figures(CHAPTER, tmp_path_factory.mktemp("drawn"))
    shown = [name for name in measured["volume"].unique() if name != THORAX]
    titles = [axes.get_title() for axes in figures["failures"].axes]
    assert all(any(name in title for title in titles) for name in shown)
    titles = {axes.get_title().partition(":")[0] for axes in figures["failed_curves"].axes} - {""}
    axial = measured[measured["view"] == "axial"].set_index("volume")["breaks"].loc[shown]
    assert titles == set(axial.index[axial != ""])  # and none that holds
