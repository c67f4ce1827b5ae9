"""The register of discrepancies between the paper's table, its released code and its saved outputs.

The entries' prose is ``register.yaml``; what can be recomputed without training is a check (`checks`), by the
entry's id. Effects that need training come from outside (``effects``).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from e2d_lib import io, words
from e2d_lib.audit import checks, follow_up, scores, slices, table  # noqa: F401  (their checks enter CHECKS)
from e2d_lib.audit.checks import Effect, Inputs
from e2d_lib.method.preprocess import Preprocessed

ENTRIES: list[dict[str, Any]] = io.shipped("e2d_lib.audit", "register.yaml")
COLUMNS = ["id", "topic", "claim", "source", "evidence", "checked", "holds", "result", "effect"]
COLUMNS += ["metric", "value", "low", "high", "corrected"]


def register(
    published: str | Path,
    *,
    cohort: Preprocessed | None = None,
    rng: np.random.Generator,
    effects: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The register with its checks done: one row an entry, the columns `COLUMNS`.

    ``published``: folder of the published tables (reduction_table, released_outputs, saved_windows, saved_scores).
    ``cohort``: a preprocessed cohort, on which effects are measured; None leaves them out. ``effects``: more of them,
    such as those that need training: id, metric, value, low, high, perhaps n and unit ("share" for per cent).

    checked: "recomputed" or "cited". holds: True, False, or <NA> where undecided or cited. result: what the check
    found. effect: all effects in words; metric, value, low, high: the first one as numbers (those in ``effects`` lead).
    Raises ValueError for effects of an unknown id.
    """
    inputs, given, rows = Inputs(Path(published), cohort, rng), _given(effects), []
    for entry in ENTRIES:
        recomputed = entry["id"] in checks.CHECKS
        cited = (None, "read in the released files; not recomputed", [])
        holds, found, own = checks.done(entry["id"], inputs) if recomputed else cited
        sizes = [*given.get(entry["id"], []), *own]
        first = sizes[0] if sizes else Effect("", math.nan)
        about = {"checked": "recomputed" if recomputed else "cited", "holds": holds, "result": found}
        rows.append(entry | about | {"effect": "; ".join(map(_in_words, sizes)), **first._asdict()})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"holds": "boolean"})


def markdown(register: pd.DataFrame, *, data: str = "") -> str:
    """The register as a Markdown document. ``data``: what the effects were measured on, such as "phantom, 60 scans"."""
    topics = {topic: part.to_dict("records") for topic, part in register.groupby("topic", sort=False)}
    return words.page(Path(__file__).parent / "audit.md.jinja", data=data, topics=topics)


# Inside -----------------------------------------------------------------------------------------------------------


def _given(effects: pd.DataFrame | None) -> dict[str, list[Effect]]:
    """Effects that came from outside, by id."""
    if effects is None:
        return {}
    if unknown := sorted(set(effects["id"]) - {entry["id"] for entry in ENTRIES}):
        raise ValueError(f"effects of ids that the register lacks: {', '.join(map(str, unknown))}")
    columns = effects.columns.intersection(Effect._fields)
    return {id: [Effect(**row) for row in part[columns].to_dict("records")] for id, part in effects.groupby("id")}


def _in_words(effect: Effect) -> str:
    def number(value: float) -> str:
        return f"{value:.1%}" if effect.unit == "share" else f"{value:.3g}"

    if math.isnan(effect.value):
        return f"{effect.metric}: not defined here"
    interval = "" if math.isnan(effect.low) else f" [{number(effect.low)}, {number(effect.high)}]"
    return f"{effect.metric} {number(effect.value)}{interval}"
