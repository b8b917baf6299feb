"""``havir explore``: the app on one's own data, in a notebook."""

from __future__ import annotations

import json

import nbformat
import pytest

from havir_explorer import paths
from havir_explorer.cli import command
from havir_explorer.cli import explore as cli_explore


@pytest.fixture
def here(monkeypatch, tmp_path, demo):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_notebook_opens_the_app_where_it_was_asked_to(here, demo, capsys):
    assert command(["explore", "--dataset", str(demo.root), "--subject", "subj02", "--write-only", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    notebook = nbformat.read(said["notebook"], as_version=4)
    nbformat.validate(notebook)
    names = {}
    exec(notebook.cells[0].source, names)  # noqa: S102 - the cell that a user runs
    app = names["app"]
    assert (app.dataset, app.subject, app.trial) == (str(demo.root), "subj02", said["trial"])
    assert demo.trials("subj02").loc[app.trial, "shared"]
    assert "one picture will take about" in said["cost"]


def test_a_decoder_and_a_generator_of_ones_own_are_written_in(here):
    folder = paths.shipped_weights()
    request = cli_explore.start("demo", "", str(folder / "versatile-diffusion"), str(folder / "havir" / "subj01"))
    assert repr(str(folder / "havir" / "subj01")) in cli_explore.cell(request)
    assert repr(str(folder / "versatile-diffusion")) in cli_explore.cell(request)


def test_a_notebook_with_a_users_work_is_opened_as_it_is(here, monkeypatch, capsys):
    own = here / "mine.ipynb"
    own.write_text("the user's own")
    served = []
    monkeypatch.setattr(cli_explore, "serve", lambda file, *, browser: served.append((file, browser)) or 0)
    assert command(["explore", "--notebook", "mine.ipynb", "--no-browser"]) == 0
    assert served == [(own, False)]
    assert own.read_text() == "the user's own"
    assert "opens as you left it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "nowhere"], "nowhere"),
        (["--subject", "subj9"], "demo has no subject 'subj9'; nearest"),
        (["--decoder", "."], "lacks manifest.json"),
        (["--generator", "."], "lacks its part image_unet"),
        (["--subject", "subj02", "--decoder", "{shipped}"], "was trained on subj01"),
        (["--notebook", "a.txt"], "its name must end in .ipynb"),
    ],
)
def test_what_is_missing_is_said_before_jupyterlab_starts(here, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(cli_explore, "serve", None)
    shipped = str(paths.shipped_weights() / "havir" / "subj01")
    assert command(["explore", *(text.format(shipped=shipped) for text in arguments)]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(here.iterdir())
