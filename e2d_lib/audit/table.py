"""The published reduction table: entries A of the register."""

import math

import numpy as np

from e2d_lib.audit.checks import Effect, Inputs, check, mean_of, share_of
from e2d_lib.method import reduction


@check("A1")
def _repeated_row(given: Inputs):
    area, volume = (list(reduction.DECIMALS)[part] for part in (slice(0, 3), slice(6, 9)))
    same = bool((given.table.loc["(T+V) Positive", area] == given.table.loc["Training", area]).all())
    out = given.outputs[["area_before", "area_after", "area_delta_mean_of_ratios"]]
    slices = [206_608, 46_042]  # of each part; one is not printed
    pooled = np.average(out.loc[["Training/Positive", "Validation/Positive"]], axis=0, weights=slices)
    agree = bool(np.allclose(pooled, out.loc["(T+V) Positive"], rtol=1e-12))
    cells = reduction.check_published(given.table.reset_index(), given.outputs.reset_index())
    cells = cells[cells["row"] == "(T+V) Positive"].set_index("quantity")
    wrong = set(cells.index[~cells["agrees"]])
    facts = {"areas": pooled[:2] / 1e3, "delta": reduction.truncate(pooled[2], 4)}
    facts["volumes"] = ", ".join(format(value, "g") for value in cells.loc[volume, "recomputed"])
    yield same and agree and wrong == {*area, *volume}, facts


@check("A2")
def _two_rules_in_testing(given: Inputs):
    printed, saved = given.table.loc["Testing"], given.outputs.loc["Testing"]
    before, after = (float(saved[f"area_{side}"] * saved[f"length_{side}"]) for side in ("before", "after"))
    volume = reduction.truncate(1 - after / before, 4)
    differs = reduction.truncate(float(saved["length_after"]), 2) != printed["length_after"]
    yield differs and volume == 0.7818, {"printed": printed, "saved": saved, "volume": volume}


@check("A3")
def _lengths_of_other_windows(given: Inputs):
    holds, facts = True, []
    for split, row, stated, slices in (("train", "Training", 111.64, 385_631), ("valid", "Validation", 108.68, 90_690)):
        table = given.windows[given.windows["split"] == split]
        area, printed = given.outputs.loc[row], given.table.loc[row, "length_after"]
        width = np.average(table["width"], weights=table["scans"])
        share = (table["width"] * table["scans"]).sum() / slices
        volume = 1 - float(area["area_after"] / area["area_before"]) * share
        holds &= round(width, 2) == stated and width < printed - 30
        facts.append({"row": row, "width": width, "scans": table["scans"].sum(), "share": share})
        facts[-1] |= {"printed": printed, "volume": volume}
    yield holds, facts

    cut, whole, n = given.scans["cut_width"], given.scans["kept"].map(len), given.scans["n"]
    yield mean_of("slices removed by the window, cut curve", 1 - cut / n, given.rng, "share")
    yield mean_of("slices removed by the window, whole curve", 1 - whole / n, given.rng, "share")


@check("A4")
def _more_than_half(given: Inputs):
    printed = float(given.table.loc["Testing", "length_delta"])
    singles = [287, 163, 243, 91]  # the mixed-shape test scans that were cut to one slice and kept
    largest = ((1413 - len(singles)) * 0.5 + sum(1 - 1 / n for n in singles)) / 1413
    half = all(1 - math.ceil(n / 2) / n <= 0.5 for n in range(1, 1001))
    yield half and 0.5 < printed < largest, {"printed": printed, "largest": largest}


@check("A5")
def _cut_off_not_rounded(given: Inputs):
    cells = reduction.check_published(given.table.reset_index(), given.outputs.reset_index())
    sound = cells[~cells["row"].isin(["(T+V) Positive", "Testing"])]
    values = given.outputs.rename(columns=dict(zip(reduction.OUTPUTS[1:], reduction.DECIMALS, strict=False)))
    values[["area_before_k", "area_after_k"]] /= 1e3
    sides = sound[sound["quantity"].isin(values)].set_index(["row", "quantity"])["published"]
    off = {cell: abs(sides[cell] - round(values.loc[cell], reduction.DECIMALS[cell[1]])) for cell in sides.index}
    rounded = sum(by > 1e-9 for by in off.values())
    ratio = given.outputs.loc["Training"]
    facts = {"agree": int(sound["agrees"].sum()), "sound": len(sound), "rounded": rounded, "sides": len(sides)}
    facts |= {"mean": ratio["area_delta_mean_of_ratios"], "ratio": 1 - ratio["area_after"] / ratio["area_before"]}
    yield bool(sound["agrees"].all()) and rounded > 0, facts

    scans = given.cohort.scans[given.cohort.scans["status"] != "excluded"]
    per_slice = reduction.slice_reduction(given.cohort.slices)
    of_means = 1 - per_slice["area_after"].sum() / per_slice["area_before"].sum()
    per_scan = reduction.total_reduction(given.cohort.slices, given.cohort.scans)
    product = (1 - of_means) * (scans["stop"] - scans["start"]).mean() / scans["n_slices"].mean()
    yield Effect("area Δ, mean of ratios less ratio of means", float(per_slice["area_delta"].mean() - of_means))
    yield mean_of("pixels removed, counted in each scan", per_scan["total_delta"], given.rng, "share")
    yield Effect("volume Δ, product of means", float(1 - product), n=len(scans), unit="share")


@check("A6")
def _populations(given: Inputs):
    # A mean printed to six decimals gives away what it was divided by.
    lengths = {"Training": (1349, 384_904), "Validation": (318, 89_663), "Total": (1667, 474_567)}
    lengths["Testing"] = (1413, 437_178)
    mean, slices = given.outputs["length_before"].astype(float), given.outputs["slices"]
    holds = all(abs(mean[row] * n - total) < n * 1e-6 for row, (n, total) in lengths.items())
    other = float(mean["Training"]) * 1358
    holds &= abs(other - round(other)) > 1358 * 1e-6
    holds &= [int(slices[row]) for row in ("Training", "Validation", "Testing")] == [385_330, 89_721, 436_781]
    yield holds, [{"row": row, "slices": slices[row], "n": n, "all": total} for row, (n, total) in lengths.items()]

    scans = given.cohort.scans
    outside = np.repeat(scans["status"] == "excluded", scans["n_slices"])
    yield share_of("measured slices that are in scans without a window", outside)
