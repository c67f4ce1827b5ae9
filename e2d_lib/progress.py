"""Progress bars: a widget in JupyterLab, one plain line in a terminal or under the runner."""

import os
from collections.abc import Iterable
from typing import Any


def someone_looks() -> bool:
    """Whether a notebook is open in JupyterLab or VS Code, where widgets live; not under the runner or papermill."""
    return "E2D_PROGRESS" not in os.environ and bool(os.environ.keys() & {"JPY_SESSION_NAME", "VSCODE_PID"})


def bar(iterable: Iterable[Any] | None = None, **options: Any):
    """A tqdm bar; ``options`` are tqdm's (total, desc, unit, …).

    The runner sets E2D_PROGRESS to the terminal's device, as a bar in an executed notebook is a dead box, or to "off".
    Unset, there is a bar where someone looks at a notebook or at a terminal.
    """
    if someone_looks():
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm

        told = os.environ.get("E2D_PROGRESS", "")
        options.setdefault("disable", told == "off" or None)  # None: unless it is a terminal
        if told not in ("", "off"):
            options.setdefault("file", open(told, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as there is the bar)
    options.setdefault("dynamic_ncols", True)
    options.setdefault("leave", False)
    return tqdm(iterable, **options)
