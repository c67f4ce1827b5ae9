"""The same function over many things, on the cores of this machine."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import joblib

ALONE = 2.0
"""Seconds worked without helpers first: processes take longer than that to start, so small jobs do not want any."""


def unordered(task: Callable[[Any], Any], items: Iterable[Any], *, n_jobs: int = -1) -> Iterator[Any]:
    """``task(item)`` for each item, in the order in which they are done: for ``ALONE`` seconds here, then by processes.

    n_jobs: processes, -1 for one on each core; 1 stays in this process. They are gone when the last result is taken or
    the generator is closed: workers that outlive their job would be reported as leaked when a notebook's kernel ends.
    """
    items, until = iter(items), time.perf_counter() + ALONE
    for item in items:
        if n_jobs != 1 and time.perf_counter() >= until:
            items = itertools.chain([item], items)
            break
        yield task(item)
    else:
        return
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    try:
        yield from parallel(joblib.delayed(task)(item) for item in items)
    finally:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)
