"""Atomic files: a reader sees a whole file or none."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from e2d_lib import io


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    io.write_text(path, "old")
    with pytest.raises(RuntimeError), io.replacing(path) as tmp:
        tmp.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_sorted_plain_and_refuses_nan(tmp_path):
    io.write_json(tmp_path / "a.json", {"b": np.int64(2), "a": np.arange(2), "c": tmp_path.parent / "x"})
    text = (tmp_path / "a.json").read_text()
    assert list(json.loads(text)) == ["a", "b", "c"]
    assert json.loads(text)["a"] == [0, 1]
    with pytest.raises(ValueError):
        io.write_json(tmp_path / "b.json", {"x": math.nan})
    assert not (tmp_path / "b.json").exists()


def test_tables_and_arrays_come_back_equal(tmp_path):
    table = pd.DataFrame({"label": pd.array([1, None], dtype="Int64"), "name": ["a", "b"]})
    io.write_parquet(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table, check_dtype=False)
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    io.write_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r", allow_pickle=False), array)


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": "1"}, [["a", 1]]])
def test_digest_tells_values_apart(other):
    assert io.digest({"a": 1}) != io.digest(other)


def test_a_figure_is_small_true_to_its_colours_and_the_same_twice(tmp_path, rng):
    from matplotlib.figure import Figure

    grey = rng.integers(0, 256, (64, 64))
    figure = Figure(figsize=(6, 3))
    for axis, overlaid in zip(figure.subplots(1, 2), (False, True), strict=True):
        axis.imshow(grey, cmap="gray", interpolation="nearest")
        if overlaid:  # as Grad-CAM's maps are drawn: a rainbow over greys
            axis.imshow(np.add.outer(np.arange(64), np.arange(64)), cmap="jet", alpha=0.4)
    for name in ("a.png", "b.png"):
        io.write_figure(tmp_path / name, figure)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    figure.savefig(tmp_path / "all.png", dpi=110, bbox_inches="tight")
    with Image.open(tmp_path / "a.png") as few, Image.open(tmp_path / "all.png") as whole:
        difference = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(whole.convert("RGB"), int))
    assert difference.max() <= 24  # of 255; noise has more hues than a lung
    assert (tmp_path / "a.png").stat().st_size < 0.7 * (tmp_path / "all.png").stat().st_size
