"""Figures of estimates: a mark for each value, a line for its 95 % interval, in rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from e2d_lib import words
from e2d_lib.evaluation import sampling
from e2d_lib.figures.style import BLUE, DARK, GREY, LABEL_COLOURS, ORANGE, cycled, label_names, legend, subplots

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


def reduction_comparison(comparison: pd.DataFrame) -> Figure:
    """Published and measured reductions by row. ``comparison`` has row, quantity, published, measured, low, high."""
    table = comparison.assign(panel=comparison["quantity"].map(words.name))
    published = table.assign(series="published", value=table["published"], low=np.nan, high=np.nan)
    both = [published, table.assign(series="measured here", value=table["measured"])]
    looks = {"published": Look(DARK, "D"), "measured here": Look(BLUE)}
    return dots(pd.concat(both), looks, columns=3, width=10, dodge=False)


def metrics(table: pd.DataFrame) -> Figure:
    """Metrics with their intervals, those of which less is better apart. ``table``: metric, value, low, high, run."""
    lower = table["metric"].isin(words.LOWER_IS_BETTER)
    panel = np.where(lower, "lower is better", "higher is better")
    looks = {run: Look(look["color"]) for run, look in cycled(table["run"]).items()}
    return dots(table.assign(panel=panel, row=table["metric"].map(words.name), series=table["run"]), looks)


def known_scores(table: pd.DataFrame) -> Figure:
    """Saved and own scores, a panel a metric. ``table`` has run, data, counted_in, metric, value, low, high."""
    again = table.groupby(["metric", "run"]).cumcount()
    row = table["run"] + again.map(lambda n: f", value {n + 1}" if n else "")
    colours = dict(zip(dict.fromkeys(table["data"]), (DARK, BLUE, ORANGE), strict=False))
    marks = {"slice rows": "s", "scans": "o"}
    series = table["data"] + ", counts " + table["counted_in"]
    pairs = zip(series, table["data"], table["counted_in"], strict=True)
    looks = {name: Look(colours[data], marks.get(unit, "X")) for name, data, unit in pairs}
    table = table.assign(panel=table["metric"].map(words.name), row=row, series=series)
    return dots(table, looks, dodge=False, xlabel=f"value ({INTERVAL} where there is one)")


def differences(table: pd.DataFrame) -> Figure:
    """Paired differences. ``table`` has name, metric, at, difference, low, high, p_value."""
    tested = table["p_value"].map(lambda p: "no test" if pd.isna(p) else f"p = {p:.2g}")
    at = table["at"].map(lambda cut: f" at {cut}" if cut else "")
    row = table["metric"].map(words.name) + at + " (" + tested + ")"
    table = table.assign(panel=table["name"], row=row, value=table["difference"])
    return dots(table, {}, xlabel=f"difference, {INTERVAL}", reference=dict.fromkeys(table["name"], 0.0))


def aggregations(table: pd.DataFrame) -> Figure:
    """Metrics of the ways from slices to a scan, a panel a metric; filled at the given threshold, hollow at the chosen.

    ``table`` has aggregation, at, metric, value, low, high.
    """
    lower = table["metric"].isin(words.LOWER_IS_BETTER)
    panel = table["metric"].map(words.name) + lower.map({True: " (lower is better)", False: ""})
    series = "threshold " + table["at"]
    looks = dict(zip(dict.fromkeys(series), (Look(BLUE), Look(ORANGE, filled=False)), strict=False))
    table = table.assign(panel=panel, row=table["aggregation"].map(words.name), series=series)
    return dots(table, looks, columns=3, width=10)


def few_shot(table: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """AUC by the share of the training scans, and in grey the single runs' where there are several.

    ``table`` has fraction, value, low, high; ``runs`` fraction, value, a row a run.
    """
    looks = {"all folds, seeds": Look(), "single runs": Look(GREY, ".")}
    several = len(runs) > len(table)
    both = [table.assign(series="all folds, seeds" if several else "")]
    if several:
        both.insert(0, runs[["fraction", "value"]].assign(series="single runs"))
    data = pd.concat(both).sort_values("fraction", kind="stable")
    data["row"] = data["fraction"].map(lambda fraction: f"{100 * fraction:g} %")
    labels = {"xlabel": f"validation ROC AUC, {INTERVAL}", "ylabel": "share of the training scans"}
    return dots(data, looks, dodge=False, width=6, reference={"": 0.5}, **labels)


def scores_by(table: pd.DataFrame, group: str, *, threshold: float = 0.5) -> Figure:
    """Scan probabilities by a column of ``table`` (label, probability, ``group``), coloured by label."""
    row = table[group].replace("", "unknown")
    data = table.assign(row=row, series=label_names(table["label"]), value=table["probability"])
    looks = {label: Look(colour) for label, colour in LABEL_COLOURS.items()}
    labels = {"xlabel": "scan probability", "ylabel": group}
    figure = dots(data.sort_values("row"), looks, width=6.5, reference={"": threshold}, **labels)
    figure.axes[0].set_xlim(-0.03, 1.03)  # or a network that learnt nothing seems to tell scans apart
    return figure


def reduction_by_view(table: pd.DataFrame) -> Figure:
    """Reductions by view and part of the body. ``table`` has volume, view, area_delta, length_delta, total_delta."""
    columns = ["area_delta", "length_delta", "total_delta"]
    long = table.melt(["volume", "view"], columns, "panel")
    long = long.assign(panel=long["panel"].map(words.name), row=long["view"], series=long["volume"])
    looks = {volume: Look(look["color"]) for volume, look in cycled(table["volume"]).items()}
    figure = dots(long, looks, columns=3, width=10.5, xlabel="share removed")
    for axis in figure.axes:
        axis.set_xlim(0, 1)
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


def frozen_effects(
    effects: pd.DataFrame, *, scope: str = "average", shares: Sequence[float] = (1, 0.3, 0.1, 0.01)
) -> Figure:
    """What each choice changes in ROC AUC, a panel a share of the training scans; filled where p_holm < 0.05.

    ``effects``: as of `frozen.effects`. ``scope``: "average" over all other choices, or "paper", these as set. Fewer
    scans stand beside all of them, every other choice beside the first of its axis.
    """
    table = effects[effects["metric"].eq("roc_auc") & effects["scope"].eq(scope) & effects["few_shot"].isin(shares)]
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


def sampler_quality(summary: pd.DataFrame, *, columns: int = 3) -> Figure:
    """How well samplers' slices stand for their window, a panel a measure; intervals over scans.

    ``summary``: of `sampling.summary` (method, n_samples, n_intervals, measure, value, low, high).
    """
    colours = {"random": GREY, "systematic": BLUE, "kds": ORANGE, "spaced": DARK}
    table = summary.fillna({"n_intervals": 0}).sort_values("n_samples", kind="stable")
    marks = dict(zip(sorted(table["n_intervals"].unique()), "osD^v", strict=False))
    methods = list(dict.fromkeys(summary["method"]))
    pairs = set(zip(table["method"], table["n_intervals"], strict=True))
    pairs = sorted(pairs, key=lambda pair: (methods.index(pair[0]), pair[1]))
    looks = {_sampler(*pair): Look(colours.get(pair[0], "k"), marks[pair[1]]) for pair in pairs}
    series = [_sampler(*pair) for pair in zip(table["method"], table["n_intervals"], strict=True)]
    panel = table["measure"].map(lambda measure: sampling.MEASURES.get(measure, measure))
    table = table.assign(panel=panel, row=table["n_samples"].astype(str), series=series)
    zero = dict.fromkeys(panel, 0.0)
    return dots(table, looks, columns=columns, width=10, ylabel="slices drawn", reference=zero)


def _sampler(method: str, intervals: int) -> str:
    return f"{words.name(method)}, {intervals:g} intervals" if intervals else words.name(method)
