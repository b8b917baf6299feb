"""The package as a whole: it imports in no time, shows few names, and keeps its rooms apart."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import havir_explorer

PACKAGE = Path(havir_explorer.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LIGHT = ("paths", "records", "errors", "cli")
HEAVY = ("torch", "diffusers", "transformers", "nilearn", "ipywidgets", "plotly", "matplotlib")


def in_new_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def test_importing_takes_less_than_half_a_second():
    code = "import time; start = time.process_time(); import havir_explorer; print(time.process_time() - start)"
    assert min(float(in_new_python(code)) for _ in range(3)) < 0.5


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in LIGHT)])
def test_importing_the_face_loads_nothing_heavy(module):
    code = f"import sys, json; import havir_explorer{module}; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(in_new_python(code)))
    assert not loaded & set(HEAVY)


def test_help_is_quick():
    said = in_new_python("import time; from havir_explorer.cli import command; command(['--help']); print(time.process_time())")
    assert float(said.split()[-1]) < 5


def test_the_face_has_at_most_ten_names_and_each_loads():
    assert len(havir_explorer.__all__) <= 10
    for name in havir_explorer.__all__:
        assert getattr(havir_explorer, name).__name__ == name
        assert name in dir(havir_explorer)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = havir_explorer.nothing_of_the_kind


def test_the_version_is_the_installed_one():
    assert havir_explorer.__version__ == metadata.version("havir_explorer")
    root = PACKAGE.parent
    assert f"version: {havir_explorer.__version__}\n" in (root / "CITATION.cff").read_text()
    assert f"## {havir_explorer.__version__} " in (root / "CHANGELOG.md").read_text()


def test_types_are_announced():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_one_idea(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    assert text.strip() == "" or ast.get_docstring(ast.parse(text)), "a module says in its first line what it is for"


ROOMS = {"diffusers": ("diffuse/", "decode/targets", "data/demo/train"), "nilearn": ("draw/", "data/"), "ipywidgets": ("app/",)}


@pytest.mark.parametrize(("library", "rooms"), ROOMS.items())
def test_libraries_stay_in_their_rooms(library, rooms):
    asks = re.compile(rf"^\s*(from|import) {library}\b", re.MULTILINE)
    users = [str(p.relative_to(PACKAGE)) for p in MODULES if asks.search(p.read_text(encoding="utf-8"))]
    assert users
    assert [user for user in users if not user.startswith(rooms)] == []


def test_nothing_reads_the_planted_wiring_but_the_teaching_world():
    """What was planted is for tests: a product that read it would mark its own homework."""
    readers = [p.relative_to(PACKAGE).as_posix() for p in MODULES if re.search(r"[\"']truth\b", p.read_text(encoding="utf-8"))]
    assert "data/demo/write.py" in readers, "the file that plants it names it, so the search can hit"
    assert [r for r in readers if not r.startswith("data/demo/")] == []


def test_no_pinned_version_comes_from_an_address():
    pins = (PACKAGE.parent / "constraints.txt").read_text().split()
    assert pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    assert not any(pin.startswith("ipykernel==7.0.0") for pin in pins)


def test_every_dependency_is_pinned_and_used():
    names = {re.split(r"[<>=!~ \[;]", line)[0].lower().replace("_", "-") for line in metadata.requires("havir_explorer") if "extra ==" not in line}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (PACKAGE.parent / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
    modules = {"open-clip-torch": "open_clip", "scikit-image": "skimage", "pillow": "PIL", "tensorboard": "torch.utils.tensorboard"}
    served = {"anywidget", "ipykernel", "jupyterlab", "torchvision"}  # not imported by name: plotly's figure widget is one; the rest is started or required
    text = "\n".join(p.read_text(encoding="utf-8") for p in MODULES)
    unused = [n for n in sorted(names - served) if not re.search(rf"^\s*(from|import) {modules.get(n, n.replace('-', '_'))}\b", text, re.MULTILINE)]
    assert unused == []
