"""The first notebook in a real JupyterLab: choose, mask, reconstruct, cancel, switch the branch; nothing red in the console."""

from __future__ import annotations

import re

import pytest
from lab import ARTEFACTS, PATIENCE, SECOND, VERTEX_COLORS, command, errors, picture, pixels, roi, status
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def test_first_look(page, complaints):
    command(page, "notebook:run-all-cells")
    app = page.locator(".havir").first
    app.wait_for()
    page.locator(".jp-OutputArea-output", has_text="PixCorr").last.wait_for()  # the last cell has drawn its pictures and printed its scores
    expect(status(app)).to_have_text(re.compile("^Done"), timeout=PATIENCE)
    expect(app.locator(".havir-error")).to_have_count(0)
    expect(app.locator(".js-plotly-plot canvas").first).to_be_visible(timeout=PATIENCE)
    before = picture(app, "Full brain")
    stimulus = picture(app, "Stimulus")

    # Another trial: its stimulus comes at once, and pictures of the trial before do not stay beside it.
    app.locator(".havir-thumb:not(.empty)").nth(8).click()
    expect(app.locator(".havir-thumb.chosen")).to_have_count(1)
    expect(app.locator(".havir-tile").nth(1)).to_contain_text("Press Reconstruct")
    assert picture(app, "Stimulus") != stimulus

    # A mask, by clicking.
    app.get_by_role("button", name="Clear mask").click()
    roi(app, "FFA-1", "mute").click()
    expect(app).to_contain_text("mute FFA-1:")
    expect(app).to_contain_text("reaches the Semantic Extractor only")

    # Reconstruct: previews, then done, with new pictures, labels, scores and words for those who cannot see.
    app.get_by_role("button", name="Reconstruct").click()
    app.locator('img[alt*="preview"]').first.wait_for()
    page.screenshot(path=ARTEFACTS / "preview.png")
    expect(status(app)).to_have_text(re.compile("^Done: 2 pictures"), timeout=PATIENCE)
    full, masked = picture(app, "Full brain"), picture(app, "Masked")
    assert full.startswith("data:image/png")
    assert len({before, full, masked}) == 3
    expect(app.locator(".havir-tile").nth(0)).to_contain_text("synthetic stimulus")
    for tile in (1, 2):
        expect(app.locator(".havir-tile").nth(tile)).to_contain_text("generated")
    expect(app.locator("table.scores")).to_contain_text("Chance")
    assert all(image.get_attribute("alt") for image in app.locator(".havir-tile img").all())
    expect(page.locator(".jp-OutputArea-output.jp-RenderedImage img, .jp-RenderedImage img").first).to_be_visible()  # the still that stays

    # By keyboard: Enter in a field reconstructs, with the field's new value.
    trial = app.get_by_label("Trial", exact=True)
    trial.fill("40")
    trial.press("Enter")
    expect(app.locator(".havir-tile").nth(0)).to_contain_text("trial 40")
    expect(status(app)).to_have_text(re.compile("^Done: 2 pictures"), timeout=PATIENCE)
    expect(app.locator(".havir-tile").nth(1)).to_contain_text("generated")
    assert picture(app, "Full brain") != full
    full = picture(app, "Full brain")

    # Escape cancels: quickly, said in words, and the finished pictures come back. So does the button.
    app.locator(".havir-slider", has_text="Steps").locator(".widget-readout").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("100")
    page.keyboard.press("Enter")
    expect(app).to_contain_text("75 of 100 steps will run")
    app.locator('img[alt*="preview"]').first.wait_for()
    page.keyboard.press("Escape")
    expect(status(app)).to_have_text(re.compile("^Cancelled"), timeout=PATIENCE)
    expect(app.locator('img[alt*="preview"]')).to_have_count(0)
    assert picture(app, "Full brain") == full
    app.get_by_role("button", name="Reconstruct").click()
    app.locator('img[alt*="preview"]').first.wait_for()
    app.get_by_role("button", name="Cancel").click()
    expect(status(app)).to_have_text(re.compile("^Cancelled"), timeout=PATIENCE)

    # The same keys in a cell are the cell's.
    cell = page.locator(".jp-CodeCell .cm-content").first
    cell.click()
    page.keyboard.press("Escape")
    expect(page.locator(".jp-Notebook.jp-mod-commandMode")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator(".jp-Notebook.jp-mod-editMode")).to_have_count(1)
    expect(status(app)).to_have_text(re.compile("^Cancelled"))

    # The other branch: the cortex is painted anew.
    plot = app.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    canvas = plot.locator(".gl-container canvas").first  # without the title, which changes anyhow
    shown, colors = pixels(canvas), plot.evaluate(VERTEX_COLORS)
    app.get_by_role("button", name="Semantic Extractor").click()
    expect(plot).to_contain_text("Semantic Extractor")
    page.wait_for_timeout(1 * SECOND)
    assert plot.evaluate(VERTEX_COLORS) != colors
    assert pixels(canvas) != shown

    # Another view, with the names of the ROIs; and bare cortex under the pointer is no number.
    app.get_by_role("button", name="Names").click()
    for view, mark in (("Flat", "flat"), ("Posterior", "posterior")):
        app.get_by_role("button", name=view, exact=True).click()
        page.wait_for_timeout(1 * SECOND)
        assert pixels(canvas) != shown
        shown = pixels(canvas)
        plot.screenshot(path=ARTEFACTS / f"names_{mark}.png")
    assert plot.evaluate("plot => [NaN, 0.714].map(plot._fullLayout._d3locale.numberFormat('.2f'))") == ["not read", "0.71"]
    app.get_by_role("button", name="Names").click()

    # Looked at by people: both themes.
    app.scroll_into_view_if_needed()
    page.screenshot(path=ARTEFACTS / "light.png")
    app.screenshot(path=ARTEFACTS / "app_light.png")
    command(page, "apputils:change-theme", "{theme: 'JupyterLab Dark'}")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_timeout(1 * SECOND)
    page.screenshot(path=ARTEFACTS / "dark.png")
    app.screenshot(path=ARTEFACTS / "app_dark.png")

    assert errors(complaints) == []
