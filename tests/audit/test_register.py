"""The register: complete, its checks confirmed by the published tables, refuted by altered ones, effects as by hand."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from e2d_lib import io
from e2d_lib.audit import checks, fits, register
from e2d_lib.method.preprocess import Params, Preprocessed
from tests.conftest import ROOT

PUBLISHED = ROOT / "results" / "published"
IDS = (
    "A1 A2 A3 A4 A5 A6 B1 B2 B3 C1 C2 C3 C4 C5 C6 C7 D1 D2 D3 D4 D5 D6 E1 E2 E3 E4 E5 F1 F2 F3 F4 F5 F6 F7 G1 G2 G3 G4 "
    "H1 H2 H3 H4 H5 H6 H7 H8 H9"
)
RECOMPUTED = "A1 A2 A3 A4 A5 A6 B1 B2 C1 C2 C3 C4 C7 D1 D2 D3 D4 D6 E1 E2 E4 G1 G2 G4 H1 H3 H4 H5 H6 H7"
NEED_COHORT = "B3 C5"

FOUND = [  # literals of the facts, from the released repository's saved outputs
    ("A1", "266.88, 158.20, 0.4083; volumes 78.18, 23.21, 0.7031"),
    ("A2", "154.67 printed, 122.99 saved; volume Δ 0.7256 printed, 0.7818"),
    ("A3", "111.64 slices on average over 1,358 scans (39.3% of the slices)"),
    ("A3", "volume Δ 0.771"),
    ("A3", "108.68 slices on average over 326 scans (39.1% of the slices)"),
    ("A4", "up to 0.5014"),
    ("A5", "72 of 72 cells"),
    ("A6", "1,349 scans with 384,904; Validation: areas 89,721 slices, lengths 318 scans with 89,663"),
    ("B1", "379,798 to 391,478"),
    ("B2", "empty among the saved windows: 69 training, 15 validation"),
    ("C1", "the largest area came in 0 of 400 draws"),
    ("C2", "3 training, 2 validation"),
    ("C3", "37 of 7 slices and 2 of 6 among 1,123"),
    ("C3", "10 of 7 slices and 0 of 6 among 267"),
    ("C4", "training 144 and 91, validation 39 and 20"),
    ("D1", "265 of 1,358 saved windows are of 8 slices or fewer, 125 of them of negative and 140 of positive"),
    ("D1", "68 of 326 saved windows are of 8 slices or fewer, 34 of them of negative and 34 of positive scans; 9"),
    ("D2", "(124, 116, 104)"),
    ("D3", "f1_score and roc_auc_score raise ValueError"),
    ("D4", "398 or 399"),
    ("D6", "[0, 4)"),
    ("E1", "0.93998627…: 89,264 rows, 5,353 wrong"),
    ("E1", "0.93617159…: 89,264 rows, 5,688 wrong"),
    ("E1", "0.92934235…: 89,264 rows, 6,305 wrong"),
    ("E1", "98,089 rows"),
    ("E1", "99,307 rows"),
    ("E2", "job 58 45,890 and 43,374 (the true counts), the others 43,970 and 45,294"),
    ("E2", "1,920 positive rows were turned (or 596 if the pair is mirrored)"),
    ("E2", "the 34 short positive scans hold 1,744 to 2,000"),
    ("E4", "1 % is 3,849 of 384,904 rows"),
    ("G1", "-5.24 to 4.28"),
    ("H1", "56,792 rows, 19,334 and 34,659 right, 2,799 wrong"),
    ("H1", "no other number of cases from 2 to 107,999"),
    ("H3", "1,481 scans, each with a draw; 1 of 7 slices; the 5 windows under 8"),
    ("H4", "1,481 of 1,481 windows follow; removed 0.4975"),
    ("H4", "2025: largest area drawn in 0 of 1,476 windows, equal areas in 591, 4 draws"),
    ("H4", "2024: largest area drawn in 0 of 993 windows, equal areas in 633, 5 draws"),
    ("H6", "higher in 5 of 5 folds"),
    ("H7", "mean is 0.7648; 45 negatives all called rightly score 0.5, with 3 of them wrong 0.4828"),
    ("H7", "best possible mean is 0.875"),
]  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return register.register(PUBLISHED, rng=np.random.default_rng(0)).set_index("id", drop=False)


def made_up(folder, lengths: dict[str, tuple[int, int]], *, flip: bool = False) -> Preprocessed:
    """scan_id -> (slices, label): arches of lung area, all different but two next to each other inside the window.

    A scan of fewer than 5 slices is excluded. ``flip`` turns the arch's peak towards the end.
    """
    scans, slices = [], []
    for scan, (n, label) in lengths.items():
        at = (np.arange(n) + 0.5) / n
        areas = (1000 * np.round(9 * np.sin(np.pi * at ** (3 if flip else 1)), 2)).astype(int) + np.arange(n)
        if n >= 5:
            areas[n // 3 + 1] = areas[n // 3]
        status = "kept" if n >= 5 else "excluded"
        scans.append((scan, "train", label, n, 0, math.ceil(n / 2) if n >= 5 else 0, status))
        slices += [(scan, k, 20, 10, 0, 10 + k % 2, 0, 10, area) for k, area in enumerate(areas)]
    names = ["scan_id", "index", "height", "width", "row0", "row1", "col0", "col1", "area"]
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(slices, columns=names)
    io.write_parquet(folder / "slices.parquet", table.assign(area_crop=table["area"]))
    columns = ["scan_id", "split", "label", "n_slices", "start", "stop", "status"]
    return Preprocessed(folder, Params(), pd.DataFrame(scans, columns=columns).astype({"label": "Int64"}))


LENGTHS = {"a": (30, 0), "b": (59, 0), "c": (81, 1), "d": (200, 1), "e": (62, 1), "x": (3, 1)}
N = np.array([30, 59, 81, 200, 62])
CUT = np.array([0, 10, 8, 68, 0])  # widths of the released training window


@pytest.fixture(scope="module")
def effects(tmp_path_factory) -> dict[str, list[checks.Effect]]:
    cohort = made_up(tmp_path_factory.mktemp("cohort"), LENGTHS)
    inputs = checks.Inputs(PUBLISHED, cohort, np.random.default_rng(0))
    slow = {"E1", "E2"}
    return {id: checks.done(id, inputs)[2] for id in checks.CHECKS if id not in slow}


def altered(tmp_path, name: str, change) -> checks.Inputs:
    """Inputs whose published table ``name`` is what ``change`` makes of it."""
    folder = tmp_path / "published"
    shutil.copytree(PUBLISHED, folder)
    table = pd.read_csv(folder / name, dtype={"value": str} if name == "saved_scores.csv" else None)
    change(table).to_csv(folder / name, index=False)
    return checks.Inputs(folder, None, np.random.default_rng(0))


class TestRegister:
    def test_every_entry_is_there_in_order(self, table):
        assert list(table.index) == IDS.split()
        assert list(table.columns) == register.COLUMNS

    def test_no_field_is_empty(self, table):
        for name in ("topic", "claim", "source", "evidence", "checked", "result", "corrected"):
            assert table[name].str.len().min() > 2, name

    def test_what_can_be_recomputed_is_and_is_confirmed(self, table):
        recomputed = table[table["checked"] == "recomputed"]
        assert set(recomputed.index) == {*RECOMPUTED.split(), *NEED_COHORT.split()}
        assert list(recomputed.index[recomputed["holds"].fillna(False)]) == RECOMPUTED.split()
        assert table.loc[NEED_COHORT.split(), "holds"].isna().all()

    @pytest.mark.parametrize(("id", "literal"), FOUND)
    def test_the_result_holds_the_known_number(self, table, id, literal):
        assert literal in table.loc[id, "result"]

    def test_inferences_are_called_so(self, table):
        assert set(table["evidence"]) == {"proved", "inferred", "stated"}
        assert set(table.index[table["evidence"] == "inferred"]) == {"C7", "E2", "E4"}

    def test_the_few_shot_bounds(self, table):
        """About four scans in five at 1 %, 94 % at 3 %, more than 99 % at 10 %."""
        text = table.loc["E4", "result"].rpartition("touched: ")[2]
        bounds = [[float(word.strip("%")) for word in part.split() if "." in word] for part in text.split(", ")]
        for (low, high), (least, most) in zip(bounds, ((82, 84), (94, 97), (99, 100)), strict=True):
            assert least <= low < high <= most

    def test_no_effects_without_a_cohort(self, table):
        assert (table["effect"] == "").all() and table["value"].isna().all()

    def test_same_seed_same_register(self, monkeypatch):
        monkeypatch.setattr(checks, "DRAWS", 2)
        monkeypatch.setattr(checks, "EPOCHS", 2)
        inputs = [checks.Inputs(PUBLISHED, None, np.random.default_rng(3)) for _ in range(2)]
        assert checks.done("C1", inputs[0]) == checks.done("C1", inputs[1])


class TestAlteredTables:
    """Each check can fail: it does when the published table it speaks of is another."""

    @pytest.mark.parametrize(
        ("id", "name", "row", "column", "value"),
        [
            ("A1", "reduction_table.csv", 6, "area_after_k", 158.20),
            ("A2", "reduction_table.csv", 9, "length_after", 122.99),
            ("A3", "saved_windows.csv", 3, "width", 40),
            ("A4", "reduction_table.csv", 9, "length_delta", 0.4990),
            ("A5", "reduction_table.csv", 0, "area_after_k", 155.54),
            ("A6", "released_outputs.csv", 0, "length_before", 285.325),
            ("B2", "saved_windows.csv", 0, "width", 1),
            ("C2", "saved_windows.csv", 100, "drawn_repeated", 2),
            ("C3", "saved_windows.csv", 100, "drawn_6", 1),
            ("C4", "saved_windows.csv", 0, "width", 2),
            ("D1", "saved_windows.csv", 8, "width", 9),
            ("D3", "saved_windows.csv", 9, "drawn_7", 0),
            ("D4", "saved_windows.csv", 20, "dropped", 1),
            ("H1", "saved_scores.csv", 10, "rows", 57_714),
            ("H6", "saved_scores.csv", 11, "value", "0.9275"),
            ("H7", "related_scores.csv", 24, "value", 0.5),
        ],
    )
    def test_a_changed_cell_refutes(self, tmp_path, id, name, row, column, value):
        def change(table):
            assert table.loc[row, column] != value
            table.loc[row, column] = value
            return table

        assert not checks.done(id, altered(tmp_path, name, change))[0]

    @pytest.mark.parametrize(
        ("ids", "name", "scan", "change"),
        [
            ("H4", "scans_2025", 0, {"start": 14, "stop": 40}),  # a window one slice off
            ("H4", "windows_2024", 0, {"released_draw": [104, 122, 181, 191, 227, 235, 247, 273]}),
            ("H3", "scans_2025", 3, {"released_draw": [90, 119]}),
        ],
    )
    def test_another_window_or_draw_refutes(self, tmp_path, ids, name, scan, change):
        inputs = altered(tmp_path, "saved_scores.csv", lambda table: table)
        path = inputs.published / "real_areas" / f"{name}.parquet"
        table = pd.read_parquet(path)
        if name == "windows_2024":  # the slice of the largest area, drawn
            areas = pd.read_parquet(path.with_name("window_areas_2024.parquet")).query("scan == @scan")
            change = {"released_draw": [*change["released_draw"][:-1], int(areas.loc[areas["area"].idxmax(), "slice"])]}
        for column, value in change.items():
            table.at[scan, column] = value
        table.to_parquet(path)
        assert not checks.done(ids, inputs)[0]

    def test_whole_curves_would_refute_the_cut(self, tmp_path):
        def uncut(table):
            return table.assign(width=table["width"] + 33)

        assert not checks.done("B1", altered(tmp_path, "saved_windows.csv", uncut))[0]

    def test_a_changed_digit_of_a_score_refutes(self, tmp_path):
        def change(table):
            auc = table[table["metric"] == "roc_auc"].reset_index(drop=True)
            auc.loc[1, "value"] = "0.9770150725466937"
            return auc

        inputs = altered(tmp_path, "saved_scores.csv", change)
        assert list(inputs.fits["solutions"]) == [1, 0, 1, 1]
        assert not checks.done("E2", inputs)[0]

    def test_scores_of_few_digits_are_left_out(self, tmp_path):
        def change(table):
            return table[table["value"] == "0.9142"]

        assert altered(tmp_path, "saved_scores.csv", change).fits.empty


class TestEffects:
    def value(self, effects, id: str, index: int = 0) -> float:
        return effects[id][index].value

    def test_removed_by_the_window(self, effects):
        assert self.value(effects, "A3", 0) == pytest.approx(np.mean(1 - CUT / N))
        assert self.value(effects, "A3", 1) == pytest.approx(np.mean(1 - np.ceil(N / 2) / N))
        assert effects["A3"][0].low < self.value(effects, "A3") < effects["A3"][0].high

    def test_mean_of_ratios_and_ratio_of_means(self, effects):
        # All slices are 20 x 10, every other one cropped to 10 x 10 or 11 x 10: equal areas, so the two agree.
        assert self.value(effects, "A5", 0) == pytest.approx(0, abs=1e-12)

    def test_slices_without_a_window(self, effects):
        assert (effects["A6"][0].value, effects["A6"][0].n) == (3 / 435, 435)

    def test_shares_of_scans(self, effects):
        assert self.value(effects, "B2") == 2 / 5  # 30 and 62 slices
        assert self.value(effects, "D1") == 3 / 5  # and 81
        assert self.value(effects, "D1", 1) == 2 / 3  # 62 and 81 are positive, and 200 is
        assert [effect.value for effect in effects["C4"]] == [0, 2 / 5]
        assert self.value(effects, "C7") == 0
        assert self.value(effects, "D6") == 0

    def test_an_exact_interval(self, effects):
        """Clopper-Pearson of 3 in 5, as tables have it."""
        low, high = effects["D1"][0][2:4]
        assert (round(low, 4), round(high, 4)) == (0.1466, 0.9473)

    def test_windows_that_the_cut_moves(self, effects):
        moved, overlap, lost = effects["B1"]
        assert moved.value >= 4 / 5  # all but perhaps the longest have another width
        assert 0 < overlap.value < 0.5 and 2 / 5 < lost.value < 1

    def test_the_largest_area(self, effects):
        corrected, released, out_of_reach = effects["C1"]
        assert corrected.value > 0.05 and released.value == 0
        assert out_of_reach.value == 1

    def test_equal_areas(self, effects):
        assert self.value(effects, "C2") == 1  # two slices of each window were made equal

    def test_coverage_grows_with_fresh_draws(self, effects):
        once, anew = effects["C5"]
        widths = np.ceil(N / 2)
        assert once.value <= np.mean(8 / widths) < anew.value <= 1

    def test_rows_touched(self, effects):
        for effect, fraction in zip(effects["E4"], (0.01, 0.03, 0.1), strict=True):
            k = round(fraction * 432)
            missed = [math.comb(432 - n, k) / math.comb(432, k) for n in N.tolist()]
            assert effect.value == pytest.approx(1 - np.mean(missed), rel=1e-9)

    def test_scans_weighed_by_their_slices(self, tmp_path):
        def one_score(table):
            return table[table["value"] == "0.9361715971641709"]

        inputs = altered(tmp_path, "saved_scores.csv", one_score)
        inputs = replace(inputs, cohort=made_up(tmp_path / "cohort", LENGTHS))
        kish, ratio = checks.done("E1", inputs)[2]
        assert kish.value == pytest.approx(432**2 / (30**2 + 59**2 + 81**2 + 200**2 + 62**2) / 5)
        assert ratio.value == pytest.approx(200 / 30)

    def test_areas_on_the_crop(self, tmp_path):
        cohort, other = made_up(tmp_path / "a", LENGTHS), made_up(tmp_path / "b", LENGTHS, flip=True)
        for on_crop, moved in ((cohort, 0), (other, 1)):
            table = cohort.slices.assign(area_crop=on_crop.slices["area"])
            io.write_parquet(tmp_path / f"{moved}" / "slices.parquet", table)
            inputs = checks.Inputs(PUBLISHED, replace(cohort, folder=tmp_path / f"{moved}"), np.random.default_rng(0))
            assert checks.done("B3", inputs)[2][0].value == moved
        uncropped = checks.Inputs(PUBLISHED, replace(cohort, params=Params(crop=False)), np.random.default_rng(0))
        assert checks.done("B3", uncropped)[0] is None and checks.done("B3", uncropped)[2] == []

    def test_unlabelled_scans_have_no_class(self, tmp_path):
        cohort = made_up(tmp_path, {"a": (50, 0), "b": (90, 1)})
        cohort.scans["label"] = pd.array([pd.NA, pd.NA], dtype="Int64")
        inputs = checks.Inputs(PUBLISHED, cohort, np.random.default_rng(0))
        assert [effect.metric for effect in checks.done("D1", inputs)[2]] == ["scans that would be blank"]


@pytest.fixture
def short(monkeypatch) -> None:
    """A register of two entries in place of the shipped one, so that a test takes no time."""
    about = {"topic": "window", "claim": "One | two.", "source": "here", "evidence": "proved", "corrected": "none"}
    monkeypatch.setattr(register, "ENTRIES", [{"id": "A1", **about}, {"id": "E3", **about, "topic": "evaluation"}])
    steps = [(True, "as said"), checks.Effect("share", 0.25, 0.2, 0.3, 9, "share")]
    monkeypatch.setitem(checks.CHECKS, "A1", lambda given: iter(steps))


@pytest.mark.usefixtures("short")
class TestFromOutside:
    OUTSIDE = pd.DataFrame(
        {"id": ["E3", "A1"], "metric": "macro F1", "value": [-0.02, 0.5], "low": -0.05, "high": 0.01}
    )

    def test_an_effect_that_needs_training(self):
        table = register.register(
            PUBLISHED, cohort=object(), rng=np.random.default_rng(0), effects=self.OUTSIDE
        ).set_index("id")
        assert list(table.loc["E3", ["metric", "value", "low", "high"]]) == ["macro F1", -0.02, -0.05, 0.01]
        assert table.loc["E3", "effect"] == "macro F1 -0.02 [-0.05, 0.01]"
        assert table.loc["A1", "effect"] == "macro F1 0.5 [-0.05, 0.01]; share 25.0% [20.0%, 30.0%]"
        assert table.loc["A1", "value"] == 0.5

    def test_an_effect_of_no_entry_is_refused(self):
        with pytest.raises(ValueError, match="register lacks: Z9"):
            register.register(PUBLISHED, rng=np.random.default_rng(0), effects=self.OUTSIDE.assign(id="Z9"))


class TestStoredFits:
    """What follows from a saved score is stored beside it; searched for anew, it is the same."""

    STORED = pd.read_csv(PUBLISHED / "score_fits.csv", dtype={"value": str})
    RUNS = pd.read_csv(PUBLISHED / "saved_scores.csv", dtype={"value": str}).set_index("value")["run"]

    @pytest.mark.parametrize("stored", STORED.to_dict("records"), ids=lambda row: row["value"])
    def test_searched_anew(self, stored):
        wide = fits.follow_up(self.RUNS[stored["value"]])
        found = fits.score_fit(stored["metric"], stored["value"], wide)
        for name in fits.FITS:
            assert found.get(name, np.nan) == pytest.approx(stored[name], nan_ok=True), name

    def test_every_score_with_all_its_digits_is_stored(self):
        digits = self.RUNS.index.str.partition(".").get_level_values(2).str.len()
        assert set(self.RUNS.index[digits >= 12]) == set(self.STORED["value"])
