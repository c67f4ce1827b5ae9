"""The register of discrepancies between the paper's table, its released code and its saved outputs.

The entries' prose is ``register.yaml``; what can be recomputed without training is a check (`checks`), by the
entry's id. Effects that need training come from outside (``effects``). A statement of one's own is one `Entry`,
given in ``also``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from e2d_lib import io, words
from e2d_lib.audit import follow_up, scores, slices, table  # noqa: F401  (their checks enter CHECKS)
from e2d_lib.audit.checks import CHECKS, CheckFunction, Effect, Inputs
from e2d_lib.method.preprocess import Preprocessed

EVIDENCE = ("proved", "inferred", "stated")
COLUMNS = ["id", "topic", "claim", "source", "evidence", "checked", "holds", "result", "effect"]
COLUMNS += ["metric", "value", "low", "high", "corrected"]


@dataclass(frozen=True)
class Entry:
    """One statement of the register. ``check`` recomputes it; without one it is cited.

    A check takes `Inputs` and gives whether the statement holds, what was found in words, and a list of `Effect`.
    """

    id: str
    topic: str
    claim: str
    source: str
    evidence: str
    corrected: str
    check: CheckFunction | None = None

    def __post_init__(self) -> None:
        if self.evidence not in EVIDENCE:
            raise ValueError(f"{self.id}: evidence is {self.evidence!r}, expected one of {', '.join(EVIDENCE)}")


def entries() -> list[Entry]:
    """The shipped register, in its order, each entry with its check where it has one."""
    listed = io.shipped("e2d_lib.audit", "register.yaml")
    return [Entry(**fields, check=CHECKS.get(fields["id"])) for fields in listed]


def register(
    published: str | Path,
    *,
    cohort: Preprocessed | None = None,
    cropped: Preprocessed | None = None,
    rng: np.random.Generator,
    effects: pd.DataFrame | None = None,
    also: Sequence[Entry] = (),
) -> pd.DataFrame:
    """The register with its checks done: one row an entry, the columns `COLUMNS`.

    ``published``: folder of the published tables (reduction_table, released_outputs, saved_windows, saved_scores).
    ``cohort``: a preprocessed cohort, on which effects are measured; None leaves them out. ``cropped``: the same scans
    preprocessed with area_on="crop", for B3. ``effects``: more of them, such as those that need training: id, metric,
    value, low, high, perhaps n and unit ("share" for per cent). ``also``: entries of your own.

    checked: "recomputed" or "cited". holds: True, False, or <NA> where undecided or cited. result: what the check
    found. effect: all effects in words; metric, value, low, high: the first one as numbers (those in ``effects`` lead).
    Raises ValueError for effects of an unknown id or without the columns, and for an id used twice.

    >>> mine = Entry("X1", "window", "12 slices give 6", "method/README.md §3", "proved", "none",
    ...              check=lambda inputs: (forensics.trimmed_width(52) == 6, "(52 - 40) / 2 = 6", []))
    """
    listed = [*entries(), *also]
    ids = [entry.id for entry in listed]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"ids used twice in the register: {', '.join(twice)}")
    inputs = Inputs(Path(published), cohort, cropped, rng)
    given = _given(effects, set(ids))
    rows = []
    for entry in listed:
        holds, found, own = None, "read in the released files; not recomputed", []
        if entry.check:
            holds, found, own = entry.check(inputs)
        sizes = [*given.get(entry.id, []), *own]
        first = sizes[0] if sizes else Effect("", math.nan)
        rows.append(
            {
                **{name: getattr(entry, name) for name in ("id", "topic", "claim", "source", "evidence", "corrected")},
                "checked": "recomputed" if entry.check else "cited",
                "holds": pd.NA if holds is None else bool(holds),
                "result": found,
                "effect": "; ".join(map(_in_words, sizes)),
                **{name: getattr(first, name) for name in ("metric", "value", "low", "high")},
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"holds": "boolean"})


def areas_on_crop(done: Preprocessed) -> Preprocessed | None:
    """``cropped`` for `register`: the cohort as ``done``, with the areas measured on the crop.

    None where there is no crop to measure them on.
    """
    if not done.params.crop:
        return None
    cropped = replace(done, params=replace(done.params, area_on="crop"))
    cropped.__dict__["slices"] = done.slices.assign(area=done.slices["area_crop"])  # in place of what it would read
    return cropped


def markdown(register: pd.DataFrame, *, data: str = "") -> str:
    """The register as a Markdown document. ``data``: what the effects were measured on, such as "phantom, 60 scans"."""
    topics = {topic: part.to_dict("records") for topic, part in register.groupby("topic", sort=False)}
    return words.page(Path(__file__).parent / "audit.md.jinja", data=data, topics=topics)


# Inside -----------------------------------------------------------------------------------------------------------


def _given(effects: pd.DataFrame | None, known: set[str]) -> dict[str, list[Effect]]:
    """Effects that came from outside, by id."""
    if effects is None:
        return {}
    needed = ["id", "metric", "value", "low", "high"]
    if missing := [name for name in needed if name not in effects]:
        raise ValueError(f"effects lack the columns {missing}; they need {needed}")
    if unknown := sorted(set(effects["id"]) - known):
        raise ValueError(f"effects of ids that the register lacks: {', '.join(map(str, unknown))}")
    result: dict[str, list[Effect]] = {}
    for row in effects.to_dict("records"):
        numbers = (float(row[name]) for name in ("value", "low", "high"))
        extra = {name: row[name] for name in ("n", "unit") if name in row and not pd.isna(row[name])}
        result.setdefault(row["id"], []).append(Effect(str(row["metric"]), *numbers, **extra))
    return result


def _in_words(effect: Effect) -> str:
    def number(value: float) -> str:
        return f"{value:.1%}" if effect.unit == "share" else f"{value:.3g}"

    if math.isnan(effect.value):
        return f"{effect.metric}: not defined here"
    interval = "" if math.isnan(effect.low) else f" [{number(effect.low)}, {number(effect.high)}]"
    return f"{effect.metric} {number(effect.value)}{interval}"
