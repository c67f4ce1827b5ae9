"""Figures of estimates: every mark at its value with its own interval, series as the legend says, names in words."""

import re

import numpy as np
import pandas as pd
import pytest

from e2d_lib.evaluation import sampling
from e2d_lib.figures import intervals
from tests.figures import artists
from tests.figures.artists import APART

NAN = float("nan")


def panels(figure):
    return [axis for axis in figure.axes if artists.marks(axis)]


def estimates(table):
    """(value, low, high) of a table's rows, in order."""
    return [tuple(row) for row in table[["value", "low", "high"]].to_numpy()]


def of(axis, colour):
    """The rows of one colour, from the top: (name, value, low, high, colour, filled)."""
    return [row for row in artists.rows(axis) if row[4] == colour]


def assert_in_words(figure):
    """No column's name and no setting as code writes it."""
    assert not [text for text in artists.texts(figure) if "_" in text or re.search(r"\w=\w", text)]
    artists.assert_legend_apart(figure)


class TestDots:
    TABLE = pd.DataFrame(
        [
            ("one", "up", "a", 0.1, 0.05, 0.2), ("two", "up", "a", 0.3, 0.25, 0.35), ("two", "up", "b", 0.4, NAN, NAN),
            ("one", "down", "a", 0.7, 0.6, 0.9),
        ],
        columns=["row", "panel", "series", "value", "low", "high"],
    )  # fmt: skip

    def test_rows_from_the_top_series_one_under_another(self):
        looks = {"a": intervals.Look("#0072b2"), "b": intervals.Look("#d55e00", "s", filled=False)}
        figure = intervals.dots(self.TABLE, looks, reference={"down": 0.5})
        up, down = panels(figure)
        assert [axis.get_title() for axis in (up, down)] == ["up", "down"]
        assert [row[0] for row in artists.rows(up)] == ["one", "two", "two"]
        assert [row[1:] for row in artists.rows(up)] == [
            (0.1, 0.05, 0.2, "#0072b2", True), (0.3, 0.25, 0.35, "#0072b2", True),
            pytest.approx((0.4, NAN, NAN, "#d55e00", False), nan_ok=True),
        ]  # fmt: skip
        assert artists.rows(down) == [("one", 0.7, 0.6, 0.9, "#0072b2", True)]
        assert artists.crossing(up)[0] == [] and artists.crossing(down)[0] == [0.5]
        assert up.get_position().y0 > down.get_position().y0 and down.get_xlabel() == "value, 95 % interval"
        assert artists.legend_colours(figure) == {"a": "#0072b2", "b": "#d55e00"}
        artists.assert_legend_apart(figure)

    def test_a_series_without_a_look_is_drawn_all_the_same(self):
        (axis,) = panels(intervals.dots(self.TABLE[self.TABLE["panel"] == "up"].drop(columns="panel"), {}))
        assert [row[1] for row in artists.rows(axis)] == [0.1, 0.3, 0.4]

    def test_panels_side_by_side_share_their_rows(self):
        left, right = panels(intervals.dots(self.TABLE, {"a": intervals.Look()}, columns=2))
        assert left.get_position().y0 == pytest.approx(right.get_position().y0)
        assert [row[0] for row in artists.rows(right)] == ["one"] and right.get_ylim() == left.get_ylim()


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
    figure = intervals.reduction_comparison(table)
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


def of_marks(axis, colour):
    """(row, value) of the marks of one colour, from the top."""
    siblings = [axis, *axis.get_shared_y_axes().get_siblings(axis)]
    ticks = next(written for own in siblings if (written := own.get_yticklabels()))
    found = sorted((y, x) for x, y, c, _ in artists.marks(axis) if c == colour)
    assert axis.yaxis_inverted()
    return [(ticks[round(y)].get_text(), x) for y, x in found]


def test_metrics():
    rows = [("macro_f1", 0.77, 0.64, 0.88), ("roc_auc", 0.92, 0.75, 0.97), ("brier", 0.17, 0.13, 0.21)]
    table = pd.DataFrame(rows, columns=["metric", "value", "low", "high"])
    chosen = table[:1].assign(value=0.81, low=0.7, high=0.9, run="threshold chosen")
    figure = intervals.metrics(pd.concat([table.assign(run="threshold 0.5"), chosen]))
    colours = artists.legend_colours(figure)
    up, down = panels(figure)
    assert (up.get_title(), down.get_title()) == ("higher is better", "lower is better")
    given = [row[:4] for axis in (up, down) for row in of(axis, colours["threshold 0.5"])]
    assert given == [("macro F1", *rows[0][1:]), ("ROC AUC", *rows[1][1:]), ("Brier score", *rows[2][1:])]
    assert [row[:4] for row in of(up, colours["threshold chosen"])] == [("macro F1", 0.81, 0.7, 0.9)]
    assert artists.told_apart(list(colours.values())) > APART
    assert_in_words(figure)


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
    figure = intervals.known_scores(table)
    colours = artists.legend_colours(figure)
    texts, handles = figure.legends[0].get_texts(), figure.legends[0].legend_handles
    shapes = {text.get_text(): handle.get_marker() for text, handle in zip(texts, handles, strict=True)}
    drawn = {x: line.get_marker() for axis in panels(figure) for line in axis.lines for x in line.get_xdata()}
    for axis, title, metric in zip(panels(figure), ("ROC AUC", "macro F1"), ("roc_auc", "macro_f1"), strict=True):
        part = table[table["metric"] == metric]
        found = artists.rows(axis)
        assert axis.get_title() == title
        np.testing.assert_array_equal([row[1:4] for row in found], estimates(part))
        series = part["data"] + ", counts " + part["counted_in"]
        assert [row[4] for row in found] == [colours[name] for name in series]
        assert [drawn[row[1]] for row in found] == [shapes[name] for name in series]
        assert all(row[0].startswith(run) for row, run in zip(found, part["run"], strict=True))
        names = [tick.get_text() for tick in axis.get_yticklabels()]
        assert len(set(names)) == len(names)
    assert len(set(shapes.values())) == 3
    own = colours["this run: phantom, counts scans"]
    assert artists.told_apart([own, colours["saved: COV19-CT-DB, counts slice rows"]]) > APART
    assert_in_words(figure)


def test_differences():
    table = pd.DataFrame(
        [
            ("all less 10 %", "roc_auc", "", 0.217, 0.046, 0.388, 0.0127),
            ("all less 10 %", "accuracy", "0.5", -0.11, -0.26, 0.04, NAN),
            ("all less 10 %", "macro_f1", "chosen", 0.27, 0.11, 0.44, 0.003),
        ],
        columns=["name", "metric", "at", "difference", "low", "high", "p_value"],
    )
    figure = intervals.differences(table)
    (axis,) = panels(figure)
    assert [row[:4] for row in artists.rows(axis)] == [
        ("ROC AUC (p = 0.013)", 0.217, 0.046, 0.388),
        ("accuracy at 0.5 (no test)", -0.11, -0.26, 0.04),
        ("macro F1 at chosen (p = 0.003)", 0.27, 0.11, 0.44),
    ]
    assert artists.crossing(axis)[0] == [0]
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
    figure = intervals.aggregations(table)
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


def test_few_shot():
    table = pd.DataFrame({"fraction": [0.1, 1.0], "value": [0.6, 0.9], "low": [0.5, 0.85], "high": [0.72, 0.97]})
    runs = pd.DataFrame({"fraction": [0.1, 0.1, 1.0], "value": [0.55, 0.65, 0.91]})
    figure = intervals.few_shot(table, runs)
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
    assert not artists.legends(intervals.few_shot(table, runs[1:]))  # one run a share: nothing to tell apart


def test_scores_by():
    table = pd.DataFrame({"label": [0, 1, 1, 0], "probability": [0.2, 0.9, 0.6, 0.7], "source": ["B", "B", "", "A"]})
    figure = intervals.scores_by(table, "source", threshold=0.4)
    (axis,) = panels(figure)
    colours = artists.legend_colours(figure)
    assert of_marks(axis, colours["negative"]) == [("A", 0.7), ("B", 0.2)]
    assert of_marks(axis, colours["positive"]) == [("B", 0.9), ("unknown", 0.6)]
    assert artists.crossing(axis)[0] == [0.4]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("scan probability", "source")
    assert artists.told_apart(list(colours.values())) > APART
    artists.assert_legend_apart(figure)


def test_reduction_by_view():
    rows = [
        ("thorax", "axial", 0.41, 0.51, 0.71), ("thorax", "coronal", 0.22, 0.52, 0.62),
        ("abdomen", "axial", 0.33, 0.53, 0.69), ("abdomen", "coronal", 0.14, 0.54, 0.6),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["volume", "view", "area_delta", "length_delta", "total_delta"])
    figure = intervals.reduction_by_view(table)
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


def test_ablation():
    table = pd.DataFrame(
        [
            ("as set", "roc_auc", 0.92, 0.75, 0.97, "", NAN),
            ("as set", "macro_f1", 0.77, 0.64, 0.88, "", NAN),
            ("few_shot=0.01,method=kds", "roc_auc", 0.71, 0.6, 0.8, "as set", 0.004),
            ("few_shot=0.01,method=kds", "macro_f1", 0.73, 0.61, 0.84, "as set", 0.2),
            ("method = random", "roc_auc", 0.88, 0.7, 0.94, "as set", 0.06),
            ("method = random", "macro_f1", 0.5, 0.4, 0.6, "as set", 0.049),
        ],
        columns=["cell", "metric", "value", "low", "high", "baseline", "p_holm"],
    )
    figure = intervals.ablation(table)
    colours = artists.legend_colours(figure)
    handles = dict(zip(colours, figure.legends[0].legend_handles, strict=True))
    hollow = {name for name, handle in handles.items() if handle.get_markerfacecolor() == "white"}
    assert hollow == {"not shown to differ"} and "p < 0.05 after Holm's correction" in " ".join(colours)
    for axis, metric, title in zip(panels(figure), ("roc_auc", "macro_f1"), ("ROC AUC", "macro F1"), strict=True):
        part = table[table["metric"] == metric]
        found = artists.rows(axis)
        assert axis.get_title() == title
        assert [row[0] for row in found] == ["as set", "share of the scans 0.01, method KDS", "method random"]
        assert [row[1:4] for row in found] == estimates(part)
        assert [row[5] for row in found[1:]] == list(part["p_holm"][1:] < 0.05)  # filled: differs from the baseline
        assert found[0][4] == colours["baseline"] and colours["baseline"] not in {row[4] for row in found[1:]}
        assert artists.crossing(axis)[0] == [part["value"].iloc[0]]
        assert axis.get_xlabel() == "value, 95 % interval"
    assert_in_words(figure)


def test_ablation_with_partners_of_their_own_has_no_line():
    table = pd.DataFrame({"cell": ["a", "b"], "metric": "roc_auc", "value": [0.8, 0.9], "low": NAN, "high": NAN})
    (axis,) = panels(intervals.ablation(table.assign(baseline="", p_holm=NAN)))
    assert artists.crossing(axis)[0] == []


def test_frozen_effects():
    """Of the effects on all scans and on a tenth: one metric, one scope, signs kept, filled where Holm's p is small."""
    columns = ["scope", "axis", "level", "baseline", "metric", "few_shot", "difference", "low", "high", "p_holm"]
    rows = [
        ("average", "method", "random", "kds", "roc_auc", 1.0, 0.02, 0.01, 0.03, 0.01),
        ("average", "method", "random", "kds", "roc_auc", 0.1, -0.03, -0.09, 0.03, 0.6),
        ("average", "method", "random", "kds", "roc_auc", 0.5, 0.5, 0.4, 0.6, 0.01),
        ("average", "method", "random", "kds", "macro_f1", 1.0, 0.7, 0.6, 0.8, 0.01),
        ("paper", "method", "random", "kds", "roc_auc", 1.0, 0.9, 0.8, 1.0, 0.01),
        ("average", "few_shot", "0.1", "1.0", "roc_auc", 0.1, -0.1, -0.2, -0.05, 0.04),
    ]
    figure = intervals.frozen_effects(pd.DataFrame(rows, columns=columns))
    whole, tenth = panels(figure)
    assert [axis.get_title() for axis in (whole, tenth)] == [f"{n} % of the training scans" for n in (100, 10)]
    method, fewer = "method: random against KDS", "fewer scans against all"
    assert [(*row[:4], row[5]) for row in artists.rows(whole)] == [(method, 0.02, 0.01, 0.03, True)]
    assert [(*row[:4], row[5]) for row in artists.rows(tenth)] == [
        (method, -0.03, -0.09, 0.03, False),
        (fewer, -0.1, -0.2, -0.05, True),
    ]
    assert artists.crossing(whole)[0] == [0] and whole.get_xlabel() == "difference in ROC AUC"
    assert_in_words(figure)
    alone = intervals.frozen_effects(pd.DataFrame(rows[1:2], columns=columns))
    assert list(artists.legend_colours(alone)) == ["not shown to differ"]  # a hollow mark says nothing by itself


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
    figure = intervals.sampler_quality(QUALITY)
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
