"""Reduction statistics against the published table, plain loops, pixel masks and closed forms."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from e2d_lib import bootstrap
from e2d_lib.method import reduction
from tests.conftest import ROOT

PUBLISHED = ROOT / "results" / "published"


@pytest.fixture(scope="module")
def printed():
    return reduction.published(PUBLISHED / "reduction_table.csv")


@pytest.fixture(scope="module")
def outputs():
    return reduction.released_outputs(PUBLISHED / "released_outputs.csv")


def _cohort(rng, sizes, *, side=(12, 10)):
    """Scans of random boxes and windows. ``sizes``: (split, label) -> number of scans. Gives slices, scans, cohort."""
    slices, scans, cohort = [], [], []
    for (split, label), count in sizes.items():
        for i in range(count):
            scan_id = f"{split}/{label}/{i:03d}"
            n = int(rng.integers(5, 12))
            start = int(rng.integers(0, n // 2 + 1))
            cohort.append((scan_id, split, label))
            scans.append((scan_id, n, start, start + math.ceil(n / 2) - (start > n // 2), "kept"))
            base = int(rng.integers(0, 4))  # slices of a scan resemble each other
            for k in range(n):
                row0, col0 = base + int(rng.integers(0, 2)), int(rng.integers(0, 4))
                slices.append((scan_id, k, *side, row0, row0 + int(rng.integers(3, 7)), col0, col0 + 5))
    return (
        pd.DataFrame(slices, columns=["scan_id", "index", "height", "width", "row0", "row1", "col0", "col1"]),
        pd.DataFrame(scans, columns=["scan_id", "n_slices", "start", "stop", "status"]),
        pd.DataFrame(cohort, columns=["scan_id", "split", "label"]).astype({"label": "Int64"}),
    )


SIZES = {("train", 1): 6, ("train", 0): 5, ("valid", 1): 3, ("valid", 0): 4, ("test", None): 4}


def _loops(slices, scans, members):
    """The published definitions, one slice and one scan at a time."""
    before, after, ratios, lengths, kept, length_ratios, totals = [], [], [], [], [], [], []
    for scan in scans.to_dict("records"):
        if scan["scan_id"] not in members:
            continue
        has_window = scan["status"] != "excluded"
        all_area = kept_area = 0
        for s in slices[slices.scan_id == scan["scan_id"]].to_dict("records"):
            area, crop = s["height"] * s["width"], (s["row1"] - s["row0"]) * (s["col1"] - s["col0"])
            before.append(area)
            after.append(crop)
            ratios.append((area - crop) / area)
            all_area += area
            kept_area += crop if scan["start"] <= s["index"] < scan["stop"] else 0
        if has_window:
            lengths.append(scan["n_slices"])
            kept.append(scan["stop"] - scan["start"])
            length_ratios.append((lengths[-1] - kept[-1]) / lengths[-1])
            totals.append((all_area - kept_area) / all_area)
    mean = [sum(x) / len(x) for x in (before, after, ratios, lengths, kept, length_ratios)]
    volumes = mean[0] * mean[3], mean[1] * mean[4]
    return {
        "area_before_k": mean[0] / 1000,
        "area_after_k": mean[1] / 1000,
        "area_delta": mean[2],
        "length_before": mean[3],
        "length_after": mean[4],
        "length_delta": mean[5],
        "volume_before_m": volumes[0] / 1e6,
        "volume_after_m": volumes[1] / 1e6,
        "volume_delta": (volumes[0] - volumes[1]) / volumes[0],
        "total_delta": sum(totals) / len(totals),
    }


class TestPublished:
    def test_two_rows_disagree_with_the_saved_outputs(self, printed, outputs):
        cells = reduction.check_published(printed, outputs)
        assert len(cells) == 90
        wrong = cells[~cells.agrees]
        assert wrong.groupby("row", sort=False).quantity.apply(list).to_dict() == {
            "(T+V) Positive": [
                "area_before_k",
                "area_after_k",
                "area_delta",
                "volume_before_m",
                "volume_after_m",
                "volume_delta",
            ],
            "Testing": ["length_after", "length_delta", "volume_before_m", "volume_after_m", "volume_delta"],
        }

    def test_what_the_saved_outputs_say_instead(self, printed, outputs):
        cells = reduction.check_published(printed, outputs).set_index(["row", "quantity"]).recomputed
        assert cells["(T+V) Positive"][["area_before_k", "area_after_k", "area_delta"]].tolist() == [
            266.88,
            158.20,
            0.4083,
        ]
        assert cells["(T+V) Positive"][["volume_before_m", "volume_after_m", "volume_delta"]].tolist() == [
            78.18,
            23.21,
            0.7031,
        ]
        assert cells["Testing"][["length_after", "length_delta", "volume_delta"]].tolist() == [122.99, 0.632, 0.7818]

    def test_one_digit_more_or_less_is_found(self, printed, outputs):
        changed = printed.copy()
        changed.loc[changed.row == "Total", "volume_after_m"] += 0.01
        cells = reduction.check_published(changed, outputs)
        assert (~cells.agrees).sum() == 12
        assert "Total" in set(cells.row[~cells.agrees])

    def test_the_wrong_row_repeats_the_training_row(self, printed):
        areas = printed.set_index("row")[["area_before_k", "area_after_k", "area_delta"]]
        assert areas.loc["(T+V) Positive"].tolist() == areas.loc["Training"].tolist()

    def test_saved_output_is_the_pooled_one(self, outputs):
        """'(T+V) Positive' pools 206,608 training and 46,042 validation slices."""
        saved = outputs.set_index("group")
        n = np.array([206_608, 46_042])
        assert n.sum() == saved.slices["(T+V) Positive"]
        for column in ("area_before", "area_after", "area_delta_mean_of_ratios"):
            parts = saved.loc[["Training/Positive", "Validation/Positive"], column].to_numpy()
            assert parts @ n / n.sum() == pytest.approx(saved.loc["(T+V) Positive", column], rel=1e-12)

    def test_products_of_two_decimal_means_are_not_the_rule(self, printed):
        """They miss sound rows, so that volumes must come of the unrounded means."""
        rows = printed.set_index("row")
        product = (rows.area_before_k * rows.length_before / 1000).map(lambda v: reduction.truncate(v, 2))
        sound = rows.index.difference(["(T+V) Positive", "Testing"])
        missed = sorted(row for row in sound if product[row] != rows.volume_before_m[row])
        assert missed == ["(T+V) Negative", "Validation/Positive"]

    def test_delta_of_area_is_not_the_ratio_of_means(self, outputs):
        training = outputs.set_index("group").loc["Training"]
        assert reduction.truncate(1 - training.area_after / training.area_before, 4) == 0.418
        assert reduction.truncate(training.area_delta_mean_of_ratios, 4) == 0.4184

    def test_rounding_is_not_the_rule(self, printed, outputs):
        """Rounded values would disagree in sound rows too."""
        saved = outputs.set_index("group").area_after.div(1000).round(2)
        assert saved["Validation/Positive"] == 160.49
        assert printed.set_index("row").area_after_k["Validation/Positive"] == 160.48

    def test_rows_without_saved_outputs(self, printed, outputs):
        with pytest.raises(ValueError, match=r"no saved outputs for the rows \['Testing'\]"):
            reduction.check_published(printed, outputs[outputs.group != "Testing"])

    def test_not_the_published_table(self, tmp_path):
        (tmp_path / "t.csv").write_text("row,area\nTraining,1\n")
        with pytest.raises(ValueError, match="lacks the columns"):
            reduction.published(tmp_path / "t.csv")
        with pytest.raises(ValueError, match="lacks the columns"):
            reduction.released_outputs(tmp_path / "t.csv")

    @pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.csv")), ids=lambda path: path.name)
    def test_every_file_has_its_source(self, path):
        assert f"`{path.name}`" in (PUBLISHED / "README.md").read_text(encoding="utf-8")

    def test_cohort_adds_up(self):
        cohort = pd.read_csv(PUBLISHED / "cohort.csv")
        train = cohort[cohort.split == "train"]
        assert train[["scans", "positive", "negative", "slices"]].sum().tolist() == [1358, 703, 655, 385_631]
        assert (train.positive + train.negative == train.scans).all()


class TestSavedScores:
    """The counts beside the saved scores give them back, to double precision."""

    SCORES = pd.read_csv(PUBLISHED / "saved_scores.csv").dropna(subset="rows")

    @pytest.mark.parametrize("saved", SCORES[SCORES.metric == "macro_f1"].to_dict("records"), ids=lambda s: s["value"])
    def test_macro_f1_is_of_slice_rows(self, saved):
        """With e errors among N rows, macro F1 fixes TP · TN, hence TP and TN: whole numbers for the right e alone."""
        found = []
        rows, value = int(saved["rows"]), saved["value"]
        for errors in range(int(0.04 * rows), int(0.09 * rows)):
            right = rows - errors
            product = (value * (2 * errors * right + errors**2) - errors * right) / (4 - 4 * value)
            if right**2 / 4 >= product:
                tp = round(right / 2 + math.sqrt(right**2 / 4 - product))
                tn = right - tp
                if abs(tp / (2 * tp + errors) + tn / (2 * tn + errors) - value) < 2.5e-16:
                    found.append(errors)
        assert found == [saved["errors"]]

    @pytest.mark.parametrize("saved", SCORES[SCORES.metric == "roc_auc"].to_dict("records"), ids=lambda s: s["value"])
    def test_auc_is_of_slice_rows(self, saved):
        """2 · AUC · positives · negatives counts pairs, ties once and wins twice: a whole number."""
        positive = np.arange(38_000, 46_501)
        pairs = 2 * saved["value"] * positive * (saved["rows"] - positive)
        whole = positive[np.abs(pairs - pairs.round()) < 2e-6]
        expected = saved["positive_rows"]
        assert whole.tolist() == sorted((expected, saved["rows"] - expected))


class TestTruncate:
    @pytest.mark.parametrize(
        ("value", "decimals", "expected"),
        [
            (0.29, 2, 0.29),
            (0.29 * 100, 0, 29.0),  # 28.999999999999996
            (1.15 * 100, 2, 115.0),  # 114.99999999999999
            (0.1 + 0.2, 1, 0.3),
            (160.48926942791365, 2, 160.48),
            (0.70999999, 4, 0.7099),
            (0.99999, 4, 0.9999),
            (0.0, 4, 0.0),
            (-0.45678, 2, -0.45),  # towards 0
            (154.6723, 2, 154.67),
            (1e-9, 4, 0.0),
        ],
    )
    def test_corner_values(self, value, decimals, expected):
        assert reduction.truncate(value, decimals) == expected

    def test_nan(self):
        assert math.isnan(reduction.truncate(float("nan"), 2))

    def test_every_hundredth_stays(self):
        """Whatever binary makes of k/100, and of k/100 times 100."""
        for k in range(10_000):
            assert reduction.truncate(k / 100, 2) == k / 100
            assert reduction.truncate(k / 100 * 100, 0) == k


class TestParts:
    def test_slices_against_masks(self, rng):
        slices, _, _ = _cohort(rng, {("", None): 3})
        result = reduction.slice_reduction(slices)
        for s, r in zip(slices.to_dict("records"), result.to_dict("records"), strict=True):
            mask = np.zeros((s["height"], s["width"]), dtype=bool)
            mask[s["row0"] : s["row1"], s["col0"] : s["col1"]] = True
            assert (r["area_before"], r["area_after"]) == (mask.size, mask.sum())
            assert r["area_delta"] == pytest.approx(1 - mask.mean(), abs=1e-15)

    @pytest.mark.parametrize(
        "change", [{"row1": 13}, {"row0": -1}, {"col0": 9}, {"row1": 3, "row0": 3}, {"height": 0}], ids=str
    )
    def test_bad_boxes(self, change, rng):
        slices, _, _ = _cohort(rng, {("", None): 1})
        for name, value in change.items():
            slices.loc[0, name] = value
        with pytest.raises(ValueError, match="1 slices have an empty crop or one outside"):
            reduction.slice_reduction(slices)

    def test_scans(self):
        scans = pd.DataFrame(
            [
                ("a", 10, 2, 7, "kept"),
                ("b", 3, 0, 0, "excluded"),
                ("c", 15, 20, 20, "warned"),  # the released empty window
                ("d", 8, 0, 8, "kept"),
            ],
            columns=["scan_id", "n_slices", "start", "stop", "status"],
        )
        result = reduction.scan_reduction(scans)
        assert result.to_numpy().tolist() == [["a", 10, 5, 0.5], ["c", 15, 0, 1.0], ["d", 8, 8, 0.0]]

    @pytest.mark.parametrize("window", [(5, 4), (0, 11), (-1, 4)])
    def test_bad_windows(self, window):
        scans = pd.DataFrame([("a", 10, *window)], columns=["scan_id", "n_slices", "start", "stop"])
        with pytest.raises(ValueError, match="not inside them"):
            reduction.scan_reduction(scans)

    def test_total_against_volumes_of_voxels(self, rng):
        slices, scans, _ = _cohort(rng, {("", None): 4})
        result = reduction.total_reduction(slices.sample(frac=1, random_state=0), scans).set_index("scan_id")
        for scan in scans.to_dict("records"):
            part = slices[slices.scan_id == scan["scan_id"]]
            volume = np.zeros((scan["n_slices"], 12, 10), dtype=bool)
            for s in part.to_dict("records"):
                if scan["start"] <= s["index"] < scan["stop"]:
                    volume[s["index"], s["row0"] : s["row1"], s["col0"] : s["col1"]] = True
            assert result.total_delta[scan["scan_id"]] == pytest.approx(1 - volume.mean())

    def test_total_is_the_product_when_all_boxes_are_equal(self, rng):
        slices, scans, _ = _cohort(rng, {("", None): 5})
        slices[["row0", "row1", "col0", "col1"]] = [2, 8, 1, 6]
        result = reduction.total_reduction(slices, scans)
        np.testing.assert_allclose(result.area_delta, 1 - 30 / 120)
        np.testing.assert_allclose(result.total_delta, 1 - (1 - result.area_delta) * (1 - result.length_delta))

    def test_windows_count_slices_left_not_file_numbers(self):
        """Slices 0, 7 and 9 of the files are left; the window [1, 3) holds the last two."""
        slices = pd.DataFrame(
            {"scan_id": "a", "index": [9, 0, 7], "height": 10, "width": 10}
            | {"row0": 0, "row1": [2, 10, 4], "col0": 0, "col1": 10}
        )
        scans = pd.DataFrame([("a", 3, 1, 3)], columns=["scan_id", "n_slices", "start", "stop"])
        assert reduction.total_reduction(slices, scans).total_delta[0] == pytest.approx(1 - (20 + 40) / 300)

    def test_missing_columns(self, rng):
        slices, scans, cohort = _cohort(rng, {("", None): 2})
        with pytest.raises(ValueError, match=r"slices lacks the columns \['row0'\]"):
            reduction.slice_reduction(slices.drop(columns="row0"))
        with pytest.raises(ValueError, match=r"scans lacks the columns \['stop'\]"):
            reduction.scan_reduction(scans.drop(columns="stop"))
        with pytest.raises(ValueError, match=r"cohort lacks the columns \['split'\]"):
            reduction.reduction_table(slices, scans, cohort.drop(columns="split"))


class TestTable:
    def test_rows_and_columns_are_the_published_ones(self, rng, printed):
        table = reduction.reduction_table(*_cohort(rng, SIZES))
        assert table.columns.tolist() == printed.columns.tolist()
        assert table.row.tolist() == printed.row.tolist()

    def test_unrounded_values_against_plain_loops(self, rng):
        slices, scans, cohort = _cohort(rng, SIZES)
        scans.loc[[1, 8], ["status", "start", "stop"]] = ["excluded", 0, 0]
        table = reduction.reduction_table(slices, scans, cohort, rounding=None, ci=False).set_index("row")
        groups = {
            "Training": cohort.split == "train",
            "Training/Positive": (cohort.split == "train") & (cohort.label == 1),
            "Validation/Negative": (cohort.split == "valid") & (cohort.label == 0),
            "(T+V) Positive": cohort.label == 1,
            "(T+V) Negative": cohort.label == 0,
            "Total": cohort.split != "test",
            "Testing": cohort.split == "test",
        }
        for row, chosen in groups.items():
            expected = _loops(slices, scans, set(cohort.scan_id[chosen.fillna(False)]))
            assert table.loc[row, list(expected)].to_dict() == pytest.approx(expected, rel=1e-12), row
        assert table.n_scans["Training"] == 9  # two of eleven excluded, their slices still measured
        assert table.n_slices["Training"] == slices.scan_id.str.startswith("train").sum()

    def test_printed_values_are_the_unrounded_cut_off(self, rng):
        cohort = _cohort(rng, SIZES)
        unrounded = reduction.reduction_table(*cohort, rounding=None, ci=False)
        table = reduction.reduction_table(*cohort)
        for column, places in reduction.DECIMALS.items():
            gap = (unrounded[column] - table[column]) * 10**places
            assert ((gap > -1e-6) & (gap < 1)).all(), column
            np.testing.assert_allclose(table[column] * 10**places, (table[column] * 10**places).round(), atol=1e-9)

    def test_exact_ratios_survive(self):
        """Every slice loses exactly 0.42, a mean that binary sums may put just below."""
        n = 37
        slices = pd.DataFrame(
            {"scan_id": "a", "index": range(n), "height": 100, "width": 100, "row0": 0, "row1": 58}
            | {"col0": 0, "col1": 100}
        )
        scans = pd.DataFrame([("a", n, 0, 19)], columns=["scan_id", "n_slices", "start", "stop"])
        cohort = pd.DataFrame([("a", "", None)], columns=["scan_id", "split", "label"])
        table = reduction.reduction_table(slices, scans, cohort)
        assert table.area_delta.tolist() == [0.42]

    @pytest.mark.parametrize(
        ("sizes", "rows"),
        [
            ({("", None): 3}, ["All scans"]),
            ({("", 1): 2, ("", 0): 2}, ["All scans", "All scans/Positive", "All scans/Negative"]),
            ({("train", 1): 2, ("train", 0): 2}, ["Training", "Training/Positive", "Training/Negative"]),
            ({("train", None): 2}, ["Training"]),
            (
                {("train", 1): 2, ("valid", 1): 2},
                ["Training", "Training/Positive", "Validation", "Validation/Positive", "(T+V) Positive", "Total"],
            ),
            ({("test", None): 2}, ["Testing"]),
            ({("test", None): 2, ("", None): 2}, ["Testing", "Other scans"]),
        ],
    )
    def test_absent_groups_are_absent_rows(self, sizes, rows, rng):
        assert reduction.reduction_table(*_cohort(rng, sizes)).row.tolist() == rows

    def test_a_group_whose_scans_are_all_excluded(self, rng):
        slices, scans, cohort = _cohort(rng, {("train", 1): 3, ("test", None): 3})
        gone = scans.scan_id.str.startswith("test")
        scans.loc[gone, ["status", "start", "stop"]] = ["excluded", 0, 0]
        row = reduction.reduction_table(slices, scans, cohort).set_index("row").loc["Testing"]
        assert row[["area_before_k", "area_after_k", "area_delta"]].notna().all()
        assert row[["length_before", "length_delta", "volume_delta"]].isna().all()
        row = reduction.reduction_table(slices, scans, cohort, rounding=None, rng=rng, n_boot=20).set_index("row")
        assert row.n_scans["Testing"] == 0
        assert np.isnan(row.length_delta_low["Testing"])

    def test_order_of_rows_does_not_matter(self, rng):
        slices, scans, cohort = _cohort(rng, SIZES)
        one = reduction.reduction_table(slices, scans, cohort, rounding=None, rng=np.random.default_rng(1), n_boot=100)
        mixed = (table.sample(frac=1, random_state=3) for table in (slices, scans, cohort))
        other = reduction.reduction_table(*mixed, rounding=None, rng=np.random.default_rng(1), n_boot=100)
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)

    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            (lambda s, n, c: (s, n, c.iloc[1:]), {}, "slices speak of 1 scans that the cohort lacks"),
            (lambda s, n, c: (s, n, pd.concat([c, c.head(1)])), {}, "the cohort holds .* twice"),
            (lambda s, n, c: (s, n, c.assign(split="dev")), {}, "unknown splits"),
            (lambda s, n, c: (s, n, c), {"rounding": "up"}, "rounding='up'"),
            (lambda s, n, c: (s, n, c), {"rounding": None}, "intervals need rng"),
        ],
    )
    def test_bad_input(self, change, options, message, rng):
        with pytest.raises(ValueError, match=message):
            reduction.reduction_table(*change(*_cohort(rng, {("train", 1): 2})), **options)


class TestIntervals:
    def test_they_hold_the_value(self, rng):
        table = reduction.reduction_table(*_cohort(rng, SIZES), rounding=None, rng=rng, n_boot=400)
        for delta in reduction.DELTAS:
            assert (table[f"{delta}_low"] <= table[delta]).all()
            assert (table[delta] <= table[f"{delta}_high"]).all()

    def test_width_is_the_closed_form_of_a_mean(self, rng):
        """Length Δ of one group is a plain mean over scans: ± 1.96 standard errors."""
        slices, scans, cohort = _cohort(rng, {("train", 1): 200})
        scans["stop"] = scans.start + rng.integers(0, 3, 200)
        table = reduction.reduction_table(slices, scans, cohort, rounding=None, rng=rng, n_boot=4000)
        deltas = 1 - (scans.stop - scans.start) / scans.n_slices
        error = deltas.std(ddof=0) / math.sqrt(200)
        row = table.iloc[0]
        assert (row.length_delta_high - row.length_delta_low) / 2 == pytest.approx(1.96 * error, rel=0.06)

    def test_slices_of_a_scan_are_one_witness(self, rng):
        """Each slice three times over: no more is known about the cohort."""
        slices, scans, cohort = _cohort(rng, {("train", 1): 12})
        thrice = pd.concat([slices] * 3).sort_values(["scan_id", "index"], kind="stable")
        thrice["index"] = thrice.groupby("scan_id").cumcount()
        longer = scans.assign(n_slices=3 * scans.n_slices, start=3 * scans.start, stop=3 * scans.stop)
        one = reduction.reduction_table(slices, scans, cohort, rounding=None, rng=np.random.default_rng(2), n_boot=300)
        three = reduction.reduction_table(
            thrice, longer, cohort, rounding=None, rng=np.random.default_rng(2), n_boot=300
        )
        for delta in reduction.DELTAS:
            columns = [f"{delta}_low", f"{delta}_high"]
            np.testing.assert_allclose(three[columns], one[columns], rtol=1e-9)

    def test_class_sizes_are_held_fixed(self, rng):
        """Classes that differ and do not vary inside: the pooled row has no spread at all."""
        slices, scans, cohort = _cohort(rng, {("train", 1): 4, ("train", 0): 6})
        positive = slices.scan_id.str.startswith("train/1")
        slices[["row0", "row1", "col0", "col1"]] = [0, 6, 0, 10]
        slices.loc[positive, "row1"] = 3
        scans["n_slices"], scans["start"], scans["stop"] = 5, 1, 4
        slices = slices[slices["index"] < 5]
        row = reduction.reduction_table(slices, scans, cohort, rounding=None, rng=rng, n_boot=100).iloc[0]
        assert row.area_delta == pytest.approx(0.4 * 0.75 + 0.6 * 0.5)
        assert row.area_delta_high - row.area_delta_low == pytest.approx(0, abs=1e-12)

    def test_one_scan_has_none(self, rng):
        row = reduction.reduction_table(*_cohort(rng, {("train", 1): 1}), rounding=None, rng=rng).iloc[0]
        assert row[[f"{delta}_low" for delta in reduction.DELTAS]].isna().all()

    def test_blocks(self, rng, monkeypatch):
        cohort = _cohort(rng, {("train", 1): 10})
        monkeypatch.setattr(bootstrap, "BLOCK", 45)
        table = reduction.reduction_table(*cohort, rounding=None, rng=np.random.default_rng(0), n_boot=1001)
        monkeypatch.undo()
        whole = reduction.reduction_table(*cohort, rounding=None, rng=np.random.default_rng(1), n_boot=1001)
        for bound in ("area_delta_low", "area_delta_high"):
            assert table[bound][0] == pytest.approx(whole[bound][0], abs=0.01)


class TestComparison:
    def test_side_by_side(self, rng, printed):
        measured = reduction.reduction_table(*_cohort(rng, SIZES), rounding=None, rng=rng, n_boot=50)
        table = reduction.comparison(measured, printed)
        assert table.columns.tolist() == ["row", "quantity", "published", "measured", "difference", "low", "high"]
        assert len(table) == 90
        one = table.set_index(["row", "quantity"]).loc[("Testing", "area_delta")]
        ours = measured.set_index("row").loc["Testing"]
        assert one.tolist() == pytest.approx(
            [0.4520, ours.area_delta, ours.area_delta - 0.4520, ours.area_delta_low, ours.area_delta_high]
        )

    def test_the_table_with_itself(self, printed):
        table = reduction.comparison(printed, printed)
        assert (table.difference == 0).all()
        assert table[["low", "high"]].isna().all(axis=None)

    def test_rows_of_one_side(self, rng, printed):
        table = reduction.comparison(reduction.reduction_table(*_cohort(rng, {("", None): 2})), printed)
        assert table.row.drop_duplicates().tolist() == [*printed.row, "All scans"]
        own = table.row == "All scans"
        assert table.published[own].isna().all() and table.measured[own].notna().all()
        assert table.measured[~own].isna().all()


def test_imports_stay_light():
    """Reduction needs none of these, metrics none before a function asks for them."""
    code = (
        "import sys, e2d_lib.method.reduction, e2d_lib.evaluation.metrics; "
        "print([m for m in ('torch', 'sklearn', 'statsmodels', 'matplotlib', 'papermill') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class TestBySource:
    PER_SCAN = pd.DataFrame(
        {"scan_id": ["x/1", "x/2", "x/3", "y/4", "y/5", "y/6"], "area_delta": [0.2, 0.3, 0.4, 0.6, 0.6, 0.9]}
    ).assign(length_delta=0.5, total_delta=0.7)

    @pytest.mark.parametrize(
        ("source", "split", "expected"),
        [
            (["A", "A", "A", "A", "B", ""], "", {"A": 0.375, "B": 0.6, "unknown": 0.9}),
            ("", "", {"x": 0.3, "y": 0.7}),
            ("", "train", {"unknown": 0.5}),  # its top folders are splits
        ],
    )
    def test_means(self, source, split, expected):
        cohort = pd.DataFrame({"scan_id": self.PER_SCAN["scan_id"], "source": source, "split": split})
        table = reduction.by_source(self.PER_SCAN, cohort, n_boot=50)
        area = table[table["quantity"] == "area_delta"].set_index("source")
        assert area["value"].to_dict() == pytest.approx(expected)
        assert area["low"].isna().equals(area["n"].eq(1))

    def test_a_folder_of_each_patient_is_no_source(self):
        names = [f"p{k}/a" for k in range(6)]
        cohort = pd.DataFrame({"scan_id": names, "source": "", "split": ""})
        table = reduction.by_source(self.PER_SCAN.assign(scan_id=names), cohort, n_boot=50)
        assert set(table["source"]) == {"unknown"}

    def test_patients_are_resampled(self):
        cohort = pd.DataFrame({"scan_id": self.PER_SCAN["scan_id"], "source": "A", "split": ""})
        own, shared = (
            reduction.by_source(self.PER_SCAN, cohort.assign(patient=patients)).iloc[0]
            for patients in (list("abcdef"), list("aaabbb"))
        )
        assert (shared["low"], shared["high"]) == (pytest.approx(0.3), pytest.approx(0.7))  # one patient, or the other
        assert own["low"] > 0.3 and own["high"] < 0.7
