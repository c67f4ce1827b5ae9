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


def card(
    *,
    name: str,
    data: str,
    scored: pd.DataFrame,
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    by_source: pd.DataFrame,
    thresholds: pd.DataFrame,
    comparison: pd.DataFrame,
    **details: Any,
) -> str:
    """The card's text.

    ``data``: "phantom", or the data's name. ``scored``: one row a scored scan, with label, source and fold. ``runs``:
    chapter 4's, of the runs the card is about. ``metrics``: `scoring.at_thresholds`; ``by_source``: `scoring.by_group`;
    ``thresholds``: `scoring.thresholds`; ``comparison``: `scoring.paired` with a column name, or an empty table.
    details: ``config`` and ``recipe`` of the checkpoints, ``parameters`` (their number), ``aggregation``, and
    ``preprocessing``, the fields of ``preprocess.Params``.
    """
    tables = {"scored": scored, "metrics": metrics, "by_source": by_source, "thresholds": thresholds}
    tables["comparison"] = comparison
    return _filled(runs, name=name, data=data, card_data=front_matter(name, data, metrics), **tables, **details)


def brief(runs: pd.DataFrame, *, data: str, **details: Any) -> str:
    """A card to lie beside one checkpoint, whose row of chapter 4's runs is ``runs``.

    details: config, recipe, parameters and preprocessing, as for `card`.
    """
    return _filled(runs, data=data, card_data="", aggregation="mean", **details)


def _filled(runs: pd.DataFrame, **values: Any) -> str:
    values = {
        k: v.to_dict("records") if isinstance(v, pd.DataFrame) else v for k, v in {"runs": runs, **values}.items()
    }
    text = words.page(Path(__file__).parent / "model_card.md.jinja", estimate=estimate, **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
