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
    length = float(given.outputs.loc["Validation", "length_before"])
    together = int((fits["rows"] == VALIDATION_ROWS).sum())
    holds = bool((fits["solutions"] == 1).all() and (fits["as_scans"] == 0).all()) and len(fits) == 5 and together == 3
    holds &= round(318 * length) - EXCLUDED_SLICES == VALIDATION_ROWS
    holds &= sorted(fits["rows"]) == [89_264] * 3 + [98_089, 99_307]
    at_one = forensics.f1_chance(range(VALIDATION_ROWS, VALIDATION_ROWS + 1))
    listed = fits[["value", "rows", "errors"]].itertuples(index=False)
    facts = {
        "listed": "; ".join(f"{text[:10]}…: {rows:,} rows, {errors:,} wrong" for text, rows, errors in listed),
        "n": len(fits), "scans": SCANS[-1], "rows": (ROWS[0], ROWS[-1]), "farthest": fits["distance"].abs().max(),
        "chance": fits["chance"].mean(), "shared": math.comb(len(fits), 3) * len(ROWS) * at_one**3,
        "eight": forensics.f1_chance(ROWS, spacings=0.5e-8 / float(forensics.SPACING)),
        "length": length, "excluded": EXCLUDED_SLICES, "valid": VALIDATION_ROWS,
    }  # fmt: skip
    yield holds, facts

    n = given.scans["n"].to_numpy(dtype=float)
    kish = n.sum() ** 2 / (n**2).sum() / len(n)
    yield Effect("effective share of scans when each counts by its slices", float(kish), n=len(n), unit="share")
    yield Effect("weight of the longest scan over the shortest", float(n.max() / n.min()), n=len(n))


@check("E2")
def _turned_rows(given: Inputs):
    fits = given.fits[given.fits["metric"] == "roc_auc"]
    pairs = list(zip(fits["smaller_class"], fits["larger_class"], strict=True))
    positive = round(float(given.outputs.loc["Validation/Positive", "length_before"] * 165 - EXCLUDED_SLICES))
    negative = round(float(given.outputs.loc["Validation/Negative", "length_before"] * 153))
    holds = bool((fits["solutions"] == 1).all()) and pairs == [(negative, positive)] + [(43_970, 45_294)] * 3
    turned, mirrored = positive - 43_970, positive - 45_294
    table = given.windows.query("split == 'valid' and label == 1")
    wide = table[table["width"] > N_SAMPLES]
    least, most = forensics.slices_of_widths(wide["width"], wide["left"])
    low, high = positive + EXCLUDED_SLICES - most, positive + EXCLUDED_SLICES - least
    holds &= low <= turned <= high and not low <= mirrored <= high
    chance = float(fits["chance"].mean())
    products = {p * (VALIDATION_ROWS - p) for p in POSITIVE_ROWS}
    facts = {
        "rows": (POSITIVE_ROWS[0], POSITIVE_ROWS[-1]), "run": fits["run"].iloc[0], "positive": positive,
        "negative": negative, "farthest": fits["distance"].abs().max(), "chance": chance,
        "shared": len(products) * (chance / len(products)) ** 3, "turned": turned, "mirrored": mirrored,
        "short": int(table.loc[table["width"] <= N_SAMPLES, "left"].sum()), "low": low, "high": high,
    }  # fmt: skip
    yield holds, facts


@check("E4")
def _few_shot_rows(given: Inputs):
    table = given.windows.query("split == 'train'").groupby("width")["left"].sum()
    known = {(n,): 1 for n in SHORT_SCANS}
    groups = {tuple(forensics.lengths_of_width(w)): int(k) for w, k in table.items() if w and k}
    groups[tuple(n for n in forensics.lengths_of_width(0) if n >= 20)] = int(table[0]) - len(known)
    bounds = {f: forensics.touched_bounds(groups | known, 384_904, f) for f in (0.01, 0.03, 0.1)}
    holds = bounds[0.01][0] > 0.8 and abs(np.mean(bounds[0.03]) - 0.95) < 0.01 and bounds[0.1][0] > 0.99
    listed = ", ".join(f"{f:.0%} of the rows {low:.1%} to {high:.1%}" for f, (low, high) in bounds.items())
    yield holds, {"rows": round(0.01 * 384_904), "listed": listed}

    n = given.scans["n"].tolist()
    for f in bounds:
        touched = forensics.touched(n, round(f * sum(n)))
        yield Effect(f"scans touched by {f:.0%} of the slice rows", touched, n=len(n), unit="share")


@check("G1")
def _normalised_twice(given: Inputs):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    low, high = (2 * ((value - mean) / std) - 1 for value in (0, 1))
    twice, once = (low.min(), high.max()), (-(mean / std).max(), ((1 - mean) / std).max())
    yield (round(twice[0], 2), round(twice[1], 2)) == (-5.24, 4.28), {"twice": twice, "once": once}


@check("G2")
def _one_linear_map(given: Inputs):
    rng = given.rng
    first, second, x = rng.normal(size=(224, 1536)), rng.normal(size=(1, 224)), rng.normal(size=(1536, 5))
    a, b = rng.normal(size=(224, 1)), rng.normal(size=(1, 1))
    two, one = second @ (first @ x + a) + b, (second @ first) @ x + (second @ a + b)
    yield bool(np.allclose(two, one, rtol=1e-9)), {"two": 1536 * 224 + 224 + 225, "one": 1536 + 1}


@check("G4")
def _nothing_to_speak_of(given: Inputs):
    share = 0.2 / 255
    yield share < 0.001, {"share": share}
