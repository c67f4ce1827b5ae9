"""Figures of estimates: every mark at its value with its own interval, series as the legend says, names in words."""

import re

import pandas as pd
import pytest

from e2d_lib.figures import intervals
from tests.figures import artists

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


def of_marks(axis, colour):
    """(row, value) of the marks of one colour, from the top."""
    siblings = [axis, *axis.get_shared_y_axes().get_siblings(axis)]
    ticks = next(written for own in siblings if (written := own.get_yticklabels()))
    found = sorted((y, x) for x, y, c, _ in artists.marks(axis) if c == colour)
    assert axis.yaxis_inverted()
    return [(ticks[round(y)].get_text(), x) for y, x in found]


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
