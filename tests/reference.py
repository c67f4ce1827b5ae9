"""The method's README.md, §2-§4, written straight from its text: simple, slow, and sharing no code with the library.

Images may have a third axis of equal channels, as a grey JPEG read in colour has.
"""

import math

import numpy as np
from scipy.ndimage import binary_fill_holes, minimum_filter


def minimum_filter_loops(image, size):
    """Minimum over size x size pixels, from -(size // 2) on; edge pixels are repeated beyond the border."""
    rows, cols = image.shape
    filtered = np.empty_like(image)
    for r in range(rows):
        for c in range(cols):
            window = [
                image[min(max(r + dr, 0), rows - 1), min(max(c + dc, 0), cols - 1)]
                for dr in range(-(size // 2), size - size // 2)
                for dc in range(-(size // 2), size - size // 2)
            ]
            filtered[r, c] = min(window)
    return filtered


def foreground(image, size):
    filtered = minimum_filter(image, size=size, mode="reflect")
    if filtered.ndim == 3:
        filtered = filtered[:, :, 0]
    return filtered >= 100


def longest_run(marks):
    """[start, stop) of the longest run of true marks, the first one on ties, (0, 0) without any."""
    best = (0, 0)
    start = None
    for i, mark in enumerate([*marks, False]):
        if mark and start is None:
            start = i
        if not mark and start is not None:
            if i - start > best[1] - best[0]:
                best = (start, i)
            start = None
    return best


def crop_box(image):
    b = foreground(image, 10)
    row0, row1 = longest_run([row.any() for row in b])
    col0, col1 = longest_run([col.any() for col in b.T])
    if row1 == row0 or col1 == col0:
        return 0, b.shape[0], 0, b.shape[1]
    return row0, row1, col0, col1


def lung_area(image):
    b = foreground(image, 5)
    return int((binary_fill_holes(b) & ~b).sum())


def fill_holes_loops(b):
    """Background that a flood from outside the image, stepping to four neighbours, does not reach becomes True."""
    padded = np.pad(b, 1)
    outside = np.zeros_like(padded)
    todo = [(0, 0)]
    while todo:
        r, c = todo.pop()
        if 0 <= r < padded.shape[0] and 0 <= c < padded.shape[1] and not padded[r, c] and not outside[r, c]:
            outside[r, c] = True
            todo += [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
    return ~outside[1:-1, 1:-1]


def slice_window(areas, fraction=0.5, trim=False):
    areas = list(areas)
    shift = 0
    if trim:
        tail = 20 if len(areas) < 60 else 45
        areas = areas[20:-tail]
        shift = 20
    width = math.ceil(fraction * len(areas))
    best, best_start = -1, 0
    for start in range(len(areas) - width + 1):
        total = sum(areas[start : start + width])
        if total > best:
            best, best_start = total, start
    return shift + best_start, shift + best_start + width


def kds_cdf(areas):
    """The grid of 100 areas and the CDF on it, from the formula of the Gaussian KDE with Scott's bandwidth."""
    n = len(areas)
    mean = sum(areas) / n
    variance = sum((a - mean) ** 2 for a in areas) / (n - 1)
    h = math.sqrt(variance) * n ** (-1 / 5)
    low, high = min(areas), max(areas)
    grid = [low + (high - low) * i / 99 for i in range(100)]
    pdf = [sum(math.exp(-(((x - a) / h) ** 2) / 2) for a in areas) / (n * h * math.sqrt(2 * math.pi)) for x in grid]
    cdf = [0.0]
    for i in range(1, 100):
        cdf.append(cdf[-1] + (pdf[i] + pdf[i - 1]) / 2 * (grid[i] - grid[i - 1]))
    return grid, pdf, [c / cdf[-1] for c in cdf]


def kds_edges(areas, k):
    grid, _, cdf = kds_cdf(areas)
    edges = []
    for j in range(k + 1):
        i = 1
        while i < 99 and cdf[i] < j / k:
            i += 1
        share = (j / k - cdf[i - 1]) / (cdf[i] - cdf[i - 1])
        edges.append(grid[i - 1] + share * (grid[i] - grid[i - 1]))
    return edges


def systematic_edges(areas, k):
    return [min(areas) + (max(areas) - min(areas)) * j / k for j in range(k + 1)]


def members(areas, edges, last_closed):
    """For each interval the indices of its slices."""
    found = []
    for j in range(len(edges) - 1):
        last = last_closed and j == len(edges) - 2
        found.append([i for i, a in enumerate(areas) if edges[j] <= a and (a < edges[j + 1] or last)])
    return found


def quotas(counts, s):
    """One for each interval, its share of the others, and what is left one each to the fullest."""
    k = len(counts)
    quota = [1 + (s - k) * count // sum(counts) for count in counts]
    fullest_first = sorted(range(k), key=lambda j: (counts[j], j), reverse=True)
    for j in fullest_first[: s - sum(quota)]:
        quota[j] += 1
    return quota


def released_draw(areas, edges, s, rng):
    """The released draw of a window of s or more slices, values mapped back to their first index."""
    areas = list(areas)
    groups = members(areas, edges, last_closed=False)
    drawn = []
    for group, quota in zip(groups, quotas([len(group) for group in groups], s), strict=True):
        values = [areas[i] for i in group]
        drawn += values if len(values) < quota else rng.choice(values, quota, replace=False).tolist()
    return sorted(areas.index(value) for value in drawn)
