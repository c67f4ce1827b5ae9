"""Names of quantities and settings as people read them: the one table for figures, tables and cards."""

from pathlib import Path
from typing import Any

from e2d_lib import io

NAMES = io.shipped("e2d_lib", "words.yaml")

LOWER_IS_BETTER = frozenset({"brier", "ece"})
"""Metrics of which less is better; of all others more is."""


def name(key: str) -> str:
    """A column's or a value's name in words.

    >>> name("roc_auc"), name("test_efficientnet")
    ('ROC AUC', 'test efficientnet')
    """
    return NAMES.get(key, key.replace("_", " "))


def setting(cell: str) -> str:
    """The name of an ablation's cell, written name=value,… or name = value, …, in words; other names stay.

    >>> setting("few_shot=0.01"), setting("method=kds,n_intervals=4"), setting("B1 cut windows")
    ('share of the scans 0.01', 'method KDS, intervals 4', 'B1 cut windows')
    """
    pairs = [part.partition("=") for part in cell.split(",")]
    if not all(equals for _, equals, _ in pairs):
        return cell
    return ", ".join(f"{name(key.strip())} {name(value.strip())}" for key, _, value in pairs)


def page(template: Path, *, html: bool = False, **values: Any) -> str:
    """A Jinja template filled in: Markdown, or HTML in which all values are escaped. A value it lacks is an error."""
    import jinja2

    loader = jinja2.FileSystemLoader(template.parent)
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined, "autoescape": html}
    environment = jinja2.Environment(loader=loader, **options)
    environment.filters["name"] = name
    return environment.get_template(template.name).render(**values)


def phrase(key: str) -> str:
    """A headline's name in words: the known names in it, and what stands around them.

    >>> phrase("axial_area_delta"), phrase("macro_f1_at_chosen")
    ('axial area removed, share of the slice', 'macro F1 at chosen')
    """
    known = next((known for known in sorted(NAMES, key=len, reverse=True) if f"_{known}_" in f"_{key}_"), key)
    return f"_{key}_".replace(f"_{known}_", f"_{name(known)}_").replace("_", " ").strip()
