"""One call that does many tasks, here or on any workers, and hands over each result once and only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from havir_explorer.cluster import Where, connected
from havir_explorer.errors import ClusterUnavailable, HavirError

if TYPE_CHECKING:
    from distributed import Client, Future

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 64
"""Tasks handed out before the first of them has come back: what results may wait in the workers' memory."""
_ONE = Lock()  # a worker with several threads still draws one batch at a time: a second one would need the model's memory twice
HERE = Where()


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], on_result: Callable[[int, Result], None], where: Where = HERE) -> None:
    """Do every task, one at a time a worker, and hand over each result once.

    Parameters
    ----------
    work : callable
        A function of a module that the workers have too; it must give the same result when it is done again.
    tasks : sequence
        Frozen records.
    on_result : callable
        Called in this process with a task's place and its result, as they finish; exactly once a task, also when a worker was lost and the task
        done again. Raising stops the rest.
    where : Where

    Raises
    ------
    HavirError
        What ``work`` raised first.
    ClusterUnavailable
        No Dask here, no answer from the scheduler, no worker, other software on the workers, or a task that costs one worker after another.
    RequestError
        As :func:`~havir_explorer.cluster.connected`.
    """
    if where.here:
        for place, task in enumerate(tasks):
            on_result(place, work(task))
    elif tasks:
        with connected(where) as client:
            _gather(client, work, tasks, on_result)


def _gather(client: Client, work: Callable[[Task], Result], tasks: Sequence[Task], on_result: Callable[[int, Result], None]) -> None:
    from distributed import as_completed

    waiting, places, running = iter(enumerate(tasks)), {}, as_completed(loop=client.loop)

    def hand_out(count: int) -> None:
        for place, task in islice(waiting, count):
            future = client.submit(_alone, work, task, pure=False)
            places[future.key] = place
            running.add(future)

    hand_out(AHEAD)
    for future in running:
        on_result(places.pop(future.key), _result(future))
        future.release()
        hand_out(1)


def _alone(work: Callable[[Task], Result], task: Task) -> Result:
    """Do a task, in a worker."""
    with _ONE:
        return work(task)


def _result(future: Future) -> Result:  # type: ignore[type-var] # what the task returned
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except HavirError:
        raise
    except KilledWorker as lost:
        msg = (
            f"{lost.allowed_failures + 1} workers were lost one after another with the same task, the last one {lost.last_worker.address}; they probably "
            "ran out of memory or time: use fewer workers a machine, or give each more; what is finished stays"
        )
        raise ClusterUnavailable(msg) from lost
    except FutureCancelledError as gone:
        msg = "the scheduler went away while tasks were running; start it again and run the same command: what is finished stays"
        raise ClusterUnavailable(msg) from gone
