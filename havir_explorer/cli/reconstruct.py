"""``havir reconstruct``: from memory or drawn now, remembered, and told."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from havir_explorer import pipeline
from havir_explorer.cli.show import console, progress_bar, table
from havir_explorer.errors import HavirError
from havir_explorer.records import Reconstruction, Request, Step
from havir_explorer.store import Store


def drawn_or_remembered(request: Request, out: Path) -> tuple[Reconstruction, bool]:
    """Return the result of a request, and whether it was remembered from an earlier run; a long wait is announced."""
    known = Store().get(request)
    if known is not None:
        return known, True
    if request.generator != Request().generator and (cost := pipeline.cost(request)).is_long:  # the demo's never is
        console(to_stderr=True).print(f"{cost}; stop it with Ctrl-C, or lower it with fewer --steps, less --strength or --guidance 1")
    with progress_bar(f"drawing {out.name}") as move:

        def on_step(step: Step) -> None:
            move(step.index / step.count if step.count else 0.0, f"{step.stage} {step.index}/{step.count}" if step.count else step.stage)

        return pipeline.run(request, on_step=on_step), False


def remember(result: Reconstruction) -> None:
    """Keep the result for the next time; where there is no room for it, the user still has the picture."""
    try:
        Store().put(result)
    except HavirError as fault:
        sys.stderr.write(f"havir: not remembered for the next time: {' '.join(str(fault).split())}\n")


def as_dict(result: Reconstruction, out: Path, *, cached: bool) -> dict[str, object]:
    """Return what ``--json`` prints."""
    scores = {s.name: {"value": float(s.value), "chance": s.chance, "higher_is_better": s.higher_is_better, "protocol": s.protocol} for s in result.scores}
    return {
        "picture": str(out),
        "recipe": str(out.with_suffix(".json")),
        "key": result.request.key,
        "request": asdict(result.request),
        "kind": result.kind,
        "synthetic": result.synthetic,
        "trained_on": result.trained_on,
        "cached": cached,
        "scores": scores,
        "seconds": dict(result.seconds),
        "steps_run": result.steps_run,
        "signal": result.signal,
    }


def show(result: Reconstruction, out: Path, *, cached: bool) -> None:
    """Print the scores and what was written."""
    labels = [result.kind, *(["synthetic subject"] if result.synthetic else []), *(["seen in training: it flatters"] if result.trained_on else [])]
    rows = [(s.name, f"{s.value:.3f}", "–" if s.chance is None else f"{s.chance:.3f}") for s in result.scores]
    table(f"{result.request.subject}, trial {result.request.trial} – {', '.join(labels)}", ("score", "value", "chance"), rows)
    times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds)
    if not any(s.name == "CLIP" for s in result.scores):
        console().print("no CLIP scores: this generator's folder holds no CLIP image tower")
    console().print(f"{'remembered' if cached else times}\nwrote {out} and its recipe {out.with_suffix('.json')}")
