"""What the audit recomputes: one function for each entry of the register that needs no training.

A check takes `Inputs` and gives whether the register's statement holds (None where it cannot be decided), what was
found in words, and its effects on the cohort, if there is one. The published tables are data; nothing is read from
the released code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, gaussian_kde

from e2d_lib.audit import forensics
from e2d_lib.method import curves, kds, reduction, ssfl
from e2d_lib.method.preprocess import Preprocessed

SCANS = range(1, 1685)
"""Numbers of cases a score of scans can have: up to all training and validation scans."""
ROWS = range(70_000, 105_001)
"""Numbers of cases a score of slice rows can have: any fold of the cohort."""
ALL_ROWS = range(2, 108_000)
"""The same for the score of 2025, of which nothing was assumed."""
FITS = ["rows", "errors", "smaller_class", "larger_class", "solutions", "as_scans", "distance", "chance"]
POSITIVE_ROWS = range(38_000, 46_501)
VALIDATION_ROWS = 89_264
EXCLUDED_SLICES = 399  # of validation positive ct_scan_60, the 18th excluded scan (D4)
SHORT_SCANS = (5, 15, 16, 19)  # slice counts of the training scans under 20 slices that are not excluded

N_SAMPLES = 8
DRAWS, DRAWN_SCANS = 20, 200
"""Monte Carlo: draws from each window, and windows drawn from (a random choice where there are more)."""
EPOCHS = 24
N_BOOT = 2000


class Effect(NamedTuple):
    """Size of a discrepancy on the cohort at hand, with a 95 % interval where there is one."""

    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """what the value speaks of: scans, unless the metric says otherwise"""
    unit: str = ""
    """"share" is shown in per cent"""


@dataclass(frozen=True)
class Inputs:
    """What checks may use; tables are read, windows chosen and slices drawn when first asked for.

    published: the folder of published tables. cohort: preprocessed scans, or None. cropped: the same scans with lung
    areas on the crop (B3), or None. rng: for Monte Carlo and resampling.
    """

    published: Path
    cohort: Preprocessed | None
    cropped: Preprocessed | None
    rng: np.random.Generator

    @cached_property
    def table(self) -> pd.DataFrame:
        return reduction.published(self.published / "reduction_table.csv").set_index("row")

    @cached_property
    def outputs(self) -> pd.DataFrame:
        return reduction.released_outputs(self.published / "released_outputs.csv").set_index("group")

    @cached_property
    def windows(self) -> pd.DataFrame:
        return pd.read_csv(self.published / "saved_windows.csv")

    @cached_property
    def fits(self) -> pd.DataFrame:
        return score_fits(self.published)

    @cached_property
    def real(self) -> curves.RealScans:
        return curves.real(self.published / "real_areas")

    @cached_property
    def curves(self) -> dict[str, np.ndarray]:
        """scan_id -> lung areas of all its slices, of the scans that preprocessing did not exclude."""
        return _curves(self.cohort)

    @cached_property
    def positive(self) -> dict[str, bool]:
        """scan_id -> class, of the labelled scans among `curves`."""
        scans = self.cohort.scans
        labels = scans["label"] if "label" in scans else pd.Series(pd.NA, index=scans.index)
        known = dict(zip(scans["scan_id"], labels, strict=True))
        return {scan: bool(known[scan] == 1) for scan in self.curves if not pd.isna(known[scan])}

    @cached_property
    def uncut(self) -> dict[str, tuple[int, int]]:
        return {scan: ssfl.slice_window(areas, 0.5, False) for scan, areas in self.curves.items()}

    @cached_property
    def cut(self) -> dict[str, tuple[int, int]]:
        return {scan: ssfl.slice_window(areas, 0.5, True) for scan, areas in self.curves.items()}

    @cached_property
    def cut_widths(self) -> np.ndarray:
        return np.array([stop - start for start, stop in self.cut.values()], dtype=np.int64)

    @cached_property
    def drawn(self) -> list[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]]:
        """Areas, released draws and corrected draws of windows of 8 and more: the cohort's, or random ones."""
        if self.cohort is None:
            windows = [self.rng.integers(0, 30_000, self.rng.integers(N_SAMPLES, 200)) for _ in range(20)]
        else:
            windows = [areas[slice(*self.uncut[scan])] for scan, areas in self.curves.items()]
            windows = [areas for areas in windows if len(areas) >= N_SAMPLES and np.ptp(areas) > 0]
        if len(windows) > DRAWN_SCANS:
            windows = [windows[k] for k in np.sort(self.rng.choice(len(windows), DRAWN_SCANS, replace=False))]

        def draws(areas: np.ndarray, variant: str, times: int) -> list[np.ndarray]:
            return [kds.sample(areas, N_SAMPLES, variant=variant, rng=self.rng) for _ in range(times)]

        return [(areas, draws(areas, "released", DRAWS), draws(areas, "corrected", EPOCHS)) for areas in windows]

    def saved(self, split: str, label: int | None = None) -> pd.DataFrame:
        """Saved windows of a split (and class): width, scans, and those of them that are not dropped."""
        table = self.windows[self.windows["split"] == split]
        table = table if label is None else table[table["label"] == label]
        return table.assign(left=table["scans"] - table["dropped"])


CheckFunction = Callable[[Inputs], tuple[bool | None, str, list[Effect]]]


def score_fits(folder: str | Path) -> pd.DataFrame:
    """What each saved score can be a score of: one row a score of 12 decimals and more, in the file's order.

    ``folder``: of the published tables. saved_scores.csv has run, metric (macro_f1 or roc_auc) and value; what follows
    from a value takes seconds to find and never changes, so it is read from score_fits.csv where it stands there, and
    derived (`score_fit`) where it does not. Columns: run, metric, value (str, as printed) and those of `score_fit`.
    """
    saved = pd.read_csv(Path(folder) / "saved_scores.csv", dtype={"value": str})
    saved = saved[saved["value"].str.partition(".")[2].str.len() >= 12]
    known = pd.read_csv(Path(folder) / "score_fits.csv", dtype={"value": str}).set_index(["metric", "value"])
    rows = []
    for run, metric, text in saved[["run", "metric", "value"]].itertuples(index=False):
        stored = (metric, text) in known.index
        fit = known.loc[(metric, text), FITS].to_dict() if stored else score_fit(metric, text, follow_up(run))
        rows.append({"run": run, "metric": metric, "value": text, **fit})
    table = pd.DataFrame(rows, columns=["run", "metric", "value", *FITS])
    return table.astype(dict.fromkeys(FITS[:6], "Int64") | dict.fromkeys(FITS[6:], float))


def follow_up(run: str) -> bool:
    """Whether a saved score is of 2025: it was searched for over all numbers of cases, not only those of a fold."""
    return run.startswith("follow-up")


def score_fit(metric: str, text: str, wide: bool = False) -> dict:
    """What a score printed as ``text`` can be a score of; ``wide``: search `ALL_ROWS`, not `ROWS`.

    rows, errors (macro F1 only), smaller_class and larger_class (rows, AUC only: which of them is the positive one an
    AUC cannot tell), solutions (in the rows searched, or in `POSITIVE_ROWS`), as_scans (solutions in `SCANS`, macro F1
    only), distance (spacings of 2^-53) and chance (solutions expected of a number that is no score at all).
    """
    value, fit = float(text), {}
    if metric == "macro_f1":
        searched = ALL_ROWS if wide else ROWS
        found = forensics.f1_totals(value, searched)
        as_scans = len(forensics.f1_totals(value, SCANS))
        fit |= {"solutions": len(found), "as_scans": as_scans, "chance": forensics.f1_chance(value, searched)}
        if found:
            fit |= {"rows": found[0].rows, "errors": found[0].errors, "distance": found[0].distance}
    else:
        found = forensics.auc_positives(value, VALIDATION_ROWS, POSITIVE_ROWS)
        pairs = {frozenset((one.positives, one.negatives)): one for one in found}
        chance = forensics.auc_chance(VALIDATION_ROWS, POSITIVE_ROWS)
        fit |= {"rows": VALIDATION_ROWS, "solutions": len(pairs), "chance": chance}
        if found:
            smaller, larger = sorted((found[0].positives, found[0].negatives))
            fit |= {"smaller_class": smaller, "larger_class": larger, "distance": found[0].distance}
    return fit


# Checks ------------------------------------------------------------------------------------------------------------

CHECKS: dict[str, CheckFunction] = {}


def _check(id: str) -> Callable[[CheckFunction], CheckFunction]:
    def keep(function: CheckFunction) -> CheckFunction:
        CHECKS[id] = function
        return function

    return keep


@_check("A1")
def _repeated_row(given: Inputs):
    area, volume = (list(reduction.DECIMALS)[part] for part in (slice(0, 3), slice(6, 9)))
    same = bool((given.table.loc["(T+V) Positive", area] == given.table.loc["Training", area]).all())
    out = given.outputs
    both = out.loc["(T+V) Positive"]
    parts = out.loc[["Training/Positive", "Validation/Positive"]].assign(slices=[206_608, 46_042])  # one is not printed
    names = ["area_before", "area_after", "area_delta_mean_of_ratios"]
    pooled = np.average(parts[names].to_numpy(dtype=float), axis=0, weights=parts["slices"].to_numpy(dtype=float))
    agree = bool(np.allclose(pooled, both[names].to_numpy(dtype=float), rtol=1e-12))
    cells = reduction.check_published(given.table.reset_index(), out.reset_index())
    cells = cells[cells["row"] == "(T+V) Positive"].set_index("quantity")
    wrong = set(cells.index[~cells["agrees"]])
    found = (
        f"the three area cells equal Training's; pooled {pooled[0] / 1e3:.2f}, {pooled[1] / 1e3:.2f}, "
        f"{reduction.truncate(pooled[2], 4)}; volumes "
        + ", ".join(format(value, "g") for value in cells.loc[volume, "recomputed"])
    )
    return same and agree and wrong == {*area, *volume}, found, []


@_check("A2")
def _two_rules_in_testing(given: Inputs):
    printed, saved = given.table.loc["Testing"], given.outputs.loc["Testing"]
    volume = 1 - float(saved["area_after"] * saved["length_after"]) / float(
        saved["area_before"] * saved["length_before"]
    )
    found = (
        f"length after {printed['length_after']:g} printed, {saved['length_after']:.2f} saved; volume Δ "
        f"{printed['volume_delta']:.4f} printed, {reduction.truncate(volume, 4):.4f} with the saved length"
    )
    differs = reduction.truncate(float(saved["length_after"]), 2) != printed["length_after"]
    return differs and reduction.truncate(volume, 4) == 0.7818, found, []


@_check("A3")
def _lengths_of_other_windows(given: Inputs):
    holds, words = True, []
    for split, row, mean in (("train", "Training", 111.64), ("valid", "Validation", 108.68)):
        table = given.saved(split)
        width = np.average(table["width"], weights=table["scans"])
        slices = {"train": 385_631, "valid": 90_690}[split]
        share = (table["width"] * table["scans"]).sum() / slices
        area = given.outputs.loc[row]
        volume = 1 - float(area["area_after"] / area["area_before"]) * share
        holds &= round(width, 2) == mean and width < given.table.loc[row, "length_after"] - 30
        words.append(
            f"{row}: saved windows hold {width:.2f} slices on average over {table['scans'].sum():,} scans "
            f"({share:.1%} of the slices), the table says {given.table.loc[row, 'length_after']:g}; volume Δ "
            f"{volume:.3f}"
        )
    if given.cohort is None:
        return holds, "; ".join(words), []
    n = np.array([len(areas) for areas in given.curves.values()])
    whole = np.array([stop - start for start, stop in given.uncut.values()])
    effects = [
        _mean("slices removed by the window, cut curve", 1 - given.cut_widths / n, given.rng, "share"),
        _mean("slices removed by the window, whole curve", 1 - whole / n, given.rng, "share"),
    ]
    return holds, "; ".join(words), effects


@_check("A4")
def _more_than_half(given: Inputs):
    printed = float(given.table.loc["Testing", "length_delta"])
    singles = [287, 163, 243, 91]  # the mixed-shape test scans that were cut to one slice and kept
    largest = ((1413 - len(singles)) * 0.5 + sum(1 - 1 / n for n in singles)) / 1413
    half = all(1 - _width(n) / n <= 0.5 for n in range(1, 1001))
    found = (
        f"at most 0.5 for every n from 1 to 1,000; printed {printed}; up to {largest:.4f} with the four scans that "
        "were cut to one slice"
    )
    return half and 0.5 < printed < largest, found, []


@_check("A5")
def _cut_off_not_rounded(given: Inputs):
    cells = reduction.check_published(given.table.reset_index(), given.outputs.reset_index())
    sound = cells[~cells["row"].isin(["(T+V) Positive", "Testing"])]
    plain = {"area_before_k": ("area_before", 1e3), "area_after_k": ("area_after", 1e3)}
    plain |= {"length_before": ("length_before", 1), "length_after": ("length_after", 1)}
    plain |= {"area_delta": ("area_delta_mean_of_ratios", 1), "length_delta": ("length_delta_mean_of_ratios", 1)}
    sides = [
        (printed, round(float(given.outputs.loc[row, plain[name][0]]) / plain[name][1], reduction.DECIMALS[name]))
        for row, name, printed in sound[["row", "quantity", "published"]].itertuples(index=False)
        if name in plain
    ]
    rounded = sum(abs(printed - value) > 1e-9 for printed, value in sides)
    ratio = given.outputs.loc["Training"]
    found = (
        f"cut off, {int(sound['agrees'].sum())} of {len(sound)} cells of the eight other rows are as printed; rounded, "
        f"{rounded} of {len(sides)} area and length cells would not be. Training's area Δ: mean of ratios "
        f"{ratio['area_delta_mean_of_ratios']:.4f}, ratio of means {1 - ratio['area_after'] / ratio['area_before']:.4f}"
    )
    holds = bool(sound["agrees"].all()) and rounded > 0
    if given.cohort is None:
        return holds, found, []
    scans = given.cohort.scans[given.cohort.scans["status"] != "excluded"]
    per_slice = reduction.slice_reduction(given.cohort.slices)
    of_means = 1 - per_slice["area_after"].sum() / per_slice["area_before"].sum()
    per_scan = reduction.total_reduction(given.cohort.slices, given.cohort.scans)
    product = (1 - of_means) * (scans["stop"] - scans["start"]).mean() / scans["n_slices"].mean()
    effects = [
        Effect("area Δ, mean of ratios less ratio of means", float(per_slice["area_delta"].mean() - of_means)),
        _mean("pixels removed, counted in each scan", per_scan["total_delta"], given.rng, "share"),
        Effect("volume Δ, product of means", float(1 - product), n=len(scans), unit="share"),
    ]
    return holds, found, effects


@_check("A6")
def _populations(given: Inputs):
    out = given.outputs
    # A mean printed to six decimals gives away what it was divided by.
    lengths = {
        "Training": (1349, 384_904),
        "Validation": (318, 89_663),
        "Total": (1667, 474_567),
        "Testing": (1413, 437_178),
    }
    holds = all(abs(float(out.loc[row, "length_before"]) * n - total) < n * 1e-6 for row, (n, total) in lengths.items())
    total, scans = float(out.loc["Training", "length_before"]), 1358
    holds &= abs(total * scans - round(total * scans)) > scans * 1e-6
    holds &= [int(out.loc[row, "slices"]) for row in ("Training", "Validation", "Testing")] == [
        385_330,
        89_721,
        436_781,
    ]
    found = "; ".join(
        f"{row}: areas {out.loc[row, 'slices']:,} slices, lengths {n:,} scans with {total:,}"
        for row, (n, total) in lengths.items()
    )
    if given.cohort is None:
        return holds, found, []
    scans = given.cohort.scans
    outside = int(scans.loc[scans["status"] == "excluded", "n_slices"].sum())
    return (
        holds,
        found,
        [_share("measured slices that are in scans without a window", outside, int(scans["n_slices"].sum()))],
    )


@_check("B1")
def _cut_in_training_only(given: Inputs):
    table = given.saved("train")
    bounds = [sum(pick(forensics.lengths_of_width(w)) * k for w, k in zip(table["width"], table["scans"], strict=True))
              for pick in (min, max)]  # fmt: skip
    whole = 2 * int((table["width"] * table["scans"]).sum())
    found = (
        f"the saved training windows are of {bounds[0]:,} to {bounds[1]:,} slices if the curve was cut, of at most "
        f"{whole:,} if it was not; training has 385,631"
    )
    holds = bounds[0] <= 385_631 <= bounds[1] and whole < 385_631
    if given.cohort is None:
        return holds, found, []
    pairs = [(given.uncut[scan], given.cut[scan], areas) for scan, areas in given.curves.items()]
    overlap = [_overlap(a, b) for a, b, _ in pairs]
    area = [1 - areas[slice(*b)].sum() / areas[slice(*a)].sum() for a, b, areas in pairs if areas.any()]
    effects = [
        _share("scans whose window differs when the curve is cut", sum(a != b for a, b, _ in pairs), len(pairs)),
        _mean("overlap of the two windows (intersection over union)", overlap, given.rng, "share"),
        _mean("lung area of the window lost by the cut", area, given.rng, "share"),
    ]
    return holds, found, effects


@_check("B2")
def _empty_windows(given: Inputs):
    windows = {n: ssfl.slice_window(np.ones(n, dtype=np.int64), 0.5, True) for n in range(1, 701)}
    widths = {n: int(stop - start) for n, (start, stop) in windows.items()}
    empty = [n for n, width in widths.items() if width == 0]
    starts = min(int(start) for start, _ in windows.values())
    holds = (
        empty == [*range(1, 41), *range(60, 66)] and [widths[n] for n in (59, 65, 81)] == [10, 0, 8] and starts >= 20
    )
    holds &= all(width == forensics.trimmed_width(n) for n, width in widths.items())
    counts = [int(given.saved(split).query("width == 0")["scans"].sum()) for split in ("train", "valid")]
    holds &= counts == [69, 15]
    found = (
        "the rule, for 1 to 700 slices: empty for 1-40 and 60-65; width 10, 0, 8 at 59, 65, 81; first slice 20 at "
        f"least; empty among the saved windows: {counts[0]} training, {counts[1]} validation"
    )
    if given.cohort is None:
        return holds, found, []
    return holds, found, [_share("scans with an empty window", int((given.cut_widths == 0).sum()), len(given.cut))]


@_check("B3")
def _areas_on_crop(given: Inputs):
    if given.cohort is None or given.cropped is None:
        return None, "needs the cohort preprocessed both ways; not done in this run", []
    crop = _curves(given.cropped)
    pairs = [(given.uncut[scan], ssfl.slice_window(crop[scan], 0.5, False)) for scan in given.curves if scan in crop]
    moved = sum(a != b for a, b in pairs)
    effects = [
        _share("scans whose window differs with areas on the crop", moved, len(pairs)),
        _mean(
            "overlap of the two windows (intersection over union)",
            [_overlap(*pair) for pair in pairs],
            given.rng,
            "share",
        ),
    ]
    return None, f"both ways measured: {moved} of {len(pairs)} windows differ", effects


@_check("C1")
def _largest_never_drawn(given: Inputs):
    if not given.drawn:
        return None, "no window of 8 slices and more with areas that differ", []
    rates = {"released": [], "corrected": []}
    for areas, released, corrected in given.drawn:
        for name, draws in (("released", released), ("corrected", corrected)):
            rates[name].append(np.mean([areas[draw].max() == areas.max() for draw in draws]))
    found = (
        f"released rule, {DRAWS} draws from each of {len(given.drawn)} windows: the largest area came in "
        f"{sum(rates['released']) * DRAWS:.0f} of {DRAWS * len(given.drawn):,} draws; corrected, in "
        f"{np.mean(rates['corrected']):.1%}"
    )
    effects = []
    if given.cohort is not None:
        lost = [int((areas == areas.max()).sum()) for areas, _, _ in given.drawn]
        effects = [
            _mean("draws that hold the largest area, corrected", rates["corrected"], given.rng, "share"),
            Effect(
                "draws that hold the largest area, released",
                float(np.mean(rates["released"])),
                n=len(lost),
                unit="share",
            ),
            _mean("slices of a window out of reach, released", lost, given.rng),
        ]
    return max(rates["released"]) == 0 and max(rates["corrected"]) > 0, found, effects


@_check("C2")
def _equal_areas(given: Inputs):
    repeats = {split: int(given.saved(split)["drawn_repeated"].sum()) for split in ("train", "valid")}
    found = f"saved draws of 8 that repeat an index: {repeats['train']} training, {repeats['valid']} validation"
    holds = repeats == {"train": 3, "valid": 2}
    if given.cohort is None or not given.drawn:
        return holds, found, []
    equal = [len(np.unique(areas)) < len(areas) for areas, _, _ in given.drawn]
    repeated = [np.mean([len(np.unique(draw)) < len(draw) for draw in draws]) for _, draws, _ in given.drawn]
    effects = [
        _share("windows that hold equal areas", sum(equal), len(equal)),
        _mean("released draws that repeat a slice", repeated, given.rng, "share"),
    ]
    return holds, found, effects


@_check("C3")
def _fewer_than_eight(given: Inputs):
    words, counts = [], []
    for split, name in (("train", "training"), ("valid", "validation")):
        wide = given.saved(split).query(f"width >= {N_SAMPLES}")
        counts += [int(wide[column].sum()) for column in ("drawn_7", "drawn_6", "scans")]
        words.append(f"{name}: {counts[-3]} of 7 slices and {counts[-2]} of 6 among {counts[-1]:,} saved KDS draws")
    holds = counts == [37, 2, 1123, 10, 0, 267]
    if given.cohort is None or not given.drawn:
        return holds, "; ".join(words), []
    short = [np.mean([len(draw) < N_SAMPLES for draw in draws]) for _, draws, _ in given.drawn]
    return holds, "; ".join(words), [_mean("released draws of fewer than 8 slices", short, given.rng, "share")]


@_check("C4")
def _short_windows(given: Inputs):
    counts = {}
    for split in ("train", "valid"):
        table = given.saved(split)
        few = table["width"].between(2, N_SAMPLES - 1)
        counts[split] = [int(table.loc[mask, "scans"].sum()) for mask in (few, table["width"] < 2)]
    holds = counts == {"train": [144, 91], "valid": [39, 20]}
    holds &= 144 + 91 + 1123 == 1358 and 39 + 20 + 267 == 326 and 2 + 5 + 1406 == 1413
    found = (
        f"saved windows of 2-7 and of 0-1 slices: training {counts['train'][0]} and {counts['train'][1]}, validation "
        f"{counts['valid'][0]} and {counts['valid'][1]}; with those of C3 they make up every scan, in test too"
    )
    if given.cohort is None:
        return holds, found, []
    few = int(((given.cut_widths >= 2) & (given.cut_widths < N_SAMPLES)).sum())
    effects = [
        _share("scans with a cut window of 2 to 7 slices", few, len(given.cut)),
        _share("scans with a cut window of 0 or 1", int((given.cut_widths < 2).sum()), len(given.cut)),
    ]
    return holds, found, effects


@_check("C5")
def _drawn_once(given: Inputs):
    if given.cohort is None or not given.drawn:
        return None, "read in the released files; its effect needs a cohort", []
    once = [len(np.unique(released[0])) / len(areas) for areas, released, _ in given.drawn]
    anew = [len(np.unique(np.concatenate(draws))) / len(areas) for areas, _, draws in given.drawn]
    effects = [
        _mean("slices of a window ever seen, drawn once", once, given.rng, "share"),
        _mean(f"the same, drawn anew in {EPOCHS} epochs", anew, given.rng, "share"),
    ]
    return None, "read in the released files; the effect is measured", effects


@_check("C7")
def _singular(given: Inputs):
    try:
        gaussian_kde(np.full(N_SAMPLES, 1000.0))
        raised = False
    except np.linalg.LinAlgError:
        raised = True
    found = f"scipy's gaussian_kde {'raises LinAlgError' if raised else 'does not fail'} on 8 equal areas"
    if given.cohort is None:
        return raised, found, []
    flat = sum(np.ptp(areas[slice(*given.uncut[scan])]) == 0 for scan, areas in given.curves.items())
    return raised, found, [_share("windows of equal areas", flat, len(given.curves))]


@_check("D1")
def _blank_and_negative(given: Inputs):
    counts = {}
    for split in ("train", "valid"):
        table = given.saved(split)
        short = table[table["width"] <= N_SAMPLES]
        by_label = [int(short.loc[short["label"] == label, "scans"].sum()) for label in (0, 1)]
        exact = int(short.loc[short["width"] == N_SAMPLES, "scans"].sum())
        counts[split] = [int(table["scans"].sum()), sum(by_label), *by_label, exact]
    holds = counts == {"train": [1358, 265, 125, 140, 30], "valid": [326, 68, 34, 34, 9]}
    found = "; ".join(
        f"{name}: {c[1]} of {c[0]:,} saved windows are of 8 slices or fewer, {c[2]} of them of negative and {c[3]} of "
        f"positive scans; {c[4]} are of exactly 8"
        for name, c in zip(("training", "validation"), counts.values(), strict=True)
    )
    if given.cohort is None:
        return holds, found, []
    short = {scan for scan, width in zip(given.cut, given.cut_widths, strict=True) if width <= N_SAMPLES}
    effects = [_share("scans that would be blank", len(short), len(given.cut))]
    if positive := [scan for scan, label in given.positive.items() if label]:
        effects.append(_share("positive scans labelled negative", len(short & set(positive)), len(positive)))
    return holds, found, effects


@_check("D2")
def _mean_grey(given: Inputs):
    grey = [255 * mean for mean in (0.485, 0.456, 0.406)]
    found = f"zero after normalisation is the colour ({', '.join(f'{g:.0f}' for g in grey)}) of 255; black would be 0"
    return min(grey) > 100, found, []


@_check("D3")
def _label_of_seven(given: Inputs):
    from sklearn.metrics import f1_score, roc_auc_score

    label = sum([1] * 7 + [0]) / N_SAMPLES
    raised = []
    for name, score in (("f1_score", f1_score), ("roc_auc_score", roc_auc_score)):
        try:
            score(np.array([0.0, 1.0, label]), np.array([0.0, 1.0, 1.0]))
        except ValueError:
            raised.append(name)
    wide = given.saved("train", 1).query(f"width > {N_SAMPLES}")
    scans = int(wide["drawn_7"].sum())
    found = (
        f"the mean label is {label}; {' and '.join(raised) or 'neither'} raise ValueError; saved draws of 7 that "
        f"are loaded, of positive training scans: {scans}"
    )
    return len(raised) == 2 and scans == 1, found, []


@_check("D4")
def _eighteenth_scan(given: Inputs):
    lengths = forensics.lengths_of_width(167)  # its saved window is [119, 286) or so: 167 slices
    dropped = [int(given.saved(split)["dropped"].sum()) for split in ("train", "valid")]
    saved = int(given.saved("valid", 1).query("width == 167")["scans"].sum())
    found = (
        f"the rule of 5 slices drops {dropped[0]} training and {dropped[1]} validation scans, {sum(dropped)} in all; "
        f"the 18th has a window of 167 slices, so {lengths[0]} or {lengths[1]}; E1 and E2 fit {EXCLUDED_SLICES}"
    )
    return dropped == [9, 8] and lengths == [398, 399] and saved > 0, found, []


@_check("D6")
def _eight_slices(given: Inputs):
    window = tuple(int(edge) for edge in ssfl.slice_window(np.arange(8, 0, -1), 0.5, False))
    longest = max(n for n in range(1, 100) if _width(n) <= N_SAMPLES)
    found = f"8 slices give the uncut window [{window[0]}, {window[1]}), not wider than 8; so do up to {longest} slices"
    if given.cohort is None:
        return window == (0, 4), found, []
    blank = sum(stop - start <= N_SAMPLES for start, stop in given.uncut.values())
    return window == (0, 4), found, [_share("scans with an uncut window of 8 or fewer", blank, len(given.uncut))]


@_check("E1")
def _slice_rows(given: Inputs):
    fits = given.fits[(given.fits["metric"] == "macro_f1") & ~given.fits["run"].map(follow_up)]
    length, excluded = float(given.outputs.loc["Validation", "length_before"]), EXCLUDED_SLICES
    together = int((fits["rows"] == VALIDATION_ROWS).sum())
    holds = bool((fits["solutions"] == 1).all() and (fits["as_scans"] == 0).all()) and len(fits) == 5 and together == 3
    holds &= round(318 * length) - excluded == VALIDATION_ROWS
    holds &= sorted(fits["rows"]) == [89_264] * 3 + [98_089, 99_307]
    value = fits["value"].astype(float)
    at_one = np.mean([forensics.f1_chance(x, range(VALIDATION_ROWS, VALIDATION_ROWS + 1)) for x in value])
    eight = forensics.f1_chance(float(value.mean()), ROWS, spacings=0.5e-8 / float(forensics.SPACING))
    shared = math.comb(len(fits), 3) * len(ROWS) * at_one**3
    listed = "; ".join(
        f"{text[:10]}…: {rows:,} rows, {errors:,} wrong"
        for text, rows, errors in fits[["value", "rows", "errors"]].values
    )
    found = (
        f"no confusion matrix of 1 to {SCANS[-1]:,} scans, whatever its errors, gives any of the {len(fits)} values; "
        f"of {ROWS[0]:,} to {ROWS[-1]:,} rows each has one solution ({listed}), at most "
        f"{fits['distance'].abs().max():.1f} spacings of 2^-53 away. A number that is no score would have "
        f"{fits['chance'].mean():.2f} solutions by chance ({eight:,.0f} had eight decimals been kept), and three of "
        f"five would share one number of rows with probability {shared:.0e}. 318 scans of {length} slices less "
        f"{excluded} are {VALIDATION_ROWS:,}"
    )
    if given.cohort is None:
        return holds, found, []
    n = np.array([len(areas) for areas in given.curves.values()], dtype=float)
    kish = n.sum() ** 2 / (n**2).sum() / len(n)
    effects = [
        Effect("effective share of scans when each counts by its slices", float(kish), n=len(n), unit="share"),
        Effect("weight of the longest scan over the shortest", float(n.max() / n.min()), n=len(n)),
    ]
    return holds, found, effects


@_check("E2")
def _turned_rows(given: Inputs):
    fits = given.fits[given.fits["metric"] == "roc_auc"]
    pairs = list(zip(fits["smaller_class"], fits["larger_class"], strict=True))
    positive = given.outputs.loc["Validation/Positive", "length_before"] * 165 - EXCLUDED_SLICES
    negative = given.outputs.loc["Validation/Negative", "length_before"] * 153
    truth = (round(float(negative)), round(float(positive)))
    holds = bool((fits["solutions"] == 1).all()) and pairs == [truth] + [(43_970, 45_294)] * 3
    turned, mirrored = truth[1] - 43_970, truth[1] - 45_294
    table = given.saved("valid", 1)
    wide = table[table["width"] > N_SAMPLES]
    slices = round(float(positive)) + EXCLUDED_SLICES
    low, high = (
        slices - sum(pick(forensics.lengths_of_width(w)) * k for w, k in zip(wide["width"], wide["left"], strict=True))
        for pick in (max, min)
    )
    short = int(table.loc[table["width"] <= N_SAMPLES, "left"].sum())
    holds &= low <= turned <= high and not low <= mirrored <= high
    products = {p * (VALIDATION_ROWS - p) for p in POSITIVE_ROWS}
    shared = len(products) * (float(fits["chance"].mean()) / len(products)) ** 3
    found = (
        f"over {POSITIVE_ROWS[0]:,} to {POSITIVE_ROWS[-1]:,} positive rows each AUC fits one pair of class sizes: "
        f"{fits['run'].iloc[0]} {truth[1]:,} and {truth[0]:,} (the true counts), the others 43,970 and 45,294, within "
        f"{fits['distance'].abs().max():.1f} spacings of 2^-53; {fits['chance'].mean():.3f} fits each are expected by "
        f"chance, three on one pair with probability {shared:.0e}. So {turned:,} positive rows were turned (or "
        f"{mirrored} if the pair is mirrored); the {short} short positive scans hold {low:,} to {high:,}"
    )
    return holds, found, []


@_check("E4")
def _few_shot_rows(given: Inputs):
    table = given.saved("train").groupby("width")["left"].sum()
    known = {(n,): 1 for n in SHORT_SCANS}
    groups = {tuple(forensics.lengths_of_width(w)): int(k) for w, k in table.items() if w and k}
    groups[tuple(n for n in forensics.lengths_of_width(0) if n >= 20)] = int(table[0]) - len(known)
    bounds = {f: forensics.touched_bounds(groups | known, 384_904, f) for f in (0.01, 0.03, 0.1)}
    holds = bounds[0.01][0] > 0.8 and abs(np.mean(bounds[0.03]) - 0.95) < 0.01 and bounds[0.1][0] > 0.99
    rows = round(0.01 * 384_904)
    found = (
        f"1 % is {rows:,} of 384,904 rows. Over all slice counts that fit the saved windows, training scans touched: "
        + ", ".join(f"{f:.0%} of the rows {low:.1%} to {high:.1%}" for f, (low, high) in bounds.items())
    )
    if given.cohort is None:
        return holds, found, []
    n = [len(areas) for areas in given.curves.values()]
    effects = [
        Effect(
            f"scans touched by {f:.0%} of the slice rows",
            forensics.touched(n, round(f * sum(n))),
            n=len(n),
            unit="share",
        )
        for f in bounds
    ]
    return holds, found, effects


@_check("G1")
def _normalised_twice(given: Inputs):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    low, high = (2 * ((value - mean) / std) - 1 for value in (0, 1))
    once = -(mean / std).max(), ((1 - mean) / std).max()
    found = f"inputs span {low.min():.2f} to {high.max():.2f}; normalised once {once[0]:.2f} to {once[1]:.2f}"
    return (round(low.min(), 2), round(high.max(), 2)) == (-5.24, 4.28), found, []


@_check("G2")
def _one_linear_map(given: Inputs):
    rng = given.rng
    first, second, x = rng.normal(size=(224, 1536)), rng.normal(size=(1, 224)), rng.normal(size=(1536, 5))
    a, b = rng.normal(size=(224, 1)), rng.normal(size=(1, 1))
    two, one = second @ (first @ x + a) + b, (second @ first) @ x + (second @ a + b)
    found = (
        f"random layers agree with their product; {1536 * 224 + 224 + 225:,} parameters for a map that has {1536 + 1:,}"
    )
    return bool(np.allclose(two, one, rtol=1e-9)), found, []


@_check("G4")
def _nothing_to_speak_of(given: Inputs):
    share = 0.2 / 255
    return share < 0.001, f"0.2 of 255 is {share:.2%} of the range, less than one grey level", []


# Inside -----------------------------------------------------------------------------------------------------------


def _curves(cohort: Preprocessed) -> dict[str, np.ndarray]:
    kept = cohort.scans.loc[cohort.scans["status"] != "excluded", "scan_id"]
    areas = cohort.slices.sort_values(["scan_id", "index"], kind="stable").groupby("scan_id")["area"]
    by_scan = {scan: values.to_numpy() for scan, values in areas}
    return {scan: by_scan[scan] for scan in kept}


def _width(n: int) -> int:
    return -(-n // 2)


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    both = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return both / max((a[1] - a[0]) + (b[1] - b[0]) - both, 1)


def _share(metric: str, successes: int, n: int) -> Effect:
    """A share of n, with Clopper-Pearson's 95 % interval."""
    if n == 0:
        return Effect(metric, math.nan, unit="share")
    interval = binomtest(int(successes), int(n)).proportion_ci(0.95, method="exact")
    return Effect(metric, successes / n, float(interval.low), float(interval.high), int(n), "share")


def _mean(metric: str, values: Sequence[float], rng: np.random.Generator, unit: str = "") -> Effect:
    """A mean over scans, with the 95 % percentile interval of ``N_BOOT`` resamples of scans."""
    values = np.asarray(values, dtype=float)
    if values.size < 2:
        return Effect(metric, float(values.mean()) if values.size else math.nan, n=values.size, unit=unit)
    counts = rng.multinomial(values.size, np.full(values.size, 1 / values.size), size=N_BOOT)
    low, high = np.quantile(counts @ values / values.size, [0.025, 0.975])
    return Effect(metric, float(values.mean()), float(low), float(high), values.size, unit)
