"""The figure's browser side answers at once, and the whole figure is sent whenever a view asks for it."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from havir_explorer.app.figure import Figure


@pytest.fixture
def lost():
    return []


@pytest.fixture
def figure(lost):
    mesh = go.Mesh3d(x=[0.0, 1, 0], y=[0.0, 0, 1], z=[0.0, 0, 0])
    return Figure(go.Figure([mesh], go.Layout(height=300)), {"scrollZoom": True}, lambda: lost.append(True))


def test_what_must_start_within_two_seconds_is_small_and_plotly_comes_apart(figure):
    assert len(figure._esm) < 5_000
    assert figure.bundle == str(go.FigureWidget._esm).encode()
    assert len(figure.bundle) > 1_000_000


def test_a_view_that_asks_gets_the_figure_with_every_edit_so_far(figure):
    with figure.batch_update():
        figure.data[0].vertexcolor = np.array(["#f00", "#0f0", "#00f"])
        figure.layout.title.text = "painted"
    assert "painted" not in str(figure._widget_layout)  # plotly itself tells a view only of edits after its birth
    figure._handle_custom_msg("fresh", [])
    assert figure.sent == 1
    assert figure._widget_layout["title"]["text"] == "painted"
    assert list(figure._widget_data[0]["vertexcolor"]) == ["#f00", "#0f0", "#00f"]
    figure._handle_custom_msg({"event": "other"}, [])
    assert figure.sent == 1


def test_what_was_sent_does_not_change_with_the_figure(figure):
    figure.send_whole()
    figure.layout.title.text = "later"
    assert "later" not in str(figure._widget_layout)
    figure.send_whole()
    assert figure.sent == 2
    assert figure._widget_layout["title"]["text"] == "later"


def test_a_view_without_an_answer_gets_another_widget_with_the_same_figure(figure, lost):
    figure.layout.title.text = "painted"
    figure.data[0].vertexcolor = np.array(["#f00", "#0f0", "#00f"])
    figure.without = "not read"
    assert lost == []
    figure._handle_custom_msg("anew", [])
    assert lost == [True]
    other = figure.anew()
    assert other is not figure
    assert other.layout.title.text == "painted"
    assert list(other.data[0].vertexcolor) == ["#f00", "#0f0", "#00f"]
    assert other._config == {"scrollZoom": True}
    assert other.patience == 2 * figure.patience
    assert other.without == "not read"
