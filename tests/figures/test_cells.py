"""Figures that a chapter's cell draws: lines, bars, bands and colours hold the numbers, and the words say which."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from e2d_lib.evaluation import sampling
from e2d_lib.figures import images
from e2d_lib.scans.readers import SliceError
from tests import cells, reference
from tests.figures import artists
from tests.figures.artists import APART
from tests.figures.test_images import body, box_of, overlay, taken_for_lung
from tests.figures.test_intervals import NAN, assert_in_words, estimates, of, of_marks, panels

C1, C2, C3, C4 = "01_data_exploration", "02_ssflpp_preprocessing", "03_reduction_statistics", "04_training"
C5, C6, C7 = "05_evaluation", "06_ablations", "07_generalizability"


def near(expected):
    return pytest.approx(expected, nan_ok=True)


def drawn(stem, name, /, *before, **given):
    """The figure that a chapter's cell saves under this name."""
    return cells.run(stem, *before, f'save_figure("{name}"', **given).chapter.figures[name]


# Chapters 1 and 2 --------------------------------------------------------------------------------------------------


def test_slice_counts():
    scans = pd.DataFrame(
        {
            "n_slices": [20, 24, 31, 44, 50, 20],
            "label": pd.array([0, 1, 1, 0, 1, pd.NA], "Int64"),
            "source": ["B", "A", "A", "B", "", "A"],
        }
    )
    figure = drawn(C1, "slices_per_scan", scans=scans)
    left, right = figure.axes
    colours = artists.legend_colours(figure)
    for label, values in {"negative": [20, 44], "positive": [24, 31, 50], "unlabeled": [20]}.items():
        own = [bar for bar in artists.bars(left) if bar[4] == colours[label] and bar[3] > 0]
        counted = {value: next(b[3] for b in own if b[0] <= value < b[0] + b[2] + 1e-6) for value in values}
        assert counted == dict.fromkeys(values, 1) and sum(bar[3] for bar in own) == len(values)
    assert artists.told_apart(list(colours.values())) > APART
    assert (left.get_xlabel(), left.get_ylabel()) == ("slices in the scan", "scans")
    names = [tick.get_text() for tick in right.get_yticklabels()]
    assert names == ["A", "B", "unknown"] and right.get_xlabel() == "slices in the scan"
    assert right.yaxis_inverted()
    for place, values in zip(right.get_yticks(), ([20, 24, 31], [20, 44], [50]), strict=True):
        upright = {
            x[0]
            for x, y, *_ in ((l.get_xdata(), l.get_ydata()) for l in right.lines)  # noqa: E741
            if len(x) == 2 and x[0] == x[1] and abs(np.mean(y) - place) < 0.3
        }
        assert {min(values), float(np.median(values)), max(values)} <= upright


def test_intensities():
    """Of three middle slices of two sources: the shares of their pixels, all of a source's together."""
    pictures = {"A": [[0, 80], [0, 0]], "": [[200, 80], [80, 80]]}
    middle = [({"source": source}, np.uint8(pictures[source])) for source in ("A", "", "A")]
    figure = drawn(C1, "intensities", middle_slices=lambda n: middle[:n])
    (axis,) = figure.axes
    by_colour = {colour: dict(zip(x, y, strict=True)) for x, y, colour, _ in artists.lines(axis)}
    colours = artists.legend_colours(figure)
    of_a, of_unknown = (by_colour[colours[name]] for name in ("A", "unknown"))
    assert of_a == near(dict.fromkeys(range(256), 0) | {0: 0.75, 80: 0.25})
    assert of_unknown == near(dict.fromkeys(range(256), 0) | {80: 0.75, 200: 0.25})
    assert artists.crossing(axis)[0] == [100]  # the method's threshold
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ("grey value", "share of pixels", "log")


def test_middle_slices_come_in_turn_from_every_source_and_class():
    sources = ["a"] * 4 + ["b"] * 2
    cohort = pd.DataFrame({"scan_id": range(6), "source": sources, "label": pd.array([1, 1, 0, None, 1, 1], "Int64")})

    class Scan(list):
        def read(self, k):
            if self[k] is None:
                raise SliceError("broken")
            return self[k]

    scans = {0: Scan("xyz"), 1: Scan("uvw"), 2: Scan("pq"), 3: Scan([1, None]), 4: Scan([5]), 5: Scan()}
    shown = SimpleNamespace(slices=lambda images, names: (images, names))
    given = {"cohort": cohort, "open_scan": lambda row: scans[row["scan_id"]], "images": shown}
    left = cells.run(C1, "def middle_slices", **given)
    assert left.chapter.figures["examples"] == (["q", "y", 5, "v"], [2, 0, 4, 1])  # an empty and a broken one less
    assert [image for _, image in left.middle_slices(2)] == ["q", "y"]


def test_ssfl_steps():
    image = body()
    scan = SimpleNamespace(names=["no", "yes"], read=lambda k: [None, image][k])
    scans = pd.DataFrame({"scan_id": list("abc"), "status": "kept"})
    boxed = {"area": 1, "name": "no"}
    slices = pd.DataFrame([{"scan_id": one, **boxed} for one in "abc"] + [{"scan_id": "b", "area": 9, "name": "yes"}])
    reduced = pd.DataFrame({"scan_id": list("cab"), "total_delta": [0.9, 0.1, 0.5], "area_delta": [0.6, 0.2, 0.4]})
    given = {
        "done": SimpleNamespace(scans=scans, slices=slices),
        "reduction": SimpleNamespace(total_reduction=lambda slices, scans: reduced),
        "readers": SimpleNamespace(open_scan=lambda row, view: {"b": scan}[row["scan_id"]]),
        "cohort": pd.DataFrame({"scan_id": list("abc")}),
    }
    chapter = cells.run(C2, 'save_figure("spatial_step"', **given).chapter
    boxed, foreground, lung, cropped = chapter.figures["spatial_step"].axes
    row0, row1, col0, col1 = reference.crop_box(image)
    np.testing.assert_array_equal(boxed.images[0].get_array(), image)
    assert box_of(boxed) == (row0, row1, col0, col1)
    np.testing.assert_array_equal(foreground.images[0].get_array() > 0, reference.foreground(image, 10))
    np.testing.assert_array_equal(cropped.images[0].get_array(), image[row0:row1, col0:col1])
    covered, values = overlay(lung.images[1])
    np.testing.assert_array_equal(covered, taken_for_lung(image))
    assert values[covered].all()
    removed = 1 - (row1 - row0) * (col1 - col0) / image.size
    assert boxed.get_title() == f"slice, 64×80: {removed:.0%} of the area removed"
    assert lung.get_title() == f"lung area: {reference.lung_area(image):,} pixels"
    assert cropped.get_title() == f"the crop, {row1 - row0}×{col1 - col0}"
    assert foreground.get_title() == "10×10 minimum filter ≥ 100"
    assert "removes 40% of this" in chapter.said[0] and "below, 50% of its" in chapter.said[0]  # the scan in the middle


def test_mean_area_curve():
    areas = {
        "a": np.array([5, 1, 0]),
        "b": np.array([0, 4, 2]),
        "c": np.array([9, 9, 9]),
        "d": np.array([2, 4, 4]),
        "e": np.array([1, 1, 1]),
    }  # of their peaks, b to d: 0 1 ½, 1 1 1, ½ 1 1
    kept, cohort = pd.DataFrame({"scan_id": list("bacd")}), pd.DataFrame({"scan_id": list("abcde")})
    given = {"areas": areas, "kept": kept, "cohort": cohort.assign(label=pd.array([0, 1, 1, 1, 0], "Int64"))}
    figure = drawn(C2, "mean_area_curve", **given)
    (axis,) = figure.axes
    colours = artists.legend_colours(figure)
    assert list(colours) == ["negative (n = 1)", "positive (n = 3)"]
    lines = {colour: dict(zip(np.round(x, 9), y, strict=True)) for x, y, colour, _ in artists.lines(axis)}
    thirds = {name: [lines[colours[name]][x] for x in (0, 0.5, 1)] for name in colours}
    assert thirds["negative (n = 1)"] == near([1, 0.2, 0]) and thirds["positive (n = 3)"] == near([0.5, 1, 1])
    bands = {to_hex(band.get_facecolor()[0]): band.get_paths()[0].vertices for band in axis.collections}
    corners = {tuple(np.round(corner, 9)) for corner in bands[colours["positive (n = 3)"]]}
    assert {(0, 0.25), (0, 0.75), (0.5, 1), (1, 0.75), (1, 1)} <= corners  # the middle half
    assert axis.get_xlabel() == "position in the scan"
    assert axis.get_ylabel() == "lung area, share of the scan's largest"
    assert artists.told_apart(list(colours.values())) > APART


AREAS = np.array([10, 14, 19, 33, 48, 61, 77, 78, 90, 96, 97, 99, 60, 41, 12, 30])


def drawn_samplers():
    kept = pd.DataFrame({"scan_id": ["short", "long"], "start": [0, 9], "stop": [8, 25]})
    done = SimpleNamespace(areas={"long": AREAS}.get)
    given = {"kept": kept, "done": done, "n_samples": 6, "n_intervals": 3, "seed": 1}
    return drawn(C2, "samplers", "one, often = ", **given)


def test_samplers_hold_density_edges_draws_and_shares():
    panels = {}
    for axis in drawn_samplers().axes:  # each method's density, draw, and shares behind it
        name = axis.get_title().partition(":")[0]
        panels.setdefault(name.lower() or "shares", []).append(axis)
    grid, pdf, _ = reference.kds_cdf(AREAS.tolist())
    edges = {
        "random": [],
        "systematic": reference.systematic_edges(AREAS, 3),
        "kds": reference.kds_edges(AREAS.tolist(), 3),
    }
    for k, (method, own_edges) in enumerate(edges.items()):
        density, draw = panels[method]
        ((x, y, *_),) = [line for line in artists.lines(density) if len(line[0]) == 100]
        np.testing.assert_allclose([x, y], [grid, pdf], rtol=1e-6)
        assert artists.crossing(density)[0] == near(own_edges)
        areas = [span[0] for span in artists.spans(density)]  # the rug
        marks = artists.marks(draw)
        assert len(marks) == 6 and all(AREAS[int(x)] == y for x, y, *_ in marks)
        assert sorted(areas) == near(sorted(y for _, y, *_ in marks))
        ((x, y, *_),) = [line for line in artists.lines(draw) if len(line[0]) == len(AREAS)]
        np.testing.assert_array_equal([x, y], [range(16), AREAS])
        expected = np.full(16, 6 / 16)
        if method != "random":
            groups = reference.members(AREAS, own_edges, last_closed=True)
            for group, quota in zip(groups, reference.quotas([len(g) for g in groups], 6), strict=True):
                expected[group] = quota / len(group)
        heights = [bar[3] for bar in artists.bars(panels["shares"][k])]
        assert sum(heights) == near(6)
        np.testing.assert_allclose(heights, expected, atol=5 * np.sqrt(0.25 / 400))
        assert panels["shares"][k].get_ylabel() == "mean of 400 draws" and draw.get_ylabel() == "lung area, pixels"
        assert draw.get_zorder() > panels["shares"][k].get_zorder() and draw.get_facecolor()[3] == 0
    assert panels["kds"][1].get_xlabel() == "slice in the window"
    assert panels["kds"][0].get_xlabel() == "lung area, pixels" and panels["kds"][0].get_ylabel() == "density"


def test_samplers_say_what_is_what():
    figure = drawn_samplers()
    colours = artists.legend_colours(figure)
    density, draw = figure.axes[2], figure.axes[3]  # of the systematic draw, which has edges
    assert {mark[2] for mark in artists.marks(draw)} == {colours["one draw"]}
    edges = {to_hex(line.get_color()) for line in density.lines if line.get_linestyle() == "--"}
    assert edges == {colours["edges of the intervals"]}
    assert artists.told_apart([colours["one draw"], colours["edges of the intervals"]]) > APART
    artists.assert_legend_apart(figure)


# Chapters 3 and 4 --------------------------------------------------------------------------------------------------


def test_reduction_comparison():
    table = pd.DataFrame(
        {
            "row": ["Training", "Total"] * 2,
            "quantity": ["area_delta"] * 2 + ["length_delta"] * 2,
            "published": [0.41, 0.42, 0.48, 0.49],
            "measured": [0.46, NAN, 0.51, 0.52],
            "low": [0.44, NAN, 0.50, 0.51],
            "high": [0.47, NAN, 0.53, 0.55],
        }
    )
    figure = drawn(C3, "comparison", deltas=table)
    colours = artists.legend_colours(figure)
    titles = ["area removed, share of the slice", "slices removed, share of the scan"]
    for axis, title, (_, part) in zip(panels(figure), titles, table.groupby("quantity", sort=False), strict=True):
        assert axis.get_title() == title
        published, measured = (of_marks(axis, colours[name]) for name in ("published", "measured here"))
        assert published == list(zip(part["row"], part["published"], strict=True))
        part = part.dropna()
        assert measured == list(zip(part["row"], part["measured"], strict=True))
        ends = [span[:1] + span[2:3] for span in artists.spans(axis) if span[4] == colours["measured here"]]
        assert ends == list(zip(part["low"], part["high"], strict=True)) and len(artists.spans(axis)) == len(part)
    assert artists.told_apart(list(colours.values())) > APART
    assert_in_words(figure)


def test_learning_curves():
    history = pd.DataFrame(
        {
            "run": ["a", "a", "b", "b"],
            "epoch": [1, 2, 1, 2],
            "loss": [0.9, 0.7, 0.8, 0.5],
            "valid_loss": [0.95, 0.85, 0.75, 0.65],
            "valid_auc": [0.5, 0.6, 0.7, 0.8],
            "valid_f1": [0.33, 0.44, 0.55, 0.66],
        }
    )
    learning_curves = cells.run(C4, "def learning_curves").learning_curves
    figure = learning_curves(history)
    colours = artists.legend_colours(figure)
    loss, auc, f1 = figure.axes
    assert "training (dotted), validation (solid)" in loss.get_title()
    lines = {(colour, style): list(y) for x, y, colour, style in artists.lines(loss) if list(x) == [1, 2]}
    assert lines == {
        (colours["a"], ":"): [0.9, 0.7], (colours["a"], "-"): [0.95, 0.85],
        (colours["b"], ":"): [0.8, 0.5], (colours["b"], "-"): [0.75, 0.65],
    }  # fmt: skip
    for axis, column, name in ((auc, "valid_auc", "validation ROC AUC"), (f1, "valid_f1", "validation macro F1")):
        lines = {colour: list(y) for _, y, colour, _ in artists.lines(axis)}
        assert lines == {colours[run]: list(own[column]) for run, own in history.groupby("run")}
        assert axis.get_ylabel() == name and axis.get_xlabel() == "epoch"
    artists.assert_legend_apart(figure)
    many = pd.concat([history.assign(run=history["run"] + str(k)) for k in range(5)])
    assert not artists.legends(learning_curves(many))  # ten runs are more than a legend tells apart


# Chapter 5 ---------------------------------------------------------------------------------------------------------


def test_metrics():
    rows = [("macro_f1", 0.77, 0.64, 0.88), ("roc_auc", 0.92, 0.75, 0.97), ("brier", 0.17, 0.13, 0.21)]
    table = pd.DataFrame(rows, columns=["metric", "value", "low", "high"])
    both = pd.concat([table.assign(at="0.5"), table[:1].assign(value=0.81, low=0.7, high=0.9, at="chosen")])
    scoring = SimpleNamespace(at_thresholds=lambda *_, **__: both)
    figure = drawn(C5, "metrics", scoring=scoring, main=None, scan_scores=pd.DataFrame({"label": [0, 1]}))
    colours = artists.legend_colours(figure)
    up, down = panels(figure)
    assert (up.get_title(), down.get_title()) == ("higher is better", "lower is better")
    given = [row[:4] for axis in (up, down) for row in of(axis, colours["threshold 0.5"])]
    assert given == [("macro F1", *rows[0][1:]), ("ROC AUC", *rows[1][1:]), ("Brier score", *rows[2][1:])]
    assert [row[:4] for row in of(up, colours["threshold chosen"])] == [("macro F1", 0.81, 0.7, 0.9)]
    assert artists.told_apart(list(colours.values())) > APART
    assert_in_words(figure)


def test_few_shot():
    table = pd.DataFrame({"fraction": [0.1, 1.0], "value": [0.6, 0.9], "low": [0.5, 0.85], "high": [0.72, 0.97]})
    runs = pd.DataFrame({"fraction": [0.1, 0.1, 1.0], "value": [0.55, 0.65, 0.91], "low": 0.1, "high": 0.99})
    figure = drawn(C5, "few_shot", pooled_auc=table, single_auc=runs, untrained=[])
    (axis,) = panels(figure)
    colours = artists.legend_colours(figure)
    assert of_marks(axis, colours["single runs"]) == [("10 %", 0.55), ("10 %", 0.65), ("100 %", 0.91)]
    assert of_marks(axis, colours["all folds, seeds"]) == [("10 %", 0.6), ("100 %", 0.9)]
    assert [(s[0], s[2], s[4]) for s in artists.spans(axis)] == [
        (0.5, 0.72, colours["all folds, seeds"]), (0.85, 0.97, colours["all folds, seeds"])
    ]  # fmt: skip
    assert axis.get_ylabel() == "share of the training scans" and axis.get_xlabel().startswith("validation ROC AUC")
    assert artists.crossing(axis)[0] == [0.5]
    artists.assert_legend_apart(figure)
    alone = drawn(C5, "few_shot", pooled_auc=table, single_auc=runs[1:], untrained=[])
    assert not artists.legends(alone)  # one run a share: nothing to tell apart


def test_differences():
    table = pd.DataFrame(
        [
            ("roc_auc", "", 0.217, 0.046, 0.388, 0.0127),
            ("accuracy", "0.5", -0.11, -0.26, 0.04, NAN),
            ("macro_f1", "chosen", 0.27, 0.11, 0.44, 0.003),
        ],
        columns=["metric", "at", "difference", "low", "high", "p_value"],
    )
    asked = []
    scoring = SimpleNamespace(paired=lambda few, main, **options: asked.append((few, main, options)) or table)
    given = {"scores": pd.DataFrame({"fraction": [0.1, 1.0]}), "few": "few", "main": "main", "options": {"seed": 3}}
    figure = drawn(C5, "comparison", scoring=scoring, name="all less 10 %", **given)
    (axis,) = panels(figure)
    assert [row[:4] for row in artists.rows(axis)] == [
        ("ROC AUC (p = 0.013)", 0.217, 0.046, 0.388),
        ("accuracy at 0.5 (no test)", -0.11, -0.26, 0.04),
        ("macro F1 at chosen (p = 0.003)", 0.27, 0.11, 0.44),
    ]
    assert artists.crossing(axis)[0] == [0] and asked == [("few", "main", {"seed": 3})]
    assert axis.get_title() == "all less 10 %" and axis.get_xlabel() == "difference, 95 % interval"


def test_aggregations():
    table = pd.DataFrame(
        [
            ("mean", "0.5", "macro_f1", 0.77, 0.64, 0.88),
            ("topk", "0.5", "macro_f1", 0.71, 0.6, 0.8),
            ("mean", "chosen", "macro_f1", 0.81, 0.7, 0.9),
            ("topk", "chosen", "macro_f1", 0.79, 0.66, 0.86),
            ("mean", "0.5", "brier", 0.12, 0.1, 0.2),
            ("topk", "0.5", "brier", 0.14, 0.11, 0.19),
        ],
        columns=["aggregation", "at", "metric", "value", "low", "high"],
    )
    figure = drawn(C5, "aggregations", aggregations=table, against_mean=None)
    colours = artists.legend_colours(figure)
    titles = {"macro_f1": "macro F1", "brier": "Brier score (lower is better)"}
    for axis, (metric, title) in zip(panels(figure), titles.items(), strict=True):
        assert axis.get_title() == title and axis.get_xlabel() == "value, 95 % interval"
        for cut, own in table[table["metric"] == metric].groupby("at"):
            found = of(axis, colours[f"threshold {cut}"])
            assert [row[1:4] for row in found] == estimates(own)
            assert [row[0] for row in found] == ["mean", "mean of the largest"]
            assert {row[5] for row in found} == {cut == "0.5"}  # filled at the given, hollow at the chosen
    assert artists.told_apart(list(colours.values())) > APART
    assert_in_words(figure)


def test_roc_and_pr():
    labels = np.array([0, 0, 1, 1, 1])
    scores = {"all": np.array([0.1, 0.4, 0.35, 0.8, 0.9]), "10 %": np.array([0.6, 0.3, 0.2, 0.5, 0.1])}
    figure = drawn(C5, "roc_pr", labels=labels, by_share=scores)
    roc, pr = figure.axes
    # by hand: sorted by score, each positive is a step up, each negative a step to the right
    third = 1 / 3
    corners = {
        "all": [(0, 0), (0, 2 * third), (0.5, 2 * third), (0.5, 1), (1, 1)],
        "10 %": [(0, 0), (0.5, 0), (0.5, third), (1, third), (1, 1)],
    }
    between = {"all": (0, third), "10 %": (1, 2 * third)}  # on the way, and drawn or not
    area = {"all": 5 / 6, "10 %": 1 / 6}
    precision = {
        "all": {(third, 1), (2 * third, 1), (2 * third, 2 / 3), (1, 3 / 4)},
        "10 %": {(third, 1 / 2), (third, 1 / 3), (2 * third, 2 / 4), (1, 3 / 5)},
    }
    average = {"all": (1 + 1 + 3 / 4) / 3, "10 %": (1 / 2 + 2 / 4 + 3 / 5) / 3}
    legend = artists.legend_colours(figure)
    in_roc = {colour: list(zip(x, y, strict=True)) for x, y, colour, _ in artists.lines(roc)}
    in_pr = {colour: set(zip(np.round(x, 9), np.round(y, 9), strict=True)) for x, y, colour, _ in artists.lines(pr)}
    for name in scores:
        colour = legend[f"{name}: ROC AUC {area[name]:.3f}, average precision {average[name]:.3f}"]
        points = [point for point in in_roc[colour] if point != near(between[name])]
        np.testing.assert_allclose(points, corners[name])
        assert {(round(x, 9), round(y, 9)) for x, y in precision[name]} <= in_pr[colour]
    assert artists.crossing(pr)[1] == [0.6]  # what a constant score reaches
    assert (roc.get_xlabel(), roc.get_ylabel()) == ("1 − specificity", "sensitivity")
    assert (pr.get_xlabel(), pr.get_ylabel()) == ("sensitivity", "precision")
    artists.assert_legend_apart(figure)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_curve(label):
    figure = drawn(C5, "roc_pr", labels=np.full(4, label), by_share={"run": np.linspace(0, 1, 4)})
    assert [axis.texts[0].get_text() for axis in figure.axes] == ["one class only: no curve"] * 2


def test_scores_by_source():
    table = pd.DataFrame({"label": [0, 1, 1, 0], "source": ["B", "B", "", "A"]})
    given = {"scan_scores": table, "probabilities": np.array([0.2, 0.9, 0.6, 0.7]), "threshold": 0.4}
    scoring = SimpleNamespace(by_group=lambda *_, **__: None)
    figure = drawn(C5, "by_source", scoring=scoring, main=None, options={}, **given)
    (axis,) = panels(figure)
    colours = artists.legend_colours(figure)
    assert of_marks(axis, colours["negative"]) == [("A", 0.7), ("B", 0.2)]
    assert of_marks(axis, colours["positive"]) == [("B", 0.9), ("unknown", 0.6)]
    assert artists.crossing(axis)[0] == [0.4] and axis.get_xlim() == (-0.03, 1.03)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("scan probability", "source")
    assert artists.told_apart(list(colours.values())) > APART
    artists.assert_legend_apart(figure)


def test_errors_show_the_slice_and_its_map(rng):
    images = {f"scan {k}": rng.integers(0, 256, (4, 6, 6), dtype=np.uint8) for k in range(6)}
    heat = {k: rng.random((6, 6)) for k in range(1, 7)}  # of more errors than fit into a row
    table = pd.DataFrame({"scan_id": list(images), "index": [0, 3, 1, 2, 2, 0]}, index=list(heat))
    table = table.assign(error="false positive", probability=0.9, slice_probability=0.95)
    figure = drawn(C5, "worst_errors", shown=table, heat=heat, done=SimpleNamespace(pixels=images.get))
    panels = [axis for axis in figure.axes if axis.images]
    plain = [axis for axis in panels if len(axis.images) == 1]
    mapped = [axis for axis in panels if len(axis.images) == 2]
    words = "false positive: p = 0.90, slice 0.95"
    assert [axis.get_title() for axis in plain] == [f"{name}\n{words}" for name in images]
    for number, above, below in zip(table.index, plain, mapped, strict=True):
        image = images[table.loc[number, "scan_id"]][table.loc[number, "index"]]
        np.testing.assert_array_equal(above.images[0].get_array(), image)
        np.testing.assert_array_equal(below.images[0].get_array(), image)
        np.testing.assert_array_equal(below.images[1].get_array(), heat[number])
        opacity = below.images[1].get_alpha()
        assert (np.argsort(opacity.ravel()) == np.argsort(heat[number].ravel())).all()  # the hotter the more opaque
        assert below.images[1].get_clim() == (0, 1)
        assert above.get_position().y0 > below.get_position().y0
        assert abs(above.get_position().x0 - below.get_position().x0) < 1e-6
    assert plain[5].get_position().y0 < mapped[0].get_position().y0  # the sixth begins another row
    (bar,) = (axis for axis in figure.axes if "Grad-CAM" in axis.get_ylabel())
    assert bar.get_ylim() == (0, 1)


def test_no_errors_have_no_figure():
    left = cells.run(C5, 'save_figure("worst_errors"', shown=pd.DataFrame({"scan_id": []}), heat={})
    assert left.chapter.figures == {}


def test_known_scores():
    table = pd.DataFrame(
        [
            ("job 60, validation split", "saved: COV19-CT-DB", "slice rows", "roc_auc", 0.981, NAN, NAN),
            ("job 60, validation split", "saved: COV19-CT-DB", "slice rows", "roc_auc", 0.979, NAN, NAN),
            ("this run (phantom), by scans", "this run: phantom", "scans", "roc_auc", 0.91, 0.75, 0.97),
            ("image 256, unknown", "saved: COV19-CT-DB", "unknown", "macro_f1", 0.94, NAN, NAN),
            ("this run (phantom), by slice rows", "this run: phantom", "slice rows", "macro_f1", 0.77, 0.64, 0.88),
        ],
        columns=["run", "data", "counted_in", "metric", "value", "low", "high"],
    )
    figure = drawn(C5, "known_scores", known=table)
    colours = artists.legend_colours(figure)
    texts, handles = figure.legends[0].get_texts(), figure.legends[0].legend_handles
    shapes = {text.get_text(): handle.get_marker() for text, handle in zip(texts, handles, strict=True)}
    markers = {x: line.get_marker() for axis in panels(figure) for line in axis.lines for x in line.get_xdata()}
    for axis, title, metric in zip(panels(figure), ("ROC AUC", "macro F1"), ("roc_auc", "macro_f1"), strict=True):
        part = table[table["metric"] == metric]
        found = artists.rows(axis)
        assert axis.get_title() == title
        np.testing.assert_array_equal([row[1:4] for row in found], estimates(part))
        series = part["data"] + ", counts " + part["counted_in"]
        assert [row[4] for row in found] == [colours[name] for name in series]
        assert [markers[row[1]] for row in found] == [shapes[name] for name in series]
        assert all(row[0].startswith(run) for row, run in zip(found, part["run"], strict=True))
        names = [tick.get_text() for tick in axis.get_yticklabels()]
        assert len(set(names)) == len(names)
    assert len(set(shapes.values())) == 3
    own = colours["this run: phantom, counts scans"]
    assert artists.told_apart([own, colours["saved: COV19-CT-DB, counts slice rows"]]) > APART
    assert_in_words(figure)


# Chapters 6 and 7 --------------------------------------------------------------------------------------------------


QUALITY = pd.DataFrame(
    [
        ("random", 8, None, "ks", 0.25, 0.24, 0.27),
        ("kds", 8, 4, "ks", 0.15, 0.13, 0.16),
        ("random", 4, None, "ks", 0.30, 0.28, 0.32),
        ("kds", 4, 4, "ks", 0.20, 0.18, 0.22),
        ("kds", 4, 8, "ks", 0.21, 0.19, 0.23),
        ("random", 4, None, "mean_area_bias", 0.01, -0.02, 0.03),
        ("kds", 4, 4, "mean_area_bias", -0.20, -0.25, -0.15),
    ],
    columns=["method", "n_samples", "n_intervals", "measure", "value", "low", "high"],
).astype({"n_intervals": "Int64"})


def test_sampler_quality():
    figure = cells.run(C6, "def sampler_quality").sampler_quality(QUALITY)
    colours = artists.legend_colours(figure)
    assert list(colours) == ["random", "KDS, 4 intervals", "KDS, 8 intervals"]
    for axis, measure in zip(panels(figure), ("ks", "mean_area_bias"), strict=True):
        assert axis.get_title() == sampling.MEASURES[measure]
        expected = {
            (str(row.n_samples), row.value, row.low, row.high, colours["random"])
            if row.method == "random"
            else (str(row.n_samples), row.value, row.low, row.high, colours["KDS, 4 intervals"])
            for row in QUALITY[QUALITY["measure"] == measure].itertuples()
        }
        assert {row[:5] for row in artists.rows(axis)} == expected
    distances, bias = panels(figure)
    assert [row[0] for row in artists.rows(distances)] == ["4", "4", "4", "8", "8"]
    assert artists.crossing(bias)[0] == artists.crossing(distances)[0] == [0]
    assert distances.get_ylabel() == "slices drawn" and distances.get_xlabel() == "value, 95 % interval"
    shapes = {x: line.get_marker() for line in distances.lines for x in line.get_xdata()}
    assert shapes[0.2] != shapes[0.21] and shapes[0.2] == shapes[0.15]  # the intervals by the mark's shape
    assert artists.told_apart([colours["random"], colours["KDS, 4 intervals"]]) > APART
    assert_in_words(figure)


def test_view_steps():
    pictures = {"axial": body(), "coronal": body(48, 90)}
    curves = {"axial": (np.array([1, 5, 9, 4, 2]), 1, 4), "coronal": (np.array([3, 2, 8, 7]), 2, 4)}
    draws = {"axial": np.array([1, 3]), "coronal": np.array([2])}
    figure = drawn(C7, "views", views=list(pictures), slice_of=pictures, areas_of=curves, drawn=draws)
    axes = np.reshape(figure.axes, (2, 4))
    for (picture, mask, lung, curve), view in zip(axes, pictures, strict=True):
        image, (areas, start, stop) = pictures[view], curves[view]
        row0, row1, col0, col1 = reference.crop_box(image)
        np.testing.assert_array_equal(picture.images[0].get_array(), image)
        assert box_of(picture) == (row0, row1, col0, col1)
        assert f"{view}: {1 - (row1 - row0) * (col1 - col0) / image.size:.0%}" in picture.get_title()
        np.testing.assert_array_equal(mask.images[0].get_array() > 0, reference.foreground(image, 10))
        np.testing.assert_array_equal(overlay(lung.images[1])[0], taken_for_lung(image))
        assert f"{reference.lung_area(image):,} pixels" in lung.get_title()
        ((x, y, *_),) = [line for line in artists.lines(curve) if len(line[0]) == len(areas)]
        np.testing.assert_array_equal([x, y], [range(len(areas)), areas])
        assert [mark[:2] for mark in artists.marks(curve)] == [(k, areas[k]) for k in draws[view]]
        ((left, _, width, *_),) = artists.bars(curve)
        assert (left, left + width) == (start - 0.5, stop - 0.5)
        assert f"[{start}, {stop}) of {len(areas)}, {len(draws[view])} slices" in curve.get_title()
        assert curve.get_ylabel() == "lung area, pixels"
    assert axes[-1, 3].get_xlabel() == "slice"
    assert artists.legend_colours(figure) == {"crop box": images.BOX, "taken for lung": images.FOUND}
    assert artists.told_apart([images.BOX, images.FOUND, images.TRUE]) > APART


def test_reduction_by_view():
    rows = [
        ("thorax", "axial", 0.41, 0.51, 0.71), ("thorax", "coronal", 0.22, 0.52, 0.62),
        ("abdomen", "axial", 0.33, 0.53, 0.69), ("abdomen", "coronal", 0.14, 0.54, 0.6),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["volume", "view", "area_delta", "length_delta", "total_delta"])
    figure = drawn(C7, "reduction_by_view_and_part", by_part=table)
    colours = artists.legend_colours(figure)
    titles = {
        "area_delta": "area removed, share of the slice",
        "length_delta": "slices removed, share of the scan",
        "total_delta": "pixels removed, share of the scan",
    }
    for axis, (column, title) in zip(panels(figure), titles.items(), strict=True):
        assert axis.get_title() == title and axis.get_xlim() == (0, 1)
        for volume, own in table.groupby("volume"):
            assert of_marks(axis, colours[volume]) == list(zip(own["view"], own[column], strict=True))
    assert artists.told_apart(list(colours.values())) > APART
    assert_in_words(figure)


def test_found_and_true():
    pictures = {"one": body(), "two": body()[:, ::-1].copy()}
    lungs = {"one": np.zeros((64, 80), bool), "two": np.zeros((64, 80), bool)}
    lungs["one"][20:38, 22:34] = True  # what is known, not what is found; the other has none
    stacks = {
        name: (np.stack([pictures[name], body()]), np.stack([lung, lungs["two"]])) for name, lung in lungs.items()
    }
    stacks["two"] = tuple(stack[::-1] for stack in stacks["two"])  # without lung the middle one of two, the second
    volumes = {
        name: SimpleNamespace(slices={"axial": images}.get, lung_slices={"axial": found}.get)
        for name, (images, found) in stacks.items()
    }
    figure = drawn(C7, "failures", volumes={"thorax": None} | volumes)
    axes = figure.axes
    for axis, name in zip(axes, lungs, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), pictures[name])
        np.testing.assert_array_equal(overlay(axis.images[1])[0], taken_for_lung(pictures[name]))
        assert box_of(axis) == reference.crop_box(pictures[name]) and axis.get_title() == name
    outline = np.vstack([path.vertices for path in axes[0].collections[0].get_paths()])
    assert outline.min(axis=0).tolist() == [21.5, 19.5] and outline.max(axis=0).tolist() == [33.5, 37.5]
    assert not axes[1].collections
    assert artists.legend_colours(figure)["lung"] == to_hex(axes[0].collections[0].get_edgecolor()[0])


KEPT = pd.DataFrame(
    {
        "volume": ["whole scan", "whole scan", "metal", "metal"],
        "view": ["axial", "coronal", "axial", "coronal"],
        "warning": ["", "", "", "rows lost"],
        "lung_in_crop": [0.99, 0.97, 0.40, 0.96],
        "of_best": [0.98, 0.95, 0.91, 0.30],
        "area_r": [0.90, 0.85, np.nan, -0.20],
    }
)
BOUNDS = {"lung_in_crop": 0.95, "of_best": 0.90, "area_r": 0.80}


def kept():
    return cells.run(C7, "def kept_lung").kept_lung(KEPT)


def test_kept_lung_holds_the_values():
    axes = kept().axes
    titles = ["lung inside the crop, share", "window's lung, share of the best", "area and lung, correlation"]
    assert [axis.get_title() for axis in axes] == [
        f"{title}\n(bound {bound:g})" for title, bound in zip(titles, BOUNDS.values(), strict=True)
    ]
    for axis, column in zip(axes, BOUNDS, strict=True):
        values = np.ma.filled(np.ma.asarray(axis.collections[0].get_array(), float), np.nan).reshape(2, 2)
        np.testing.assert_allclose(values, KEPT[column].to_numpy().reshape(2, 2))
        assert [t.get_text() for t in axis.get_xticklabels()] == ["axial", "coronal"]
        written = [f"{value:.2f}" for value in KEPT[column].dropna()]
        assert [text.get_text() for text in axis.texts] == written
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["whole scan", "metal  (warned)"]
    assert axes[0].yaxis_inverted()


def sides():
    """(colours of values under the bound, of values over it), far from the bound."""
    under, over = [], []
    for axis, bound in zip(kept().axes, BOUNDS.values(), strict=True):
        mesh = axis.collections[0]
        under.append(to_hex(mesh.cmap(mesh.norm(bound - 0.6))))
        over.append(to_hex(mesh.cmap(mesh.norm(1.0))))
        assert mesh.norm(bound) == pytest.approx(0.5)  # the colours turn at the bound
    return under, over


def test_kept_lung_turns_at_the_bound():
    under, over = sides()
    assert not set(under) & set(over)


def test_kept_lung_can_be_told_apart_by_the_colour_blind():
    under, over = sides()
    assert min(artists.told_apart([a, b]) for a, b in zip(under, over, strict=True)) > APART
