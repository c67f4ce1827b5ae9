"""What a figure shows, read back from its artists: marks, intervals, lines, legends, and how colours look to people."""

from itertools import combinations

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.patches import Rectangle

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as seen without the red and without the green cones
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}

APART = 25
"""The least distance in L*a*b* of colours that a figure tells classes by."""


def marks(axis):
    """(x, y, colour, filled) of every mark with a place in the data."""
    found = []
    for line in axis.lines:
        if line.get_marker() not in (None, "None", "", " "):
            face, edge = line.get_markerfacecolor(), line.get_markeredgecolor()
            found += [(x, y, to_hex(edge), to_hex(face) == to_hex(edge)) for x, y in line.get_xydata()]
    for dots in axis.collections:
        if isinstance(dots, PathCollection):
            places = np.ma.filled(np.ma.asarray(dots.get_offsets(), dtype=float), np.nan)
            n = len(places)
            face, edge = (_each(colours, n) for colours in (dots.get_facecolors(), dots.get_edgecolors()))
            found += [(x, y, e, e == f) for (x, y), e, f in zip(places, edge, face, strict=True)]
    return [mark for mark in found if np.isfinite(mark[:2]).all()]


def _each(colours, n):
    return [to_hex(colours[k % len(colours)]) for k in range(n)]


def spans(axis):
    """(x0, y0, x1, y1, colour) of every interval drawn as a line."""
    found = []
    for lines in axis.collections:
        if isinstance(lines, LineCollection):
            segments = lines.get_segments()
            colours = _each(lines.get_colors(), len(segments))
            found += [(*s[0], *s[-1], c) for s, c in zip(segments, colours, strict=True) if len(s) > 1]
    return [span for span in found if np.isfinite(span[:4]).all()]


def rows(axis):
    """A dot-and-interval panel read from the top: (tick label, value, low, high, colour, filled); NaN: no interval."""
    siblings = [axis, *axis.get_shared_y_axes().get_siblings(axis)]  # of a shared axis one panel writes its ticks
    ticks = next((written for own in siblings if (written := own.get_yticklabels())), [])
    names = dict(zip(axis.get_yticks(), (label.get_text() for label in ticks), strict=True))
    return _dots(marks(axis), spans(axis), names, descending=not axis.yaxis_inverted())


def _dots(dots, lines, names, *, descending):
    found = []
    for value, place, colour, filled in sorted(dots, key=lambda dot: dot[1], reverse=descending):
        own = [line for line in lines if np.isclose(line[1], place) and np.isclose(line[3], place)]
        assert len(own) <= 1, "several intervals on one mark"
        low, high = (own[0][0], own[0][2]) if own else (np.nan, np.nan)
        assert not own or own[0][4] == colour, "an interval in another colour than its mark"
        tick = min(names, key=lambda tick: abs(tick - place))
        found.append((names[tick], value, low, high, colour, filled))
    assert len(lines) == sum(np.isfinite(row[2]) for row in found), "an interval without its mark"
    return found


def lines(axis):
    """(x, y, colour, line style) of every line through data: not the lines that cross the whole axes."""
    return [
        (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float), to_hex(line.get_color()),
         line.get_linestyle())
        for line in axis.lines
        if line.get_transform() == axis.transData and line.get_linestyle() != "None" and len(line.get_xdata()) > 1
    ]  # fmt: skip


def crossing(axis):
    """(x of the lines that stand across the axes, y of those that lie across them)."""
    upright = [line.get_xdata()[0] for line in axis.lines if line.get_transform() == axis.get_xaxis_transform()]
    lying = [line.get_ydata()[0] for line in axis.lines if line.get_transform() == axis.get_yaxis_transform()]
    return upright, lying


def bars(axis):
    """(left, bottom, width, height, colour) of every bar, in the order they were drawn."""
    boxes = [patch for patch in axis.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    return [(b.get_x(), b.get_y(), b.get_width(), b.get_height(), to_hex(b.get_facecolor())) for b in boxes]


def legends(figure):
    return [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend() is not None)]


def legend_colours(figure):
    """Each legend entry's colour, by its text."""
    found = {}
    for legend in legends(figure):
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            if hasattr(handle, "get_markeredgecolor"):
                marked = handle.get_marker() not in (None, "None", "", " ")
                edge, face = handle.get_markeredgecolor(), handle.get_markerfacecolor()
                hollow = to_hex(face) == "#ffffff"
                colour = (edge if hollow else face) if marked else handle.get_color()
            else:
                colour = np.reshape(to_rgba(handle.get_facecolor()[0]) if np.ndim(handle.get_facecolor()) > 1
                                    else to_rgba(handle.get_facecolor()), -1)  # fmt: skip
            found[text.get_text()] = to_hex(colour)
    return found


def assert_legend_apart(figure, *, marks_outside=True):
    """No legend covers data; one whose entries look like data points lies outside every panel."""
    figure.canvas.draw()
    for legend in legends(figure):
        box = legend.get_window_extent()
        pointed = any(getattr(handle, "get_marker", lambda: "None")() not in (None, "None", "", " ")
                      or isinstance(handle, PathCollection) for handle in legend.legend_handles)  # fmt: skip
        for axis in figure.axes:
            if marks_outside and pointed:
                assert not box.overlaps(axis.get_window_extent()), "a legend of marks inside a panel reads as data"
            places = [axis.transData.transform(np.column_stack(_dense(x, y))) for x, y, *_ in lines(axis)]
            places += [axis.transData.transform(_dense_pair(span)) for span in spans(axis)]
            if dots := marks(axis):
                places.append(axis.transData.transform([mark[:2] for mark in dots]))
            for points in places:
                inside = (abs(points - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]) <
                          [box.width / 2 + 2, box.height / 2 + 2]).all(axis=1)  # fmt: skip
                assert not inside.any(), f"the legend lies on data at {points[inside][0]}"
            for patch in axis.patches:
                if isinstance(patch, Rectangle) and patch.get_fill() and patch.get_transform() != axis.transAxes:
                    assert not box.overlaps(patch.get_window_extent()), "the legend lies on a bar"


def _dense(x, y):
    t = np.linspace(0, len(x) - 1, 50 * len(x))
    return np.interp(t, np.arange(len(x)), x), np.interp(t, np.arange(len(y)), y)


def _dense_pair(span):
    x0, y0, x1, y1, _ = span
    return np.column_stack([np.linspace(x0, x1, 100), np.linspace(y0, y1, 100)])


def texts(figure):
    """Everything written in a figure."""
    found = [text.get_text() for text in figure.texts]
    found += [figure._suptitle.get_text()] if figure._suptitle else []
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), *(t.get_text() for t in axis.texts)]
        found += [tick.get_text() for tick in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    found += [text.get_text() for legend in legends(figure) for text in legend.get_texts()]
    return [text for text in found if text]


def lab(colour):
    """CIE L*a*b* (D65) of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ colour
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    f = np.where(xyz / [0.9505, 1.0, 1.089] > 0.008856, f, 7.787 * xyz / [0.9505, 1.0, 1.089] + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def told_apart(colours):
    """The least distance in L*a*b* of any two of the colours, to normal, red-blind and green-blind eyes."""
    srgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = [linear, *(np.clip(linear @ np.array(matrix).T, 0, 1) for matrix in BLIND.values())]
    return min(np.linalg.norm(lab(a) - lab(b)) for eyes in seen for a, b in combinations(eyes, 2))
