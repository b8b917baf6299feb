"""What the doctor finds, and what it says to do."""

from __future__ import annotations

from types import SimpleNamespace

from havir_explorer.cli import command
from havir_explorer.cli import doctor as cli_doctor


def test_doctor_finds_nothing_wrong_here(told, demo):
    said = told("doctor")
    assert said["usable"] is True
    checks = {c["name"]: c for c in said["checks"]}
    assert set(checks) == {"python", "packages", "device", "cache", "generator", "decoders", "data", "notebook", "networks", "workers"}
    assert [line.split(":")[0] for line in checks["decoders"]["found"].splitlines()] == [f"{kind} of subj0{n}" for kind in ("HAVIR", "linear") for n in (1, 2)]


def test_doctor_says_what_to_do(capsys, monkeypatch, tmp_path):
    from havir_explorer import paths

    monkeypatch.setattr(paths, "shipped_weights", lambda: tmp_path / "nothing")
    assert command(["doctor"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "✗ generator" in printed
    assert "havir train" in printed


def test_doctor_says_which_device_generators_run_on(monkeypatch):
    import torch

    def found() -> str:
        return {c.name: c for c in cli_doctor.examine()}["device"].found

    assert "generators run on cpu, in float32" in found()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Large GPU")
    assert "Large GPU; generators run on cuda:0, in float32" in found()
    monkeypatch.setenv("HAVIR_DTYPE", "bf16")
    assert "generators run on cuda:0, in bfloat16" in found()
    monkeypatch.setenv("HAVIR_DEVICE", "cpu")
    assert "generators run on cpu, as HAVIR_DEVICE says, in bfloat16" in found()


def test_doctor_wants_room_for_the_world_only_until_it_is_built(monkeypatch, cache, tmp_path):
    monkeypatch.setattr(cli_doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=200 * 2**20))
    states = []
    for folder in (cache, tmp_path / "empty"):
        monkeypatch.setenv("HAVIR_CACHE", str(folder))
        check = {c.name: c for c in cli_doctor.examine()}["cache"]
        assert "200 MiB free" in check.found
        assert "300 MiB" in check.advice
        states.append(check.state)
    assert states == ["note", "broken"]


def test_doctor_survives_a_broken_patient(monkeypatch):
    def breaks() -> cli_doctor.Check:
        raise ZeroDivisionError

    monkeypatch.setattr(cli_doctor, "_device", breaks)
    checks = {c.name: c for c in cli_doctor.examine()}
    assert checks["device"].state == "broken"
    assert "ZeroDivisionError" in checks["device"].found
