"""From the bucket to an evaluated HAVIR and the app, by the six commands that a user types, on the teaching world behind a real S3 server."""

from __future__ import annotations

import shutil

import nbformat
import pytest
from s3_server import Server

from havir_explorer.data import open_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
CAPTIONS = "nsddata_stimuli/captions.json"
CONDITIONS = "full,structure_only,semantic_only,wrong_trial,no_brain"


@pytest.fixture
def bucket(demo):
    """The teaching world as the public bucket would hold it: one subject, nothing that NSD does not have."""
    server = Server()
    for file in sorted(path for path in demo.root.rglob("*") if path.is_file()):
        key = file.relative_to(demo.root).as_posix()
        if key.startswith("nsd") and "subj02" not in key and key != CAPTIONS:
            server.put(key, file.read_bytes())
    yield server
    server.stop()


def test_six_commands_from_the_bucket_to_the_app(told, bucket, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))
    tree, decoder = tmp_path / "nsd", tmp_path / "decoder"
    who, sessions = ["--dataset", tree, "--subject", "subj01"], f"1-{demo.trials('subj01')['session'].max()}"
    told("fetch", "nsd", "--subjects", "1", "--sessions", sessions, "--images", "needed", "--to", tree, "--accept-nsd-terms", "--endpoint", bucket.endpoint)
    shutil.copy(demo.root / CAPTIONS, tree / CAPTIONS)  # the annotations file that the user brings
    told("prepare", *who)
    made = told("targets", *who, "--captions", "first")
    table = open_dataset(tree).trials("subj01")
    assert made["pictures"] == made["encoded"] == table["nsd_id"].nunique()
    trained = told("train", *who, "--captions", "first", "--out", decoder)
    assert trained["training_images"] + trained["held_out_images"] == table.loc[~table["shared"], "nsd_id"].nunique()
    found = told("evaluate", *who, "--decoder", decoder, "--conditions", CONDITIONS, "--protocol", "own")["conditions"]
    for metric in ("PixCorr", "SSIM", "CLIP", "CLIP-cos"):
        for control in ("wrong_trial", "no_brain"):
            assert found["full"][metric]["ci95"][0] > found[control][metric]["ci95"][1], (metric, control, found)
    assert found["structure_only"]["PixCorr"]["mean"] > found["semantic_only"]["PixCorr"]["mean"]
    assert found["semantic_only"]["CLIP"]["mean"] > found["structure_only"]["CLIP"]["mean"]
    assert found["full"]["CLIP"]["mean"] >= 0.90
    written = told("explore", *who, "--decoder", decoder, "--write-only")
    names: dict = {}
    exec(nbformat.read(written["notebook"], as_version=4).cells[0].source, names)  # noqa: S102 - the cell that a user runs
    (drawn,) = names["app"].run()
    assert drawn.kind == "generated"
    assert not drawn.trained_on
