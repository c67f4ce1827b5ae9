"""A first look at a cohort: slices per scan, dirt found by listing, example slices, grey values."""

import contextlib

import joblib
import numpy as np
import pandas as pd

from e2d_lib import progress
from e2d_lib.scans import readers
from e2d_lib.scans.cohort import cohort_findings


def survey(cohort: pd.DataFrame, *, n_jobs: int = -1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List every scan's slices without decoding one.

    Returns the cohort with ``n_slices`` (0 where a scan cannot be opened), and the findings, of the cohort and of its
    scans: scan_id, slice, outcome ("kept", "warned", "excluded"), reason.
    """
    jobs = (joblib.delayed(_list_scan)(row) for row in cohort.to_dict("records"))
    # Threads: listing waits for the disk, not for the processor.
    listed = progress.bar(
        joblib.Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(jobs),
        total=len(cohort),
        desc="listing",
        unit="scan",
    )
    scans = list(listed)
    findings = [*cohort_findings(cohort), *(finding for _, found in scans for finding in found)]
    return (
        cohort.assign(n_slices=[count for count, _ in scans]),
        pd.DataFrame(findings, columns=readers.Finding._fields),
    )


def _list_scan(row: dict) -> tuple[int, list[readers.Finding]]:
    scan = readers.open_scan(row)
    return len(scan), scan.findings


def spread(cohort: pd.DataFrame, n: int) -> pd.DataFrame:
    """At most ``n`` scans, taken in turn from each (source, label), in a fixed order."""
    turn = cohort.groupby(["source", "label"], dropna=False).cumcount()
    return cohort.assign(turn=turn).sort_values(["turn", "source", "label"], kind="stable").head(n).drop(columns="turn")


def middle_slices(cohort: pd.DataFrame, *, n: int = 12) -> list[tuple[dict, np.ndarray]]:
    """The middle slice of at most ``n`` scans, spread over sources and classes: (cohort row, 2-D uint8) pairs.

    Scans whose middle slice cannot be read are passed over.
    """
    found = []
    for row in spread(cohort, 4 * n).to_dict("records"):
        if len(found) == n:
            break
        scan = readers.open_scan(row)
        if len(scan):
            with contextlib.suppress(readers.SliceError):
                found.append((row, scan.read(len(scan) // 2)))
    return found
