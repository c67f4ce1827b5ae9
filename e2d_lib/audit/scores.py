"""What the saved scores count, and the recipe: entries E and G of the register."""

import math

import numpy as np

from e2d_lib.audit import forensics
from e2d_lib.audit.checks import N_SAMPLES, Effect, Inputs, check
from e2d_lib.audit.fits import POSITIVE_ROWS, ROWS, SCANS, VALIDATION_ROWS, follow_up
from e2d_lib.audit.slices import EXCLUDED_SLICES

SHORT_SCANS = (5, 15, 16, 19)  # slice counts of the training scans under 20 slices that are not excluded


@check("E1")
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


@check("E2")
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


@check("E4")
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


@check("G1")
def _normalised_twice(given: Inputs):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    low, high = (2 * ((value - mean) / std) - 1 for value in (0, 1))
    once = -(mean / std).max(), ((1 - mean) / std).max()
    found = f"inputs span {low.min():.2f} to {high.max():.2f}; normalised once {once[0]:.2f} to {once[1]:.2f}"
    return (round(low.min(), 2), round(high.max(), 2)) == (-5.24, 4.28), found, []


@check("G2")
def _one_linear_map(given: Inputs):
    rng = given.rng
    first, second, x = rng.normal(size=(224, 1536)), rng.normal(size=(1, 224)), rng.normal(size=(1536, 5))
    a, b = rng.normal(size=(224, 1)), rng.normal(size=(1, 1))
    two, one = second @ (first @ x + a) + b, (second @ first) @ x + (second @ a + b)
    found = (
        f"random layers agree with their product; {1536 * 224 + 224 + 225:,} parameters for a map that has {1536 + 1:,}"
    )
    return bool(np.allclose(two, one, rtol=1e-9)), found, []


@check("G4")
def _nothing_to_speak_of(given: Inputs):
    share = 0.2 / 255
    return share < 0.001, f"0.2 of 255 is {share:.2%} of the range, less than one grey level", []
