"""Figures of curves and counts: what the data hold, areas along a scan, samplers, training, scores."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from e2d_lib import words
from e2d_lib.figures.style import BLUE, LABEL_COLOURS, ORANGE, cycled, grid, label_names, legend, subplots
from e2d_lib.method import kds, ssfl


def slice_counts(scans: pd.DataFrame) -> Figure:
    """Slices per scan, by label and by source. ``scans`` has n_slices, label, source."""
    data = scans.assign(label=label_names(scans["label"]), source=scans["source"].replace("", "unknown"))
    figure, (left, right) = subplots(1, 2, figsize=(9, 3.2))
    groups = {name: data.loc[data["label"] == name, "n_slices"] for name in LABEL_COLOURS if name in set(data["label"])}
    looks = {name: LABEL_COLOURS[name] for name in groups}
    left.hist(list(groups.values()), bins=24, stacked=True, color=list(looks.values()), edgecolor="white")
    left.set(xlabel="slices in the scan", ylabel="scans")
    sources = sorted(data["source"].unique())
    counts = [data.loc[data["source"] == source, "n_slices"] for source in sources]
    right.boxplot(counts, orientation="horizontal", tick_labels=sources, widths=0.6, medianprops={"color": ORANGE})
    right.set(xlabel="slices in the scan", ylabel="source")
    right.invert_yaxis()
    legend(figure, looks)
    return figure


def intensities(profiles: pd.DataFrame) -> Figure:
    """Grey-value histograms by source. ``profiles`` has source, value (0–255), share."""
    figure, axis = subplots(figsize=(7, 3))
    data = profiles.assign(source=profiles["source"].replace("", "unknown"))
    looks = cycled(data["source"])
    for source, part in data.groupby("source"):
        axis.plot(part["value"], part["share"], linewidth=1, **looks[source])
    axis.axvline(ssfl.THRESHOLD, color="0.3", linestyle=":", linewidth=1)
    axis.text(ssfl.THRESHOLD, 1, "threshold", transform=axis.get_xaxis_transform(), fontsize=8, ha="center")
    axis.set(xlabel="grey value", ylabel="share of pixels", yscale="log")
    legend(figure, looks, columns=6)
    return figure


def area_curve(axis, areas: np.ndarray, start: int, stop: int, drawn: Sequence[int] = ()) -> None:
    """Lung area against slice, the kept window, and the slices drawn from it (indices into the areas)."""
    axis.plot(areas, color="0.25", linewidth=1)
    axis.axvspan(start - 0.5, stop - 0.5, color=BLUE, alpha=0.15, linewidth=0)
    if len(drawn):
        axis.plot(drawn, np.asarray(areas)[drawn], "o", color=ORANGE, markersize=4)
    axis.set_ylim(bottom=0)


def area_curves(curves: Mapping[str, tuple[np.ndarray, int, int]], *, columns: int = 3) -> Figure:
    """Lung area against slice with the kept window. ``curves``: title -> (areas (n,), start, stop)."""
    figure, axes = grid(len(curves), columns, (3.2, 2.2))
    for axis, (title, (areas, start, stop)) in zip(axes, curves.items(), strict=True):
        area_curve(axis, areas, start, stop)
        axis.set_title(f"{title}: [{start}, {stop}) of {len(areas)}", fontsize=9)
    for axis in axes[::columns]:
        axis.set_ylabel("lung area, pixels")
    for axis in axes[-columns:]:
        axis.set_xlabel("slice")
    legend(figure, {"lung area": {"color": "0.25"}, "kept window": "#d9eaf4"})
    return figure


def mean_area_curve(curves: Sequence[np.ndarray], labels: Sequence[str], *, points: int = 101) -> Figure:
    """All scans' area curves, as share of the scan and of its peak: median and middle half by label."""
    along = np.linspace(0, 1, points)
    resampled = np.array([np.interp(along, np.linspace(0, 1, len(c)), c / max(c.max(), 1)) for c in curves])
    figure, axis = subplots(figsize=(6, 3.3))
    looks = {}
    for label in sorted(set(labels)):
        group = resampled[np.asarray(labels) == label]
        low, middle, high = np.percentile(group, [25, 50, 75], axis=0)
        axis.fill_between(along, low, high, color=LABEL_COLOURS[label], alpha=0.2, linewidth=0)
        axis.plot(along, middle, color=LABEL_COLOURS[label])
        looks[f"{label} (n = {len(group)})"] = {"color": LABEL_COLOURS[label]}
    axis.set(xlabel="position in the scan", ylabel="lung area, share of the scan's largest")
    legend(figure, looks)
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

    ``areas``: (n,) lung areas inside the window. Each row is a method: random, systematic, KDS (method/README.md §4).
    """
    rng = np.random.default_rng(seed)
    along, pdf, _ = kds.density(areas)
    draw = partial(kds.sample, areas, n_samples, n_intervals, variant=variant, rng=rng)
    figure, axes = subplots(3, 2, figsize=(9, 6.8), sharex="col")
    for (left, right), method in zip(axes, ("random", "systematic", "kds"), strict=True):
        draws = [draw(method=method) for _ in range(repeats + 1)]
        drawn, counts = draws[0], np.bincount(np.concatenate(draws[1:]), minlength=len(areas))
        left.hist(areas, bins=20, density=True, color="0.85", edgecolor="white")
        left.plot(along, pdf, color="0.3", linewidth=1)
        for edge in () if method == "random" else kds.edges(areas, n_intervals, method=method):
            left.axvline(edge, color=BLUE, linewidth=0.9, linestyle="--")
        sns.rugplot(x=areas[drawn], color=ORANGE, height=0.12, linewidth=1.6, ax=left)
        left.set(title=f"{words.name(method)}: areas and edges", ylabel="density")
        twin = right.twinx()
        twin.bar(np.arange(len(areas)), counts / repeats, width=1.0, color=BLUE, alpha=0.3)
        twin.set(ylabel=f"mean of {repeats} draws", ylim=(0, None))
        right.plot(areas, color="0.3", linewidth=1)
        right.plot(drawn, areas[drawn], "o", color=ORANGE, markersize=4)
        right.set(title=f"{words.name(method)}: where draws fall", ylabel="lung area, pixels")
        right.set_zorder(twin.get_zorder() + 1)
        right.patch.set_visible(False)
    axes[-1, 0].set_xlabel("lung area, pixels")
    axes[-1, 1].set_xlabel("slice in the window")
    looks = {
        "areas in the window": "0.85", "their density, their course": {"color": "0.3"},
        "edges of the intervals": {"color": BLUE, "linestyle": "--"},
        "one draw": {"color": ORANGE, "linestyle": "", "marker": "o"},
        "how often a slice is drawn": "#b3d5e8",
    }  # fmt: skip
    legend(figure, looks, columns=3)
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, AUC and macro F1 by epoch. ``history`` has run, epoch, loss, valid_loss, valid_auc, valid_f1."""
    figure, axes = subplots(1, 3, figsize=(10.5, 3.2))
    looks = cycled(history["run"])
    for run, look in looks.items():
        part = history[history["run"] == run]
        axes[0].plot(part["epoch"], part["loss"], linewidth=1, **look | {"linestyle": ":"})
        for axis, column in zip(axes, ("valid_loss", "valid_auc", "valid_f1"), strict=True):
            axis.plot(part["epoch"], part[column], linewidth=1.2, **look)
    axes[0].set(xlabel="epoch", ylabel="loss", title="training (dotted), validation (solid)")
    axes[1].set(xlabel="epoch", ylabel="validation ROC AUC", ylim=(0, 1.02))
    axes[2].set(xlabel="epoch", ylabel="validation macro F1", ylim=(0, 1.02))
    if len(looks) <= 8:
        legend(figure, looks)
    return figure


def roc_and_pr(labels: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> Figure:
    """ROC and precision-recall curves, one a run, over the same scans; empty axes where a class is absent."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    figure, (left, right) = subplots(1, 2, figsize=(8, 4))
    looks, both = {}, len(np.unique(labels)) == 2
    for name, look in cycled(probabilities if both else ()).items():
        scores = probabilities[name]
        fpr, tpr, _ = roc_curve(labels, scores)
        left.plot(fpr, tpr, linewidth=1.3, **look)
        precision, recall, _ = precision_recall_curve(labels, scores)
        right.step(recall, precision, where="post", linewidth=1.3, **look)
        auc, average = roc_auc_score(labels, scores), average_precision_score(labels, scores)
        looks[f"{name}: ROC AUC {auc:.3f}, average precision {average:.3f}"] = look
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    right.axhline(np.mean(labels), color="0.7", linestyle=":", linewidth=1)
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC", aspect="equal")
    right.set(xlabel="sensitivity", ylabel="precision", title="precision-recall", xlim=(-0.03, 1.03), ylim=(0, 1.03))
    if both:
        legend(figure, looks, columns=1)
    else:
        for axis in (left, right):
            axis.text(0.5, 0.5, "one class only: no curve", ha="center", color="0.4")
    return figure


def kept_lung(table: pd.DataFrame, bounds: Mapping[str, float]) -> Figure:
    """How crop, window and area hold, by volume and view; red is under the column's bound, blue over it.

    ``table`` has volume, view, warning and the columns of ``bounds``: lung_in_crop, of_best, area_r.
    """
    volumes, views = (list(dict.fromkeys(table[column])) for column in ("volume", "view"))
    warned = table["warning"].ne("").groupby(table["volume"]).any()
    labels = [f"{name}  (warned)" if warned[name] else name for name in volumes]
    figure, axes = subplots(1, 3, figsize=(10, 0.3 * len(volumes) + 1.1), sharey=True)
    for axis, (column, bound) in zip(axes, bounds.items(), strict=True):
        wide = table.pivot(index="volume", columns="view", values=column).loc[volumes, views]
        axis.set_facecolor("0.9")
        sns.heatmap(
            wide, norm=TwoSlopeNorm(bound, 0, 1), cmap="RdBu", annot=True, fmt=".2f", annot_kws={"size": 8},
            cbar=False, ax=axis, linewidths=0.6, yticklabels=labels,
        )  # fmt: skip
        axis.set(title=f"{words.name(column)}\n(bound {bound:g})", xlabel="", ylabel="")
        axis.tick_params(length=0)
    return figure
