"""Many tasks, done here or by any workers: each result comes back once and only once, whatever is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from havir_explorer.cluster import watch
from havir_explorer.errors import ClusterUnavailable, HavirError

if TYPE_CHECKING:
    from distributed import Client, Future

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 64
"""Tasks handed out before the first of them has come back, or two a worker where that is more: what results may wait in the workers' memory."""
PATIENCE = 60
"""Seconds without a result after which it is looked whether any worker is left."""
_ONE = Lock()  # a worker with several threads still draws one batch at a time: a second one would need the model's memory twice


def each(work: Callable[[Task], Result], tasks: Sequence[Task], client: Client | None = None) -> Iterator[tuple[int, Result]]:
    """Do every task, one at a time a worker.

    Parameters
    ----------
    work : callable
        A function of a module that the workers have too; it must give the same result when it is done again.
    tasks : sequence
        Frozen records.
    client : Client, optional
        Of :func:`~havir_explorer.cluster.connected`; without one, the tasks are done in this process, in order.

    Yields
    ------
    place, result
        As they finish; exactly once a task, also when a worker was lost and its task done again.

    Raises
    ------
    HavirError
        What ``work`` raised first.
    ClusterUnavailable
        A task costs one worker after another, or the scheduler went away.
    """
    if client is None:
        for place, task in enumerate(tasks):
            yield place, work(task)
    else:
        yield from _gathered(work, tasks, client)


def _gathered(work: Callable[[Task], Result], tasks: Sequence[Task], client: Client) -> Iterator[tuple[int, Result]]:
    waiting = iter(enumerate(tasks))
    places: dict[Future, int] = {}
    while True:
        with _in_touch():
            room = max(AHEAD, 2 * len(client.nthreads())) - len(places)
            places.update({client.submit(_alone, work, task, pure=False): place for place, task in islice(waiting, max(0, room))})
        if not places:
            return
        for future in _finished(list(places), client):
            yield places.pop(future), _result(future)
            future.release()


def _alone(work: Callable[[Task], Result], task: Task) -> Result:
    """Do a task, in a worker."""
    with _ONE:
        return work(task)


def _finished(futures: Sequence[Future], client: Client) -> Collection[Future]:
    """Wait for the next results; while none come, see that somebody is there to bring some."""
    from distributed import wait

    while True:
        with _in_touch(), client.as_current():
            try:
                done = wait(futures, timeout=PATIENCE, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                watch(client)
                continue
        if found := [future for future in done if future.status != "lost"]:  # lost with its worker before it was fetched: it is being done again
            return found


def _result(future: Future) -> Result:  # type: ignore[type-var] # what the task returned
    from distributed import KilledWorker

    if future.status == "error":
        fault = future.exception()
        if not isinstance(fault, KilledWorker):
            raise fault
        msg = (
            f"{fault.allowed_failures + 1} workers were lost one after another with the same task, the last one {fault.last_worker.address}; they probably "
            "ran out of memory or time: use fewer workers a machine, or give each more; what is finished stays"
        )
        raise ClusterUnavailable(msg) from fault
    with _in_touch():
        return future.result()


@contextmanager
def _in_touch() -> Iterator[None]:
    """Say in words that the scheduler went away."""
    from distributed import CancelledError
    from distributed.client import ClosedClientError

    try:
        yield
    except HavirError:
        raise
    except (CancelledError, ClosedClientError, OSError) as gone:  # Dask's own faults of communication are of OSError
        msg = "the scheduler went away while tasks were running; start it again and run the same command: what is finished stays"
        raise ClusterUnavailable(msg) from gone
