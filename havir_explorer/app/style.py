"""How the app looks: one scoped style sheet over JupyterLab's own colours, and pictures as HTML with words for those who cannot see them."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from havir_explorer.records import UInt8Array

CSS = """
.havir { --havir-line: var(--jp-border-color2, #e0e0e0); --havir-soft: var(--jp-ui-font-color2, #616161);
  --havir-text: var(--jp-ui-font-color1, #212121); --havir-card: var(--jp-layout-color1, #fff); --havir-well: var(--jp-layout-color2, #f3f3f3);
  --havir-brand: var(--jp-brand-color1, #1976d2); --havir-bad: var(--jp-error-color1, #c62828);
  color: var(--havir-text); font: 13px/1.45 var(--jp-ui-font-family, system-ui, sans-serif); background: var(--havir-card);
  border: 1px solid var(--havir-line); border-radius: 8px; padding: 14px 16px 16px; overflow: hidden; container-type: inline-size; }
.havir .widget-html, .havir .jupyter-widgets { margin: 0; }
.havir .widget-html-content { line-height: 1.45; font-size: 13px; color: var(--havir-text); width: 100%; }
.havir .havir-style { display: none; }
.havir h3 { font-size: 15px; font-weight: 600; margin: 0; color: var(--havir-text); }
.havir h4 { font-size: 11px; font-weight: 600; letter-spacing: .04em; text-transform: uppercase; margin: 0 0 6px; color: var(--havir-soft); }
.havir small, .havir .soft { color: var(--havir-soft); font-size: 12px; }
.havir .havir-head { border-bottom: 1px solid var(--havir-line); padding-bottom: 8px; margin-bottom: 12px; }
.havir .havir-head-row { display: flex; align-items: baseline; gap: 10px; flex-wrap: wrap; }
.havir .havir-badge { display: inline-block; padding: 0 7px; border-radius: 9px; font-size: 11px; line-height: 18px; white-space: nowrap;
  background: var(--havir-well); color: var(--havir-text); border: 1px solid var(--havir-line); }
.havir .havir-badge.loud { border-color: var(--jp-warn-color1, #f57c00); }
.havir .havir-body { display: flex; flex-flow: row wrap; gap: 16px 24px; align-items: flex-start; }
.havir .havir-left { flex: 0 0 316px; width: 316px; overflow: visible; gap: 14px; }
.havir .havir-right { flex: 1 1 460px; min-width: 0; overflow: hidden; gap: 14px; }
.havir .havir-section { overflow: visible; gap: 4px; }
.havir .widget-label { color: var(--havir-text); font-size: 13px; }
.havir .jupyter-button { border-radius: 4px; font-size: 13px; }
.havir .jupyter-button:focus-visible, .havir select:focus-visible, .havir input:focus-visible { outline: 2px solid var(--havir-brand); outline-offset: 1px; }
.havir .havir-thumbs { display: grid; grid-template-columns: repeat(7, 1fr); gap: 4px; width: 100%; overflow: visible; padding: 2px; }
.havir .havir-thumb { width: 100% !important; height: auto !important; aspect-ratio: 1; padding: 0; margin: 0; font-size: 0; border-radius: 4px;
  background-color: var(--havir-well); background-size: cover; background-position: center; box-shadow: none !important;
  border: 1px solid var(--havir-line); }
.havir .havir-thumb.chosen { outline: 3px solid var(--havir-brand); outline-offset: 0; border-color: transparent; }
.havir .havir-thumb.empty { visibility: hidden; }
.havir .havir-pager { align-items: center; justify-content: space-between; overflow: visible; }
.havir .havir-pager .jupyter-button { width: 34px; }
.havir .havir-rois { height: 268px; overflow-y: scroll; border: 1px solid var(--havir-line); border-radius: 4px; padding: 0 8px 6px; scrollbar-width: thin;
  display: block; }
.havir .havir-group { position: sticky; top: 0; z-index: 2; background: var(--havir-card); padding: 7px 0 3px; border-bottom: 1px solid var(--havir-line); }
.havir .havir-roi { width: 100%; align-items: center; overflow: hidden; height: 26px; margin: 0; }
.havir .havir-roi > .widget-label { flex: 1 1 auto; width: auto; min-width: 0; text-align: left; overflow: hidden; text-overflow: ellipsis;
  line-height: 24px; }
.havir .havir-roi.whole > .widget-label { font-weight: 600; }
.havir .havir-roi.part > .widget-label { padding-left: 12px; }
.havir .havir-roi > div { flex: 0 0 auto; display: flex; flex-flow: row nowrap; }
.havir .havir-roi { display: flex; flex-flow: row nowrap; }
.havir .havir-roi .jupyter-button i { display: none; }
.havir .havir-roi .jupyter-button, .havir .havir-switch .jupyter-button { height: 22px; line-height: 20px; font-size: 11px; padding: 0 6px;
  margin: 1px 0 1px 2px; box-shadow: none; }
.havir .havir-roi .jupyter-button { width: 42px !important; }
.havir .havir-roi > .widget-label { height: 24px; align-self: center; }
.havir .havir-left .widget-hbox { gap: 6px; }
.havir .jupyter-button.mod-active { background: var(--havir-brand); color: #fff; box-shadow: none; }
.havir .havir-roi .jupyter-button.mod-active:first-of-type { background: var(--jp-layout-color3, #bdbdbd); color: var(--havir-text); }
.havir .havir-slider, .havir .havir-field { width: 100%; overflow: hidden; }
.havir .havir-help { margin: -4px 0 2px; }
.havir .havir-run .jupyter-button { flex: 1 1 0; height: 32px; line-height: 30px; }
.havir .havir-run { gap: 8px; overflow: visible; width: 100%; }
.havir .havir-bar { width: 100%; height: 8px; overflow: hidden; }
.havir .havir-bar .progress { height: 6px; border-radius: 3px; }
.havir .havir-status { min-height: 20px; font-variant-numeric: tabular-nums; }
.havir .havir-error { border-left: 3px solid var(--havir-bad); background: var(--havir-well); padding: 6px 10px; border-radius: 2px;
  overflow-wrap: anywhere; }
.havir .havir-three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px; max-width: 780px; width: 100%; overflow: hidden; }
.havir figure.havir-tile { margin: 0; }
.havir .havir-tile .frame { aspect-ratio: 1; width: 100%; background: var(--havir-well); border-radius: 6px; overflow: hidden; display: flex;
  align-items: center; justify-content: center; text-align: center; color: var(--havir-soft); }
.havir .havir-tile .frame span { padding: 0 14px; }
.havir .havir-tile img { width: 100%; height: 100%; display: block; object-fit: cover; margin: 0; max-width: none; }
.havir .havir-tile .top { display: flex; justify-content: space-between; align-items: center; gap: 6px; min-height: 26px; flex-wrap: wrap;
  margin-bottom: 4px; }
.havir .havir-tile .title { display: block; font-weight: 600; }
.havir .havir-tile .badges { display: flex; gap: 4px; height: 22px; overflow: hidden; align-items: center; }
.havir .havir-tile .below { min-height: 54px; margin-top: 6px; font-size: 12px; color: var(--havir-soft); }
.havir .havir-tile.stale img { opacity: .45; }
.havir table.havir-table { border-collapse: collapse; width: 100%; font-size: 12px; font-variant-numeric: tabular-nums; margin: 0;
  color: var(--havir-text); background: none; border: 0; }
.havir table.havir-table.scores { max-width: 780px; table-layout: fixed; }
.havir table.havir-table th, .havir table.havir-table td { padding: 4px 8px; text-align: right; border: 0; border-bottom: 1px solid var(--havir-line);
  background: none; white-space: nowrap; max-width: none; vertical-align: baseline; }
.havir table.havir-table th { color: var(--havir-soft); font-weight: 600; }
.havir table.havir-table td:first-child, .havir table.havir-table th:first-child { text-align: left; padding-left: 0; }
.havir table.havir-table tbody tr { background: none; }
.havir .havir-cortex { border-top: 1px solid var(--havir-line); padding-top: 12px; overflow: hidden; gap: 6px; }
.havir .havir-cortex-head { justify-content: space-between; align-items: center; flex-flow: row wrap; gap: 4px 12px; overflow: visible; width: 100%; }
.havir .havir-switch .jupyter-button { width: auto !important; height: 26px; line-height: 24px; font-size: 12px; padding: 0 10px; }
.havir .havir-switch .widget-label { display: none; }
.havir table.havir-table.scores th:first-child { width: 26%; }
.havir .havir-plot .widget-toggle-buttons, .havir .havir-switch { margin-left: -2px; }
.havir .havir-plot { width: 100%; min-width: 0; overflow: hidden; }
.havir .havir-plot .js-plotly-plot .main-svg text { fill: var(--havir-text) !important; }
.havir .havir-plot .js-plotly-plot .annotation-text-g rect.bg { fill: var(--havir-card) !important; }
.havir .havir-plot .js-plotly-plot .annotation-arrow-g path { stroke: var(--havir-text) !important; }
.havir .havir-plot .js-plotly-plot .hoverlayer text { fill: #f4f4f4 !important; }
.havir .havir-plot .jupyter-button { height: 24px; line-height: 22px; font-size: 12px; padding: 0 8px; width: auto; box-shadow: none; }
"""


def words(value: object) -> str:
    """Escape anything for use inside HTML, quotes included."""
    return html.escape(str(value), quote=True)


def png(picture: UInt8Array, side: int | None = None) -> bytes:
    """Return a picture as PNG, resized to ``side`` pixels where given."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if side is not None and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def data_uri(picture: UInt8Array, side: int | None = None) -> str:
    """Return a picture as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(png(picture, side)).decode()}"


def img(picture: UInt8Array, alt: str, *, side: int | None = None) -> str:
    """Return an ``<img>`` with words for those who cannot see it."""
    return f'<img src="{data_uri(picture, side)}" alt="{words(alt)}" decoding="sync">'


def badge(text: str, *, loud: bool = False) -> str:
    """Return a small label."""
    return f'<span class="havir-badge{" loud" if loud else ""}">{words(text)}</span>'
