"""Progress bars: a widget in JupyterLab, one plain line in a terminal or under the runner."""

import os
from collections.abc import Iterable
from typing import Any


def bar(iterable: Iterable[Any] | None = None, **options: Any):
    """A tqdm bar; ``options`` are tqdm's (total, desc, unit, …).

    The runner sets E2D_PROGRESS to "plain", as a widget in an executed notebook is a dead box, and to "off" for no bar.
    """
    mode = os.environ.get("E2D_PROGRESS", "auto")
    if mode == "auto":
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    options.setdefault("disable", mode == "off")
    options.setdefault("dynamic_ncols", True)
    options.setdefault("leave", False)
    return tqdm(iterable, **options)
