"""The study's figures. Each function takes data and returns a matplotlib Figure; none saves anything."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy import ndimage

from e2d_lib import kds, ssfl

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
    sns.boxplot(data, x="n_slices", y="source", order=order, color="0.85", fliersize=2, linewidth=0.8, ax=right)
    right.set(xlabel="slices in the scan", ylabel="source")
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
        y = np.arange(len(metrics)) + (index - (len(runs) - 1) / 2) * 0.6 / len(runs)
        axis.hlines(y, part["low"], part["high"], color=f"C{index % 10}", linewidth=1.6)
        axis.plot(part["value"], y, "o", color=f"C{index % 10}", markersize=4, label=run)
    axis.set(yticks=np.arange(len(metrics)), yticklabels=metrics, xlim=(-0.02, 1.02), xlabel="value, 95 % interval")
    axis.grid(axis="x", color="0.9")
    if len(runs) > 1:
        axis.legend(frameon=False, fontsize=7)
    return figure


def roc_and_pr(labels: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> Figure:
    """ROC and precision-recall curves, one a run, over the same scans."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    figure, (left, right) = _subplots(1, 2, figsize=(8, 3.7))
    for name, scores in probabilities.items():
        fpr, tpr, _ = roc_curve(labels, scores)
        left.plot(fpr, tpr, linewidth=1.3, label=f"{name}: {roc_auc_score(labels, scores):.3f}")
        precision, recall, _ = precision_recall_curve(labels, scores)
        right.step(recall, precision, linewidth=1.3, label=f"{name}: {average_precision_score(labels, scores):.3f}")
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    right.axhline(np.mean(labels), color="0.7", linestyle=":", linewidth=1)
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC (area)", aspect="equal")
    right.set(xlabel="sensitivity", ylabel="precision", title="precision-recall (average precision)", ylim=(0, 1.03))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=7)
    return figure


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 8) -> Figure:
    """Observed share of positives against mean predicted probability, in equal-width bins, with the counts."""
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(labels, probabilities, n_bins=bins)
    figure, (top, bottom) = _subplots(2, 1, figsize=(4.2, 4.4), sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    top.plot(predicted, observed, "o-", color=KEPT, markersize=4, linewidth=1)
    top.set(ylabel="share of positive scans", ylim=(-0.03, 1.03))
    bottom.hist(probabilities, bins=np.linspace(0, 1, bins + 1), color="0.7")
    bottom.set(xlabel="predicted probability", ylabel="scans")
    return figure


def confusion(labels: np.ndarray, decisions: np.ndarray) -> Figure:
    """Confusion matrix of scans."""
    table = pd.crosstab(label_names(pd.Series(labels)), label_names(pd.Series(decisions)))
    names = list(LABEL_NAMES.values())
    figure, axis = _subplots(figsize=(3, 2.7))
    counts = table.reindex(index=names, columns=names, fill_value=0)
    sns.heatmap(counts, annot=True, fmt="d", cmap="Greens", cbar=False, ax=axis)
    axis.set(xlabel="predicted", ylabel="true")
    return figure


def scores_by(table: pd.DataFrame, group: str) -> Figure:
    """Scan probabilities by a column of ``table`` (label, probability, ``group``), coloured by label."""
    data = table.assign(label=label_names(table["label"]))
    data[group] = data[group].replace("", "unknown")
    order = sorted(data[group].unique())
    figure, axis = _subplots(figsize=(6.5, 0.5 * len(order) + 1.2))
    sns.stripplot(
        data, x="probability", y=group, order=order, hue="label", palette=LABEL_COLOURS, size=4, alpha=0.8, ax=axis
    )
    axis.axvline(0.5, color="0.6", linestyle=":", linewidth=1)
    axis.set(xlim=(-0.03, 1.03), xlabel="scan probability")
    axis.legend(frameon=False, fontsize=8)
    return figure


def score_by_extent(table: pd.DataFrame) -> Figure:
    """Probability against the share of the lung that is diseased, positives only (label, probability, extent)."""
    data = table[(table["label"] == 1) & (table["extent"] > 0)]
    figure, axis = _subplots(figsize=(5, 3))
    axis.plot(100 * data["extent"], data["probability"], "o", color=POSITIVE, markersize=4, alpha=0.8)
    axis.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="extent, % of the lung", ylabel="scan probability", ylim=(-0.03, 1.03))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="minor", labelsize=6)
    return figure


def few_shot(table: pd.DataFrame) -> Figure:
    """AUC with its interval against the share of the training scans. ``table`` has fraction, value, low, high, seed."""
    figure, axis = _subplots(figsize=(5.2, 3.1))
    shift = {seed: 1 + 0.03 * index for index, seed in enumerate(sorted(table["seed"].unique()))}
    for seed, part in table.sort_values("fraction").groupby("seed"):
        x = part["fraction"] * shift[seed]
        axis.vlines(x, part["low"], part["high"], color=KEPT, linewidth=1.2)
        axis.plot(x, part["value"], "o-", color=KEPT, markersize=4, linewidth=0.8)
    axis.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="share of the training scans", ylabel="validation AUC, 95 % interval", ylim=(0, 1.03))
    fractions = sorted(table["fraction"].unique())
    axis.set_xticks(fractions, [f"{100 * fraction:g} %" for fraction in fractions])
    axis.minorticks_off()
    return figure
