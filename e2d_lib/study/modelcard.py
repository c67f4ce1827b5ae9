"""A model card for what a run trained: the sections of Mitchell et al. (FAT* 2019), the hub's YAML on top.

Every number comes from the run's tables; the fixed sentences, in the template beside this, say what such a network is
and is not for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from e2d_lib import words

HUB_METRICS = {"macro_f1": "f1", "roc_auc": "roc_auc", "accuracy": "accuracy"}


def estimate(row: Mapping[str, Any]) -> str:
    """A metric's value with its interval in words, or why there is none.

    >>> estimate({"value": 0.9, "low": 0.8, "high": 0.95, "reason": ""})
    '0.900 (0.800 to 0.950)'
    >>> estimate({"value": float("nan"), "low": float("nan"), "high": float("nan"), "reason": "no positive scans"})
    'undefined: no positive scans'
    """
    if pd.isna(row["value"]):
        return f"undefined: {row['reason']}"
    if pd.isna(row["low"]):
        return f"{row['value']:.3f} (no interval: {row['reason']})"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def front_matter(name: str, data: str, metrics: pd.DataFrame) -> str:
    """The hub's YAML: library, task, tags, and the defined metrics as its model index. Needs no network."""
    from huggingface_hub import EvalResult, ModelCardData

    first = metrics.drop_duplicates("metric").set_index("metric")["value"].dropna()
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data.lower().replace(" ", "-"),
            dataset_name=f"{data}, validation scans",
            metric_type=kind,
            metric_name=f"{words.name(metric)}, by scan",
            metric_value=round(float(first[metric]), 4),
        )
        for metric, kind in HUB_METRICS.items()
        if metric in first
    ]
    about = ModelCardData(
        model_name=name,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["medical-imaging", "computed-tomography", "covid-19", "not-for-clinical-use"],
        eval_results=results or None,
    )
    return about.to_yaml()


def card(*, data: str, metrics: pd.DataFrame | None = None, **values: Any) -> str:
    """The card of a run, or without ``metrics`` a short one to lie beside a checkpoint.

    data: "phantom", or the data's name. Both have ``runs`` (chapter 4's, those that the card is about), ``config`` and
    ``recipe`` of the checkpoints, ``parameters`` (their number), ``aggregation``, and ``preprocessing``, the fields of
    ``preprocess.Params``. A run's has also ``name``; metrics: `scoring.at_thresholds`; ``scored``: one row a scored
    scan, with label, source and fold; ``by_source``: `scoring.by_group`; ``thresholds``: `scoring.thresholds`; and
    ``comparison``: `scoring.paired` with a column name, or an empty table.
    """
    front = "" if metrics is None else front_matter(values["name"], data, metrics)
    values |= {"data": data, "metrics": metrics, "card_data": front, "estimate": estimate}
    values = {k: v.to_dict("records") if isinstance(v, pd.DataFrame) else v for k, v in values.items()}
    text = words.page(Path(__file__).parent / "model_card.md.jinja", **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
