"""Shared fixtures: the teaching world, one request in it, a cache of one's own, and the browser."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from havir_explorer.cli import command
from havir_explorer.cli.show import quiet

quiet()
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in a test may depend on the network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """A cache folder of this process's own, so that no test depends on what another run or worker has left; see :func:`borrow`."""
    from havir_explorer.data import WORLD, open_dataset
    from havir_explorer.paths import cache_folder

    if not (cache_folder() / WORLD).exists():
        open_dataset("demo")  # builds it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAVIR_CACHE", str(borrow(tmp_path_factory.mktemp("cache") / "havir")))
        yield


def borrow(own: Path) -> Path:
    """Make an empty cache folder, into which the teaching world and its prepared responses are linked from the present one."""
    from havir_explorer.data import WORLD
    from havir_explorer.paths import cache_folder

    own.mkdir()
    for name in (WORLD, "responses"):
        (cache_folder() / name).mkdir(exist_ok=True)
        (own / name).symlink_to((cache_folder() / name).resolve(), target_is_directory=True)
    return own


@pytest.fixture(scope="session")
def demo():
    """The teaching world, read as the NSD tree it is."""
    from havir_explorer.data import open_dataset

    return open_dataset("demo")


@pytest.fixture(scope="session")
def world(demo) -> Path:
    """The teaching world's folder."""
    return demo.root


@pytest.fixture(scope="session")
def truth(world):
    """What is planted in each of the teaching world's subjects."""
    import numpy as np
    from demo_files import SUBJECTS

    return {subject: np.load(world / "truth" / f"{subject}.npz") for subject in SUBJECTS}


@pytest.fixture(scope="session")
def plan():
    """Which pictures the teaching world shows to whom, and when."""
    from havir_explorer.data.demo import design

    return design.design()


@pytest.fixture(scope="session")
def subject() -> str:
    return "subj01"


@pytest.fixture(scope="session")
def trial(demo, subject) -> int:
    """The first trial whose picture no decoder was trained on."""
    trials = demo.trials(subject)
    return int(trials.index[trials["shared"]][0])


@pytest.fixture(scope="session")
def mask():
    """A lesion of the face areas."""
    from havir_explorer.records import Mask

    return Mask(mute=("FFA-1", "FFA-2"))


@pytest.fixture(scope="session")
def request_(demo, subject, trial):
    """A small but whole request."""
    from havir_explorer.records import Request, Settings

    return Request(dataset="demo", subject=subject, trial=trial, settings=Settings(steps=4))


@pytest.fixture
def cache(demo, tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own; see :func:`borrow`."""
    own = borrow(tmp_path / "cache")
    monkeypatch.setenv("HAVIR_CACHE", str(own))
    return own


@pytest.fixture
def tree(demo, tmp_path, monkeypatch) -> Path:
    """A copy of the teaching world to damage, made of links; replace a file, do not write into it."""
    root = tmp_path / "tree"
    shutil.copytree(demo.root, root, copy_function=os.symlink)
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """The system's Chromium, or None: Playwright then starts its own."""
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """A small hand-written tree in NSD's layout; never damaged."""
    from small_nsd import write_tree

    return write_tree(tmp_path_factory.mktemp("nsd"))


@pytest.fixture
def damaged(pristine, tmp_path):
    """A copy of the small tree to break."""
    from small_nsd import Tree

    shutil.copytree(pristine.root, tmp_path / "tree")
    return Tree(tmp_path / "tree", pristine.raw, pristine.nsd_ids)


@pytest.fixture
def nsd(pristine, tmp_path):
    """The small tree, read with a cache of the test's own."""
    return pristine.nsd(tmp_path / "cache")


@pytest.fixture
def tiny_tower(tmp_path) -> Path:
    """A checkpoint of OpenCLIP's model ``tiny-tower``, which this makes known."""
    import open_clip
    import torch

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "tiny-tower.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-tower.json")
    torch.save(open_clip.create_model("tiny-tower", pretrained=None).state_dict(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


@pytest.fixture
def pipeline():
    """A pipeline that draws at once, or waits before each step while its gate is closed."""
    from fake_app import Pipeline

    return Pipeline()


@pytest.fixture
def app(demo, pipeline):
    """An app over the teaching world, not yet shown, that computes and remembers nothing."""
    from fake_app import Nothing

    from havir_explorer.app import Explorer

    app = Explorer(run=pipeline, memory=Nothing())
    yield app
    pipeline.gate.set()
    app.close()


@pytest.fixture
def shown(app, monkeypatch):
    """The app as a cell shows it, with a made-up contribution map so that no weights are needed."""
    from fake_app import made_up, until

    from havir_explorer.app.world import World

    fed = made_up()
    monkeypatch.setattr(World, "fed", lambda self, request, branch: fed[branch])
    app._ipython_display_()
    until(lambda: app._panels.branch._table.value)
    return app


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    """A small Versatile Diffusion of random weights in the published layout; never damaged."""
    import full_size

    return full_size.write(tmp_path_factory.mktemp("original") / "vd")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "havir-cache"))
    return tmp_path / "havir-cache"


@pytest.fixture
def checkpoint(original, own_cache, tmp_path) -> Path:
    """A copy of the random checkpoint to break."""
    return Path(shutil.copytree(original, tmp_path / "vd"))


@pytest.fixture
def told(capsys):
    """Run a command that must succeed and return what its ``--json`` printed."""

    def run(*arguments: object) -> dict:
        capsys.readouterr()
        code = command([*(str(a) for a in arguments), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return run


@pytest.fixture(scope="module")
def as_many_threads_as_a_worker():
    """Until the module's end compute with as many threads as each of two local workers: sums are split alike, and pictures the same to the bit."""
    import torch
    from dask.system import CPU_COUNT

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, CPU_COUNT // 2))
    yield
    torch.set_num_threads(before)
