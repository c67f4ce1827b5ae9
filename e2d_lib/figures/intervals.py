"""Figures of estimates: a mark for each value, a line for its 95 % interval, in rows."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from e2d_lib import words
from e2d_lib.figures.style import BLUE, DARK, legend, subplots

INTERVAL = "95 % interval"


class Look(NamedTuple):
    """How a series is drawn, and shown in the legend."""

    colour: str = BLUE
    marker: str = "o"
    filled: bool = True

    @property
    def mark(self) -> dict:
        face = self.colour if self.filled else "white"
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "markersize": 5}


def dots(
    table: pd.DataFrame,
    looks: Mapping[str, Look],
    *,
    xlabel: str = f"value, {INTERVAL}",
    ylabel: str = "",
    columns: int = 1,
    width: float = 8,
    dodge: bool = True,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Every figure of estimates: panels of rows, in each a mark and the line of its interval for each series.

    ``table``: value, row, where there are intervals low and high (NaN: none), where there are several panel and series;
    all in the order of their first appearance, from the top. ``looks``: series -> how it is drawn. Panels stand in
    ``columns``; those in one column have their own rows, those side by side the same. ``dodge``: series of a row one
    under another. ``reference``: panel -> a value that a dotted line marks. The legend is under the panels.
    """
    defaults = {"panel": "", "series": "", "low": np.nan, "high": np.nan}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})
    panels = dict(iter(table.groupby("panel", sort=False)))
    columns = min(columns, len(panels))
    shared = list(dict.fromkeys(table["row"])) if columns > 1 else None
    rows = [shared or list(dict.fromkeys(part["row"])) for part in panels.values()]
    series = [name for name in dict.fromkeys([*looks, *table["series"]]) if table["series"].eq(name).any()]
    step = 0.7 / len(series) if dodge else 0.0
    unit = 0.17 * max(2, 1 + len(series) if dodge else 2)
    heights = [len(names) for names in rows[::columns]]
    size = {"figsize": (width, unit * sum(heights) + 0.55 * len(heights) + 0.7), "height_ratios": heights}
    figure, axes = subplots(len(heights), columns, squeeze=False, sharey="row", **size)
    for axis, (title, part), names in zip(axes.flat, panels.items(), rows, strict=False):
        for number, one in enumerate(series):
            own, look = part[part["series"] == one], looks.get(one, Look())
            y = np.array([names.index(row) for row in own["row"]]) + (number - (len(series) - 1) / 2) * step
            axis.hlines(y, own["low"], own["high"], color=look.colour, linewidth=1.5)
            axis.plot(own["value"], y, linestyle="", **look.mark)
        if title in (reference or {}):
            axis.axvline(reference[title], color="0.5", linestyle=":", linewidth=1)
        axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
        axis.set_title(title, fontsize=10 if columns == 1 else 8)
        axis.grid(axis="x", color="0.9")
        if width <= 3 * columns:
            axis.locator_params(axis="x", nbins=4)  # or the labels of narrow panels run into each other
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    if any(series):
        legend(figure, {name: looks.get(name, Look()).mark for name in series}, columns=3)
    return figure


BASELINE, DIFFERS, SAME = "baseline", "differs from it, p < 0.05 after Holm's correction", "not shown to differ"


def ablation(table: pd.DataFrame) -> Figure:
    """Settings side by side, a panel a metric; filled where p_holm < 0.05 against the baseline.

    ``table``: as of ``ablation.compare``.
    """
    first = table["baseline"].fillna("").eq("")
    series = np.select([first, table["p_holm"].lt(0.05)], [BASELINE, DIFFERS], SAME)
    looks = {BASELINE: Look(BLUE, "D"), DIFFERS: Look(DARK), SAME: Look(DARK, filled=False)}
    table = table.assign(panel=table["metric"].map(words.name), row=table["cell"].map(words.setting), series=series)
    reference = table[first].drop_duplicates("panel", keep=False).set_index("panel")["value"].to_dict()
    return dots(table, looks, columns=2, width=9, dodge=False, reference=reference)


def frozen_effects(effects: pd.DataFrame) -> Figure:
    """What each choice changes in ROC AUC, a panel a share of the training scans; filled where p_holm < 0.05.

    ``effects``: as of `frozen.effects`, of which those over all other choices are shown. Fewer scans stand beside all
    of them, every other choice beside the first of its axis.
    """
    table = effects.query("metric == 'roc_auc' and scope == 'average' and few_shot in (1, 0.3, 0.1, 0.01)")
    fewer = table["axis"].eq("few_shot")
    named = {"True": "with", "False": "without"}
    level, base = (table[name].map(lambda value: named.get(value, words.name(value))) for name in ("level", "baseline"))
    row = np.where(fewer, "fewer scans against all", table["axis"].map(words.name) + ": " + level + " against " + base)
    panel = table["few_shot"].map(lambda share: f"{100 * share:g} % of the training scans")
    series = np.where(table["p_holm"].lt(0.05), DIFFERS, SAME)
    table = table.assign(row=row, panel=panel, series=series, value=table["difference"])
    looks = {DIFFERS: Look(DARK), SAME: Look(DARK, filled=False)}
    table = table.sort_values("few_shot", ascending=False, kind="stable")
    zero = dict.fromkeys(table["panel"], 0.0)
    return dots(table, looks, columns=4, width=12, dodge=False, reference=zero, xlabel="difference in ROC AUC")
