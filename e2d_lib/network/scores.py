"""One score a scan from its slices' predictions."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import expit, logit

Aggregation = Literal["mean", "median", "max", "topk", "logodds"]

LOGIT_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken (about float32's resolution near 1)."""


def scan_scores(
    slice_predictions: pd.DataFrame, *, how: Aggregation = "mean", k: int = 3, by: Sequence[str] = ("scan_id",)
) -> pd.DataFrame:
    """One score per scan from its slices' predictions.

    ``slice_predictions``: one row a slice, with the columns ``by`` and ``probability`` (in [0, 1]).
    ``how``: "mean" of probabilities (released, method/README.md §5), "median", "max", mean of the ``k`` largest
    ("topk"; of all when there are fewer), or sigmoid of the mean log-odds ("logodds").
    Gives the columns ``by``, ``probability``, ``n_slices`` (predictions that went in), and ``label``, ``fold`` and
    ``source`` where they are in the input. Order of rows: sorted by ``by``.
    Log-odds are those of a column ``logit`` where there is one, which does not end at a probability of 1.
    Raises ValueError for missing columns, values that are no probabilities, logits that are NaN, or a label that
    differs inside a scan.

    >>> slices = pd.DataFrame({"scan_id": ["a", "a", "b"], "probability": [0.2, 0.6, 0.9]})
    >>> [round(float(p), 12) for p in scan_scores(slices).probability]
    [0.4, 0.9]
    """
    by = list(by)
    columns = set(slice_predictions.columns)
    if missing := [name for name in (*by, "probability") if name not in columns]:
        raise ValueError(f"slice predictions lack the columns {missing}; they have {sorted(columns)}")
    if how not in Aggregation.__args__:
        raise ValueError(f"how={how!r}, expected one of {', '.join(Aggregation.__args__)}")
    if k < 1:
        raise ValueError(f"k={k}, expected 1 or more slices")
    if slice_predictions[by].isna().any(axis=None):
        raise ValueError(f"slice predictions have empty values in {by}")
    values = slice_predictions["probability"].to_numpy(dtype=float)
    require_probabilities(values)
    if how == "logodds":
        clipped = logit(np.clip(values, LOGIT_CLIP, 1 - LOGIT_CLIP))
        values = slice_predictions["logit"].to_numpy(dtype=float) if "logit" in columns else clipped
        if np.isnan(values).any():
            raise ValueError(f"{np.isnan(values).sum()} of {values.size} slice logits are NaN")

    table = slice_predictions[by].assign(probability=values)
    if how == "topk":
        table = table.sort_values("probability", ascending=False, kind="stable").groupby(by).head(k)
    groups = table.groupby(by, sort=True)["probability"]
    scores = groups.mean() if how in ("topk", "logodds") else groups.agg(how)
    if how == "logodds":
        scores = expit(scores)
    result = pd.concat([scores, slice_predictions.groupby(by, sort=True).size().rename("n_slices")], axis=1)
    for name in ("label", "fold", "source"):
        if name in columns and name not in by:
            carried = slice_predictions.groupby(by, sort=True)[name]
            if (mixed := carried.nunique(dropna=False) > 1).any():
                raise ValueError(f"{name} differs between slices of {mixed.idxmax()}; expected one per scan")
            result[name] = carried.first()
    return result.reset_index()


def require_probabilities(values: Any) -> None:
    if wrong := int((~((values >= 0) & (values <= 1))).sum()):
        raise ValueError(f"{wrong} of {values.size} probabilities are NaN or outside [0, 1]")
