"""A folder is the same however it is typed."""

from __future__ import annotations

import os

import pytest

from havir_explorer.cli.options import anywhere


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("nsd", "{here}/nsd"),
        ("nsd/", "{here}/nsd"),
        ("./x/../nsd", "{here}/nsd"),
        ("{here}/nsd", "{here}/nsd"),
        ("~/nsd", "{here}/nsd"),
        ("nsd#b2", "{here}/nsd#b2"),
        ("nsd/#b2", "{here}/nsd#b2"),
        ("with#hash", "{here}/with#hash"),
        ("W/{subject}/", "{here}/W/{subject}"),
        ("absent", "absent"),
        ("shi-labs/versatile-diffusion", "shi-labs/versatile-diffusion"),
        ("demo", "demo"),
        ("demo#b2", "demo#b2"),
        ("linear", "linear"),
        ("", ""),
        (None, None),
    ],
)
def test_a_folder_is_the_same_however_it_is_typed(tmp_path, monkeypatch, typed, meant):
    for name in ("nsd", "x", "with#hash", "demo", "linear"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    here = os.fspath(tmp_path)
    assert anywhere(typed and typed.replace("{here}", here)) == (meant and meant.replace("{here}", here))
