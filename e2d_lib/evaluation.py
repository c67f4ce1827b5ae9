"""What chapter 5 looks at: scores of runs with intervals, the worst errors, the phantom's true extents."""

from pathlib import Path

import numpy as np
import pandas as pd

from e2d_lib import metrics
from e2d_lib.preprocess import Preprocessed

RUN = ["fraction", "seed", "fold"]


def mean_over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a scan (scan_id, label, source, probability): the mean of the seeds' scan probabilities."""
    columns = ["scan_id", "label", "source"]
    return scores.groupby(columns, as_index=False, sort=True)["probability"].mean()


def by_run(scores: pd.DataFrame, *, rng: np.random.Generator, threshold: float = 0.5, n_boot: int = 2000):
    """Metrics with intervals of each run: the columns of ``metrics.evaluate`` after fraction, seed and fold."""
    parts = []
    for key, run in scores.groupby(RUN):
        table = metrics.evaluate(run["label"], run["probability"], rng=rng, threshold=threshold, n_boot=n_boot)
        parts.append(table.assign(**dict(zip(RUN, key, strict=True))))
    tables = pd.concat(parts, ignore_index=True)
    return tables[[*RUN, *tables.columns.drop(RUN)]]


def truth(data_root: str | Path, scores: pd.DataFrame) -> pd.DataFrame | None:
    """``scores`` with the phantom's truth (extent, findings), or None where the data have none."""
    path = Path(data_root) / "truth" / "scans.csv"
    if not path.is_file():
        return None
    known = pd.read_csv(path)
    return scores.merge(known[["scan_id", *known.columns.difference([*scores.columns])]], on="scan_id")


def worst_errors(
    scores: pd.DataFrame, predictions: pd.DataFrame, done: Preprocessed, *, n: int = 6
) -> tuple[list[np.ndarray], list[str]]:
    """Slices (2-D uint8) and titles of the ``n`` scans whose probability is furthest from the label.

    Of each scan the drawn slice that spoke loudest for the wrong answer; blank inputs have no slice.
    """
    error = (scores["probability"] - scores["label"]).abs()
    images, titles = [], []
    drawn = predictions[(predictions["part"] == "valid") & (predictions["index"] >= 0)]
    for row in scores.loc[error.sort_values(ascending=False, kind="stable").index].itertuples():
        slices = drawn[drawn["scan_id"] == row.scan_id]
        if slices.empty or len(images) == n:
            continue
        wrong = slices["probability"] * (-1 if row.label else 1)
        index = int(slices.loc[wrong.idxmax(), "index"])
        images.append(np.asarray(done.pixels(row.scan_id)[index]))
        titles.append(f"{row.scan_id}\nlabel {row.label}, p = {row.probability:.2f}")
    return images, titles
