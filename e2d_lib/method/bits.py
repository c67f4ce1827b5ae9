"""Binary images, 64 pixels to a word: the pixel work of SSFL++ (:mod:`e2d_lib.method.ssfl`), compiled by numba.

Importing this module compiles it, or loads what an earlier process on this machine compiled and cached; so it is
imported where the first slice is measured, not before. The functions hold no lock of Python: threads run side by side.

A bitmap is a (MARGIN + rows + MARGIN, 1 + words) uint64 array; pixel (r, c) is bit c % 64 of word
[MARGIN + r, 1 + c // 64], and every other bit is 0. With the margin no window has to ask where the image ends: above
and below it are whole rows, left and right the first word of this row and of the next one, for in memory order a row's
last word comes right before the next row's first.
"""

import numpy as np
from numba import njit, types

MARGIN = 3
"""Rows above and below the image: as far as a window reaches."""

ONE = np.uint64(1)
TOP = np.uint64(1 << 63)
ALL = np.uint64(2**64 - 1)

_IMAGE = types.Array(types.uint8, 2, "C", readonly=True)  # takes writable arrays too
_BITMAP = types.Array(types.uint64, 2, "C")
_MARKS = types.Array(types.uint8, 1, "C")


def _compiled(*signature):
    """njit for what Python calls: compiled at once, for these types only, without the lock, and cached."""

    def decorate(function):
        try:
            return njit(list(signature), nogil=True, cache=True)(function)
        except RuntimeError:  # neither this folder nor the user's cache folder can be written
            return njit(list(signature), nogil=True)(function)

    return decorate


@_compiled(_BITMAP(_IMAGE, types.uint8))
def below(image, threshold):
    """(rows, cols) uint8 -> the bitmap of its pixels under the threshold."""
    rows, cols = image.shape
    bitmap = np.zeros((rows + 2 * MARGIN, 1 + (cols + 63) // 64), np.uint64)
    for r in range(rows):
        row = bitmap[MARGIN + r, 1:]
        for w in range(cols // 64):
            word = np.uint64(0)
            for b in range(64):
                word |= np.uint64(image[r, 64 * w + b] < threshold) << b
            row[w] = word
        for c in range(cols - cols % 64, cols):
            row[c // 64] |= np.uint64(image[r, c] < threshold) << (c % 64)
    return bitmap


@njit
def _inside(cols):
    """(1 + words,) uint64: the bits of a bitmap's row that are pixels of the image."""
    inside = np.full(1 + (cols + 63) // 64, ALL)
    inside[0] = 0
    inside[-1] >>= -cols % 64
    return inside


@_compiled(_BITMAP(_BITMAP, types.intp))
def grown(bitmap, cols):
    """Every pixel with a set one in the 5x5 window around it."""
    inside = _inside(cols)
    wide = np.zeros_like(bitmap)
    left, middle, right = bitmap.ravel()[:-2], bitmap.ravel()[1:-1], bitmap.ravel()[2:]
    out = wide.ravel()[1:-1]
    for i in range(len(out)):
        x = middle[i]
        out[i] = x | x << 1 | x << 2 | left[i] >> 63 | left[i] >> 62 | x >> 1 | x >> 2 | right[i] << 63 | right[i] << 62
    result = np.zeros_like(bitmap)
    for r in range(MARGIN, len(bitmap) - MARGIN):
        above2, above, here, under, under2 = wide[r - 2], wide[r - 1], wide[r], wide[r + 1], wide[r + 2]
        out = result[r]
        for w in range(len(inside)):
            out[w] = inside[w] & (above2[w] | above[w] | here[w] | under[w] | under2[w])
    return result


@_compiled(_BITMAP(_BITMAP, types.intp, types.intp, types.intp, types.intp))
def cropped(bitmap, row0, row1, col0, col1):
    """The bitmap of the image's part [row0, row1) x [col0, col1), as :func:`below` would give it."""
    inside = _inside(col1 - col0)
    part = np.zeros((row1 - row0 + 2 * MARGIN, len(inside)), np.uint64)
    first, shift = 1 + col0 // 64, np.uint64(col0 % 64)
    for r in range(MARGIN, len(part) - MARGIN):
        # Of a row's last word the one after it is the next row's first, and 0.
        source = bitmap.ravel()[(row0 + r) * bitmap.shape[1] + first :]
        for w in range(1, len(inside)):
            word = source[w - 1] >> shift
            if shift:
                word |= source[w] << (np.uint64(64) - shift)
            part[r, w] = inside[w] & word
    return part


@_compiled(types.UniTuple(_MARKS, 2)(_BITMAP, types.intp))
def body_marks(air, cols):
    """The rows and the columns, 1 or 0 each, that hold a pixel whose 10x10 window r-5 ... r+4 is free of dark pixels.

    air is :func:`grown` from the dark pixels. The 10-pixel window is the union of the 5-pixel windows around r-3, r
    and r+2, also at the border of the image, where those centred outside it are left out.
    """
    inside = _inside(cols)
    wide = np.zeros_like(air)
    left, middle, right = air.ravel()[:-2], air.ravel()[1:-1], air.ravel()[2:]
    out = wide.ravel()[1:-1]
    for i in range(len(out)):
        x = middle[i]
        out[i] = x | x << 3 | left[i] >> 61 | x >> 2 | right[i] << 62
    row_marks = np.zeros(len(air) - 2 * MARGIN, np.uint8)
    any_row = np.zeros(len(inside), np.uint64)
    for r in range(MARGIN, len(air) - MARGIN):
        above, here, under = wide[r - 3], wide[r], wide[r + 2]
        any_col = np.uint64(0)
        for w in range(len(inside)):
            body = inside[w] & ~(above[w] | here[w] | under[w])
            any_row[w] |= body
            any_col |= body
        row_marks[r - MARGIN] = any_col != 0
    col_marks = np.zeros(cols, np.uint8)
    for c in range(cols):
        col_marks[c] = any_row[1 + c // 64] >> (c % 64) & ONE
    return row_marks, col_marks


@njit
def _count(x):
    """The number of ones in a word: sums of 2, 4 and 8 bits side by side, then of the eight bytes."""
    x -= x >> 1 & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + (x >> 2 & np.uint64(0x3333333333333333))
    x = (x + (x >> 4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return x * np.uint64(0x0101010101010101) >> 56


@njit
def _runs(free, seed):
    """The runs of ones in the word ``free`` that hold a bit of ``seed``, a part of it."""
    if seed == free or free == ALL:
        return free
    # Upwards, adding does it: the carry from a seed clears its run up to the run's end (but for further seeds).
    seed |= free & ~(free + seed)
    # Downwards, by steps of 1, 2, 4 ...: free keeps the bits with that many more of the run above them.
    for step in (1, 2, 4, 8, 16, 32):
        seed |= free & seed >> step
        free &= free >> step
    return seed


@njit
def _sweep(free, reached, start, stop, step, neighbour):
    """Reach what the row before, ``neighbour`` words away, leads to; whether that was anything."""
    changed = False
    for i in range(start, stop, step):
        seed = free[i] & reached[i + neighbour] & ~reached[i]
        if seed:
            changed = True
            reached[i] = _runs(free[i], reached[i] | seed)
            at = i  # runs go on across words
            while reached[at] >> 63 & free[at + 1] & ~reached[at + 1]:
                at += 1
                reached[at] = _runs(free[at], reached[at] | ONE)
            at = i
            while reached[at] << 63 & free[at - 1] & ~reached[at - 1]:
                at -= 1
                reached[at] = _runs(free[at], reached[at] | TOP)
    return changed


@_compiled(types.intp(_BITMAP, types.intp))
def hole_area(bitmap, cols):
    """The number of set pixels that no path over set pixels, in steps to four neighbours, leads out of the image.

    Everything outside the image counts as set, and as reached. Sweeps up and down the rows carry on from there: what
    lies next to a reached pixel of the neighbouring row is reached, and with it its whole run in its own row.
    """
    first, last = MARGIN * bitmap.shape[1], (len(bitmap) - MARGIN) * bitmap.shape[1]
    free = (bitmap | ~_inside(cols)).ravel()
    reached = np.full_like(free, ALL)
    free[:first] = ALL
    free[last:] = ALL
    reached[first:last] = 0
    # Upwards first: the words left and right of a row then come after most of the row's own, so that fewer of those
    # are reached one by one, from the side.
    while _sweep(free, reached, last - 1, first - 1, -1, bitmap.shape[1]) and _sweep(
        free, reached, first, last, 1, -bitmap.shape[1]
    ):
        pass
    area = np.uint64(0)
    for i in range(first, last):
        area += _count(free[i] & ~reached[i])
    return area
