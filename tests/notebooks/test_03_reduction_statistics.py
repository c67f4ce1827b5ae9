"""Chapter 3: the reduction table, its intervals and the paper's cells, recomputed from slices and published files."""

import math
from fractions import Fraction
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from tests.conftest import ROOT
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


# On patients: recomputed from the released numbers alone


def best(areas, width: int) -> int:
    """Start of the first window of the largest sum."""
    before = np.concatenate([[0], np.cumsum(areas, dtype=np.int64)])
    return int(np.argmax(before[width:] - before[: len(before) - width]))


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    """One row a scan of 2025: its areas, the released window and draw, and both rules anew."""
    folder = PUBLISHED / "real_areas"
    scans = pd.read_parquet(folder / "scans_2025.parquet").set_index("scan")
    areas = pd.read_parquet(folder / "areas_2025.parquet").groupby("scan")["area"].agg(lambda a: a.to_numpy(np.int64))
    rows = []
    for a in areas:
        n, width = len(a), math.ceil(len(a) / 2)
        left = a[20 : max(n - (20 if n < 60 else 45), 0)]
        cut = math.ceil(len(left) / 2)
        start, cut_start = best(a, width), 20 + best(left, cut) if cut else 20
        both = max(0, min(start + width, cut_start + cut) - max(start, cut_start))
        lost = 1 - a[cut_start : cut_start + cut].sum() / max(a[start : start + width].sum(), 1)
        rows.append((n, start, start + width, cut_start, cut, 1 - cut / n, both / (width + cut - both), lost))
    names = ["n", "first", "last", "cut_start", "cut", "cut_removed", "overlap", "lost"]
    return scans.assign(areas=areas, **pd.DataFrame(rows, columns=names, index=areas.index))


def hills(areas) -> int:
    """Peaks of the smoothed curve that rise by a tenth of its largest value: flooded from above, hill by hill."""
    level = ndimage.gaussian_filter1d(np.asarray(areas, float), max(len(areas) / 50, 0.5), mode="nearest")
    hill, top, count = {}, {}, 0
    for place in np.argsort(-level, kind="stable").tolist():
        beside = sorted({hill[k] for k in (place - 1, place + 1) if k in hill}, key=lambda k: -top[k])
        if not beside:
            hill[place], top[place] = place, level[place]
            continue
        hill[place] = beside[0]
        for lower in beside[1:]:  # two hills meet: the lower one ends here
            count += top[lower] - level[place] >= 0.1 * level.max()
            hill = {k: beside[0] if h == lower else h for k, h in hill.items()}
    return count + 1


def test_table_on_patients(ci_run, real):
    table = ci_run.table(CHAPTER, "on_patients").set_index("what")["value"]
    expected = {
        "released windows that follow the rule": (
            (real["first"] == real["start"]) & (real["last"] == real["stop"])
        ).sum(),
        "slices removed, mean of ratios": (1 - (real["last"] - real["first"]) / real["n"]).mean(),
        "slices removed where the curve is cut first": real["cut_removed"].mean(),
        "empty windows where the curve is cut first": (real["n"] <= 40).sum() + real["n"].between(60, 65).sum(),
        "windows under 8 slices where the curve is cut first": (real["cut"] < 8).sum(),
        "overlap of the two windows, intersection over union": real["overlap"].mean(),
        "share of the window's lung area lost by the cut": real["lost"].mean(),
        "windows under 8 slices": (real["n"] < 15).sum(),
        "slices of a scan, mean": real["n"].mean(),
        "slices of the longest scan": real["n"].max(),
        "slices of the widest window of 2024": 798,
    }
    assert table.pop("curves with more than one hump") == sum(hills(a) > 1 for a in real["areas"] if len(a) >= 8) == 212
    assert table.to_dict() == pytest.approx({name: float(value) for name, value in expected.items()})
    assert expected["released windows that follow the rule"] == len(real) == 1481
    text = next(said for said in ci_run.said(CHAPTER) if "released windows" in said)
    testing = pd.read_csv(PUBLISHED / "reduction_table.csv").set_index("row").loc["Testing", "length_delta"]
    shares = [f"{expected['slices removed, mean of ratios']:.2%}", f"{testing:.2%}"]
    counts = [(real["cut"] == 0).sum(), (real["cut"] < 8).sum()]
    ends = [f"{real['overlap'].mean():.1%}", f"{real['lost'].mean():.1%}"]
    assert in_order(text, "1,481", "1,481", *shares, *counts, *ends)
    headline = ci_run.headline(CHAPTER)
    assert headline["patients_windows_that_follow_the_rule"]["value"] == 1481
    assert headline["patients_length_delta"]["value"] == pytest.approx(table["slices removed, mean of ratios"])
    assert headline["patients_length_delta"]["n"] == 1481


def test_released_draws_on_patients(ci_run, real):
    draws = ci_run.table(CHAPTER, "patients_draws").set_index("year")
    wide = real[real["stop"] - real["start"] >= 8]
    largest, equal, twice = 0, 0, 0
    for scan in wide.itertuples():
        window = scan.areas[scan.start : scan.stop]
        largest += window.max() in scan.areas[scan.released_draw]
        equal += len(set(window)) < len(window)
        twice += len(scan.released_draw) == 8 > len(set(scan.released_draw))
    assert draws.loc[2025].tolist() == [len(wide), largest, equal, twice] == [1476, 0, 591, 4]
    assert draws.loc[2024].tolist() == [993, 0, 633, 5]


def test_reduction_by_source(ci_run, scans, slices):
    table = ci_run.table(CHAPTER, "by_source").set_index(["quantity", "source"])
    ours = scans.assign(area_delta=scans["scan_id"].map(slices.groupby("scan_id")["ratio"].mean()))
    ours = ours.drop(columns="source", errors="ignore").merge(ci_run.cohort()[["scan_id", "source"]], on="scan_id")
    for (quantity, source), row in table.iterrows():
        values = ours.loc[ours["source"] == source, quantity]
        assert row["value"] == pytest.approx(values.mean()) and row["n"] == len(values)
        assert row["low"] <= row["value"] <= row["high"]
        width = 2 * 1.96 * values.std(ddof=0) / math.sqrt(len(values))
        assert row["high"] - row["low"] == pytest.approx(width, rel=0.3)
    assert len(table) == 3 * ours["source"].nunique()
    crops = table.loc["area_delta"].sort_values("value")
    least, most = (f"{crops['value'].iloc[k]:.1%} ({crops.index[k]}, {crops['n'].iloc[k]} scans)" for k in (0, -1))
    assert f"By source the crop removes {least} to {most} of a slice." in ci_run.said(CHAPTER)[-1]


def test_shapes_beside_the_patients(ci_run, real, slices):
    """Number of slices and largest area by plain pandas, and the distances by SciPy; what is said is the table's."""
    table = ci_run.table(CHAPTER, "curve_shapes").set_index(["quantity", "group"])
    kept = slices[slices.groupby("scan_id")["scan_id"].transform("size") >= 8]
    lengths = {"this cohort": kept.groupby("scan_id").size()}
    lengths |= {f"patients, {name}": real["n"][real["n"] >= 8].iloc[0:0] for name in ("odd", "even")}
    for k, name in ((1, "odd"), (0, "even")):
        half = real.iloc[k::2]
        lengths[f"patients, {name}"] = half.loc[half["n"] >= 8, "n"]
    for group, values in lengths.items():
        row = table.loc[("n_slices", group)]
        assert row["n"] == len(values) and row["median"] == pytest.approx(np.median(values))
        assert row["ks"] == pytest.approx(stats.ks_2samp(values, lengths["patients, odd"]).statistic)
    pixels = (kept["height"] * kept["width"]).median()
    every = kept.groupby("scan_id")["area"].max() / pixels
    assert table.loc[("largest", "this cohort"), "high"] <= every.max()
    own = table.xs("this cohort", level="group")["ks"].drop("n_slices")
    halves = table.xs("patients, even", level="group")["ks"].max()
    text = next(said for said in ci_run.said(CHAPTER) if said.startswith("This cohort"))
    assert in_order(text, len(lengths["this cohort"]), f"{own.min():.2f}", f"{own.max():.2f}", f"{halves:.2f}")
    assert halves < 0.07 < own.max()
    assert {"spread", "neighbours"} == set(table.xs("2024", level="group").index)


@pytest.fixture(scope="module")
def patients_figures() -> dict:
    """The cells on patients run alone: they read published numbers only."""
    cells = nbformat.read(ROOT / "notebooks" / f"{CHAPTER}.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    (first,) = [k for k, source in enumerate(code) if source.startswith("patients = ")]
    (last,) = [k for k, source in enumerate(code) if '"patients_cut"' in source]
    kept: dict = {}
    chapter = SimpleNamespace(
        save_table=lambda name, table: table,
        say=lambda text: text,
        save_figure=lambda name, figure, **how: kept.update({name: (figure, how)}),
    )
    published = pd.read_csv(PUBLISHED / "reduction_table.csv")
    space = {"chapter": chapter, "published_dir": str(PUBLISHED), "published": published}
    for source in [code[1], *code[first : last + 1]]:
        exec(compile(source, CHAPTER, "exec"), space)
    yield kept
    for figure, _ in kept.values():
        plt.close(figure)


def test_figure_of_the_cut(patients_figures, real):
    figure, how = patients_figures["patients_cut"]
    left, right = figure.axes
    cut, whole = left.get_lines()
    assert cut.get_color() != whole.get_color() and how == {"of_published": True}
    np.testing.assert_allclose(np.transpose(cut.get_data()), real[["n", "cut_removed"]])
    assert np.abs(np.asarray(whole.get_ydata()) - 0.5).max() <= 0.5
    assert sum(bar.get_height() for bar in right.patches) == len(real)
    assert right.patches[0].get_height() == (real["overlap"] < 0.04).sum()
    legend = {
        t.get_text(): h.get_color()
        for t, h in zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)
    }
    assert legend == {"whole curve": whole.get_color(), "curve cut first": cut.get_color()}
    assert left.get_xlabel() == "slices of the scan" and left.get_ylabel() == "slices removed, share"


def test_figure_of_patients_curves(patients_figures, real):
    figure, _ = patients_figures["patients_curves"]
    assert len(figure.axes) == 8
    humps = []
    for axis in figure.axes:
        scan = real.loc[int(axis.get_title()[5:9])]
        curve, drawn, first, last = axis.get_lines()
        assert curve.get_ydata().tolist() == scan["areas"].tolist()
        assert drawn.get_xdata().tolist() == sorted(scan["released_draw"])
        assert drawn.get_ydata().tolist() == scan["areas"][sorted(scan["released_draw"])].tolist()
        edges = [line.get_xdata()[0] + 0.5 for line in (first, last)]
        assert edges == [scan["cut_start"], scan["cut_start"] + scan["cut"]]
        (span,) = axis.patches
        assert (span.get_x() + 0.5, span.get_width()) == (scan["start"], scan["stop"] - scan["start"])
        humps.append(int(axis.get_title().split()[-1]))
    assert humps[:4] == [1] * 4 and min(humps[4:]) > 1
