"""SSFL++, KDS and E2D: a thin library under a study in notebooks; see README.md.

The layers are folders, and imports go one way: scans -> method -> network -> evaluation -> study. For other projects,
what preprocessing takes can be had from here: ``from e2d_lib import ssfl, kds, preprocess, reduction, readers``.
"""

import importlib
from typing import Any

_PUBLIC = {"cohort": "scans", "readers": "scans", "ssfl": "method", "kds": "method", "preprocess": "method"}
_PUBLIC |= {"reduction": "method"}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return importlib.import_module(f"e2d_lib.{_PUBLIC[name]}.{name}")
    raise AttributeError(f"module 'e2d_lib' has no attribute {name!r}")
