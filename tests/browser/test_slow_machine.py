"""The cortex on a machine that needs longer for plotly than anywidget waits, and after a reload of the page."""

from __future__ import annotations

import pytest
from lab import ARTEFACTS, PATIENCE, command, errors
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

SLOWER = 6
"""Times slower than this machine: enough for plotly's 5 MB to take more than anywidget's two seconds, which used to leave an empty plot."""
PAINTED = """plot => plot.data.length > 2 && plot.layout.title.text.startsWith("Structural Generator")
  && plot.data[0].vertexcolor.some((color) => !/^#(.)\\1\\1$/.test(color))"""
"""Outlined, titled and in colours other than the greys of bare cortex."""

GIVEN_UP = r"^\[anywidget\] Failed to initialize model"


def painted(page: Page) -> None:
    """Wait until the cortex stands with its outlines and its map."""
    plot = page.locator(".havir .js-plotly-plot")
    plot.wait_for(timeout=PATIENCE)
    page.wait_for_function(f"() => ({PAINTED})(document.querySelector('.havir .js-plotly-plot'))", timeout=PATIENCE)
    expect(plot.locator("canvas").first).to_be_visible(timeout=PATIENCE)


def test_the_cortex_comes_up_however_long_plotly_takes(page, complaints):
    browser = page.context.new_cdp_session(page)
    browser.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    for _ in ("heading", "app"):
        command(page, "notebook:run-cell-and-select-next")
    page.get_by_text("The cortex is being loaded.").or_(page.locator(".havir .js-plotly-plot")).first.wait_for(timeout=PATIENCE)
    browser.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    painted(page)
    page.screenshot(path=ARTEFACTS / "slow_machine.png")

    # A reload brings the cortex back as it was.
    command(page, "docmanager:save")
    page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    page.reload()
    painted(page)
    assert errors(complaints, GIVEN_UP) == []
