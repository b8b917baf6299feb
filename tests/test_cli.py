"""The ``havir`` command: what it prints, writes and returns."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from havir_explorer import __version__
from havir_explorer.cli import command
from havir_explorer.cli import demo as cli_demo
from havir_explorer.cli import notebook as cli_notebook
from havir_explorer.cli import show as cli_show
from havir_explorer.errors import Cancelled, HavirError, OutputError


def test_the_installed_command_answers():
    havir = Path(sys.executable).parent / "havir"
    done = subprocess.run([havir, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"havir_explorer {__version__}"


def test_help_names_every_command(capsys):
    assert command(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("demo", "reconstruct", "diffuse", "evaluate", "targets", "train", "map", "explore", "doctor"))


@pytest.mark.parametrize("name", ["demo", "reconstruct", "diffuse", "evaluate", "targets", "train", "map", "explore", "doctor"])
def test_every_command_has_help_and_json(capsys, name):
    assert command([name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nonsense"], ["reconstruct", "--colour", "red"], ["map", "--out"]])
def test_usage_errors_return_2(capsys, arguments):
    assert command(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (HavirError("asked this,\nfound that"), 2, "havir: asked this, found that\n"),
        (Cancelled(), 130, "havir: stopped\n"),
        (KeyboardInterrupt(), 130, "havir: stopped\n"),
        (ZeroDivisionError("by zero"), 1, "havir: unexpected ZeroDivisionError: by zero; this is a bug: run again with HAVIR_DEBUG=1 to see where\n"),
        (PermissionError(13, "Permission denied", "/data/x"), 2, "havir: Permission denied: /data/x; change its permissions, or ask its owner to\n"),
        (OSError(28, "No space left on device"), 2, "havir: No space left on device; free some, then run the same command again\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_an_error_is_one_sentence_and_a_code(capsys, monkeypatch, fault, code, words):
    monkeypatch.delenv(cli_show.DEBUG, raising=False)

    def work() -> int:
        raise fault

    assert cli_show.guarded(work) == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(("limits", "expected"), [((256, resource.RLIM_INFINITY), 4096), ((256, 1000), 1000), ((9000, 9999), None)])
def test_a_command_may_open_as_many_files_as_sessions_are(monkeypatch, limits, expected):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    cli_show.open_more_files()
    assert asked == ([(expected, limits[1])] if expected else [])


@pytest.mark.parametrize(("debug", "expected"), [("", "havir: said\n"), ("1", "havir: said (f.py:3, UserWarning)\n")])
def test_a_warning_is_one_sentence(monkeypatch, debug, expected):
    monkeypatch.setenv(cli_show.DEBUG, debug)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli_show.warn_in_words()
    assert warnings.formatwarning("said", UserWarning, "f.py", 3) == expected


def test_the_traceback_can_be_seen(capsys, monkeypatch):
    monkeypatch.setenv(cli_show.DEBUG, "1")

    def deep_inside() -> int:
        return 1 // 0

    assert cli_show.guarded(deep_inside) == 1
    assert "deep_inside" in capsys.readouterr().err


def test_a_file_is_whole_or_absent(tmp_path):
    def fails(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full"):
        cli_show.write(tmp_path / "map.png", fails)
    assert list(tmp_path.iterdir()) == []
    cli_show.write(tmp_path / "map.png", lambda part: part.write_text("whole"))
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize(("text", "expected"), [(None, ()), ("", ()), ("FFA-1", ("FFA-1",)), (" FFA-1, rh.V1 ,", ("FFA-1", "rh.V1"))])
def test_names_are_split(text, expected):
    assert cli_show.names(text) == expected


def test_reconstruct_writes_the_picture_and_its_recipe(told, cache, tmp_path, trial):
    out = tmp_path / "r.png"
    said = told("reconstruct", "--trial", trial, "--mute", "FFA-1,FFA-2", "--steps", 4, "--seed", 3, "--out", out)
    assert said["picture"] == str(out)
    assert Path(said["recipe"]).is_file()
    assert said["request"]["mask"]["mute"] == ["FFA-1", "FFA-2"]
    assert said["synthetic"] is True
    assert said["trained_on"] is False
    assert said["kind"] == "generated"
    assert {"PixCorr", "SSIM", "CLIP"} <= set(said["scores"])
    assert said["scores"]["CLIP"]["chance"] == 0.5
    assert all(seconds >= 0 for seconds in said["seconds"].values())
    assert np.asarray(Image.open(out)).dtype == np.uint8


def test_a_picture_is_drawn_again_from_its_recipe(told, cache, tmp_path, trial):
    first, again, changed = tmp_path / "first.png", tmp_path / "again.png", tmp_path / "changed.png"
    asked = told("reconstruct", "--trial", trial, "--mute", "FFA-1", "--steps", 4, "--strength", 0.5, "--out", first)["request"]
    assert told("reconstruct", "--recipe", first, "--out", again)["request"] == asked
    assert np.array_equal(Image.open(first), Image.open(again))
    other = told("reconstruct", "--recipe", first.with_suffix(".json"), "--mute", "", "--seed", 9, "--out", changed)["request"]
    assert other["mask"]["mute"] == []
    assert other["settings"] == {**asked["settings"], "seed": 9}
    assert not np.array_equal(Image.open(first), Image.open(changed))


def test_reconstruct_for_people(capsys, cache, tmp_path, trial):
    assert command(["reconstruct", "--trial", str(trial), "--steps", "2", "--out", str(tmp_path / "r.png")]) == 0
    printed = capsys.readouterr().out
    assert "synthetic subject" in printed
    assert "generated" in printed
    assert "chance" in printed


def test_evaluate_prints_the_agreed_shape(told, cache):
    said = told("evaluate", "--limit", 4, "--conditions", "full,no_brain")
    assert said["n_images"] == 4
    assert set(said["conditions"]) == {"full", "no_brain"}
    for metrics in said["conditions"].values():
        assert set(metrics) == {"PixCorr", "SSIM", "CLIP", "CLIP-cos"}
        assert all(len(score["ci95"]) == 2 and score["ci95"][0] <= score["mean"] <= score["ci95"][1] for score in metrics.values())


def test_evaluate_draws_as_it_is_told_to(told, cache, capsys):
    asked = ["evaluate", "--limit", 2, "--conditions", "structure_only"]
    said = told(*asked, "--steps", 7, "--strength", 0.5, "--guidance", 2, "--mix", 0.1, "--solver", "unipc")["settings"]
    assert (said["steps"], said["strength"], said["guidance"], said["mix"], said["scheduler"]) == (7, 0.5, 2.0, 0.1, "unipc")
    assert command([*map(str, asked), "--solver", "euler"]) == 2
    assert "scheduler must be one of karras, ddim" in capsys.readouterr().err


def test_evaluate_scores_with_another_clip(told, cache, tiny_tower):
    own = told("evaluate", "--limit", 4, "--conditions", "full")
    other = told("evaluate", "--limit", 4, "--conditions", "full", "--clip", "tiny-tower", "--clip-weights", tiny_tower)
    assert "OpenCLIP tiny-tower (tiny.pt)" in other["metrics"]["CLIP"]["protocol"]
    assert other["conditions"]["full"]["CLIP-cos"] != own["conditions"]["full"]["CLIP-cos"]
    assert other["conditions"]["full"]["SSIM"] == own["conditions"]["full"]["SSIM"]


def test_evaluate_writes_its_table_and_rows(told, cache, tmp_path):
    table, rows, asked = tmp_path / "table.tex", tmp_path / "rows.parquet", ("--limit", 3, "--conditions", "structure_only", "--split", "shared1000")
    said = told("evaluate", *asked, "--out", table, "--rows", rows, "--keep", tmp_path / "kept")
    assert (said["protocol"], said["split"], said["n_images"]) == ("own", "shared1000", 3)
    assert r"structure\_only & " in table.read_text()
    kept = pd.read_parquet(rows)
    assert kept["kind"].tolist() == ["decoded"] * 3
    assert kept["SSIM"].mean() == pytest.approx(said["conditions"]["structure_only"]["SSIM"]["mean"])
    (pictures,) = (tmp_path / "kept").iterdir()
    before = pictures.stat().st_mtime_ns
    assert told("evaluate", *asked, "--keep", tmp_path / "kept") == said
    assert pictures.stat().st_mtime_ns == before


def test_evaluate_with_a_generator_without_towers_lists_the_clip_scores_as_missing(told, cache, tmp_path):
    told("weights", "compact", "demo", "--to", tmp_path / "small", "--dtype", "float32")
    asked = ("evaluate", "--limit", 2, "--conditions", "structure_only")
    said, whole = told(*asked, "--generator", tmp_path / "small"), told(*asked)
    assert said["conditions"] == {name: {score: scores[score] for score in ("PixCorr", "SSIM")} for name, scores in whole["conditions"].items()}
    get = "havir weights compact CHECKPOINT --to FOLDER --towers"
    assert [(m["metric"], m["get"]) for m in said["missing"]] == [("CLIP", get), ("CLIP-cos", get)]
    told("weights", "compact", "demo", "--to", tmp_path / "seeing", "--dtype", "float32", "--towers")
    assert told(*asked, "--generator", tmp_path / "seeing")["missing"] == []


def test_evaluate_lists_the_metrics_that_lack_weights(told, cache, tmp_path):
    said = told("evaluate", "--limit", 2, "--conditions", "structure_only", "--protocol", "me2", "--networks", tmp_path)
    assert list(said["conditions"]["structure_only"]) == ["PixCorr", "SSIM"]
    assert [m["metric"] for m in said["missing"]] == ["AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV"]
    name = said["missing"][0]["get"].removeprefix("havir networks fetch ").partition(" ")[0]
    assert name in {row["name"] for row in told("networks", "list", "--networks", tmp_path)}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--protocol", "me3"), "no protocol is called 'me3'"),
        (("--split", "shared1"), "no split is called 'shared1'"),
        (("--repeats", "all"), "--repeats takes mean or single"),
        (("--out", "table.pdf"), "its name must end in .md or .csv or .tex or .json"),
        (("--rows", "rows.csv"), "its name must end in .parquet"),
        (("--table", "pdf"), "tables are written as md, csv, latex, json"),
        (("--clip", "ViT-L-14", "--clip-weights", "openai", "--protocol", "me2"), "--clip is for protocol own"),
    ],
)
def test_evaluate_says_at_once_what_it_cannot_do(capsys, words, sentence):
    assert command(["evaluate", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_evaluate_wants_a_clip_and_its_weights(capsys):
    assert command(["evaluate", "--clip", "ViT-L-14"]) == 2
    assert "--clip and --clip-weights go together" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["structural", "semantic"])
def test_map_draws_the_cortex_and_its_table(told, cache, tmp_path, branch):
    out, csv = tmp_path / "map.png", tmp_path / "rois.csv"
    said = told("map", "--branch", branch, "--out", out, "--csv", csv)
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    rois = {row["roi"] for row in said["rois"]}
    assert {"V1v", "FFA-1"} <= rois
    assert csv.read_text().splitlines()[0].split(",")[0] == "roi"


@pytest.mark.slow
def test_train_makes_weights_that_reconstruct(told, cache, tmp_path, trial):
    folder = tmp_path / "weights"
    said = told("train", "--steps", 3, "--out", folder)
    assert said["weights"] == str(folder)
    assert said["steps"] == 3
    used = told("reconstruct", "--trial", trial, "--decoder", folder, "--steps", 2, "--out", tmp_path / "r.png")
    assert used["request"]["decoder"] == str(folder)


def test_demo_finds_the_world_that_is_there(told, cache):
    said = told("demo", "--build-only")
    assert Path(said["folder"]).is_dir()
    assert said["fresh"] is False
    assert said["notebook"] is None


def test_demo_opens_the_checkouts_notebook():
    assert cli_demo.notebook() == Path(__file__).parents[1] / "notebooks" / "01_first_look.ipynb"


def test_demo_without_a_checkout_makes_a_notebook(monkeypatch, tmp_path):
    monkeypatch.setattr(cli_demo.resources, "files", lambda _: tmp_path / "site-packages" / "havir_explorer")
    monkeypatch.chdir(tmp_path)
    made = cli_demo.notebook()
    assert made == tmp_path / "01_first_look.ipynb"
    nbformat.validate(nbformat.read(made, as_version=4))
    made.write_text("the user's own")
    assert cli_demo.notebook() == made
    assert made.read_text() == "the user's own"


def test_demo_serves_without_a_browser(monkeypatch, tmp_path):
    started = []

    class Server:
        def __init__(self, arguments):
            started.extend(arguments)

        def wait(self):
            return 0

    monkeypatch.setattr(cli_notebook.subprocess, "Popen", Server)
    notebook = tmp_path / "notebooks" / "01_first_look.ipynb"
    assert cli_notebook.serve(notebook, browser=False) == 0
    assert "--no-browser" in started
    assert f"--ServerApp.root_dir={tmp_path}" in started
    assert "--LabApp.default_url=/lab/tree/notebooks/01_first_look.ipynb" in started


def test_a_device_that_is_not_there_is_a_sentence(capsys, monkeypatch, cache, tmp_path):
    monkeypatch.setenv("HAVIR_DEVICE", "cuda:5")
    assert command(["reconstruct", "--out", str(tmp_path / "r.png")]) == 2
    assert "device 'cuda:5' was asked for by HAVIR_DEVICE, but this machine has cpu; choose one of these" in capsys.readouterr().err
    assert command(["doctor"]) == 1
    assert "HAVIR_DEVICE" in capsys.readouterr().out


def test_progress_in_a_log_is_a_line_now_and_then(capsys, monkeypatch):
    from havir_explorer.cli import show

    with show.progress_bar("drawing") as move:
        move(0.5, "half of it")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(show, "LOGGED", 0)
    with show.progress_bar("drawing") as move:
        move(0.5, "half of it")
    assert capsys.readouterr().err == "50 %: half of it\n"


def test_help_lists_the_commands_in_the_order_of_use_and_cuts_none_short(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for asked in ([], ["weights"], ["export"], ["networks"], ["fetch"]):
        command([*asked, "--help"])
        listed = capsys.readouterr().out.split("Commands:")[1].splitlines()[1:]
        assert not [line for line in listed if "..." in line]
        if not asked:
            first = [line.split()[0] for line in listed if line.strip()][:8]
            assert first == ["demo", "doctor", "fetch", "prepare", "targets", "train", "evaluate", "explore"]
