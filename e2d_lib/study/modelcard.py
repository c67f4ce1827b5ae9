"""A model card for what a run trained: the sections of Mitchell et al. (FAT* 2019), the hub's YAML on top.

Every number comes from the run's tables; the fixed sentences say what such a network is and is not for.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from e2d_lib import words

HUB_METRICS = {"macro_f1": "f1", "roc_auc": "roc_auc", "accuracy": "accuracy"}
OUT_OF_SCOPE = (
    "**Not a medical device.** Not for diagnosis, triage, screening or any decision about a person. Not for other "
    "diseases, other organs, X-ray, or CT that was not preprocessed as above. No regulator has seen it."
)


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
    return f"---\n{about.to_yaml()}\n---\n"


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
    phantom = data == "phantom"
    what = "the study's computed phantom, no patients" if phantom else data
    chosen = metrics["at"].eq("chosen").any()
    sections = [
        front_matter(name, data, metrics),
        f"# Model card: {name}",
        _warning(data) if phantom else "",
        "## Model details",
        _details(config, recipe, parameters, preprocessing, runs, aggregation),
        "## Intended use",
        "To reproduce and examine a published method (SSFL++, KDS and E2D) that tells CT scans with COVID-19 from "
        "others by a few slices each. For researchers in medical imaging and for teaching.",
        "### Out of scope",
        OUT_OF_SCOPE,
        "## Training data",
        f"{what[0].upper() + what[1:]}. Each run trains on all folds but the one it is scored on.",
        _numbers(runs),
        "## Evaluation data",
        f"{_folds(runs)} of {what}: {_count(scored)}. No scan of them was seen in training"
        + (", and none chose the epoch." if recipe["select"] != "reported_fold" else ", but they **chose the epoch**."),
        "By source: " + "; ".join(f"{s or 'unknown'} {_count(part)}" for s, part in scored.groupby("source")) + ".",
        "## Metrics",
        "The unit is the scan. 95 % intervals: DeLong for ROC AUC, Clopper-Pearson for shares, else a stratified "
        "bootstrap over scans; over all folds together, averaged over seeds. What has no honest interval says why.",
        _metrics_table(metrics),
        "### By source",
        _by_source_table(by_source),
        "### Threshold",
        _thresholds_text(thresholds, bool(chosen)),
        *_comparison(comparison),
        "## Ethical considerations",
        "A wrong call costs differently either way: a missed infection delays care and isolation, a false alarm brings "
        "needless ones. Scores that follow the hospital rather than the disease are the known danger of such data; the "
        "table by source is there to look for it. "
        + (
            "The phantom holds no person's data." if phantom else "CT scans are personal data: keep their terms of use."
        ),
        "## Caveats",
        _caveats(phantom, scored, thresholds),
    ]
    return "\n\n".join(section.strip() for section in sections if section.strip()) + "\n"


def brief(
    *,
    data: str,
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    parameters: int,
    preprocessing: Mapping[str, Any],
    runs: pd.DataFrame,
) -> str:
    """A card to lie beside one checkpoint, its row of chapter 4's runs in ``runs``; the rest as for `card`."""
    sections = [
        f"# Model card: E2D {config['backbone']}, trained on {data}",
        _warning(data) if data == "phantom" else "",
        _details(config, recipe, parameters, preprocessing, runs, "mean"),
        OUT_OF_SCOPE,
        _numbers(runs),
        "Its scores, with intervals, are in the model card of the run's chapter 5.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _warning(data: str) -> str:
    return (
        f"> **All numbers here are {data} numbers.** The network was trained and scored on computed images. They say "
        "nothing about its worth on patients' CT."
    )


def _count(scans: pd.DataFrame) -> str:
    return f"{len(scans)} scans ({int((scans['label'] == 1).sum())} positive)"


def _folds(runs: pd.DataFrame) -> str:
    folds = sorted(int(fold) for fold in runs["fold"].unique())
    return f"Fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def _details(config, recipe, parameters, preprocessing, runs, aggregation) -> str:
    weights = "ImageNet weights" if config["pretrained"] else "random weights"
    crop = "cropped to the body, " if preprocessing["crop"] else ""
    return "\n".join(
        [
            f"- Network: {config['backbone']} from {weights}, pooled features, linear {config['hidden']}, linear 1; "
            f"{parameters:,} parameters; {len(runs)} checkpoint(s).",
            f"- Input: {recipe['n_samples']} slices a scan ({recipe['method']}, {recipe['n_intervals']} intervals) "
            f"from the run of {preprocessing['fraction']:.0%} of its slices that holds most lung, {crop}resized to "
            f"{preprocessing['size']}×{preprocessing['size']}.",
            f"- Output: a probability a slice; of the scan, by `{aggregation}` of them.",
            f"- Training: recipe `{recipe['variant']}`, {recipe['epochs']} epochs of {recipe['optimiser']} at "
            f"{recipe['lr']:g}, epoch selected on `{recipe['select']}`.",
            "- Method: Hsu et al., arXiv 2404.01643 (CVPR workshops 2024). Checkpoints are safetensors files, read by "
            "`e2d predict`.",
            "- Licence: the code is under the MIT licence; the weights are bound to the terms of the training data.",
        ]
    )


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


def _thresholds_text(thresholds: pd.DataFrame, chosen: bool) -> str:
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
    text = (
        "Besides the given threshold, each run's own: of greatest macro F1 on scans held out of its training folds."
        if chosen
        else "Only the given threshold is reported: not every run could choose one on its training folds."
    )
    return text + "\n\n" + markdown(table.rename(columns=columns))


def _comparison(comparison: pd.DataFrame) -> list[str]:
    if comparison.empty:
        return []
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
    name = str(comparison["name"].iloc[0])
    return ["### Compared with another run", f"Paired on the same scans: {name}.", markdown(pd.DataFrame(rows))]


def _caveats(phantom: bool, scored: pd.DataFrame, thresholds: pd.DataFrame) -> str:
    lines = [
        f"- {_count(scored)} are scored: the intervals show how little that can tell apart.",
        "- Intervals cover the choice of scans, not that of seeds, hospitals or scanners.",
        "- Probabilities are not calibrated to any prevalence; see the expected calibration error.",
        "- Scores saved with the released code are of COV19-CT-DB, count slice rows, and are the best epoch on the "
        "very fold they report: they are not comparable with these.",
    ]
    held = thresholds.loc[thresholds["threshold"].notna(), "scans"]
    if len(held) and held.min() < 50:
        lines.append(f"- Thresholds were chosen on as few as {held.min()} scans, which also chose the epoch.")
    if phantom:
        lines.append("- Phantom lesions are simpler than disease, and its noise simpler than a scanner's.")
    return "\n".join(lines)
