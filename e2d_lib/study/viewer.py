"""A slice viewer: a scan's slices with crop box, lung area, window and KDS's draws, and each slice's score.

In JupyterLab a slider and the mouse wheel go through the slices, and any scan of the cohort is called by its name; an
executed notebook keeps a still picture. For a volume of your own it is one line: ``viewer.show("/path/to/ct.nii.gz")``.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from e2d_lib import progress
from e2d_lib.figures import curves
from e2d_lib.figures import images as pictures
from e2d_lib.figures.style import BLUE, ORANGE, STYLE, legend
from e2d_lib.method import kds, ssfl
from e2d_lib.method.preprocess import DEFAULT, Params
from e2d_lib.scans import readers
from e2d_lib.scans.cohort import read_cohort


@dataclass
class Viewed:
    """One scan as it is viewed, measured once (method/README.md §2 to §4).

    images: readable slices (rows, columns) uint8. scores: slice -> probability. reason: why there are no slices.
    """

    name: str
    images: Sequence[np.ndarray]
    params: Params = DEFAULT
    kds_options: Mapping[str, Any] = field(default_factory=dict)
    scores: pd.Series | None = None
    reason: str = ""

    def __post_init__(self):
        self.measured = [ssfl.measure(image, area_on=self.params.area_on) for image in self.images]
        self.areas = np.array([found.area for found in self.measured], int)
        self.start, self.stop = ssfl.slice_window(self.areas, self.params.fraction, self.params.trim)
        self.drawn = np.array([], int)
        if self.stop > self.start:
            options = {"n_samples": 8, "n_intervals": 4, "rng": 0, **self.kds_options}
            self.drawn = self.start + kds.sample(self.areas[self.start : self.stop], **options)

    @property
    def fullest(self) -> int:
        """The slice of the largest lung area."""
        return int(self.areas.argmax()) if len(self.areas) else 0


def draw(figure: Figure, scan: Viewed, index: int, note: str = "") -> None:
    """Slice ``index`` beside the scan's area curve. Names and reasons are strangers' text, and never read as markup."""
    figure.clear()
    with plt.rc_context(STYLE):
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    figure.suptitle(scan.name, fontsize=9, parse_math=False)
    figure.text(0.995, 0.995, note, ha="right", va="top", fontsize=7, color="0.45")
    if not scan.measured:
        left.axis("off")
        right.axis("off")
        left.set_title(f"nothing to show: {scan.reason}", fontsize=8, loc="left", parse_math=False)
        return
    place = "in the window" if scan.start <= index < scan.stop else "outside the window"
    drawn = ", drawn" if index in scan.drawn else ""
    pictures.show(left, scan.images[index], f"slice {index} of {len(scan.images)}, {place}{drawn}")
    pictures.mark_box(left, scan.measured[index].box)
    pictures.mark_lung(left, scan.images[index])
    curves.area_curve(right, scan.areas, scan.start, scan.stop, scan.drawn)
    right.axvline(index, color="0.6", linewidth=1)
    right.set(xlabel="slice", ylabel="lung area, pixels", title=f"lung area: {scan.areas[index]:,} pixels")
    looks: dict[str, Any] = {"crop box": pictures.BOX, "taken for lung": pictures.FOUND, "window": "#d9eaf4"}
    looks["a draw of KDS"] = {"color": ORANGE, "marker": "o", "linestyle": ""}
    if scan.scores is not None:
        twin = right.twinx()
        twin.plot(scan.scores.index, scan.scores, "x", color=BLUE, markersize=6)
        twin.set(ylim=(0, 1), ylabel="score of the slice")
        looks["score"] = {"color": BLUE, "marker": "x", "linestyle": ""}
        if index in scan.scores.index:
            right.set_title(f"lung area: {scan.areas[index]:,} pixels; score {scan.scores[index]:.3f}")
    legend(figure, looks, columns=5)


def show(
    scans: str | Path | pd.DataFrame | Mapping[str, Sequence[np.ndarray]],
    params: Params = DEFAULT,
    *,
    scores: pd.DataFrame | None = None,
    note: str = "",
    **kds_options: Any,
):
    """The viewer, where someone looks (JupyterLab, VS Code); else a picture of one scan's slice of largest lung area.

    scans: a path that `read_cohort` takes (a NIfTI file, a DICOM folder, a manifest), a cohort, or name -> slices
    (rows, columns) uint8. params: of SSFL++, as chapter 2's. scores: a row a scored slice with scan_id, index (position
    in the window), probability. note: stamped on the picture. kds_options: of `kds.sample`.

    Raises CohortError where there is nothing to read.
    """
    scans = read_cohort(scans) if isinstance(scans, str | Path) else scans
    rows = scans if isinstance(scans, Mapping) else {row["scan_id"]: row for row in scans.to_dict("records")}
    table = {} if scores is None else dict(list(scores[scores["index"] >= 0].groupby("scan_id")))

    def opened(name: str) -> Viewed:
        slices, reason = rows[name], ""
        if isinstance(slices, Mapping):  # a cohort's row
            read = readers.open_scan(slices, view=params.view)
            slices = [image for _, image in read.readable()]
            reason = "; ".join(dict.fromkeys(str(finding.reason) for finding in read.findings))
        scan = Viewed(name, slices, params, kds_options, reason=reason)
        if name in table:
            scan.scores = table[name].groupby(table[name]["index"] + scan.start)["probability"].mean()
        return scan

    scan = opened(next((name for name in rows if name in table), next(iter(rows))))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    draw(figure, scan, scan.fullest, note)
    still = BytesIO()
    figure.savefig(still, format="png", dpi=110)
    if progress.someone_looks():
        return _widget(figure, scan, list(rows), opened, note, still.getvalue())
    from IPython.display import Image

    return Image(data=still.getvalue())


def _widget(figure: Figure, scan: Viewed, names: list[str], opened, note: str, still: bytes):
    """Name, slider and the live figure; the still picture goes into the stored notebook, for where widgets are dead."""
    import ipywidgets

    backend = plt.get_backend()
    from ipympl.backend_nbagg import Canvas, FigureManager

    plt.switch_backend(backend)  # the import makes ipympl's that of all later figures

    class Box(ipywidgets.VBox):
        def _repr_mimebundle_(self, **kwargs):
            return super()._repr_mimebundle_(**kwargs) | {"image/png": b64encode(still).decode()}

    canvas = Canvas(figure)
    FigureManager(canvas, 0)
    canvas.header_visible = canvas.footer_visible = False
    canvas.toolbar_position, canvas.toolbar_visible = "right", "visible"  # it fades in over the slice else
    wide = ipywidgets.Layout(width="60%")
    name = ipywidgets.Combobox(scan.name, options=names, ensure_option=True, description="scan", layout=wide)
    slider = ipywidgets.IntSlider(scan.fullest, 0, max(len(scan.images) - 1, 0), description="slice", layout=wide)
    now = {"scan": scan}

    def paint(_=None) -> None:
        draw(figure, now["scan"], slider.value, note)
        canvas.draw_idle()

    def change(event) -> None:
        now["scan"] = chosen = opened(event["new"])
        slider.max = max(len(chosen.images) - 1, 0)
        slider.value = chosen.fullest
        paint()

    def scroll(event) -> None:
        slider.value += int(event.step)

    name.observe(change, "value")
    slider.observe(paint, "value")
    canvas.mpl_connect("scroll_event", scroll)
    canvas.capture_scroll = True
    return Box([name, slider, canvas])
