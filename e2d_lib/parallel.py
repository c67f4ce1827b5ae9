"""The same function over many things, on the cores of this machine."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import joblib


def unordered(task: Callable[[Any], Any], items: Iterable[Any], *, n_jobs: int = -1) -> Iterator[Any]:
    """``task(item)`` for each item, by processes, in the order in which they are done.

    n_jobs: processes, -1 for one on each core. They are gone when the last result is taken or the generator is closed:
    workers that outlive their job would be reported as leaked when a notebook's kernel ends.
    """
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    try:
        yield from parallel(joblib.delayed(task)(item) for item in items)
    finally:
        if n_jobs != 1:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True, kill_workers=True)
