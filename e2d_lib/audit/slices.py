"""Windows, draws, and what reaches the network of them: entries B, C and D of the register."""

import numpy as np
from scipy.stats import gaussian_kde

from e2d_lib.audit import checks, forensics
from e2d_lib.audit.checks import N_SAMPLES, Effect, Inputs, check, curves_of, half_of, mean_of, share_of
from e2d_lib.method import curves, ssfl

EXCLUDED_SLICES = 399  # of validation positive ct_scan_60, the 18th excluded scan (D4)


@check("B1")
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
    overlap = [curves.overlap(a, b) for a, b, _ in pairs]
    area = [1 - areas[slice(*b)].sum() / areas[slice(*a)].sum() for a, b, areas in pairs if areas.any()]
    effects = [
        share_of("scans whose window differs when the curve is cut", sum(a != b for a, b, _ in pairs), len(pairs)),
        mean_of("overlap of the two windows (intersection over union)", overlap, given.rng, "share"),
        mean_of("lung area of the window lost by the cut", area, given.rng, "share"),
    ]
    return holds, found, effects


@check("B2")
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
    return holds, found, [share_of("scans with an empty window", int((given.cut_widths == 0).sum()), len(given.cut))]


@check("B3")
def _areas_on_crop(given: Inputs):
    if given.cohort is None or given.cropped is None:
        return None, "needs the cohort preprocessed both ways; not done in this run", []
    crop = curves_of(given.cropped)
    pairs = [(given.uncut[scan], ssfl.slice_window(crop[scan], 0.5, False)) for scan in given.curves if scan in crop]
    moved = sum(a != b for a, b in pairs)
    effects = [
        share_of("scans whose window differs with areas on the crop", moved, len(pairs)),
        mean_of(
            "overlap of the two windows (intersection over union)",
            [curves.overlap(*pair) for pair in pairs],
            given.rng,
            "share",
        ),
    ]
    return None, f"both ways measured: {moved} of {len(pairs)} windows differ", effects


@check("C1")
def _largest_never_drawn(given: Inputs):
    if not given.drawn:
        return None, "no window of 8 slices and more with areas that differ", []
    rates = {"released": [], "corrected": []}
    for areas, released, corrected in given.drawn:
        for name, draws in (("released", released), ("corrected", corrected)):
            rates[name].append(np.mean([areas[draw].max() == areas.max() for draw in draws]))
    found = (
        f"released rule, {checks.DRAWS} draws from each of {len(given.drawn)} windows: the largest area came in "
        f"{sum(rates['released']) * checks.DRAWS:.0f} of {checks.DRAWS * len(given.drawn):,} draws; corrected, in "
        f"{np.mean(rates['corrected']):.1%}"
    )
    effects = []
    if given.cohort is not None:
        lost = [int((areas == areas.max()).sum()) for areas, _, _ in given.drawn]
        effects = [
            mean_of("draws that hold the largest area, corrected", rates["corrected"], given.rng, "share"),
            Effect(
                "draws that hold the largest area, released",
                float(np.mean(rates["released"])),
                n=len(lost),
                unit="share",
            ),
            mean_of("slices of a window out of reach, released", lost, given.rng),
        ]
    return max(rates["released"]) == 0 and max(rates["corrected"]) > 0, found, effects


@check("C2")
def _equal_areas(given: Inputs):
    repeats = {split: int(given.saved(split)["drawn_repeated"].sum()) for split in ("train", "valid")}
    found = f"saved draws of 8 that repeat an index: {repeats['train']} training, {repeats['valid']} validation"
    holds = repeats == {"train": 3, "valid": 2}
    if given.cohort is None or not given.drawn:
        return holds, found, []
    equal = [len(np.unique(areas)) < len(areas) for areas, _, _ in given.drawn]
    repeated = [np.mean([len(np.unique(draw)) < len(draw) for draw in draws]) for _, draws, _ in given.drawn]
    effects = [
        share_of("windows that hold equal areas", sum(equal), len(equal)),
        mean_of("released draws that repeat a slice", repeated, given.rng, "share"),
    ]
    return holds, found, effects


@check("C3")
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
    return holds, "; ".join(words), [mean_of("released draws of fewer than 8 slices", short, given.rng, "share")]


@check("C4")
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
        share_of("scans with a cut window of 2 to 7 slices", few, len(given.cut)),
        share_of("scans with a cut window of 0 or 1", int((given.cut_widths < 2).sum()), len(given.cut)),
    ]
    return holds, found, effects


@check("C5")
def _drawn_once(given: Inputs):
    if given.cohort is None or not given.drawn:
        return None, "read in the released files; its effect needs a cohort", []
    once = [len(np.unique(released[0])) / len(areas) for areas, released, _ in given.drawn]
    anew = [len(np.unique(np.concatenate(draws))) / len(areas) for areas, _, draws in given.drawn]
    effects = [
        mean_of("slices of a window ever seen, drawn once", once, given.rng, "share"),
        mean_of(f"the same, drawn anew in {checks.EPOCHS} epochs", anew, given.rng, "share"),
    ]
    return None, "read in the released files; the effect is measured", effects


@check("C7")
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
    return raised, found, [share_of("windows of equal areas", flat, len(given.curves))]


@check("D1")
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
    effects = [share_of("scans that would be blank", len(short), len(given.cut))]
    if positive := [scan for scan, label in given.positive.items() if label]:
        effects.append(share_of("positive scans labelled negative", len(short & set(positive)), len(positive)))
    return holds, found, effects


@check("D2")
def _mean_grey(given: Inputs):
    grey = [255 * mean for mean in (0.485, 0.456, 0.406)]
    found = f"zero after normalisation is the colour ({', '.join(f'{g:.0f}' for g in grey)}) of 255; black would be 0"
    return min(grey) > 100, found, []


@check("D3")
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


@check("D4")
def _eighteenth_scan(given: Inputs):
    lengths = forensics.lengths_of_width(167)  # its saved window is [119, 286) or so: 167 slices
    dropped = [int(given.saved(split)["dropped"].sum()) for split in ("train", "valid")]
    saved = int(given.saved("valid", 1).query("width == 167")["scans"].sum())
    found = (
        f"the rule of 5 slices drops {dropped[0]} training and {dropped[1]} validation scans, {sum(dropped)} in all; "
        f"the 18th has a window of 167 slices, so {lengths[0]} or {lengths[1]}; E1 and E2 fit {EXCLUDED_SLICES}"
    )
    return dropped == [9, 8] and lengths == [398, 399] and saved > 0, found, []


@check("D6")
def _eight_slices(given: Inputs):
    window = tuple(int(edge) for edge in ssfl.slice_window(np.arange(8, 0, -1), 0.5, False))
    longest = max(n for n in range(1, 100) if half_of(n) <= N_SAMPLES)
    found = f"8 slices give the uncut window [{window[0]}, {window[1]}), not wider than 8; so do up to {longest} slices"
    if given.cohort is None:
        return window == (0, 4), found, []
    blank = sum(stop - start <= N_SAMPLES for start, stop in given.uncut.values())
    return window == (0, 4), found, [share_of("scans with an uncut window of 8 or fewer", blank, len(given.uncut))]
