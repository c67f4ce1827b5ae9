"""Work over processes: everything is done once, wherever it is done."""

import itertools
import os
import time
from types import SimpleNamespace

import pytest

from e2d_lib import parallel


def square(x: int) -> tuple[int, int]:
    time.sleep(0.01)
    return x * x, os.getpid()


@pytest.mark.parametrize(("n_jobs", "alone"), [(1, 0.0), (2, 60.0), (2, 0.0), (2, 0.1)])
def test_each_item_is_done_once(monkeypatch, n_jobs, alone):
    monkeypatch.setattr(parallel, "ALONE", alone)
    found = list(parallel.unordered(square, range(40), n_jobs=n_jobs))
    assert sorted(value for value, _ in found) == [x * x for x in range(40)]
    here = sum(pid == os.getpid() for _, pid in found)
    expected = {(1, 0.0): range(40, 41), (2, 60.0): range(40, 41), (2, 0.0): range(1), (2, 0.1): range(1, 40)}
    assert here in expected[n_jobs, alone]


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setattr(parallel, "ALONE", 0.0)
    assert list(parallel.unordered(square, [], n_jobs=2)) == []


def test_what_is_done_before_processes_have_started_is_done_here(monkeypatch):
    """Five items of a second each, of which two seconds show that the rest is not worth the start of processes."""
    clock = itertools.chain([0], itertools.count())
    monkeypatch.setattr(parallel, "time", SimpleNamespace(perf_counter=clock.__next__))
    found = list(parallel.unordered(square, range(5), n_jobs=2))
    assert found == [(x * x, os.getpid()) for x in range(5)]


def test_an_error_reaches_the_caller(monkeypatch):
    for alone in (0.0, 60.0):
        monkeypatch.setattr(parallel, "ALONE", alone)
        with pytest.raises(ZeroDivisionError):
            list(parallel.unordered(reciprocal, [1, 0], n_jobs=2))


def reciprocal(x: int) -> float:
    return 1 / x


def test_a_killed_worker_is_one_line():
    with pytest.raises(parallel.WorkersError, match="a worker process was killed"):
        list(parallel.unordered(os._exit, [1, 1], n_jobs=2, alone=0.0))
