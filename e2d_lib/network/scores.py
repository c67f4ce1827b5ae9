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

    ``slice_predictions``: one row a slice, with the columns ``by`` and ``probability`` (in [0, 1]) or ``logit``.
    ``how``: "mean" of probabilities (released, method/README.md §5), "median", "max", mean of the ``k`` largest
    ("topk"; of all when there are fewer), or sigmoid of the mean log-odds ("logodds").
    Gives the columns ``by``, ``probability``, ``n_slices`` (predictions that went in), and ``label``, ``fold`` and
    ``source`` where they are in the input. Order of rows: sorted by ``by``.
    Where both are given, log-odds are taken from ``logit``, everything else from ``probability``.
    Raises ValueError for missing columns, values that are no probabilities, or a label that differs inside a scan.

    >>> slices = pd.DataFrame({"scan_id": ["a", "a", "b"], "probability": [0.2, 0.6, 0.9]})
    >>> [round(float(p), 12) for p in scan_scores(slices).probability]
    [0.4, 0.9]
    """
    by = list(by)
    columns = set(slice_predictions.columns)
    if missing := [name for name in by if name not in columns]:
        raise ValueError(f"slice predictions lack the columns {missing}; they have {sorted(columns)}")
    if how not in Aggregation.__args__:
        raise ValueError(f"how={how!r}, expected one of {', '.join(Aggregation.__args__)}")
    if k < 1:
        raise ValueError(f"k={k}, expected 1 or more slices")
    if slice_predictions[by].isna().any(axis=None):
        raise ValueError(f"slice predictions have empty values in {by}")
    if not columns & {"probability", "logit"}:
        raise ValueError(f"slice predictions need a column probability or logit; they have {sorted(columns)}")
    source = "logit" if "logit" in columns and (how == "logodds" or "probability" not in columns) else "probability"
    values = slice_predictions[source].to_numpy(dtype=float)
    if source == "probability":
        require_probabilities(values)
        values = logit(np.clip(values, LOGIT_CLIP, 1 - LOGIT_CLIP)) if how == "logodds" else values
    elif np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {values.size} slice logits are NaN")
    elif how != "logodds":
        values = expit(values)

    table = slice_predictions[by].assign(probability=values)
    groups = table.groupby(by, sort=True)["probability"]
    if how == "topk":
        largest = table.sort_values("probability", ascending=False, kind="stable").groupby(by, sort=True).head(k)
        scores = largest.groupby(by, sort=True)["probability"].mean()
    elif how == "logodds":
        mean = groups.mean()
        scores = pd.Series(expit(mean.to_numpy()), index=mean.index, name="probability")
    else:
        scores = groups.agg(how)
    result = pd.concat([scores, groups.size().rename("n_slices")], axis=1)
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
