"""The slice viewer: what it says of a scan, whatever the scan is called, alive in JupyterLab and still elsewhere."""

import base64

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from e2d_lib.study import viewer
from e2d_lib.study.viewer import Viewed

EVIL = "<script>alert(1)</script> $\\frac{$ <img src=x onerror=y>"


def scan(n: int = 12, brightest: int = 7) -> list[np.ndarray]:
    """Slices of a body with one hole, which is largest at ``brightest``."""
    images = []
    for index in range(n):
        image = np.zeros((64, 64), np.uint8)
        image[8:56, 10:50] = 200
        half = max(10 - abs(index - brightest), 0)
        image[32 - half : 32 + half, 30 - half : 30 + half] = 20
        images.append(image)
    return images


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_a_scan_is_shown_with_the_window_of_most_lung_and_draws_from_inside_it():
    seen = Viewed("a", scan())
    sums = [seen.areas[start : start + 6].sum() for start in range(7)]
    assert (seen.start, seen.stop) == (int(np.argmax(sums)), int(np.argmax(sums)) + 6) and seen.fullest == 7
    assert len(seen.drawn) and all(seen.start <= index < seen.stop for index in seen.drawn)
    figure = Figure()
    viewer.draw(figure, seen, 7, "phantom data")
    left, right, *_ = figure.axes
    (box,) = left.patches
    # the 10-pixel minimum filter takes 5 rows and columns from the body's start, 4 from its end (method/README.md §2)
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (14.5, 12.5, 31, 39)
    curve = next(line for line in right.lines if len(line.get_xdata()) == 12)
    np.testing.assert_array_equal(curve.get_ydata(), seen.areas)
    said = texts(figure)
    assert any("slice 7 of 12, in the window" in text for text in said) and "phantom data" in said
    assert f"lung area: {seen.areas[7]:,} pixels" in said


def test_scores_stand_at_their_slices_and_several_draws_of_one_are_averaged(monkeypatch):
    drawn = []
    monkeypatch.setattr(viewer, "draw", lambda figure, scan, index, note="": drawn.append(scan))
    rows = [("b", 0, 0.25), ("b", 0, 0.75), ("b", 3, 0.9), ("b", -1, 0.1)]
    scores = pd.DataFrame(rows, columns=["scan_id", "index", "probability"])
    viewer.show({"a": scan(), "b": scan()}, scores=scores)
    (seen,) = drawn
    assert seen.name == "b"  # the first with a score
    assert seen.scores.to_dict() == {seen.start: 0.5, seen.start + 3: 0.9}
    monkeypatch.undo()
    figure = Figure()
    viewer.draw(figure, seen, seen.start + 3)
    assert any("score 0.900" in text for text in texts(figure))


@pytest.mark.parametrize("images", [scan(), []], ids=["read", "unreadable"])
def test_a_name_or_reason_from_a_strangers_file_is_only_text(images):
    figure = Figure()
    viewer.draw(figure, Viewed(EVIL, images, reason=EVIL), 0)
    figure.canvas.draw()  # as mathtext it would raise
    assert EVIL in texts(figure)
    assert bool(images) or f"nothing to show: {EVIL}" in texts(figure)


def test_elsewhere_than_in_jupyterlab_it_is_a_picture(monkeypatch):
    monkeypatch.delenv("E2D_PROGRESS", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("VSCODE_PID", raising=False)
    assert viewer.show({"a": scan()}).data.startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:Passing unrecognized arguments to super.Toolbar")  # within ipympl
def test_in_jupyterlab_slider_and_name_change_what_is_drawn_and_a_still_is_stored(monkeypatch):
    monkeypatch.delenv("E2D_PROGRESS", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/x.ipynb")
    backend = plt.get_backend()
    box = viewer.show({EVIL: scan(), "b": scan(20, 15)})
    assert plt.get_backend() == backend == "agg"  # later figures of the notebook stay pictures
    name, slider, canvas = box.children
    assert name.options == (EVIL, "b") and (slider.value, slider.max) == (7, 11)
    slider.value = 3
    assert any("slice 3 of 12" in text for text in texts(canvas.figure))
    name.value = "b"
    assert (slider.value, slider.max) == (15, 19)
    assert any("slice 15 of 20" in text for text in texts(canvas.figure))
    bundle = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_a_volume_of_ones_own_is_one_line(tmp_path):
    import nibabel as nib

    hu = np.full((40, 40, 6), -1000, np.int16)
    hu[5:35, 5:35] = 40
    nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "ct.nii.gz")
    assert viewer.show(tmp_path / "ct.nii.gz").data.startswith(b"\x89PNG")
