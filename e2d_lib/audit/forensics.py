"""What a printed score can be a score of: integer arithmetic on saved macro F1 and AUC values, and on slice counts.

A score of n cases is a fraction of small integers, and a printed double tells such fractions apart: so it says how many
cases there were, and how many were wrong. Everything is decided in exact rational arithmetic on the printed double;
floating point only narrows the search. Distances are in spacings of doubles in [0.5, 1), 2^-53, where a correctly
rounded result is at most half a spacing away and scikit-learn's few roundings at most some four.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.special import gammaln

from e2d_lib.method.ssfl import TRIM_HEAD, TRIM_SHORT, TRIM_TAIL, TRIM_TAIL_SHORT

SPACING = Fraction(1, 2**53)


class Totals(NamedTuple):
    """A solution of `f1_totals`: ``rows`` cases, ``errors`` = FN + FP, ``imbalance`` = |TP - TN|."""

    rows: int
    errors: int
    imbalance: int
    distance: float
    """exact value of the fraction less the score, in spacings of 2^-53"""


class Positives(NamedTuple):
    """A solution of `auc_positives`: positive and negative cases, and twice the pairs ranked rightly (ties: one)."""

    positives: int
    negatives: int
    doubled_pairs: int
    distance: float
    """exact value of the fraction less the score, in spacings of 2^-53"""


# Macro F1 ----------------------------------------------------------------------------------------------------------


def macro_f1(rows: int, errors: int, imbalance: int) -> Fraction:
    """Macro F1 of any confusion matrix with these totals: 1 - rows · errors / (rows² - imbalance²), exactly.

    With a = TP, b = TN, e = FN + FP the two F1 values are 2a / (2a + e) and 2b / (2b + e); a + b = rows - e and
    |a - b| = imbalance give the rest. How e divides into FN and FP, and which class is which, makes no difference.

    >>> macro_f1(10, 2, 0)                     # TP = TN = 4, two errors: 8/10 each
    Fraction(4, 5)
    """
    return 1 - Fraction(rows * errors, rows * rows - imbalance * imbalance)


def f1_totals(score: float, rows: range, *, spacings: float = 4.0) -> list[Totals]:
    """Every (rows, errors, imbalance) whose macro F1 is ``score`` to within ``spacings`` · 2^-53, nearest first.

    ``rows``: numbers of cases to try. All confusion matrices of so many are covered: for each number of errors
    imbalance² = rows² - rows · errors / (1 - score) must be the square of an integer of the parity of rows - errors. A
    share of errors above 1 - score has no solution (macro F1 is at most the accuracy). Raises ValueError for scores
    outside (0, 1) and for ``spacings`` that are too many to decide by the nearest square.

    >>> [tuple(t[:3]) for t in f1_totals(0.8, range(1, 11))]
    [(5, 1, 0), (9, 1, 6), (10, 2, 0)]
    """
    _open_unit(score, "macro F1")
    exact, loss = Fraction(score), 1 - score
    found = []
    for n in rows:
        errors = np.arange(1, int(n * loss) + 2, dtype=float)  # one more, as n · loss may be just under an integer
        square = n * (n - errors / loss)
        # What the window on the score is on imbalance², and what float64 itself can be off by.
        tolerance = n * errors[-1] / loss**2 * spacings * float(SPACING) + 4e-16 * n * n
        if tolerance > 0.25:
            raise ValueError(f"{spacings:g} spacings are too many for {n} rows: the score has too few digits")
        root = np.rint(np.sqrt(np.maximum(square, 0.0)))
        for index in np.flatnonzero(np.abs(root * root - square) <= tolerance):
            e, d = int(errors[index]), int(root[index])
            if (n - e - d) % 2 or d > n - e:
                continue
            distance = float((macro_f1(n, e, d) - exact) / SPACING)
            if abs(distance) <= spacings:
                found.append(Totals(n, e, d, distance))
    return sorted(found, key=lambda t: (abs(t.distance), t.rows))


def f1_chance(rows: range, *, spacings: float = 4.0) -> float:
    """How many solutions `f1_totals` is expected to find for a number that is no such fraction, whatever it is.

    For each number of rows and each imbalance, the errors that would be needed are a real number; it must fall on an
    integer of the right parity. Linear in ``spacings``: with eight decimals these are 0.5e-8 · 2^53.
    """
    n = np.asarray(rows, dtype=float)
    return float(spacings * float(SPACING) * (1 - 1 / 3) * (n * n).sum())


# AUC ---------------------------------------------------------------------------------------------------------------


def auc_positives(score: float, rows: int, positives: range, *, spacings: float = 4.0) -> list[Positives]:
    """Numbers of positives among ``rows`` cases for which ``score`` can be an AUC, nearest first.

    2 · AUC · P · N counts pairs (a right one 2, a tie 1), so it is an integer: some integer over 2 · P · N must be
    within ``spacings`` · 2^-53 of the score. P and N are exchangeable, so a solution comes with its mirror where
    ``positives`` holds both. Raises ValueError for scores outside (0, 1).

    >>> [(p.positives, p.doubled_pairs) for p in auc_positives(2 / 3, 4, range(1, 4))]
    [(1, 4), (3, 4)]
    """
    _open_unit(score, "AUC")
    exact, found = Fraction(score), []
    for p in positives:
        if 0 < p < rows:
            pairs = 2 * p * (rows - p)
            count = round(exact * pairs)
            distance = float((Fraction(count, pairs) - exact) / SPACING)
            if abs(distance) <= spacings:
                found.append(Positives(p, rows - p, count, distance))
    return sorted(found, key=lambda fit: (round(abs(fit.distance), 9), fit.positives))


def auc_chance(rows: int, positives: range, *, spacings: float = 4.0) -> float:
    """How many distinct {P, N} `auc_positives` is expected to find for a number that is no AUC of so many rows."""
    pairs = {p * (rows - p) for p in positives if 0 < p < rows}
    return float(sum(min(1.0, 4 * pq * spacings * float(SPACING)) for pq in pairs))


# Slice counts ------------------------------------------------------------------------------------------------------


def trimmed_width(n: int) -> int:
    """Width of the released training window of a scan of ``n`` slices: half, rounded up, of what the cut leaves
    (method/README.md §3).

    >>> [trimmed_width(n) for n in (40, 59, 60, 65, 81)]
    [0, 10, 0, 0, 8]
    """
    left = n - TRIM_HEAD - (TRIM_TAIL if n >= TRIM_SHORT else TRIM_TAIL_SHORT)
    return -(-max(left, 0) // 2)


def lengths_of_width(width: int) -> list[int]:
    """The slice counts whose released training window has this width (0: those of 1 slice and more).

    >>> lengths_of_width(8), lengths_of_width(11)
    ([55, 56, 80, 81], [86, 87])
    """
    top = TRIM_HEAD + TRIM_TAIL + 2 * width
    return [n for n in range(1, top + 1) if trimmed_width(n) == width]


def slices_of_widths(widths: Iterable[int], scans: Iterable[int]) -> tuple[int, int]:
    """Fewest and most slices of so many scans of each width of the released training window.

    >>> slices_of_widths([8, 11], [1, 2])
    (227, 255)
    """
    lengths = [(lengths_of_width(width), count) for width, count in zip(widths, scans, strict=True)]
    low, high = (sum(pick(possible) * int(count) for possible, count in lengths) for pick in (min, max))
    return low, high


def touched(lengths: Iterable[int], sampled: int) -> float:
    """Expected share of scans with at least one row among ``sampled`` slice rows, drawn without replacement.

    ``lengths``: slices of each scan; together they are the rows drawn from. A scan of n of M rows is missed with
    probability C(M - n, k) / C(M, k). Raises ValueError when more rows are drawn than there are, or none is there.

    >>> round(touched([1, 1, 2], 1), 9)              # one row touches one scan of three
    0.333333333
    """
    n = np.asarray(list(lengths), dtype=float)
    total = n.sum()
    if not n.size or not 0 <= sampled <= total:
        raise ValueError(f"cannot draw {sampled} of {total:.0f} rows of {n.size} scans")
    possible = total - n >= sampled  # else a draw that misses the scan does not exist
    rest = np.where(possible, total - n, total)
    log = gammaln(rest + 1) - gammaln(rest - sampled + 1) - gammaln(total + 1) + gammaln(total - sampled + 1)
    return float(1 - np.where(possible, np.exp(log), 0.0).mean())


def touched_bounds(groups: Mapping[tuple[int, ...], int], total: int, fraction: float) -> tuple[float, float]:
    """Smallest and largest expected share of scans touched by a ``fraction`` of all rows, where lengths are half known.

    ``groups``: the slice counts that a group of scans may have, and how many scans are in it; ``total``: slices of all
    scans. Scans are taken to be missed with probability (1 - fraction)^n, the limit of `touched` for many rows. Linear
    programming over all assignments (fractional ones too, so the bounds may be wider than need be by less than a scan).
    Raises ValueError when no assignment has that total.
    """
    index, n = np.array([(group, n) for group, lengths in enumerate(groups) for n in lengths]).T
    value = 1 - (1 - fraction) ** n
    equal = np.vstack([index == group for group in range(len(groups))] + [n])
    target = [*groups.values(), total]
    scans = sum(groups.values())
    bounds = []
    for sign in (1, -1):
        result = linprog(sign * value, A_eq=equal, b_eq=target, bounds=(0, None))
        if not result.success:
            raise ValueError(f"no slice counts of these {scans} scans make {total} slices")
        bounds.append(float(sign * result.fun / scans))
    return bounds[0], bounds[1]


def _open_unit(score: float, name: str) -> None:
    if not 0 < score < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded; got {score}")
