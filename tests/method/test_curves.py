"""The released curves against plain loops, and shapes of made-up curves against what can be seen."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from e2d_lib.method import curves

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published"
REAL = PUBLISHED / "real_areas"


@pytest.fixture(scope="module")
def real():
    return curves.real(REAL)


def _best(areas, width):
    """Start of the first window of the largest sum, every sum taken anew."""
    sums = [sum(areas[d : d + width]) for d in range(len(areas) - width + 1)]
    return sums.index(max(sums))


class TestReal:
    def test_counts(self, real):
        assert len(real.curves) == 1481 and sum(map(len, real.curves.values())) == 305_134
        assert len(real.of(2024)) == 1000 and sum(len(real.windows[scan]) for scan in real.of(2024)) == 154_851
        assert real.scans["n_slices"].max() == 951 and max(map(len, real.windows.values())) == 798

    def test_numbers_are_those_released(self, shared):
        """What is shipped, value for value beside the released files."""
        for name, start in (("scans_2025", "released_start"), ("windows_2024", "start")):
            ours, theirs = (
                pd.read_parquet(folder / f"{name}.parquet") for folder in (REAL, shared / "data/real-areas")
            )
            assert (ours["start"] == theirs[start]).all()
            assert (ours["stop"] == theirs[start.replace("start", "stop")]).all()
            pairs = zip(ours["released_draw"], theirs["released_draw"], strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
        for name in ("areas_2025", "window_areas_2024"):
            ours, theirs = (
                pd.read_parquet(folder / f"{name}.parquet") for folder in (REAL, shared / "data/real-areas")
            )
            assert (ours.to_numpy() == theirs[list(ours)].to_numpy()).all()

    def test_every_window_follows_from_the_areas(self, real):
        """All 1,481, by loops over every start; lengths and their reduction as printed in method/README.md §8."""
        ratios = []
        for scan in real.scans.query("year == 2025").itertuples():
            areas = real.curves[scan.scan_id].tolist()
            width = math.ceil(0.5 * len(areas))
            before = np.concatenate([[0], np.cumsum(areas)])
            assert scan.start == int(np.argmax(before[width:] - before[:-width])) and scan.stop == scan.start + width
            ratios.append(1 - width / len(areas))
        assert round(np.mean(ratios), 4) == 0.4975
        short = next(scan for scan in real.of(2025) if 30 < len(real.curves[scan]) < 60)
        areas = real.curves[short].tolist()
        assert real.scans.set_index("scan_id").loc[short, "start"] == _best(areas, math.ceil(len(areas) / 2))

    @pytest.mark.parametrize(("year", "scans", "equal", "repeated"), [(2025, 1476, 591, 4), (2024, 993, 633, 5)])
    def test_draws(self, real, year, scans, equal, repeated):
        """Facts H4: the largest area is never drawn from a window of 8 and more."""
        wide = real.of(year, least=8)
        table = real.scans.set_index("scan_id").loc[wide]
        assert len(wide) == scans and table["equal_areas"].sum() == equal
        drawn = [real.windows[scan][real.draws[scan]] for scan in wide]
        assert sum(part.max() == real.windows[scan].max() for part, scan in zip(drawn, wide, strict=True)) == 0
        assert not table["drew_largest"].any()
        found = sum(len(np.unique(real.draws[scan])) < len(real.draws[scan]) for scan in wide)
        assert found == table["repeated"].sum()
        # 4 and 5 draws of 8 slices repeat one.
        assert (table["repeated"] & (table["n_drawn"] == 8)).sum() == repeated

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("scans_2025", {"stop": 20_000}, "do not agree"),
            ("areas_2025", {"area": -1}, "negative area"),
            ("areas_2025", {"slice": 5}, "do not agree"),
            ("areas_2025", {"scan": 7}, "not of the same scans"),
            ("windows_2024", {"start": 92}, "do not agree"),
        ],
    )
    def test_contradictions_are_errors(self, tmp_path, name, change, message):
        shutil.copytree(REAL, tmp_path / "real")
        path = tmp_path / "real" / f"{name}.parquet"
        table = pd.read_parquet(path)
        for column, value in change.items():
            table.loc[0, column] = value
        table.to_parquet(path)
        with pytest.raises(ValueError, match=message):
            curves.real(tmp_path / "real")


class TestRules:
    def test_against_loops(self, real):
        scans = [scan for scan in real.of(2025) if len(real.curves[scan]) < 120][:40]
        table = curves.rules({scan: real.curves[scan] for scan in scans})
        for row in table.itertuples():
            areas = real.curves[row.scan_id].tolist()
            n = len(areas)
            tail = 45 if n >= 60 else 20
            left = areas[20 : n - tail] if n > 20 + tail else []
            width = math.ceil(len(left) / 2)
            start = 20 + (_best(left, width) if left else 0)
            assert (row.cut_start, row.cut_stop) == (start, start + width)
            assert row.removed == pytest.approx(1 - math.ceil(n / 2) / n)
            whole, cut = set(range(row.start, row.stop)), set(range(start, start + width))
            assert row.overlap == pytest.approx(len(whole & cut) / len(whole | cut))
            assert row.lost == pytest.approx(1 - sum(areas[k] for k in cut if k < n) / sum(areas[k] for k in whole))

    def test_empty_windows_on_patients(self, real):
        """Of 1,481 scans those of up to 40 and of 60 to 65 slices, counted without the rule."""
        table = curves.rules(real.curves)
        n = np.array([len(areas) for areas in real.curves.values()])
        assert (table["cut_stop"] == table["cut_start"]).sum() == ((n <= 40) | ((n >= 60) & (n <= 65))).sum()


class TestShapes:
    def test_a_triangle(self):
        """200 slices, a symmetric triangle over the middle half: 1 hump, closed forms for the rest."""
        areas = np.maximum(0, 1000 - 20 * np.abs(np.arange(201) - 100))
        row = curves.shapes({"a": areas}, pixels=10_000).iloc[0]
        assert (row["n_slices"], row["humps"], row["largest"]) == (201, 1, 0.1)
        assert row["width"] == pytest.approx(0.25, abs=0.02) and row["beyond"] == pytest.approx(0.55, abs=0.03)
        assert row["zero"] == pytest.approx(102 / 201) and row["skew"] == pytest.approx(0, abs=1e-9)
        assert row["in_window"] == 1.0
        window = areas[50:151]
        assert row["spread"] == pytest.approx(window.std() / window.mean(), rel=0.02)
        assert row["neighbours"] == pytest.approx(np.corrcoef(window[:-1], window[1:])[0, 1], abs=1e-3)

    def test_direction_does_not_matter(self, rng, real):
        some = {scan: real.curves[scan] for scan in real.of(2025)[::50]}
        there, back = curves.shapes(some), curves.shapes({scan: areas[::-1] for scan, areas in some.items()})
        for name in ("largest", "zero", "skew"):
            assert there[name].to_numpy() == pytest.approx(back[name].to_numpy())
        assert there["humps"].tolist() == back["humps"].tolist()

    def test_two_humps_need_a_valley(self):
        hill = np.r_[np.linspace(0, 100, 40), np.linspace(100, 0, 40)]
        assert curves.humps(np.r_[hill, hill]) == 2
        assert curves.humps(np.r_[hill, 0.05 * hill]) == 1  # too low to be one
        assert curves.humps(np.r_[hill[:75], hill[5:]]) == 2 and curves.humps(np.maximum(np.r_[hill, hill], 95)) == 1

    def test_short_and_empty_scans_have_no_shape(self):
        assert curves.shapes({"a": np.arange(7), "b": np.zeros(20)}).empty
        assert np.isnan(curves.shapes({"flat": np.full(20, 5)})["neighbours"][0])

    def test_compared_with_a_shifted_group(self, rng):
        base = pd.DataFrame({"skew": rng.normal(size=400)})
        table = curves.compared({"a": base, "b": base + 10}, "a", ["skew"]).set_index("group")
        assert table["ks"].tolist() == [0.0, 1.0]
        assert curves.compared({"a": base, "none": base[:0]}, "a", ["skew"])["group"].tolist() == ["a"]
        assert table["median"]["b"] == pytest.approx(table["median"]["a"] + 10)


def test_thinned():
    assert curves.thinned(range(100), 12).tolist() == [round(k * 9) for k in range(12)]
    assert curves.thinned(range(5), 12).tolist() == [0, 1, 2, 3, 4]
