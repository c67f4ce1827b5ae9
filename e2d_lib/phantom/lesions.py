"""Where a phantom's masks show the lesions of COVID-19: by slice of a scan, and by slice of its window."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from e2d_lib.evaluation import sampling
from e2d_lib.method.preprocess import Preprocessed
from e2d_lib.phantom.patient import LABELS

LESIONS = ("ggo", "consolidation")
"""The findings of COVID-19 in a phantom's masks; the others look like them and are in negative scans too."""


def of_scans(
    data_root: str | Path,
    scan_ids: Iterable[str],
    *,
    findings: Sequence[str] = LESIONS,
    least: float = 0.0,
) -> dict[str, NDArray[np.bool_]]:
    """scan_id -> (slices of the scan,) bool, in the reader's order: where a phantom's masks show a lesion.

    data_root: as given to `phantom.write`. findings: names in `patient.LABELS`. least: share of the slice's lung that
    the lesions must exceed, in [0, 1); by default one pixel is enough. Scans without a mask, as all of real data, are
    left out. Raises ValueError for an unknown finding, or a share outside [0, 1).
    """
    if unknown := set(findings) - set(LABELS):
        raise ValueError(f"no finding {sorted(unknown)} in a phantom's masks; choose among {', '.join(LABELS)}")
    if not 0 <= least < 1:
        raise ValueError(f"least is a share of the lung in [0, 1), not {least!r}")
    wanted = np.zeros(max(LABELS.values()) + 1, bool)
    wanted[[LABELS[name] for name in findings]] = True
    found = {}
    for scan_id in scan_ids:
        path = Path(data_root) / "truth" / "masks" / f"{scan_id.replace('/', '__')}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                mask = file["mask"]
            lesion, lung = wanted[mask].sum(axis=(1, 2)), np.count_nonzero(mask, axis=(1, 2))
            found[scan_id] = lesion > least * lung
    return found


def of_windows(done: Preprocessed, lesions: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.bool_]]:
    """`of_scans` of whole scans, cut to the windows of the preprocessed ones: scan_id -> (n,) bool.

    Where slices could not be read, those left are found by their names, which a phantom numbers; scans where that
    cannot be done are left out, as are those without a window. Raises ValueError for another view than the axial.
    """
    if done.params.view != "axial":
        raise ValueError(f"the masks are of axial slices, the windows of {done.params.view} ones")
    scans = done.scans.set_index("scan_id")
    names = dict(iter(done.slices.groupby("scan_id", sort=False)["name"]))
    cut = {}
    for scan_id in sampling.windows(done, lesions):
        whole = np.asarray(lesions[scan_id], dtype=bool)
        scan = scans.loc[scan_id]
        if scan["n_slices"] == len(whole):
            left = np.arange(len(whole))
        else:
            stems = [Path(name).stem for name in names[scan_id]]
            if not all(stem.isdecimal() and int(stem) < len(whole) for stem in stems):
                continue
            left = np.array([int(stem) for stem in stems])
        cut[scan_id] = whole[left[scan["start"] : scan["stop"]]]
    return cut
