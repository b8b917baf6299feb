"""Many tasks, done here or by any workers: each result comes back once and only once, whatever is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from havir_explorer.errors import ClusterUnavailable, HavirError

if TYPE_CHECKING:
    from distributed import Client, Future

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 64
"""Tasks handed out before the first of them has come back: what results may wait in the workers' memory."""
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
    from distributed import as_completed

    waiting, places, running = iter(enumerate(tasks)), {}, as_completed(loop=client.loop)

    def hand_out(count: int) -> None:
        for place, task in islice(waiting, count):
            future = client.submit(_alone, work, task, pure=False)
            places[future.key] = place
            running.add(future)

    hand_out(AHEAD)
    for future in running:
        result: Result = _result(future)
        yield places.pop(future.key), result
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
