"""Atomic files: everything is written to a temporary name in the same folder, then renamed.

A reader therefore sees a whole file or none, also after the process was killed.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` if the block ends well, delete it if not.

    The temporary name ends in ``.tmp`` and is unique, so that two processes never share one. Parents are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    # mkstemp makes the file private; give it the mode an ordinary open() would.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, paths and sets as JSON knows them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: Any, *, indent: int | None = 1) -> str:
    """JSON with sorted keys, so that equal values give equal bytes; NaN is refused, as JSON has none."""
    return json.dumps(value, default=_plain, sort_keys=True, indent=indent, allow_nan=False)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, dumps(value) + "\n")


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def shipped(package: str, file: str) -> Any:
    """What a YAML file beside the modules of ``package`` holds: tables and texts that the library comes with."""
    return yaml.safe_load(resources.files(package).joinpath(file).read_text(encoding="utf-8"))


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    with replacing(path) as tmp:
        table.to_parquet(tmp, index=False)


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    with replacing(path) as tmp:
        table.to_csv(tmp, index=False)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """``.npy`` without pickle; read back with ``np.load(path, mmap_mode="r", allow_pickle=False)``."""
    with replacing(path) as tmp, open(tmp, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_figure(path: str | Path, figure: "Figure") -> None:
    """PNG of at most 256 colours, about half the size of one with all: figures lie in notebooks and in git.

    The same figure gives the same bytes: no date and no software is written.
    """
    from PIL import Image

    with io.BytesIO() as buffer, replacing(path) as tmp:
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        image = Image.open(buffer).convert("RGB")
        # not the default method, the median cut: it spends its colours on the greys and leaves bands in a heat map
        image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            tmp, format="png", optimize=True
        )


def digest(value: Any, *, length: int = 12) -> str:
    """A short SHA-256 of a JSON-able value, equal for equal values in any process.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(dumps(value, indent=None).encode()).hexdigest()[:length]
