"""Figures of curves and counts: the lines, bars, bands and colours hold the numbers, and the words say which."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from e2d_lib.figures import curves
from tests import reference
from tests.figures import artists
from tests.figures.artists import APART


def near(expected):
    return pytest.approx(expected, nan_ok=True)


AREAS = np.array([10, 14, 19, 33, 48, 61, 77, 78, 90, 96, 97, 99, 60, 41, 12, 30])
LABELS = np.array([0, 0, 1, 1, 1])
SCORES = {
    "all": np.array([0.1, 0.4, 0.35, 0.8, 0.9]),
    "10 %": np.array([0.6, 0.3, 0.2, 0.5, 0.1]),
}
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


def test_slice_counts():
    scans = pd.DataFrame(
        {
            "n_slices": [20, 24, 31, 44, 50, 20],
            "label": pd.array([0, 1, 1, 0, 1, pd.NA], "Int64"),
            "source": ["B", "A", "A", "B", "", "A"],
        }
    )
    figure = curves.slice_counts(scans)
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
    profiles = pd.DataFrame(
        {"source": ["A"] * 3 + [""] * 3, "value": [0, 80, 200] * 2, "share": [0.5, 0.2, 0.3, 0.1, 0.6, 0.3]}
    )
    figure = curves.intensities(profiles)
    (axis,) = figure.axes
    by_colour = {colour: (list(x), list(y)) for x, y, colour, _ in artists.lines(axis)}
    colours = artists.legend_colours(figure)
    assert by_colour[colours["A"]] == ([0, 80, 200], near([0.5, 0.2, 0.3]))
    assert by_colour[colours["unknown"]] == ([0, 80, 200], near([0.1, 0.6, 0.3]))
    assert artists.crossing(axis)[0] == [100]  # the method's threshold
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ("grey value", "share of pixels", "log")


def test_area_curves():
    areas_of = {"scan 1": (np.array([0, 4, 9, 3]), 1, 3), "scan 2": (np.array([7, 5, 1]), 0, 2)}
    figure = curves.area_curves(areas_of)
    axes = [axis for axis in figure.axes if axis.lines]
    for axis, (title, (areas, start, stop)) in zip(axes, areas_of.items(), strict=True):
        ((x, y, *_),) = artists.lines(axis)
        np.testing.assert_array_equal([x, y], [range(len(areas)), areas])
        ((left, _, width, *_),) = artists.bars(axis)
        assert (left, left + width) == (start - 0.5, stop - 0.5)
        assert axis.get_title() == f"{title}: [{start}, {stop}) of {len(areas)}"
        assert axis.get_xlabel() == "slice" and axis.get_ylim()[0] == 0
    assert axes[0].get_ylabel() == "lung area, pixels"
    assert list(artists.legend_colours(figure)) == ["lung area", "kept window"]


def test_mean_area_curve():
    positive = [
        np.array([0, 4, 2]),
        np.array([9, 9, 9]),
        np.array([2, 4, 4]),
    ]  # of their peaks: 0 1 ½, 1 1 1, ½ 1 1
    figure = curves.mean_area_curve([np.array([5, 1, 0]), *positive], ["negative"] + ["positive"] * 3, points=3)
    (axis,) = figure.axes
    colours = artists.legend_colours(figure)
    assert list(colours) == ["negative (n = 1)", "positive (n = 3)"]
    by_colour = {colour: list(y) for x, y, colour, _ in artists.lines(axis) if list(x) == [0, 0.5, 1]}
    assert by_colour[colours["negative (n = 1)"]] == near([1, 0.2, 0])
    assert by_colour[colours["positive (n = 3)"]] == near([0.5, 1, 1])
    bands = {to_hex(band.get_facecolor()[0]): band.get_paths()[0].vertices for band in axis.collections}
    corners = {tuple(np.round(corner, 9)) for corner in bands[colours["positive (n = 3)"]]}
    assert {(0, 0.25), (0, 0.75), (0.5, 1), (1, 0.75), (1, 1)} <= corners  # the middle half
    assert axis.get_xlabel() == "position in the scan"
    assert axis.get_ylabel() == "lung area, share of the scan's largest"
    assert artists.told_apart(list(colours.values())) > APART


def drawn_samplers():
    return curves.samplers(AREAS, n_samples=6, n_intervals=3, seed=1, repeats=300)


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
        drawn = artists.marks(draw)
        assert len(drawn) == 6 and all(AREAS[int(x)] == y for x, y, *_ in drawn)
        assert sorted(areas) == near(sorted(y for _, y, *_ in drawn))
        ((x, y, *_),) = [line for line in artists.lines(draw) if len(line[0]) == len(AREAS)]
        np.testing.assert_array_equal([x, y], [range(16), AREAS])
        expected = np.full(16, 6 / 16)
        if method != "random":
            groups = reference.members(AREAS, own_edges, last_closed=True)
            for group, quota in zip(groups, reference.quotas([len(g) for g in groups], 6), strict=True):
                expected[group] = quota / len(group)
        heights = [bar[3] for bar in artists.bars(panels["shares"][k])]
        assert sum(heights) == near(6)
        np.testing.assert_allclose(heights, expected, atol=5 * np.sqrt(0.25 / 300))
        assert panels["shares"][k].get_ylabel() == "mean of 300 draws" and draw.get_ylabel() == "lung area, pixels"
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
    figure = curves.learning_curves(history)
    colours = artists.legend_colours(figure)
    loss, auc, f1 = figure.axes
    assert "training (dotted), validation (solid)" in loss.get_title()
    drawn = {(colour, style): list(y) for x, y, colour, style in artists.lines(loss) if list(x) == [1, 2]}
    assert drawn == {
        (colours["a"], ":"): [0.9, 0.7], (colours["a"], "-"): [0.95, 0.85],
        (colours["b"], ":"): [0.8, 0.5], (colours["b"], "-"): [0.75, 0.65],
    }  # fmt: skip
    for axis, column, name in ((auc, "valid_auc", "validation ROC AUC"), (f1, "valid_f1", "validation macro F1")):
        drawn = {colour: list(y) for _, y, colour, _ in artists.lines(axis)}
        assert drawn == {colours[run]: list(own[column]) for run, own in history.groupby("run")}
        assert axis.get_ylabel() == name and axis.get_xlabel() == "epoch"
    artists.assert_legend_apart(figure)


def test_roc_and_pr():
    figure = curves.roc_and_pr(LABELS, SCORES)
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
    for name in SCORES:
        colour = legend[f"{name}: ROC AUC {area[name]:.3f}, average precision {average[name]:.3f}"]
        drawn = [point for point in in_roc[colour] if point != near(between[name])]
        np.testing.assert_allclose(drawn, corners[name])
        assert {(round(x, 9), round(y, 9)) for x, y in precision[name]} <= in_pr[colour]
    assert artists.crossing(pr)[1] == [0.6]  # what a constant score reaches
    assert (roc.get_xlabel(), roc.get_ylabel()) == ("1 − specificity", "sensitivity")
    assert (pr.get_xlabel(), pr.get_ylabel()) == ("sensitivity", "precision")
    artists.assert_legend_apart(figure)


def test_one_class_has_no_curve():
    figure = curves.roc_and_pr(np.ones(4), {"run": np.linspace(0, 1, 4)})
    assert [axis.texts[0].get_text() for axis in figure.axes] == ["one class only: no curve"] * 2


def kept():
    return curves.kept_lung(KEPT, BOUNDS)


def test_kept_lung_holds_the_values():
    axes = kept().axes
    titles = ["lung inside the crop, share", "window's lung, share of the best", "area and lung, correlation"]
    assert [axis.get_title() for axis in axes] == [
        f"{title}\n(bound {bound:g})" for title, bound in zip(titles, BOUNDS.values(), strict=True)
    ]
    for axis, column in zip(axes, BOUNDS, strict=True):
        cells = np.ma.filled(np.ma.asarray(axis.collections[0].get_array(), float), np.nan).reshape(2, 2)
        np.testing.assert_allclose(cells, KEPT[column].to_numpy().reshape(2, 2))
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
