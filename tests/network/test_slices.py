"""ScanSlices, the draw of a scan's slices, few-shot fractions, batched augmentation."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from e2d_lib.network import slices
from e2d_lib.network.augment import Augmentation
from e2d_lib.network.slices import (
    UNKNOWN,
    DatasetError,
    ScanSlices,
    ahead,
    draw,
    few_shot,
    stream,
)

CPU = torch.device("cpu")
STILL = Augmentation(flip_p=0, affine_p=0, value_p=0, light_p=0, holes_p=0)


def arrays(rng, widths=(9, 3, 12), size=6):
    return [rng.integers(0, 256, (width, size, size), dtype=np.uint8) for width in widths]


def slices_of(images, **options):
    areas = [np.arange(len(image)) * 10 for image in images]
    labels = [k % 2 for k in range(len(images))]
    return ScanSlices.from_arrays(images, areas, labels, [f"scan {k}" for k in range(len(images))], **options)


class TestScanSlices:
    @pytest.mark.parametrize("resident", [True, False])
    def test_gathers_the_slices_asked_for(self, rng, resident):
        images = arrays(rng)
        slices = slices_of(images, resident=resident)
        wanted = [(2, 11), (0, 0), (1, 2), (0, 8), (2, 0)]
        flat = np.array([slices.starts[scan] + k for scan, k in wanted])
        got = slices.gather(flat, CPU)
        assert got.dtype == torch.uint8
        np.testing.assert_array_equal(got[:, 0], np.stack([images[scan][k] for scan, k in wanted]))

    @pytest.mark.parametrize("resident", [True, False])
    def test_subset_keeps_order_and_shares_pixels(self, rng, resident):
        images = arrays(rng)
        slices = slices_of(images, resident=resident)
        part = slices.subset([2, 0])
        assert part.scan_ids == ("scan 2", "scan 0")
        assert part.pixels is slices.pixels
        np.testing.assert_array_equal(part.gather(part.starts + 1, CPU)[:, 0], [images[2][1], images[0][1]])
        np.testing.assert_array_equal(part.areas[0], np.arange(12) * 10)
        assert slices.subset(np.array([False, True, False])).scan_ids == ("scan 1",)

    def test_reads_memory_maps_without_loading_them(self, rng, tmp_path):
        image = arrays(rng, widths=(4,))[0]
        np.save(tmp_path / "scan.npy", image)
        mapped = np.load(tmp_path / "scan.npy", mmap_mode="r")
        slices = slices_of([mapped], resident=False)
        assert isinstance(slices.pixels[0], np.memmap)
        np.testing.assert_array_equal(slices.gather(np.array([3, 3]), CPU)[:, 0], image[[3, 3]])
        np.testing.assert_array_equal(slices_of([mapped], resident=True).pixels, image)

    def test_from_preprocessed_leaves_out_the_excluded(self, rng):
        images = arrays(rng, widths=(5, 6))
        cache = SimpleNamespace(
            scans=pd.DataFrame(
                {
                    "scan_id": ["bad", "b", "a"],
                    "status": ["excluded", "warned", "kept"],
                    "n_slices": [0, 12, 10],
                }
            ),
            pixels={"a": images[0], "b": images[1]}.__getitem__,
            areas={"a": np.ones(5), "b": np.ones(6)}.__getitem__,
        )
        rows = pd.DataFrame({"scan_id": ["a", "bad", "b"], "label": pd.array([1, 0, None], dtype="Int64")})
        slices = ScanSlices.from_preprocessed(cache, rows)
        assert slices.scan_ids == ("a", "b")
        assert slices.labels.tolist() == [1, UNKNOWN]
        assert slices.n_slices.tolist() == [10, 12]
        assert slices.widths.tolist() == [5, 6]
        with pytest.raises(DatasetError, match="not in the preprocessing cache, the first is 'c'"):
            ScanSlices.from_preprocessed(cache, pd.DataFrame({"scan_id": ["c"]}))

    def test_refuses_what_does_not_fit_together(self, rng):
        images = arrays(rng)
        with pytest.raises(ValueError, match="shorter than"):
            ScanSlices.from_arrays(images, [np.ones(9)], [0, 1, 0], ["a", "b", "c"])
        with pytest.raises(ValueError, match="longer than"):
            ScanSlices.from_arrays(images[:1], [np.ones(9)], [0, 1], ["a"])
        with pytest.raises(DatasetError, match="a: 9 slices but 8 areas"):
            ScanSlices.from_arrays(images[:1], [np.ones(8)], [0], ["a"])
        with pytest.raises(DatasetError, match="one S for all scans"):
            slices_of([images[0], np.zeros((3, 7, 7), np.uint8)])
        with pytest.raises(DatasetError, match=r"must be uint8.*float64"):
            slices_of([np.zeros((3, 7, 7))])
        with pytest.raises(DatasetError, match="must be uint8"):
            slices_of([np.zeros((3, 7, 8), np.uint8)])

    def test_an_empty_window_has_no_slice_but_a_place(self, rng):
        images = [np.zeros((0, 6, 6), np.uint8), *arrays(rng, widths=(4,))]
        slices = slices_of(images)
        assert slices.widths.tolist() == [0, 4]
        np.testing.assert_array_equal(slices.gather(slices.starts[1:], CPU)[0, 0], images[1][0])


class TestDraw:
    def test_wide_windows_give_distinct_sorted_positions(self, rng):
        areas = rng.integers(100, 1000, 40)
        drawn = draw(areas, rng=rng)
        assert drawn.tolist() == sorted(set(drawn.tolist()))
        assert len(drawn) == 8 and drawn.min() >= 0 and drawn.max() < 40

    @pytest.mark.parametrize("width", range(1, 8))
    def test_short_windows_repeat_evenly(self, rng, width):
        drawn = draw(rng.integers(100, 1000, width), rng=rng)
        times = np.bincount(drawn, minlength=width)
        assert times.sum() == 8 and times.min() >= 1 and times.max() - times.min() <= 1

    @pytest.mark.parametrize(("width", "blank"), [(0, True), (1, True), (7, True), (8, True), (9, False)])
    def test_released_short_windows_are_blank(self, rng, width, blank):
        areas = rng.permutation(np.arange(1, width + 1)) * 37
        drawn = draw(areas, short_scans="blank_zero", variant="released", rng=rng)
        assert len(drawn) == 8
        assert (drawn == slices.BLANK).all() == blank

    def test_released_draws_that_fall_short_end_in_blanks(self, rng, monkeypatch):
        monkeypatch.setattr(slices.kds, "sample", lambda *a, **k: np.array([1, 3, 4, 6, 7, 8]))
        assert draw(np.ones(20), short_scans="blank_zero", rng=rng).tolist() == [1, 3, 4, 6, 7, 8, -1, -1]
        assert draw(np.ones(20), rng=rng).tolist() == [1, 1, 3, 3, 4, 6, 7, 8]

    def test_an_empty_window_is_an_error_unless_blank(self, rng):
        with pytest.raises(DatasetError, match="empty window"):
            draw(np.array([], dtype=int), rng=rng)

    def test_the_number_of_slices_is_free(self, rng):
        assert len(draw(np.arange(50), n_samples=16, n_intervals=8, rng=rng)) == 16


class TestStream:
    def test_depends_on_its_keys_alone(self):
        first = stream(1, "draw", 2, "scan").random(3)
        stream(1, "other").random(100)
        np.testing.assert_array_equal(stream(1, "draw", 2, "scan").random(3), first)

    def test_every_key_matters(self):
        keys = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, 1, "a")]
        assert len({stream(*key).random() for key in keys}) == len(keys)


class TestFewShot:
    names = tuple(f"s{k:03d}" for k in range(100))
    labels = np.array([1] * 30 + [0] * 70)

    def test_nested_and_stratified(self):
        before: set[int] = set()
        for fraction in (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 1.0):
            rows = few_shot(self.names, self.labels, fraction, seed=3)
            counts = np.bincount(self.labels[rows], minlength=2).tolist()
            assert counts == [math.ceil(round(70 * fraction, 6)), math.ceil(round(30 * fraction, 6))]
            assert before < set(rows.tolist()) and len(set(rows.tolist())) == len(rows)
            before = set(rows.tolist())

    def test_does_not_depend_on_the_order_of_the_scans(self, rng):
        order = rng.permutation(100)
        rows = few_shot(self.names, self.labels, 0.1)
        mixed = few_shot([self.names[k] for k in order], self.labels[order], 0.1)
        assert {self.names[k] for k in rows} == {self.names[order[k]] for k in mixed}

    def test_seeds_differ(self):
        chosen = {tuple(few_shot(self.names, self.labels, 0.1, seed=seed)) for seed in range(5)}
        assert len(chosen) == 5

    @pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
    def test_refuses_other_fractions(self, fraction):
        with pytest.raises(DatasetError, match=r"lies in \(0, 1\]"):
            few_shot(self.names, self.labels, fraction)


class TestAhead:
    def test_keeps_order(self):
        assert list(ahead(range(20))) == list(range(20))
        assert list(ahead([])) == []

    def test_makes_the_next_item_while_the_caller_works(self):
        made = [threading.Event() for _ in range(3)]

        def items():
            for k, event in enumerate(made):
                event.set()
                yield k

        coming = ahead(items())
        assert next(coming) == 0
        assert made[1].wait(timeout=10)
        assert not made[2].is_set()
        coming.close()

    def test_errors_reach_the_caller(self):
        def items():
            yield 1
            raise DatasetError("broken scan")

        coming = ahead(items())
        assert next(coming) == 1
        with pytest.raises(DatasetError, match="broken scan"):
            next(coming)


def grey(value, n=4, size=24):
    return torch.full((n, 1, size, size), value, dtype=torch.uint8)
