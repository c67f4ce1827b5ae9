"""A model card for what a run trained: the sections of Mitchell et al. (FAT* 2019), the hub's YAML on top.

Every number comes from the run's tables; the fixed sentences, in the template beside this, say what such a network is
and is not for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
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


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its values as text.

    >>> print(markdown(pd.DataFrame({"fold": [5], "scans": [44]})))
    | fold | scans |
    |---|---|
    | 5 | 44 |
    """
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    return "\n".join([lines[0], lines[1].replace(" ", ""), *lines[2:]])


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
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    parameters: int,
    preprocessing: Mapping[str, Any],
    scored: pd.DataFrame,
    runs: pd.DataFrame,
    aggregation: str,
    metrics: pd.DataFrame,
    by_source: pd.DataFrame,
    thresholds: pd.DataFrame,
    comparison: pd.DataFrame,
) -> str:
    """The card's text.

    ``data``: "phantom", or the data's name. ``config``, ``recipe``: of the checkpoints; ``preprocessing``: the fields
    of ``preprocess.Params``. ``scored``: one row a scored scan, with label, source and fold. ``runs``: chapter 4's, of
    the runs the card is about. ``metrics``: `scoring.at_thresholds`; ``by_source``: `scoring.by_group`;
    ``thresholds``: `scoring.thresholds`; ``comparison``: `scoring.paired` with a column name, or an empty table.
    """
    held = thresholds.loc[thresholds["threshold"].notna(), "scans"]
    return _render(
        **{"name": name, "data": data, "config": config, "recipe": recipe, "parameters": parameters, "runs": runs},
        card_data=front_matter(name, data, metrics),
        preprocessing=preprocessing,
        aggregation=aggregation,
        folds=sorted(int(fold) for fold in runs["fold"].unique()),
        scored=_count(scored),
        sources=[f"{source or 'unknown'} {_count(part)}" for source, part in scored.groupby("source")],
        metrics=_metrics_table(metrics),
        chosen=metrics["at"].eq("chosen").any(),
        by_source=_by_source_table(by_source),
        thresholds=_thresholds_table(thresholds),
        held=held.min() if len(held) else None,
        comparison="" if comparison.empty else _comparison_table(comparison),
        compared="" if comparison.empty else comparison["name"].iloc[0],
    )


def brief(runs: pd.DataFrame, *, data: str, **details: Any) -> str:
    """A card to lie beside one checkpoint, whose row of chapter 4's runs is ``runs``.

    details: config, recipe, parameters and preprocessing, as for `card`.
    """
    return _render(runs=runs, data=data, aggregation="mean", **details)


def _render(*, runs: pd.DataFrame, **values: Any) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)  # Markdown, so not escaped
    text = environment.get_template("model_card.md.jinja").render(runs=runs, runs_table=_numbers(runs), **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _count(scans: pd.DataFrame) -> str:
    return f"{len(scans)} scans ({int((scans['label'] == 1).sum())} positive)"


def _numbers(runs: pd.DataFrame) -> str:
    columns = {
        "fold": "scored on fold",
        "fraction": "share of the scans",
        "seed": "seed",
        "train": "scans trained on",
        "inner": "held out of them",
        "valid": "scans scored",
        "epoch": "epoch kept",
    }
    shares = runs["fraction"].map(lambda fraction: f"{100 * fraction:g} %")
    return markdown(runs.assign(fraction=shares)[list(columns)].rename(columns=columns))


def _metrics_table(metrics: pd.DataFrame) -> str:
    rows = [
        {
            "metric": words.name(row["metric"]),
            "threshold": row["at"] if row["metric"] in ("macro_f1", "sensitivity", "specificity", "accuracy") else "",
            "value (95 % interval)": estimate(row),
            "scans": row["n"],
        }
        for row in metrics.to_dict("records")
    ]
    return markdown(pd.DataFrame(rows))


def _by_source_table(by_source: pd.DataFrame) -> str:
    shown = [m for m in ("roc_auc", "macro_f1", "sensitivity", "specificity") if m in set(by_source["metric"])]
    rows = []
    for source, part in by_source.groupby("source", sort=True):
        values = {row["metric"]: estimate(row) for row in part.to_dict("records")}
        rows.append({"source": source, "scans": part["n"].max()} | {words.name(m): values[m] for m in shown})
    return markdown(pd.DataFrame(rows))


def _thresholds_table(thresholds: pd.DataFrame) -> str:
    table = thresholds.assign(
        fraction=thresholds["fraction"].map(lambda fraction: f"{100 * fraction:g} %"),
        threshold=thresholds["threshold"].map(lambda t: "none" if pd.isna(t) else f"{t:.3f}"),
        reason=thresholds["reason"].replace("", "–"),
    )
    columns = {
        "fraction": "share of the scans",
        "scans": "scans it was chosen on",
        "positives": "of them positive",
        "reason": "why none",
    }
    return markdown(table.rename(columns=columns))


def _comparison_table(comparison: pd.DataFrame) -> str:
    rows = [
        {
            "metric": words.name(row["metric"]),
            "threshold": row["at"],
            "first": f"{row['a']:.3f}",
            "second": f"{row['b']:.3f}",
            "difference (95 % interval)": estimate(row | {"value": row["difference"]}),
            "p": "–" if pd.isna(row["p_value"]) else f"{row['p_value']:.3g}",
        }
        for row in comparison.to_dict("records")
    ]
    return markdown(pd.DataFrame(rows))
