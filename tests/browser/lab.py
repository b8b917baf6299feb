"""What the browser tests do and look at in JupyterLab."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from playwright.sync_api import Locator, Page

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
SECOND = 1000
PATIENCE = 180 * SECOND  # two busy cores and software rendering
VERTEX_COLORS = "plot => Array.from(plot._fullData[0].vertexcolor).slice(0, 2000).join()"
"""Colours of the first vertices of the mesh, as plotly holds them in the browser; fsaverage5 numbers those of its coarsest sphere first."""

# Third parties' noise, each with its reason. Everything else that a browser calls an error fails the test.
NOISE = (
    r"Failed to load resource.*(favicon|news\.json|/lab/api/news)",  # JupyterLab asks for news and icons that an offline server lacks
    r"WebGL.*(GPU stall|performance)",  # software rendering reports its own slowness
)


def errors(complaints: list[str], *provoked: str) -> list[str]:
    """What the browser called an error; third parties' noise and what the test provokes (patterns) left out."""
    return [text for text in complaints if not any(re.search(noise, text) for noise in (*NOISE, *provoked))]


def command(page: Page, name: str, arguments: str = "{}") -> None:
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{name}', {arguments}); return true }}")


def pixels(part: Locator) -> str:
    return hashlib.sha256(part.screenshot()).hexdigest()


def picture(app: Locator, title: str) -> str:
    """Source of the picture in a tile."""
    return app.locator(".havir-tile", has=app.page.locator(".title", has_text=title)).locator("img").get_attribute("src") or ""


def status(app: Locator) -> Locator:
    return app.locator(".havir-status [role=status]")


def roi(app: Locator, name: str, verb: str) -> Locator:
    row = app.locator(".havir-roi", has=app.page.locator(".widget-label", has_text=re.compile(rf"^{name}\b")))
    return row.get_by_role("button", name=verb, exact=True)
