"""Chapter 3: the reduction table, its intervals and the paper's cells, recomputed from slices and published files."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from tests.notebooks.conftest import PUBLISHED, in_order

pytestmark = pytest.mark.notebook
CHAPTER = "03_reduction_statistics"
DELTAS = ["area_delta", "length_delta", "volume_delta", "total_delta"]
ROWS = {
    "Training": "split == 'train'",
    "Training/Positive": "split == 'train' and label == 1",
    "Training/Negative": "split == 'train' and label == 0",
    "Validation": "split == 'valid'",
    "Validation/Positive": "split == 'valid' and label == 1",
    "Validation/Negative": "split == 'valid' and label == 0",
    "(T+V) Positive": "label == 1",
    "(T+V) Negative": "label == 0",
    "Total": "label >= 0",
}
PLACES = [2, 2, 4, 2, 2, 4, 2, 2, 4]


@pytest.fixture(scope="module")
def slices(ci_run):
    table = ci_run.cached("slices").merge(ci_run.cohort()[["scan_id", "split", "label"]], on="scan_id")
    before = table["height"] * table["width"]
    after = (table["row1"] - table["row0"]) * (table["col1"] - table["col0"])
    return table.assign(before=before, after=after, ratio=1 - after / before)


@pytest.fixture(scope="module")
def scans(ci_run, slices):
    """The scans with a window, and what is left of each: crop and window together."""
    table = ci_run.scans()
    table = table[table["n_slices"] >= 5].drop(columns=["split", "label"])
    table = table.merge(ci_run.cohort()[["scan_id", "split", "label"]], on="scan_id")
    parts = dict(iter(slices.groupby("scan_id")))
    left = [
        parts[s.scan_id]["after"].iloc[s.start : s.stop].sum() / parts[s.scan_id]["before"].sum()
        for s in table.itertuples()
    ]
    width = table["stop"] - table["start"]
    return table.assign(width=width, length_delta=1 - width / table["n_slices"], total_delta=1 - np.array(left))


def row(slices, scans) -> dict:
    area0, area1 = slices["before"].mean(), slices["after"].mean()
    length0, length1 = scans["n_slices"].mean(), scans["width"].mean()
    return {
        "area_before_k": area0 / 1e3,
        "area_after_k": area1 / 1e3,
        "area_delta": slices["ratio"].mean(),
        "length_before": length0,
        "length_after": length1,
        "length_delta": scans["length_delta"].mean(),
        "volume_before_m": area0 * length0 / 1e6,
        "volume_after_m": area1 * length1 / 1e6,
        "volume_delta": 1 - area1 * length1 / (area0 * length0),
        "n_scans": len(scans),
        "n_slices": len(slices),
        "total_delta": scans["total_delta"].mean(),
    }


def test_reduction_table_follows_from_slices_and_scans(ci_run, slices, scans):
    table = ci_run.table(CHAPTER, "reduction").set_index("row")
    expected = pd.DataFrame({name: row(slices.query(q), scans.query(q)) for name, q in ROWS.items()}).T
    assert list(table.index) == list(ROWS)
    np.testing.assert_allclose(table[list(expected)].astype(float), expected, rtol=1e-12)
    cut = ci_run.table(CHAPTER, "reduction_published_rules").set_index("row")
    for column, places in zip(cut, PLACES, strict=True):
        lost = table[column] - cut[column]
        assert lost.between(-1e-9, 10.0**-places).all(), column  # cut off, never rounded up
        np.testing.assert_allclose(cut[column] * 10**places, np.round(cut[column] * 10**places), atol=1e-6)


def test_intervals_hold_the_value_and_are_as_wide_as_the_scans_spread(ci_run, scans):
    table = ci_run.table(CHAPTER, "reduction").set_index("row")
    for name in DELTAS:
        assert table[name].between(table[f"{name}_low"], table[f"{name}_high"]).all(), name
    groups = scans.groupby(["split", "label"])["total_delta"]
    error = np.sqrt((groups.var(ddof=0) * groups.size()).sum()) / len(scans)
    width = table.loc["Total", "total_delta_high"] - table.loc["Total", "total_delta_low"]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.25)  # 200 resamples


def test_per_scan_table(ci_run, slices, scans):
    table = ci_run.table(CHAPTER, "per_scan").set_index("scan_id")
    ours = scans.set_index("scan_id").assign(area_delta=slices.groupby("scan_id")["ratio"].mean())
    assert set(table.index) == set(ours.index)
    names = ["area_delta", "length_delta", "total_delta"]
    np.testing.assert_allclose(table[names], ours.loc[table.index, names], rtol=1e-12)


def test_comparison_is_measured_less_published(ci_run):
    published = pd.read_csv(PUBLISHED / "reduction_table.csv").set_index("row")
    measured = ci_run.table(CHAPTER, "reduction").set_index("row")
    table = ci_run.table(CHAPTER, "comparison")
    assert len(table) == 27 and set(table["quantity"]) == set(DELTAS[:3])
    for part in table.itertuples():
        ours, theirs = measured.loc[part.row], published.loc[part.row, part.quantity]
        assert part.published == theirs and part.measured == ours[part.quantity]
        assert part.difference == pytest.approx(ours[part.quantity] - theirs, abs=1e-12)
        assert (part.low, part.high) == (ours[f"{part.quantity}_low"], ours[f"{part.quantity}_high"])


def wrong_cells() -> list[tuple[str, str]]:
    """The paper's cells that the released outputs, cut off after the printed decimals, do not give."""
    printed = pd.read_csv(PUBLISHED / "reduction_table.csv", dtype=str).set_index("row")
    saved = pd.read_csv(PUBLISHED / "released_outputs.csv", dtype=str).set_index("group")
    found = []
    for name in printed.index:
        a0, a1, ad, l0, l1, ld = (Fraction(text) for text in saved.loc[name].iloc[1:])
        v0, v1 = a0 * l0, a1 * l1
        values = [a0 / 1000, a1 / 1000, ad, l0, l1, ld, v0 / 10**6, v1 / 10**6, 1 - v1 / v0]
        for column, value, places in zip(printed, values, PLACES, strict=True):
            if Fraction(int(value * 10**places), 10**places) != Fraction(printed.loc[name, column]):
                found.append((name, column))
    return found


def test_published_cells_that_disagree(ci_run):
    table, wrong = ci_run.table(CHAPTER, "published_cells_that_disagree"), wrong_cells()
    assert list(table[["row", "quantity"]].itertuples(index=False, name=None)) == wrong
    assert {name for name, _ in wrong} == {"(T+V) Positive", "Testing"}  # the two known ones, and no other
    cells = pd.read_csv(PUBLISHED / "reduction_table.csv").set_index("row").size
    values = ci_run.values(CHAPTER)
    assert (values["published_cells"], values["published_cells_that_disagree"]) == (cells, len(wrong))
    text = next(said for said in ci_run.said(CHAPTER) if "(T+V) Positive" in said)
    assert in_order(text, cells - len(wrong), cells) and "Testing" in text and "Training" not in text


def test_register_is_counted_as_it_stands(ci_run):
    table, values = ci_run.table(CHAPTER, "register"), ci_run.values(CHAPTER)
    holds = table["holds"].astype(str)
    assert values["statements_recomputed"] == holds.isin(["True", "False"]).sum() > 20
    assert values["statements_confirmed"] == (holds == "True").sum()
    assert not (holds[table["checked"] == "cited"] != "").any()
    text = (ci_run.dir / CHAPTER / "audit.md").read_text()
    assert all(f"{entry}" in text for entry in table["id"])


def test_score_fits_are_of_the_long_saved_scores_and_give_them(ci_run):
    fits = pd.read_csv(ci_run.dir / CHAPTER / "tables" / "score_fits.csv", dtype={"value": str})
    saved = pd.read_csv(PUBLISHED / "saved_scores.csv", dtype={"value": str})
    long = saved[saved["value"].str.partition(".")[2].str.len() >= 12]
    columns = ["run", "metric", "value"]
    assert fits[columns].to_numpy().tolist() == long[columns].to_numpy().tolist()
    stated = pd.to_numeric(long["rows"]).to_numpy()
    assert (np.isnan(stated) | (fits["rows"].to_numpy() == stated)).all()


def test_answer_and_headline_are_of_the_row_with_most_scans(ci_run):
    total = ci_run.table(CHAPTER, "reduction").set_index("row").loc["Total"]
    headline = ci_run.headline(CHAPTER)
    for name in DELTAS:
        assert headline[name]["value"] == total[name] and headline[name]["n"] == total["n_scans"]
        assert headline[name]["ci95"] == [total[f"{name}_low"], total[f"{name}_high"]]
    paper = pd.read_csv(PUBLISHED / "reduction_table.csv").set_index("row").loc["Total"]
    shares = [total["area_delta"], total["area_delta_low"], total["area_delta_high"], paper["area_delta"]]
    shares += [total["length_delta"], paper["length_delta"], total["volume_delta"], total["volume_delta_low"]]
    shares += [total["volume_delta_high"], paper["volume_delta"], total["total_delta"]]
    answer = ci_run.said(CHAPTER)[-1]
    assert in_order(answer, int(total["n_scans"]), *(f"{share:.1%}" for share in shares)) and "phantom" in answer
