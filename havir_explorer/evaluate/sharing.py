"""An evaluation's drawing shared out: the chunks of a condition go to as many workers as there are, the scoring stays here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING

from havir_explorer.cluster import Where, connected
from havir_explorer.evaluate.drawing import Chunk, Progress, draw
from havir_explorer.evaluate.run import Drawer, in_turn
from havir_explorer.records import UInt8Array
from havir_explorer.spread import each

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def drawing(where: Where) -> Iterator[Drawer]:
    """Provide what draws an evaluation's chunks at a place; its workers start with the first chunk, when all else is known to be right.

    Raises
    ------
    HavirError
        While it draws, as :func:`~havir_explorer.cluster.connected` and :func:`~havir_explorer.spread.each`.
    """
    if where.here:
        yield in_turn
        return
    with ExitStack() as stack:

        @cache
        def client() -> Client | None:
            return stack.enter_context(connected(where))

        def drawer(planned: Sequence[Chunk], progress: Progress) -> Iterator[tuple[int, UInt8Array]]:
            whole, done = sum(len(chunk.nsd_ids) for chunk in planned), 0
            for place, pictures in each(draw, planned, client()):
                done += len(pictures)
                progress(done / whole, f"{planned[place].condition}: {done} of {whole} pictures in {where}")
                yield place, pictures

        yield drawer
