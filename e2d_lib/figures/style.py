"""What the figures share: colours that red-blind and green-blind readers tell apart, panels, legends beside them."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

BLUE, ORANGE, GREY, DARK = "#0072b2", "#d55e00", "#8c8c8c", "#262626"  # Okabe and Ito's blue and vermilion
COLOURS = (BLUE, ORANGE, DARK, "#56b4e9", "#e69f00")
LABEL_NAMES = {0: "negative", 1: "positive"}
LABEL_COLOURS = {"negative": BLUE, "positive": ORANGE, "unlabeled": GREY}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9}


def subplots(*args, **kwargs):
    with plt.rc_context(STYLE):
        return plt.subplots(*args, layout="constrained", **kwargs)


def grid(number: int, columns: int, size: tuple[float, float], **kwargs) -> tuple[Figure, list]:
    """``number`` panels of ``size`` inches in rows of at most ``columns``; places without a panel are empty."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure, axes = subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False, **kwargs)
    for axis in axes.flat[number:]:
        axis.axis("off")
    return figure, list(axes.flat[:number])


def label_names(labels: pd.Series) -> pd.Series:
    """0, 1 and <NA> in words, for legends."""
    return labels.map(LABEL_NAMES).astype(object).fillna("unlabeled")


def cycled(names: Iterable[str]) -> dict[str, dict]:
    """A colour for each name, then the colours again with dashes: there are few that everybody tells apart."""
    names = list(dict.fromkeys(names))
    looks = [{"color": colour, "linestyle": style} for style in ("-", "--", "-.", ":") for colour in COLOURS]
    return {name: looks[index % len(looks)] for index, name in enumerate(names)}


def legend(figure: Figure, entries: Mapping[str, str | Mapping], *, columns: int = 4) -> None:
    """A legend under the panels: text -> a colour, or what `Line2D` takes; apart from the data, and not to be
    taken for them."""
    square = {"linestyle": "", "marker": "s", "markersize": 8}
    looks = [square | {"color": look} if isinstance(look, str) else look for look in entries.values()]
    handles = [plt.Line2D([], [], **{"markersize": 5, "linewidth": 1.5, **look}) for look in looks]
    columns = min(columns, len(handles))
    figure.legend(handles, entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
