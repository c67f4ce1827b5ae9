"""How much SSFL++ removes: area per slice, length per scan, volume per group, as in the published table and beyond it.

Published definitions (method/README.md §6): area and length Δ are means of the slices' and the scans' own ratios; a
volume is mean area times mean length, and its Δ is 1 - after / before. Every printed value is cut off, not rounded, and
computed from unrounded means: products of the two-decimal means miss some published volumes by one in the last digit.
Areas are in pixels, lengths in slices, volumes in pixels.
"""

from decimal import ROUND_DOWN, Context, Decimal
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from e2d_lib import bootstrap, io
from e2d_lib.scans.patients import patient_of

PUBLISHED = io.shipped("e2d_lib.method", "published_table.yaml")
DECIMALS: dict[str, int] = PUBLISHED["decimals"]
"""The published table's columns (k: thousand pixels, m: million) and the decimals it prints."""

DELTAS = ("area_delta", "length_delta", "volume_delta", "total_delta")

OUTPUTS = tuple(PUBLISHED["outputs"])
"""Columns of the saved outputs, after ``group``."""


def slice_reduction(slices: pd.DataFrame) -> pd.DataFrame:
    """Spatial step, per slice: scan_id, index (where given), area_before, area_after (int64, pixels), area_delta.

    ``slices``: a row a slice with scan_id, height, width and the crop [row0, row1) x [col0, col1).
    Raises ValueError for missing columns and for crops that are empty or leave the slice.

    >>> one = {"height": 100, "width": 200, "row0": 10, "row1": 60, "col0": 0, "col1": 200}
    >>> float(slice_reduction(pd.DataFrame([{"scan_id": "a", **one}])).area_delta[0])
    0.5
    """
    box = ("height", "width", "row0", "row1", "col0", "col1")
    _require(slices, ("scan_id", *box), "slices")
    height, width, row0, row1, col0, col1 = (slices[name].to_numpy(dtype=np.int64) for name in box)
    good = (row0 >= 0) & (row0 < row1) & (row1 <= height) & (col0 >= 0) & (col0 < col1) & (col1 <= width)
    if not good.all():
        first = slices.loc[~good, ["scan_id", *box]].iloc[0].to_dict()
        raise ValueError(f"{(~good).sum()} slices have an empty crop or one outside the slice; first: {first}")
    before = height * width
    after = (row1 - row0) * (col1 - col0)
    kept = [name for name in ("scan_id", "index") if name in slices]
    return slices[kept].assign(area_before=before, area_after=after, area_delta=1 - after / before)


def scan_reduction(scans: pd.DataFrame) -> pd.DataFrame:
    """Slice step: scan_id, length_before, length_after (int64, slices), length_delta (float64) per scan.

    ``scans``: a row a scan with scan_id, n_slices and the window [start, stop); those with ``status`` "excluded"
    have no window and are left out, as in the published lengths. Raises ValueError for missing columns and windows
    outside the scan (the released empty window [20, 20) of a shorter scan is none).
    """
    _require(scans, ("scan_id", "n_slices", "start", "stop"), "scans")
    if "status" in scans:
        scans = scans[scans["status"] != "excluded"]
    before, start, stop = (scans[name].to_numpy(dtype=np.int64) for name in ("n_slices", "start", "stop"))
    good = (before > 0) & (start >= 0) & (start <= stop) & ((stop <= before) | (start == stop))
    if not good.all():
        first = scans.loc[~good, ["scan_id", "n_slices", "start", "stop"]].iloc[0].to_dict()
        raise ValueError(f"{(~good).sum()} scans have a window that is not inside them; first: {first}")
    after = stop - start
    return scans[["scan_id"]].assign(length_before=before, length_after=after, length_delta=1 - after / before)


def total_reduction(slices: pd.DataFrame, scans: pd.DataFrame) -> pd.DataFrame:
    """All three reductions of each scan that has a window: scan_id, area_delta, length_delta, total_delta.

    area_delta: mean over all of the scan's slices; total_delta: 1 - cropped area of the window's slices / area of all
    slices. The published volume Δ takes the product of two means for this, as if crop and window were independent.
    """
    _require(slices, ("scan_id", "index"), "slices")
    place = slices.groupby("scan_id")["index"].rank(method="first").to_numpy() - 1  # in its scan: what windows count
    window = scans.set_index("scan_id")[["start", "stop"]].astype(np.int64)
    areas = slice_reduction(slices).join(window, on="scan_id")
    inside = (place >= areas["start"]) & (place < areas["stop"])
    groups = areas.assign(kept=areas["area_after"].where(inside, 0)).groupby("scan_id")
    sums = groups[["area_before", "kept"]].sum()
    table = scan_reduction(scans).set_index("scan_id")[["length_delta"]]
    table.insert(0, "area_delta", groups["area_delta"].mean())
    table["total_delta"] = 1 - sums["kept"] / sums["area_before"]
    return table.reset_index()


def reduction_table(
    slices: pd.DataFrame,
    scans: pd.DataFrame,
    cohort: pd.DataFrame,
    *,
    rounding: Literal["published"] | None = "published",
    ci: bool = True,
    rng: np.random.Generator | None = None,
    n_boot: int = 2000,
) -> pd.DataFrame:
    """The published reduction table for this cohort: column ``row``, then those of ``DECIMALS``.

    ``slices`` and ``scans`` as preprocessing gives them; ``cohort``: scan_id, split, label. Areas are over every
    measured slice, also of scans excluded later, lengths over the scans with a window: the published populations.
    Rows with no scan in the cohort are absent; (T+V) rows and Total need both splits. Scans of no split
    make 'All scans', or 'Other scans' beside splits, divided by label where labels are known.

    ``rounding`` "published" cuts off as the paper does and gives no more. None keeps full precision and adds n_scans
    (with a window), n_slices, total_delta (mean over scans of `total_reduction`) and, with ``ci``, ``…_low`` and
    ``…_high`` of each Δ: percentiles of ``n_boot`` resamples of whole patients within each split and class, since the
    slices of a scan, and the scans of a patient, are not independent. A row of fewer than 2 scans has NaN there.
    Raises ValueError for missing columns, scans that the cohort lacks, or ``ci`` without ``rng``.
    """
    if rounding not in ("published", None):
        raise ValueError(f"rounding={rounding!r}, expected 'published' or None")
    if ci and rounding is None and rng is None:
        raise ValueError("intervals need rng, a numpy.random.Generator (or ci=False)")
    _require(cohort, ("scan_id", "split", "label"), "cohort")
    sums = _sums(slices, scans, cohort)
    # Sorted, so that the resamples do not depend on the order of the cohort's rows.
    ordered = cohort.assign(label=cohort["label"].astype("Int64").fillna(-1)).sort_values("scan_id")
    members, resampled = {}, {}
    for key, part in ordered.groupby(["split", "label"], sort=True):
        members[key] = sums.loc[part["scan_id"]].to_numpy()
        if ci and rounding is None:
            how = {"strata": np.zeros(len(part)), "groups": patient_of(part)}
            drawn = bootstrap.counts(rng, n_boot, len(part), **how)
            resampled[key] = np.concatenate([n @ members[key] for n in drawn])

    table = []
    for name, keys in _rows(list(members)).items():
        total = sum(members[key].sum(axis=0) for key in keys)
        values = _statistics(total)
        row = {"row": name, **{column: float(values[column]) for column in DECIMALS}}
        if rounding is None:
            row |= {"n_scans": int(total[4]), "n_slices": int(total[0]), "total_delta": float(values["total_delta"])}
        else:
            row |= {column: truncate(row[column], places) for column, places in DECIMALS.items()}
        if resampled:
            replicates = _statistics(sum(resampled[key] for key in keys))
            enough = sum(len(members[key]) for key in keys) > 1
            for column in DELTAS:
                values = replicates[column][~np.isnan(replicates[column])]
                low, high = bootstrap.percentiles(values) if enough and values.size else (np.nan, np.nan)
                row |= {f"{column}_low": low, f"{column}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def by_source(per_scan: pd.DataFrame, cohort: pd.DataFrame, *, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Means over the scans of each source, tidy: source, quantity (of `total_reduction`), value, low, high, n.

    low, high: 95 %, patients resampled; NaN of one. Where no scan has a source, the folder at the top of its id is one
    if that makes fewer sources than half of the scans; "unknown" is what is left.
    """
    known = cohort.assign(patient=patient_of(cohort), source=cohort["source"].fillna(""))
    if known["source"].eq("").all():
        folder = known["scan_id"].where(known["split"].eq("") & known["scan_id"].str.contains("/"), "")
        folder = folder.str.partition("/")[0]
        known["source"] = folder if 2 * folder.nunique() < len(folder) else ""
    rows = []
    for source, part in per_scan.merge(known[["scan_id", "source", "patient"]], on="scan_id").groupby("source"):
        for column in ("area_delta", "length_delta", "total_delta"):
            how = {"n_boot": n_boot, "groups": part["patient"]}
            low, high = bootstrap.mean_interval(part[column], np.random.default_rng(seed), **how)
            rows.append((source or "unknown", column, part[column].mean(), low, high, len(part)))
    return pd.DataFrame(rows, columns=["source", "quantity", "value", "low", "high", "n"])


def published(path: str | Path) -> pd.DataFrame:
    """The paper's table from its CSV: ``row`` and the columns of ``DECIMALS``. Raises ValueError if one is missing."""
    table = pd.read_csv(path)
    _require(table, ("row", *DECIMALS), str(path))
    return table[["row", *DECIMALS]]


def released_outputs(path: str | Path) -> pd.DataFrame:
    """What the released notebooks print, from its CSV: ``group`` and ``OUTPUTS``; a count not printed is <NA>."""
    table = pd.read_csv(path, dtype={"slices": "Int64"})
    _require(table, ("group", *OUTPUTS), str(path))
    return table[["group", *OUTPUTS]]


def comparison(measured: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Side by side, tidy: row, quantity, published, measured, difference (measured - published), low, high.

    Rows in the published order, then those only measured; what one side lacks is NaN. low and high: the measured
    interval, where `reduction_table` was asked for one.
    """
    rows = [*published["row"], *(row for row in measured["row"] if row not in set(published["row"]))]
    ours, theirs = measured.set_index("row").reindex(rows), published.set_index("row").reindex(rows)
    parts = []
    for quantity in DECIMALS:
        values = {"published": theirs[quantity], "measured": ours[quantity]}
        values["difference"] = values["measured"] - values["published"]
        values |= {bound: ours.get(f"{quantity}_{bound}", np.nan) for bound in ("low", "high")}
        parts.append(pd.DataFrame({"row": rows, "quantity": quantity, **values}, index=rows))
    return pd.concat(parts, ignore_index=True)


def check_published(table: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
    """Every printed cell beside its recomputation from the saved outputs: row, quantity, published, recomputed, agrees.

    ``table`` as `published` gives it, ``outputs`` as `released_outputs` does; rows are matched by name, and one without
    saved outputs raises ValueError.
    """
    saved = outputs.set_index("group")
    if missing := [row for row in table["row"] if row not in saved.index]:
        raise ValueError(f"no saved outputs for the rows {missing}")
    cells = []
    for printed in table.to_dict("records"):
        one = saved.loc[printed["row"]]
        values = _printed(*(float(one[name]) for name in OUTPUTS[1:]))
        for quantity, places in DECIMALS.items():
            recomputed = truncate(values[quantity], places)
            agrees = abs(printed[quantity] - recomputed) < 1e-9  # both have few decimals; parsers differ by less
            cells.append((printed["row"], quantity, printed[quantity], recomputed, agrees))
    return pd.DataFrame(cells, columns=["row", "quantity", "published", "recomputed", "agrees"])


def truncate(value: float, decimals: int) -> float:
    """``value`` cut off, towards 0, after ``decimals`` decimals, in decimal arithmetic; NaN stays NaN.

    It is first rounded to 12 significant digits: a mean that is 0.29 on paper may be 0.28999999999999998 in binary.

    >>> truncate(160489.26942791365 / 1000, 2), truncate(0.1 + 0.19 - 1e-17, 2), truncate(0.29 * 100, 0)
    (160.48, 0.29, 29.0)
    """
    if np.isnan(value):
        return float("nan")
    near = Context(prec=12).create_decimal_from_float(float(value))
    return float(near.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_DOWN))


def _require(table: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{name} lacks the columns {missing}; it has {list(table.columns)}")


def _printed(area0, area1, area_delta, length0, length1, length_delta) -> dict:
    """The table's columns from means in pixels and slices, unrounded; numbers or arrays."""
    volume0, volume1 = area0 * length0, area1 * length1
    values = (area0 / 1e3, area1 / 1e3, area_delta, length0, length1, length_delta)
    return dict(zip(DECIMALS, (*values, volume0 / 1e6, volume1 / 1e6, 1 - volume1 / volume0), strict=True))


def _sums(slices: pd.DataFrame, scans: pd.DataFrame, cohort: pd.DataFrame) -> pd.DataFrame:
    """(scans, 9), what group means are sums of: slices, areas, ratios; 1 if a window, lengths, ratios, total."""
    if (twice := cohort["scan_id"].duplicated()).any():
        raise ValueError(f"the cohort holds {cohort['scan_id'][twice].iloc[0]} twice")
    known = set(cohort["scan_id"])
    for name, table in (("slices", slices), ("scans", scans)):
        _require(table, ("scan_id",), name)
        if unknown := sorted(set(table["scan_id"]) - known):
            raise ValueError(f"{name} speak of {len(unknown)} scans that the cohort lacks, such as {unknown[0]}")
    areas = slice_reduction(slices).assign(one=1).groupby("scan_id")
    lengths = scan_reduction(scans).assign(one=1).set_index("scan_id")
    total = total_reduction(slices, scans).set_index("scan_id")["total_delta"]
    result = areas[["one", "area_before", "area_after", "area_delta"]].sum().add_prefix("slices_")
    result = result.reindex(cohort["scan_id"])
    result = result.join(lengths[["one", "length_before", "length_after", "length_delta"]]).join(total)
    return result.astype(float).fillna(0.0)


def _statistics(sums: np.ndarray) -> dict:
    """(…, 9) sums over scans -> the table's columns and total_delta, unrounded; NaN where nothing was summed."""
    n, area0, area1, ratio, scans, length0, length1, length_ratio, total = np.moveaxis(np.asarray(sums), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas, lengths = (area0 / n, area1 / n, ratio / n), (length0 / scans, length1 / scans, length_ratio / scans)
        return {**_printed(*areas, *lengths), "total_delta": total / scans}


def _rows(strata: list[tuple[str, int]]) -> dict[str, list[tuple[str, int]]]:
    """The table's rows, in its order, and the (split, label) strata in each; -1 is a label not known."""
    splits = {split for split, _ in strata}
    if unknown := splits - {"train", "valid", "test", ""}:
        raise ValueError(f"unknown splits {sorted(unknown)}; expected train, valid, test or none")
    other = "Other scans" if splits > {""} else "All scans"
    both = {"train", "valid"}
    names = {"Training": {"train"}, "Validation": {"valid"}, "(T+V)": both, "Total": both}
    names |= {"Testing": {"test"}, other: {""}}
    rows = {}
    for name, members in names.items():
        if members <= splits:
            inside = [key for key in strata if key[0] in members]
            if name != "(T+V)":
                rows[name] = inside
            if name not in ("Total", "Testing"):
                separator = " " if name == "(T+V)" else "/"
                rows[f"{name}{separator}Positive"] = [key for key in inside if key[1] == 1]
                rows[f"{name}{separator}Negative"] = [key for key in inside if key[1] == 0]
    return {name: keys for name, keys in rows.items() if keys}
