"""What a run says, for a machine: summary.json, a JUnit file, and a check against an earlier run's numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from e2d_lib import io
from e2d_lib.study.notebook import Notebook, StudyError, shown

SUMMARY = "summary.json"
CLOSE = 0.05  # relative, for a number without an interval that counts nothing


def write(run_dir: Path, chosen: Iterable[Notebook], junit: str, *, failed: str = "", error: str = "") -> None:
    """``<run>/summary.json``: each chapter's status, seconds, headline; and the chosen chapters as a JUnit file."""
    chapters = {}
    for path in sorted(run_dir.glob("[0-9][0-9]_*/done.json")):
        done = io.read_json(path)
        entries = io.read_json(path.with_name("headline.json"))["headline"] if done["status"] == "done" else {}
        about = {name: done[name] for name in ("status", "reason", "seconds")}
        chapters[path.parent.name] = about | {"headline": entries}
    if failed:
        chapters[failed] = {"status": "failed", "reason": error, "seconds": 0.0, "headline": {}}
    io.write_json(run_dir / SUMMARY, {"chapters": chapters})
    if junit:
        suite = ElementTree.Element("testsuite", name="e2d run")
        for name in (notebook.name for notebook in chosen):
            entry = chapters.get(name, {"status": "skipped", "reason": f"not run: {failed} failed", "seconds": 0.0})
            case = ElementTree.SubElement(suite, "testcase", classname="e2d", name=name, time=str(entry["seconds"]))
            if entry["status"] != "done":
                kind = "failure" if entry["status"] == "failed" else "skipped"
                # XML has no way to write most control characters
                printable = "".join(letter if letter.isprintable() else " " for letter in entry["reason"])
                ElementTree.SubElement(case, kind, message=printable)
        for kind in ("failure", "skipped"):
            suite.set({"failure": "failures"}.get(kind, kind), str(len(suite.findall(f"testcase/{kind}"))))
        suite.set("tests", str(len(suite)))
        io.write_text(Path(junit), ElementTree.tostring(suite, encoding="unicode", xml_declaration=True))


def check(run_dir: str | Path, against: str | Path) -> pd.DataFrame:
    """The headline numbers of a run beside an earlier one's: chapter, number, before, low, high, now, holds.

    A number holds inside the earlier one's 95 % interval, or where it has none: a count that is equal, another within
    5 %. What the earlier run has and this one lacks does not hold. Raises StudyError where there is nothing to compare.
    """
    rows = []
    for path in sorted(Path(against).glob("*/headline.json")):
        here = Path(run_dir) / path.parent.name / path.name
        now = io.read_json(here)["headline"] if here.exists() else {}
        for name, entry in io.read_json(path)["headline"].items():
            value, ends = entry["value"], entry["ci95"] or [None]
            low, high = _margin(value) if None in ends else ends
            found = now.get(name, {}).get("value")
            holds = name in now and (found == value or (found is not None and low <= found <= high))
            rows.append((path.parent.name, name, value, low, high, found, holds))
    if not rows:
        raise StudyError(f"no chapter's headline.json in {shown(against)}: give the folder of a run")
    return pd.DataFrame(rows, columns=["chapter", "number", "before", "low", "high", "now", "holds"])


def _margin(value: Any) -> tuple[float, float]:
    if isinstance(value, float):
        return value - CLOSE * abs(value), value + CLOSE * abs(value)
    return (np.nan, np.nan) if value is None else (value, value)
