"""The same function over many things, on the cores of this machine or on a Dask cluster."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

ALONE = 2.0
"""Seconds that processes take to start: so long a job is done without any, and where less than twice that is left."""

IN_FLIGHT = 1000
"""Items handed to a Dask scheduler at a time: enough for hundreds of cores, nothing for the scheduler's memory."""


class WorkersError(ValueError):
    """The workers could not be had, or died; one line says what to do."""


def unordered(
    task: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    n_jobs: int = -1,
    scheduler: str | None = None,
    alone: float | None = None,
) -> Iterator[Any]:
    """``task(item)`` for each item, in the order in which they are done: for a while here, then by processes.

    n_jobs: processes, -1 for one on each core; 1 stays in this process. scheduler: address of a Dask scheduler
    ("tcp://…") that does everything instead; its workers must see the same folders. alone: seconds that processes take
    to start (default ``ALONE``). Processes are gone when the last result is taken or the generator is closed: workers
    that outlive their job would be reported as leaked when a notebook's kernel ends.

    Raises WorkersError where no scheduler answers, or a worker was killed; and what a task raises.
    """
    if scheduler:
        yield from _on_dask(task, items, scheduler)
        return
    alone, began = ALONE if alone is None else alone, time.perf_counter()
    for done, item in enumerate(items):
        spent = time.perf_counter() - began
        if n_jobs != 1 and spent >= alone and spent * (len(items) - done) >= 2 * alone * done:
            break
        yield task(item)
    else:
        return
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    try:
        yield from parallel(joblib.delayed(task)(item) for item in items[done:])
    except TerminatedWorkerError as error:
        raise WorkersError(
            "a worker process was killed (out of memory, most often): run again with fewer processes; "
            "what is finished is kept"
        ) from error
    finally:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _on_dask(task: Callable[[Any], Any], items: Iterable[Any], scheduler: str) -> Iterator[Any]:
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise WorkersError("a scheduler needs Dask: pip install 'e2d-study[cluster]'") from error
    try:
        client = Client(scheduler, timeout="30s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkersError(f"no Dask scheduler answers at {scheduler!r} ({error})") from error
    items = iter(items)
    with client:
        # pure=False: Dask must not answer from its memory what may have changed on disk.
        first = [client.submit(task, item, pure=False) for item in itertools.islice(items, IN_FLIGHT)]
        running = as_completed(first, loop=client.loop)  # not the loop of the caller's own client
        del first
        try:
            for future in running:
                yield future.result()
                for item in itertools.islice(items, 1):
                    running.add(client.submit(task, item, pure=False))
        except KilledWorker as error:
            raise WorkersError(
                "a task took several Dask workers down (out of memory, most often): give the workers more memory and "
                "run again; what is finished is kept"
            ) from error
