"""Windows, draws, and what reaches the network of them: entries B, C and D of the register."""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import gaussian_kde

from e2d_lib.audit import checks, forensics
from e2d_lib.audit.checks import N_SAMPLES, SPLITS, Effect, Inputs, areas_of, check, mean_of, share_of
from e2d_lib.method import curves, ssfl

EXCLUDED_SLICES = 399  # of validation positive ct_scan_60, the 18th excluded scan (D4)


@check("B1")
def _cut_in_training_only(given: Inputs):
    table = given.windows.query("split == 'train'")
    low, high = forensics.slices_of_widths(table["width"], table["scans"])
    whole = 2 * int((table["width"] * table["scans"]).sum())
    yield low <= 385_631 <= high and whole < 385_631, {"low": low, "high": high, "whole": whole}

    scans = given.scans
    overlap = [curves.overlap(*pair) for pair in scans[["uncut", "cut"]].to_numpy()]
    rows = scans[["areas", "cut", "kept"]].to_numpy()
    area = [1 - areas[slice(*cut)].sum() / kept.sum() for areas, cut, kept in rows if areas.any()]
    yield share_of("scans whose window differs when the curve is cut", scans["uncut"] != scans["cut"])
    yield mean_of("overlap of the two windows (intersection over union)", overlap, given.rng, "share")
    yield mean_of("lung area of the window lost by the cut", area, given.rng, "share")


@check("B2")
def _empty_windows(given: Inputs):
    windows = {n: ssfl.slice_window(np.ones(n, dtype=np.int64), 0.5, True) for n in range(1, 701)}
    widths = {n: stop - start for n, (start, stop) in windows.items()}
    empty = [n for n, width in widths.items() if width == 0]
    counts = given.saved("width == 0")
    holds = empty == [*range(1, 41), *range(60, 66)] and [widths[n] for n in (59, 65, 81)] == [10, 0, 8]
    holds &= min(windows.values())[0] >= 20 and all(widths[n] == forensics.trimmed_width(n) for n in widths)
    yield holds and counts == {"train": 69, "valid": 15}, counts

    yield share_of("scans with an empty window", given.scans["cut_width"] == 0)


@check("B3")
def _areas_on_crop(given: Inputs):
    if given.cohort is None or not given.cohort.params.crop:
        yield None, "needs the cohort preprocessed both ways; not done in this run"
        return
    on_crop = areas_of(given.cohort, "area_crop").map(ssfl.slice_window)
    pairs = list(zip(given.scans["uncut"], on_crop, strict=True))
    moved = [a != b for a, b in pairs]
    yield None, {"moved": sum(moved), "pairs": len(pairs)}

    overlap = [curves.overlap(*pair) for pair in pairs]
    yield share_of("scans whose window differs with areas on the crop", moved)
    yield mean_of("overlap of the two windows (intersection over union)", overlap, given.rng, "share")


@check("C1")
def _largest_never_drawn(given: Inputs):
    if not given.drawn:
        yield None, "no window of 8 slices and more with areas that differ"
        return
    released, corrected = (
        [np.mean([areas[draw].max() == areas.max() for draw in draws[which]]) for areas, *draws in given.drawn]
        for which in (0, 1)
    )
    n, times = len(given.drawn), checks.DRAWS
    facts = {"draws": times, "windows": n, "came": sum(released) * times, "all": times * n}
    facts["corrected"] = np.mean(corrected)
    yield max(released) == 0 and max(corrected) > 0, facts

    lost = [int((areas == areas.max()).sum()) for areas, _, _ in given.drawn]
    yield mean_of("draws that hold the largest area, corrected", corrected, given.rng, "share")
    yield Effect("draws that hold the largest area, released", float(np.mean(released)), n=n, unit="share")
    yield mean_of("slices of a window out of reach, released", lost, given.rng)


@check("C2")
def _equal_areas(given: Inputs):
    repeats = given.saved(column="drawn_repeated")
    yield repeats == {"train": 3, "valid": 2}, repeats

    if given.drawn:
        equal = [len(np.unique(areas)) < len(areas) for areas, _, _ in given.drawn]
        repeated = [np.mean([len(np.unique(draw)) < len(draw) for draw in draws]) for _, draws, _ in given.drawn]
        yield share_of("windows that hold equal areas", equal)
        yield mean_of("released draws that repeat a slice", repeated, given.rng, "share")


@check("C3")
def _fewer_than_eight(given: Inputs):
    found = [given.saved(f"width >= {N_SAMPLES}", column) for column in ("drawn_7", "drawn_6", "scans")]
    counts = {split: [one[split] for one in found] for split in SPLITS}
    yield counts == {"train": [37, 2, 1123], "valid": [10, 0, 267]}, _by_split(counts)

    if given.drawn:
        short = [np.mean([len(draw) < N_SAMPLES for draw in draws]) for _, draws, _ in given.drawn]
        yield mean_of("released draws of fewer than 8 slices", short, given.rng, "share")


@check("C4")
def _short_windows(given: Inputs):
    few, none = given.saved(f"2 <= width < {N_SAMPLES}"), given.saved("width < 2")
    holds = few == {"train": 144, "valid": 39} and none == {"train": 91, "valid": 20}
    holds &= 144 + 91 + 1123 == 1358 and 39 + 20 + 267 == 326 and 2 + 5 + 1406 == 1413
    yield holds, {"few": few, "none": none}

    width = given.scans["cut_width"]
    yield share_of("scans with a cut window of 2 to 7 slices", width.between(2, N_SAMPLES, inclusive="left"))
    yield share_of("scans with a cut window of 0 or 1", width < 2)


@check("C5")
def _drawn_once(given: Inputs):
    measured = given.cohort is not None and len(given.drawn) > 0
    yield None, f"read in the released files; {'the effect is measured' if measured else 'its effect needs a cohort'}"

    if measured:
        once = [len(np.unique(released[0])) / len(areas) for areas, released, _ in given.drawn]
        anew = [len(np.unique(np.concatenate(draws))) / len(areas) for areas, _, draws in given.drawn]
        yield mean_of("slices of a window ever seen, drawn once", once, given.rng, "share")
        yield mean_of(f"the same, drawn anew in {checks.EPOCHS} epochs", anew, given.rng, "share")


@check("C7")
def _singular(given: Inputs):
    raised = _raises(np.linalg.LinAlgError, gaussian_kde, np.full(N_SAMPLES, 1000.0))
    yield raised, {"does": "raises LinAlgError" if raised else "does not fail"}

    yield share_of("windows of equal areas", [np.ptp(areas) == 0 for areas in given.scans["kept"]])


@check("D1")
def _blank_and_negative(given: Inputs):
    short = f"width <= {N_SAMPLES}"
    kinds = (short, f"{short} and label == 0", f"{short} and label == 1", f"width == {N_SAMPLES}")
    found = [given.saved(), *map(given.saved, kinds)]
    counts = {split: [one[split] for one in found] for split in SPLITS}
    yield counts == {"train": [1358, 265, 125, 140, 30], "valid": [326, 68, 34, 34, 9]}, _by_split(counts)

    blank = given.scans["cut_width"] <= N_SAMPLES
    yield share_of("scans that would be blank", blank)
    positive = given.scans["label"].eq(1).fillna(False)
    if positive.any():
        yield share_of("positive scans labelled negative", blank[positive])


@check("D2")
def _mean_grey(given: Inputs):
    grey = [255 * mean for mean in (0.485, 0.456, 0.406)]
    yield min(grey) > 100, {"grey": grey}


@check("D3")
def _label_of_seven(given: Inputs):
    from sklearn.metrics import f1_score, roc_auc_score

    label = sum([1] * 7 + [0]) / N_SAMPLES
    truth, called = np.array([0.0, 1.0, label]), np.array([0.0, 1.0, 1.0])
    raised = [score.__name__ for score in (f1_score, roc_auc_score) if _raises(ValueError, score, truth, called)]
    scans = given.saved(f"label == 1 and width > {N_SAMPLES}", "drawn_7")["train"]
    facts = {"label": label, "raised": " and ".join(raised) or "neither", "scans": scans}
    yield len(raised) == 2 and scans == 1, facts


@check("D4")
def _eighteenth_scan(given: Inputs):
    lengths = forensics.lengths_of_width(167)  # its saved window is [119, 286) or so: 167 slices
    dropped = list(given.saved(column="dropped").values())
    saved = given.saved("label == 1 and width == 167")["valid"]
    facts = {"dropped": dropped, "all": sum(dropped), "lengths": lengths, "excluded": EXCLUDED_SLICES}
    yield dropped == [9, 8] and lengths == [398, 399] and saved > 0, facts


@check("D6")
def _eight_slices(given: Inputs):
    window = ssfl.slice_window(np.arange(8, 0, -1))
    longest = max(n for n in range(1, 100) if math.ceil(n / 2) <= N_SAMPLES)
    yield window == (0, 4), {"window": window, "longest": longest}

    yield share_of("scans with an uncut window of 8 or fewer", given.scans["kept"].map(len) <= N_SAMPLES)


def _raises(error: type[Exception], function: Callable, *arguments: np.ndarray) -> bool:
    try:
        function(*arguments)
    except error:
        return True
    return False


def _by_split(counts: dict[str, list[int]]) -> list[dict]:
    return [{"split": SPLITS[split], "counts": found} for split, found in counts.items()]
