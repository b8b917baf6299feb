"""How good the reconstructions are over the test images, and what of it the brain is responsible for.

Two steps over frozen records: :func:`draw` makes the pictures of one chunk of test images under one condition, and needs nothing but the
:class:`Chunk`, so that any process can do it; :func:`score` compares a condition's pictures with the stimuli. :func:`evaluate` does all of it.
"""

from havir_explorer.evaluate.conditions import ALL, CONDITIONS, GROUPS, Condition
from havir_explorer.evaluate.costs import Expected
from havir_explorer.evaluate.drawing import BATCH, Chunk, chunks, draw
from havir_explorer.evaluate.keeping import kept
from havir_explorer.evaluate.run import Drawer, evaluate, gathered, in_turn
from havir_explorer.evaluate.scoring import Gauge, Missing, available, gauges, score
from havir_explorer.evaluate.tables import Column, Evaluation, bootstrap
from havir_explorer.evaluate.testset import TestSet, collect, mean_responses

__all__ = [
    "ALL",
    "BATCH",
    "CONDITIONS",
    "GROUPS",
    "Chunk",
    "Column",
    "Condition",
    "Drawer",
    "Evaluation",
    "Expected",
    "Gauge",
    "Missing",
    "TestSet",
    "available",
    "bootstrap",
    "chunks",
    "collect",
    "draw",
    "evaluate",
    "gathered",
    "gauges",
    "in_turn",
    "kept",
    "mean_responses",
    "score",
]
