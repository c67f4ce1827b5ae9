"""In JupyterLab: a sentence in place of a traceback where cells are run from the middle or interrupted; git kept clean.

An IPython extension, which ``make env`` has every kernel of the environment load, so that it is there before any cell:
after a restart the first cell that is run may be one that imports nothing. And a hook of Jupyter's server.
"""

import contextlib
import gc
import os
import subprocess
from pathlib import Path
from typing import Any

INTERRUPTED = "Interrupted. Run the cell again: it goes on from what is finished."


def load_ipython_extension(shell: Any) -> None:
    """What IPython calls."""
    gc.set_threshold(100_000, 50, 100)  # the collector took one in six of the seconds that imports of torch take
    shell.set_custom_exc((NameError, KeyboardInterrupt), _show)


def _show(shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None) -> None:
    text = sentence(error, shell.history_manager.input_hist_raw[-1])
    if text is None:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    else:
        shell._showtraceback(kind, error, [text])


def sentence(error: BaseException, source: str) -> str | None:
    """What to do about an error that the cell ``source`` raised; None where the cell or the error is none of ours."""
    from e2d_lib.study.notebook import names_made  # not before it is needed: every kernel loads this module

    cells = _chapter(source)
    if cells is None or isinstance(error, KeyboardInterrupt):
        return None if cells is None else INTERRUPTED
    maker = next((cell for cell in cells if error.name in names_made(cell)), None)
    if maker is None or maker == source.strip():
        return None
    first = next(line for line in maker.splitlines() if not line.lstrip().startswith("#"))
    return (
        f"{error.name!r} is not there yet: run the cell that makes it, the one that begins\n\n    {first}\n\n"
        "After a restart, run all cells above this one (menu Run, Run All Above Selected Cell), then this one again."
    )


def _chapter(source: str) -> list[str] | None:
    """The stored code cells of the chapter that is open, or else of one that has the cell ``source``."""
    from e2d_lib.study.notebook import notebooks, stored_cells

    opened = Path(os.environ.get("JPY_SESSION_NAME", "")).stem  # set by Jupyter's server
    with contextlib.suppress(OSError, ValueError):  # a notebook that is none, or no chapters
        for notebook in notebooks():
            code = [cell.source.strip() for cell in stored_cells(notebook.path) if cell.kind == "code"]
            if notebook.name == opened or source.strip() in code:
                return code
    return None


def saved(model: Any, os_path: str, **_: Any) -> None:
    """After Jupyter's server wrote a file: have git see at once that a notebook changed in its outputs only.

    Git takes a file of another size for changed before it filters it. Adding what is the same stages nothing.
    """
    if model["type"] == "notebook":
        look = 'cd "$(dirname "$1")" && git diff --quiet -- "$1" && git add -- "$1"'
        subprocess.run(["sh", "-c", look, "sh", os_path], capture_output=True)
