"""The study's figures. Each function takes data and returns a matplotlib Figure; none saves anything."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy import ndimage

from e2d_lib.evaluation import sampling
from e2d_lib.method import kds, ssfl

NEGATIVE, POSITIVE, KEPT, LOST = "#4878a8", "#c8553d", "#3a7d44", "#b8b8b8"
LABEL_NAMES = {0: "negative", 1: "positive"}
LABEL_COLOURS = {"negative": NEGATIVE, "positive": POSITIVE, "unlabeled": "#777777"}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9}


def _subplots(*args, **kwargs):
    with plt.rc_context(STYLE):
        return plt.subplots(*args, layout="constrained", **kwargs)


def label_names(labels: pd.Series) -> pd.Series:
    """0, 1 and <NA> in words, for legends."""
    return labels.map(LABEL_NAMES).astype(object).fillna("unlabeled")


def slices(images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int = 6) -> Figure:
    """A contact sheet: 2-D uint8 images of any shapes, each with its title."""
    rows = -(-len(images) // columns)
    figure, axes = _subplots(rows, columns, figsize=(2 * columns, 2.15 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles or [""] * len(images), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=7)
    return figure


def slice_counts(scans: pd.DataFrame) -> Figure:
    """Slices per scan, by label and by source. ``scans`` has n_slices, label, source."""
    data = scans.assign(label=label_names(scans["label"]), source=scans["source"].replace("", "unknown"))
    figure, (left, right) = _subplots(1, 2, figsize=(9, 3))
    sns.histplot(data, x="n_slices", hue="label", multiple="stack", palette=LABEL_COLOURS, bins=24, ax=left)
    left.set(xlabel="slices in the scan", ylabel="scans")
    order = sorted(data["source"].unique())
    counts = [data.loc[data["source"] == source, "n_slices"] for source in order]
    right.boxplot(counts, orientation="horizontal", tick_labels=order, widths=0.6, flierprops={"markersize": 2})
    right.set(xlabel="slices in the scan", ylabel="source")
    right.invert_yaxis()
    return figure


def intensities(profiles: pd.DataFrame) -> Figure:
    """Grey-value histograms by source. ``profiles`` has source, value (0–255), share."""
    figure, axis = _subplots(figsize=(6.5, 2.8))
    data = profiles.assign(source=profiles["source"].replace("", "unknown"))
    sns.lineplot(data, x="value", y="share", hue="source", errorbar=None, linewidth=1, ax=axis)
    axis.axvline(ssfl.THRESHOLD, color="0.3", linestyle=":", linewidth=1)
    axis.annotate("threshold", (ssfl.THRESHOLD, axis.get_ylim()[1]), fontsize=7, ha="left", va="top")
    axis.set(xlabel="grey value", ylabel="share of pixels", yscale="log")
    return figure


def ssfl_steps(image: np.ndarray) -> Figure:
    """SSFL++ on one slice: filter, foreground, crop, lung area (method.md §2, §3.1); a figure of the paper redone.

    The masks are drawn with SciPy's filters from the text; the box and the area in the titles are the library's.
    """
    (row0, row1, col0, col1), area = ssfl.measure(image)
    foreground = ndimage.minimum_filter(image, ssfl.CROP_ERODE) >= ssfl.THRESHOLD
    body = ndimage.minimum_filter(image, ssfl.AREA_ERODE) >= ssfl.THRESHOLD
    lung = ndimage.binary_fill_holes(body) & ~body
    figure, axes = _subplots(1, 5, figsize=(13, 3))
    titles = (
        f"slice, {image.shape[0]}×{image.shape[1]}",
        f"minimum filter {ssfl.CROP_ERODE}×{ssfl.CROP_ERODE} ≥ {ssfl.THRESHOLD}",
        "longest runs of rows and columns",
        f"crop: {1 - (row1 - row0) * (col1 - col0) / image.size:.0%} of the area removed",
        f"lung area: {area:,} pixels",
    )
    panels = (image, foreground * 255, image, image[row0:row1, col0:col1], image)
    for axis, panel, title in zip(axes, panels, titles, strict=True):
        axis.imshow(panel, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    axes[2].add_patch(
        plt.Rectangle((col0 - 0.5, row0 - 0.5), col1 - col0, row1 - row0, fill=False, color=KEPT, linewidth=1.6)
    )
    axes[4].imshow(np.ma.masked_where(~lung, lung), cmap="autumn", alpha=0.55, interpolation="nearest")
    return figure


def area_curves(curves: Mapping[str, tuple[np.ndarray, int, int]], *, columns: int = 4) -> Figure:
    """Lung area against slice with the kept window. ``curves``: title -> (areas (n,), start, stop)."""
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = _subplots(rows, columns, figsize=(3.2 * columns, 2.2 * rows), squeeze=False)
    for axis in list(axes.flat)[len(curves) :]:
        axis.axis("off")
    for axis, (title, (areas, start, stop)) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(areas, color="0.25", linewidth=1)
        axis.axvspan(start - 0.5, stop - 0.5, color=KEPT, alpha=0.18, linewidth=0)
        axis.set_title(f"{title}: [{start}, {stop}) of {len(areas)}", fontsize=8)
        axis.set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("lung area, pixels")
    for axis in axes[-1]:
        axis.set_xlabel("slice")
    return figure


def mean_area_curve(curves: Sequence[np.ndarray], labels: Sequence[str], *, points: int = 101) -> Figure:
    """All scans' area curves, as share of the scan and of its peak: median and middle half by label."""
    grid = np.linspace(0, 1, points)
    resampled = np.array([np.interp(grid, np.linspace(0, 1, len(c)), c / max(c.max(), 1)) for c in curves])
    figure, axis = _subplots(figsize=(5.5, 3))
    for label in sorted(set(labels)):
        group = resampled[np.asarray(labels) == label]
        low, middle, high = np.percentile(group, [25, 50, 75], axis=0)
        colour = LABEL_COLOURS.get(label, "0.4")
        axis.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(grid, middle, color=colour, label=f"{label} (n = {len(group)})")
    axis.set(xlabel="position in the scan", ylabel="lung area, share of the scan's largest")
    axis.legend(frameon=False, fontsize=8)
    return figure


def samplers(
    areas: np.ndarray,
    *,
    n_samples: int = 8,
    n_intervals: int = 4,
    variant: str = "corrected",
    seed: int = 0,
    repeats: int = 400,
) -> Figure:
    """The three samplers on one scan's window: area density, edges, one draw, and where many draws fall.

    ``areas``: (n,) lung areas inside the window. Each row is a method: random, systematic, KDS (method.md §4).
    """
    rng = np.random.default_rng(seed)
    grid, pdf, _ = kds.density(areas)
    figure, axes = _subplots(3, 2, figsize=(10, 6.6), sharex="col")
    for (left, right), method in zip(axes, ("random", "systematic", "kds"), strict=True):
        drawn = kds.sample(areas, n_samples, n_intervals, method=method, variant=variant, rng=rng)
        sns.histplot(x=areas, stat="density", bins=20, color="0.85", edgecolor="white", ax=left)
        left.plot(grid, pdf, color="0.3", linewidth=1)
        if method != "random":
            for edge in kds.edges(areas, n_intervals, method=method):
                left.axvline(edge, color=KEPT, linewidth=0.9, linestyle="--")
        sns.rugplot(x=areas[drawn], color=POSITIVE, height=0.12, linewidth=1.6, ax=left)
        left.set(title=f"{method}: density of areas, edges and one draw", xlabel="lung area, pixels", ylabel="density")
        counts = np.zeros(len(areas))
        for _ in range(repeats):
            np.add.at(counts, kds.sample(areas, n_samples, n_intervals, method=method, variant=variant, rng=rng), 1)
        twin = right.twinx()
        twin.bar(np.arange(len(areas)), counts / repeats, width=1.0, color=KEPT, alpha=0.35)
        twin.set(ylabel="draws a scan", ylim=(0, None))
        right.plot(areas, color="0.3", linewidth=1)
        right.plot(drawn, areas[drawn], "o", color=POSITIVE, markersize=4)
        right.set(title=f"{method}: one draw, and the mean of {repeats}", xlabel="slice in the window", ylabel="area")
        right.set_zorder(twin.get_zorder() + 1)
        right.patch.set_visible(False)
    return figure


def reduction_comparison(comparison: pd.DataFrame) -> Figure:
    """Published and measured reductions by row. ``comparison`` has row, quantity, published, measured, low, high."""
    quantities = list(dict.fromkeys(comparison["quantity"]))
    figure, axes = _subplots(1, len(quantities), figsize=(4 * len(quantities), 3.6), sharey=True, squeeze=False)
    rows = list(dict.fromkeys(comparison["row"]))[::-1]
    for axis, quantity in zip(axes[0], quantities, strict=True):
        part = comparison[comparison["quantity"] == quantity].set_index("row").reindex(rows)
        y = np.arange(len(rows))
        axis.plot(part["published"], y, "D", color="0.25", markersize=5, label="published")
        axis.plot(part["measured"], y, "o", color=KEPT, markersize=5, label="measured here")
        axis.hlines(y, part["low"], part["high"], color=KEPT, linewidth=1.4)
        axis.set(title=quantity, yticks=y, yticklabels=rows)
        axis.grid(axis="x", color="0.9")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="best")
    return figure


def nearest_rows(rows: Sequence[int], distances: np.ndarray, *, found: int, score: str) -> Figure:
    """How near to a saved macro F1 any confusion matrix of so many slice rows comes, in float64's last places."""
    figure, axis = _subplots(figsize=(8, 3))
    axis.semilogy(rows, distances, ".", color="0.75", markersize=2)
    axis.semilogy([found], [distances[list(rows).index(found)]], "o", color=POSITIVE, label=f"{found:,} rows")
    axis.axhline(1, color="0.4", linestyle=":", linewidth=1)
    axis.set(xlabel="slice rows", ylabel="distance, last places", title=f"macro F1 {score}")
    axis.legend(frameon=False, fontsize=8)
    return figure


def reduction_spread(slices: pd.Series, lengths: pd.Series, totals: pd.Series) -> Figure:
    """How the three reductions spread over the scans: each a series of one value a scan."""
    figure, axes = _subplots(1, 3, figsize=(10, 2.7))
    names = ("spatial Δ (scan mean)", "slice Δ", "total Δ")
    for axis, values, name in zip(axes, (slices, lengths, totals), names, strict=True):
        sns.histplot(x=values, bins=24, color=KEPT, alpha=0.6, ax=axis)
        axis.axvline(values.mean(), color="0.2", linewidth=1, linestyle="--")
        axis.set(xlabel=name, ylabel="scans")
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, AUC and macro F1 by epoch. ``history`` has run, epoch, loss, valid_loss, valid_auc, valid_f1."""
    figure, axes = _subplots(1, 3, figsize=(10.5, 2.9))
    for index, (run, part) in enumerate(history.groupby("run", sort=False)):
        colour = f"C{index % 10}"
        axes[0].plot(part["epoch"], part["loss"], color=colour, linestyle=":", linewidth=1)
        axes[0].plot(part["epoch"], part["valid_loss"], color=colour, linewidth=1, label=run)
        axes[1].plot(part["epoch"], part["valid_auc"], color=colour, linewidth=1)
        axes[2].plot(part["epoch"], part["valid_f1"], color=colour, linewidth=1)
    axes[0].set(xlabel="epoch", ylabel="loss", title="training (dotted), validation (solid)")
    axes[1].set(xlabel="epoch", ylabel="validation AUC", ylim=(0, 1.02))
    axes[2].set(xlabel="epoch", ylabel="validation macro F1", ylim=(0, 1.02))
    if history["run"].nunique() <= 8:
        axes[0].legend(frameon=False, fontsize=7)
    return figure


def intervals(table: pd.DataFrame) -> Figure:
    """Metrics with their 95 % intervals. ``table`` has metric, value, low, high, run."""
    metrics = list(dict.fromkeys(table["metric"]))[::-1]
    runs = list(dict.fromkeys(table["run"]))
    figure, axis = _subplots(figsize=(6.5, 0.42 * len(metrics) * max(1, len(runs) / 2) + 1))
    for index, run in enumerate(runs):
        part = table[table["run"] == run].set_index("metric").reindex(metrics)
        y = np.arange(len(metrics)) + ((len(runs) - 1) / 2 - index) * 0.6 / len(runs)
        axis.hlines(y, part["low"], part["high"], color=f"C{index % 10}", linewidth=1.6)
        axis.plot(part["value"], y, "o", color=f"C{index % 10}", markersize=4, label=run)
    axis.set(yticks=np.arange(len(metrics)), yticklabels=metrics, xlim=(-0.02, 1.02), xlabel="value, 95 % interval")
    axis.grid(axis="x", color="0.9")
    if len(runs) > 1:
        axis.legend(frameon=False, fontsize=7)
    return figure


def roc_and_pr(labels: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> Figure:
    """ROC and precision-recall curves, one a run, over the same scans; empty axes where a class is absent."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    figure, (left, right) = _subplots(1, 2, figsize=(8, 3.7))
    both = len(np.unique(labels)) == 2
    for name, scores in probabilities.items() if both else ():
        fpr, tpr, _ = roc_curve(labels, scores)
        left.plot(fpr, tpr, linewidth=1.3, label=f"{name}: {roc_auc_score(labels, scores):.3f}")
        precision, recall, _ = precision_recall_curve(labels, scores)
        right.step(
            recall,
            precision,
            where="post",
            linewidth=1.3,
            label=f"{name}: {average_precision_score(labels, scores):.3f}",
        )
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    right.axhline(np.mean(labels), color="0.7", linestyle=":", linewidth=1)
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC (area)", aspect="equal")
    right.set(xlabel="sensitivity", ylabel="precision", title="precision-recall (average precision)", ylim=(0, 1.03))
    for axis in (left, right):
        if both:
            axis.legend(frameon=False, fontsize=7)
        else:
            axis.text(0.5, 0.5, "one class only: no curve", ha="center", color="0.4")
    return figure


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10) -> Figure:
    """Observed share of positives against mean predicted probability, in the bins of the ECE, with the counts."""
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(labels, probabilities, n_bins=bins)
    figure, (top, bottom) = _subplots(2, 1, figsize=(4.2, 4.4), sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    top.plot(predicted, observed, "o-", color=KEPT, markersize=4, linewidth=1)
    top.set(ylabel="share of positive scans", ylim=(-0.03, 1.03))
    bottom.hist(probabilities, bins=np.linspace(0, 1, bins + 1), color="0.7")
    bottom.set(xlabel="predicted probability", ylabel="scans")
    return figure


def confusion(labels: np.ndarray, decisions: Mapping[str, np.ndarray]) -> Figure:
    """Confusion matrices of scans, one a way of deciding: title -> (n,) 0 or 1."""
    names = list(LABEL_NAMES.values())
    figure, axes = _subplots(1, len(decisions), figsize=(2.9 * len(decisions), 2.8), sharey=True, squeeze=False)
    for axis, (title, called) in zip(axes[0], decisions.items(), strict=True):
        table = pd.crosstab(label_names(pd.Series(labels)), label_names(pd.Series(called)))
        counts = table.reindex(index=names, columns=names, fill_value=0)
        sns.heatmap(counts, annot=True, fmt="d", cmap="Greens", cbar=False, square=True, ax=axis)
        axis.set(xlabel="predicted", ylabel="", title=title)
    axes[0, 0].set_ylabel("true")
    return figure


def scores_by(table: pd.DataFrame, group: str, *, threshold: float = 0.5) -> Figure:
    """Scan probabilities by a column of ``table`` (label, probability, ``group``), coloured by label."""
    data = table.assign(label=label_names(table["label"]))
    data[group] = data[group].replace("", "unknown")
    order = sorted(data[group].unique())
    figure, axis = _subplots(figsize=(6.5, 0.5 * len(order) + 1.2))
    style = {"palette": LABEL_COLOURS, "size": 4, "alpha": 0.8}
    # apart by class, not by jitter, which draws from numpy's global state: a figure is the same each time
    sns.stripplot(data, x="probability", y=group, order=order, hue="label", dodge=True, jitter=False, **style, ax=axis)
    axis.axvline(threshold, color="0.6", linestyle=":", linewidth=1)
    axis.set(xlim=(-0.03, 1.03), xlabel="scan probability")
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8, title=None)
    return figure


def score_by_extent(table: pd.DataFrame, *, threshold: float = 0.5) -> Figure:
    """Probability against the share of the lung that is diseased, positives only (label, probability, extent)."""
    data = table[(table["label"] == 1) & (table["extent"] > 0)]
    figure, axis = _subplots(figsize=(5, 3))
    axis.plot(100 * data["extent"], data["probability"], "o", color=POSITIVE, markersize=4, alpha=0.8)
    axis.axhline(threshold, color="0.6", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="extent, % of the lung", ylabel="scan probability", ylim=(-0.03, 1.03))
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if len(data) and _inside(t, 100 * data["extent"])]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    return figure


def _inside(tick: float, values: pd.Series) -> bool:
    """Whether a tick of a logarithmic axis lies among the values, or just beside them."""
    return values.min() / 1.5 <= tick <= values.max() * 1.5


def few_shot(table: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """AUC against the share of the training scans, and in grey the single runs' where there are several.

    ``table`` has fraction, value, low, high; ``runs`` fraction, value, a row a run.
    """
    figure, axis = _subplots(figsize=(5.2, 3.1))
    if len(runs) > len(table):
        axis.plot(runs["fraction"], runs["value"], "o", color="0.7", markersize=3, label="single runs")
    axis.vlines(table["fraction"], table["low"], table["high"], color=KEPT, linewidth=1.2)
    axis.plot(
        table["fraction"], table["value"], "o-", color=KEPT, markersize=5, linewidth=0.8, label="all folds, seeds"
    )
    axis.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="share of the training scans", ylabel="validation AUC, 95 % interval", ylim=(0, 1.03))
    axis.set_xticks(table["fraction"], [f"{100 * fraction:g} %" for fraction in table["fraction"]])
    axis.minorticks_off()
    if len(runs) > len(table):
        axis.legend(frameon=False, fontsize=7)
    return figure


def errors(pairs: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[str], *, columns: int = 5) -> Figure:
    """Wrongly called scans: a slice (S, S) uint8, and below it the same under its heat map (S, S) in [0, 1]."""
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = _subplots(2 * rows, columns, figsize=(2.2 * columns, 4.7 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, ((image, heat), title) in enumerate(zip(pairs, titles, strict=True)):
        row, column = divmod(number, columns)
        for axis in axes[2 * row : 2 * row + 2, column]:
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes[2 * row, column].set_title(title, fontsize=7)
        # The hotter the more opaque, so that the slice stays to be seen where the map is empty.
        shown = axes[2 * row + 1, column].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat)
    bar = figure.colorbar(plt.cm.ScalarMappable(shown.norm, shown.cmap), ax=axes, shrink=0.5 / rows, pad=0.01)
    bar.set_label("Grad-CAM, each map scaled by itself", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return figure


def known_scores(table: pd.DataFrame) -> Figure:
    """Saved and own scores, a panel a metric. ``table`` has run, data, counted_in, metric, value, low, high."""
    names = {"macro_f1": "macro F1", "roc_auc": "ROC AUC"}
    parts = [(names.get(metric, metric), part) for metric, part in table.groupby("metric", sort=False)]
    heights = [len(part) for _, part in parts]
    figure, axes = _subplots(
        len(parts), 1, figsize=(8, 0.27 * sum(heights) + 1.2), sharex=True, height_ratios=heights, squeeze=False
    )
    data = list(dict.fromkeys(table["data"]))
    colours = dict(zip(data, ("0.35", KEPT, POSITIVE), strict=False))
    for axis, (title, part) in zip(axes[:, 0], parts, strict=True):
        y = np.arange(len(part))[::-1]
        for place, row in zip(y, part.itertuples(), strict=True):
            marker = "s" if row.counted_in == "slice rows" else "o" if row.counted_in == "scans" else "x"
            axis.plot(row.value, place, marker, color=colours[row.data], markersize=5)
            axis.hlines(place, row.low, row.high, color=colours[row.data], linewidth=1.6)
        axis.set(title=title, yticks=y, yticklabels=part["run"], ylim=(-0.6, len(part) - 0.4))
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(axis="x", color="0.9")
    axes[-1, 0].set_xlabel("value (95 % interval where there is one)")
    handles = [plt.Line2D([], [], color=colours[name], marker="s", linestyle="", markersize=5) for name in data]
    kinds = [plt.Line2D([], [], color="0.6", marker=m, linestyle="", markersize=5) for m in ("s", "o", "x")]
    figure.legend(
        [*handles, *kinds],
        [*data, "counts slice rows", "counts scans", "unknown"],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=7,
    )
    return figure


def differences(table: pd.DataFrame) -> Figure:
    """Paired differences with 95 % intervals. ``table`` has name, metric, at, difference, low, high, p_value."""
    y = np.arange(len(table))[::-1]
    figure, axis = _subplots(figsize=(6.5, 0.34 * len(table) + 1.1))
    axis.axvline(0, color="0.6", linestyle=":", linewidth=1)
    axis.hlines(y, table["low"], table["high"], color=KEPT, linewidth=1.6)
    axis.plot(table["difference"], y, "o", color=KEPT, markersize=4)
    names = [f"{row.metric} at {row.at}" if row.at else row.metric for row in table.itertuples()]
    axis.set(yticks=y, yticklabels=names, xlabel="difference, 95 % interval", ylim=(-0.6, len(table) - 0.4))
    axis.set_title(table["name"].iloc[0])
    axis.grid(axis="x", color="0.9")
    for place, p_value in zip(y, table["p_value"], strict=True):
        text = "no test" if pd.isna(p_value) else f"p = {p_value:.2g}"
        axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=7)
    return figure


def aggregations(table: pd.DataFrame) -> Figure:
    """Metrics of the ways from slices to a scan, a panel a metric; filled at the given threshold, hollow at the chosen.

    ``table`` has aggregation, at, metric, value, low, high.
    """
    names = list(dict.fromkeys(table["aggregation"]))[::-1]
    metrics = list(dict.fromkeys(table["metric"]))
    cuts = list(dict.fromkeys(table["at"]))
    figure, axes = _subplots(
        -(-len(metrics) // 4), 4, figsize=(10, (0.42 * len(names) + 0.7) * (-(-len(metrics) // 4)) + 0.3), sharey=True
    )
    for axis, metric in zip(axes.flat, metrics, strict=False):
        own = table[table["metric"] == metric]
        shown = [cut for cut in cuts if cut in set(own["at"])]
        for index, cut in enumerate(shown):
            part = own[own["at"] == cut].set_index("aggregation").reindex(names)
            y = np.arange(len(names)) + (0 if len(shown) == 1 else 0.18 - 0.36 * index)
            colour, face = (KEPT, KEPT) if index == 0 else (POSITIVE, "white")
            axis.hlines(y, part["low"], part["high"], color=colour, linewidth=1.4)
            axis.plot(part["value"], y, "o", color=colour, markerfacecolor=face, markersize=4)
        axis.set(title=metric, yticks=np.arange(len(names)), yticklabels=names)
        axis.grid(axis="x", color="0.9")
    for axis in axes.flat[len(metrics) :]:
        axis.axis("off")
    marks = [
        plt.Line2D([], [], color=colour, marker="o", markerfacecolor=face, markersize=4, linewidth=1.4)
        for colour, face in ((KEPT, KEPT), (POSITIVE, "white"))
    ]
    titles = [f"threshold {cut}" for cut in cuts]
    figure.legend(marks[: len(cuts)], titles, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def view_steps(
    images: Mapping[str, np.ndarray],
    curves: Mapping[str, tuple[np.ndarray, int, int]],
    drawn: Mapping[str, np.ndarray],
) -> Figure:
    """The method's steps in each view; a figure of the paper redone for other views.

    ``images``: view -> one slice (rows, columns) uint8; ``curves``: view -> (areas (n,), start, stop); ``drawn``:
    view -> the slices that KDS draws, indices into the areas.
    """
    heights = [max(image.shape[0] / image.shape[1], 0.6) for image in images.values()]
    figure, axes = _subplots(
        len(images), 4, figsize=(12.5, 2.75 * sum(heights) + 0.5), squeeze=False, width_ratios=(1, 1, 1, 1.4),
        height_ratios=heights,
    )  # fmt: skip
    for row, (view, image) in zip(axes, images.items(), strict=True):
        box, area = ssfl.measure(image)
        foreground = ndimage.minimum_filter(image, ssfl.CROP_ERODE) >= ssfl.THRESHOLD
        removed = 1 - (box[1] - box[0]) * (box[3] - box[2]) / image.size
        titles = (
            f"{view}: {removed:.0%} of this slice removed",
            f"{ssfl.CROP_ERODE}×{ssfl.CROP_ERODE} minimum ≥ {ssfl.THRESHOLD}",
            f"lung area: {area:,} pixels",
        )
        for axis, panel, title in zip(row, (image, foreground * 255, image), titles, strict=False):
            axis.imshow(panel, cmap="gray", vmin=0, vmax=255)
            axis.set_title(title, fontsize=8)
            axis.axis("off")
        _mark_box(row[0], box)
        _mark_lung(row[2], image)
        areas, start, stop = curves[view]
        row[3].plot(areas, color="0.25", linewidth=1)
        row[3].axvspan(start - 0.5, stop - 0.5, color=KEPT, alpha=0.18, linewidth=0)
        row[3].plot(drawn[view], np.asarray(areas)[drawn[view]], "o", color=POSITIVE, markersize=4)
        row[3].set_title(f"window [{start}, {stop}) of {len(areas)}, {len(drawn[view])} slices drawn", fontsize=8)
        row[3].set(ylabel="lung area, pixels", ylim=(0, None))
    axes[-1, 3].set_xlabel("slice")
    return figure


def _mark_box(axis, box: tuple[int, int, int, int]) -> None:
    row0, row1, col0, col1 = box
    axis.add_patch(
        plt.Rectangle((col0 - 0.5, row0 - 0.5), col1 - col0, row1 - row0, fill=False, color="#59d36b", linewidth=1.6)
    )


def _mark_lung(axis, image: np.ndarray) -> None:
    """What the method takes for lung: the holes of the body (method.md §3.1)."""
    body = ndimage.minimum_filter(image, ssfl.AREA_ERODE) >= ssfl.THRESHOLD
    holes = ndimage.binary_fill_holes(body) & ~body
    axis.imshow(np.ma.masked_where(~holes, holes), cmap="autumn", alpha=0.5, interpolation="nearest")


def found_and_true(
    images: Sequence[np.ndarray], lungs: Sequence[np.ndarray], titles: Sequence[str], *, columns: int = 6
) -> Figure:
    """Slices (rows, columns) uint8 with the crop box, what is taken for lung (filled), and the lung (outline)."""
    rows = -(-len(images) // columns)
    figure, axes = _subplots(rows, columns, figsize=(2.15 * columns, 2.5 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, lung, title in zip(axes.flat, images, lungs, titles, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        _mark_lung(axis, image)
        if lung.any():
            axis.contour(lung, [0.5], colors="#35c7f0", linewidths=0.8)
        _mark_box(axis, ssfl.crop_box(image))
        axis.set_title(title, fontsize=7.5)
    return figure


def reduction_by_view(table: pd.DataFrame) -> Figure:
    """Reductions by view and part of the body. ``table`` has volume, view, area_delta, length_delta, total_delta."""
    names = {"area_delta": "spatial Δ", "length_delta": "slice Δ", "total_delta": "total Δ"}
    figure, axes = _subplots(1, 3, figsize=(10.5, 2.9), sharey=True)
    for axis, (column, name) in zip(axes, names.items(), strict=True):
        sns.barplot(table, x="view", y=column, hue="volume", palette="Greens_d", ax=axis, legend=axis is axes[-1])
        for bars in axis.containers:
            axis.bar_label(bars, fmt="{:.2f}", fontsize=6.5, padding=1)
        axis.set(title=name, xlabel="", ylabel="share removed", ylim=(0, 1))
    sns.move_legend(axes[-1], "upper left", bbox_to_anchor=(1, 1), frameon=False, title=None, fontsize=8)
    return figure


def kept_lung(table: pd.DataFrame, bounds: Mapping[str, float]) -> Figure:
    """How crop, window and area hold, by volume and view; red is under the column's bound.

    ``table`` has volume, view, warning and the columns of ``bounds``: lung_in_crop, of_best, area_r.
    """
    names = {"lung_in_crop": "lung in the crop", "of_best": "window, of the best", "area_r": "area's correlation"}
    volumes, views = (list(dict.fromkeys(table[column])) for column in ("volume", "view"))
    warned = table["warning"].ne("").groupby(table["volume"]).any()
    labels = [f"{name}  (warned)" if warned[name] else name for name in volumes]
    figure, axes = _subplots(1, 3, figsize=(10, 0.3 * len(volumes) + 1.1), sharey=True)
    for axis, (column, name) in zip(axes, names.items(), strict=True):
        wide = table.pivot(index="volume", columns="view", values=column).loc[volumes, views]
        axis.set_facecolor("0.9")
        sns.heatmap(
            wide, norm=TwoSlopeNorm(bounds[column], 0, 1), cmap="RdYlGn", annot=True, fmt=".2f",
            annot_kws={"size": 7.5}, cbar=False, ax=axis, linewidths=0.6, yticklabels=labels,
        )  # fmt: skip
        axis.set(title=name, xlabel="", ylabel="")
        axis.tick_params(length=0)
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """Settings side by side: value with its interval for each metric; filled where p_holm < 0.05 against the baseline.

    ``table``: as of ``ablation.compare``.
    """
    cells = list(dict.fromkeys(table["cell"]))[::-1]
    metrics = list(dict.fromkeys(table["metric"]))
    names = {"roc_auc": "ROC AUC", "macro_f1": "macro F1"}
    figure, axes = _subplots(
        1, len(metrics), figsize=(4.2 + 3.1 * (len(metrics) - 1), 0.3 * len(cells) + 1.3), sharey=True, squeeze=False
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = table[table["metric"] == metric].set_index("cell").reindex(cells)
        y = np.arange(len(cells))
        differs = part["p_holm"].lt(0.05).to_numpy()
        color = np.where(part["baseline"].fillna("").eq(""), "C0", "0.3")
        axis.hlines(y, part["low"], part["high"], color=color, linewidth=1.5)
        axis.scatter(part["value"], y, s=26, zorder=3, edgecolors=color, c=np.where(differs, color, "white"))
        first = part[part["baseline"].fillna("").eq("")]
        if len(first) == 1:
            axis.axvline(first["value"].iloc[0], color="C0", linewidth=0.8, linestyle=":")
        axis.set(xlabel=f"{names.get(metric, metric)}, 95 % interval", ylim=(-0.6, len(cells) - 0.4))
        axis.grid(axis="x", color="0.92")
    axes[0][0].set_yticks(np.arange(len(cells)), cells, fontsize=8)
    note = "blue: baseline; filled: differs from it, p < 0.05 after Holm's correction"
    figure.suptitle(note, fontsize=8, y=1.0, va="bottom")
    return figure


def sampler_quality(summary: pd.DataFrame, *, columns: int = 4) -> Figure:
    """How well samplers' slices stand for their window, a panel a measure; 95 % intervals over scans.

    ``summary``: of `sampling.summary` (method, n_samples, n_intervals, measure, value, low, high).
    """
    measures = list(dict.fromkeys(summary["measure"]))
    counts = sorted(summary["n_samples"].unique())
    samplers = summary[["method", "n_intervals"]].drop_duplicates().astype({"n_intervals": "Int64"})
    methods = list(dict.fromkeys(summary["method"]))
    samplers = sorted(
        samplers.fillna({"n_intervals": 0}).itertuples(index=False, name=None),
        key=lambda sampler: (methods.index(sampler[0]), sampler[1]),
    )
    colours = {"random": "0.45", "systematic": NEGATIVE, "kds": POSITIVE, "spaced": KEPT}
    markers = dict(zip(sorted({intervals for _, intervals in samplers}), "osD^v", strict=False))
    columns = min(columns, len(measures))
    rows = -(-len(measures) // columns)
    figure, axes = _subplots(rows, columns, figsize=(3 * columns, 2.3 * rows + 0.5), sharex=True, squeeze=False)
    width = 0.75 / len(samplers)
    for axis, measure in zip(axes.flat, measures, strict=False):
        part = summary[summary["measure"] == measure]
        for number, (method, intervals) in enumerate(samplers):
            own = part[(part["method"] == method) & (part["n_intervals"].fillna(0) == intervals)]
            x = np.searchsorted(counts, own["n_samples"]) + (number - (len(samplers) - 1) / 2) * width
            colour = colours.get(method, "k")
            axis.vlines(x, own["low"], own["high"], color=colour, linewidth=1.4)
            axis.plot(x, own["value"], markers[intervals], color=colour, markersize=4)
        axis.set(xticks=range(len(counts)), xticklabels=counts)
        axis.set_title(sampling.MEASURES.get(measure, measure), fontsize=8)
        axis.set_xlim(-0.5, len(counts) - 0.5)
        axis.grid(axis="y", color="0.9")
        if part["value"].min() >= 0:
            axis.set_ylim(bottom=0)
        else:
            axis.axhline(0, color="0.6", linestyle=":", linewidth=1)
    for axis in axes.flat[len(measures) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("slices drawn")
    handles = [
        plt.Line2D([], [], color=colours.get(method, "k"), marker=markers[k], markersize=4, linewidth=1.4)
        for method, k in samplers
    ]
    names = [f"{method}, {k} intervals" if k else method for method, k in samplers]
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=8)
    return figure
