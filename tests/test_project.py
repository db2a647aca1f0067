"""The committed files: pinned dependencies, notebooks as a reader should find them, data with their checksums."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.markers import Marker

from aeutils.course import report, runner
from aeutils.course.settings import PARAMETERS, PROFILES, check_parameters

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
notebooks = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
HERE = re.compile(r"(?<![\w.:/])(/(home|root|work|tmp|Users|var|opt|mnt)/|[A-Z]:\\\\)")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_every_dependency_is_pinned_explained_and_installed():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    assert lines[-1] == "-e ."
    for line in lines[:-1]:
        if not line.startswith("#"):
            name, pin, where, reason = re.fullmatch(r"([\w-]+)==([\w.]+)(?:; (.+?))?\s+# (.+)", line).groups()
            if where is None or Marker(where).evaluate():
                assert version(name).split("+")[0] == pin and reason


def test_the_package_asks_for_what_is_pinned():
    pinned = (ROOT / "requirements.txt").read_text().split("# the tests")[0]
    pins = re.findall(r"^([\w-]+)==(\d+\.\d+)[\d.]*(; .+?)?\s+#", pinned, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [f"{name}>={pin}{where}" for name, pin, where in pins]


@pytest.mark.skipif(not find_spec("setuptools"), reason="setuptools is not installed")
def test_an_installed_package_brings_its_notebooks_and_data(tmp_path):
    tree, home = tmp_path / "tree", tmp_path / "home"
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    venv.create(home)
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, tree], check=True)
    (wheel,) = tmp_path.glob("aeutils-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    shutil.rmtree(tree)
    (site,) = (path.parent for path in home.rglob("aeutils") if (path / "data.py").exists())
    (site / "rest.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def course(*arguments):
        command = [python, "-m", "aeutils", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)

    listed = course("data")
    assert "60000 training and 10000 test images, verified" in listed.stdout
    assert str(home.resolve() / "share" / "aeutils" / "data") in listed.stdout
    assert "SHA256SUMS" not in listed.stderr
    assert "the parameters are in all: profile, seed" in course("run", "-p", "bogus", "1").stderr


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    assert pip == "pip" and rest == {"pip": ["-r requirements.txt"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert int(low) <= int(python.removeprefix("python=3.")) < int(high)


def test_there_are_four_notebooks():
    assert [path.name for path in PATHS] == [
        "01_theory_and_training.ipynb",
        "02_tsne_and_interpolation.ipynb",
        "03_latent_classification.ipynb",
        "04_frey_face_vae.ipynb",
    ]


@notebooks
def test_parameters_are_declared_once_and_pass_in_every_profile(path):
    declared = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
    assert len(declared) == 1
    assert all(re.fullmatch(r"\w+: \w+ = \S+  # .+", line) for line in declared[0].source.splitlines())
    values = runner.defaults(path)
    names = [node.target.id for node in ast.parse(declared[0].source).body]
    assert list(values) == names and set(names) <= set(PARAMETERS)
    assert {"profile", "seed", "device", "checkpoints"} <= set(names)
    assert {"n_seeds", "n_face_seeds"} & set(names)
    for overrides in PROFILES.values():
        check_parameters(values | {name: value for name, value in overrides.items() if name in values})


@notebooks
def test_the_cell_after_the_parameters_refuses_bad_ones(path):
    cells = code_cells(path)
    at = next(i for i, cell in enumerate(cells) if "parameters" in tags(cell))
    names = {}
    for cell in cells[: at + 1]:
        exec(cell.source, names)
    for name, value in runner.defaults(path).items():
        kind, *allowed = PARAMETERS[name]
        for bad in (None, __file__, *([] if kind is str else [allowed[0] - 1, allowed[1] + 1, str(value)])):
            with pytest.raises(ValueError, match=rf"^{name} is .+; |^{name} is .+, which is no folder"):
                exec(cells[at + 1].source, names | {name: bad})


@notebooks
def test_a_notebook_is_committed_executed_and_clean(path):
    assert path.stat().st_size < 3e6
    assert set(read(path).metadata) <= {"kernelspec", "language_info"}
    counts = [cell.execution_count for cell in code_cells(path) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 25
        assert not {"execution", "papermill"} & set(cell.metadata)
        for out in cell.outputs:
            assert out.output_type != "error" and out.get("name") != "stderr"
            data = out.get("data", {"text/plain": out.get("text", "")})
            assert "application/vnd.jupyter.widget-view+json" not in data
            text = str({mime: content for mime, content in data.items() if not mime.startswith("image/")})
            assert not HERE.search(text), text[:300]


@notebooks
def test_what_a_cell_displays_is_compared_within_tolerance_alone(path):
    for cell in code_cells(path):
        shown = {mime for out in cell.outputs for mime in out.get("data", ())} & {
            "text/markdown",
            "image/png",
        }
        assert not shown or "nbval-ignore-output" in tags(cell), cell.source[:80]


@notebooks
def test_cells_that_put_figures_into_sentences_are_folded_and_no_others(path):
    for cell in code_cells(path):
        body = ast.parse(cell.source).body
        calls = [{getattr(n.func, "id", "") for n in ast.walk(s) if isinstance(n, ast.Call)} for s in body]
        lines = sum(s.end_lineno - s.lineno + 1 for s, called in zip(body, calls) if "say" in called)
        seen = any(
            isinstance(s, (ast.FunctionDef, ast.ClassDef)) or "show" in called
            for s, called in zip(body, calls)
        )
        mostly_sentences = not seen and body and lines >= 0.6 * len(cell.source.splitlines())
        assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == bool(mostly_sentences), (
            cell.source[:80]
        )


@notebooks
def test_the_last_cell_checks_the_figures_strictly(path):
    checks = [cell for cell in code_cells(path) if ".check()" in cell.source]
    assert len(checks) == 1 and "nbval-ignore-output" not in tags(checks[0])


@notebooks
def test_figures_are_numbered_in_order_and_described(path):
    found = [
        out.metadata
        for cell in code_cells(path)
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    numbers = [metadata["aeutils"]["figure"] for metadata in found]
    assert all(metadata["image/png"]["alt"] for metadata in found)
    own = str(int(path.name[:2]))
    chapters, figures = zip(*(number.split(".") for number in numbers))
    assert set(chapters) == {own}
    order = list(map(int, figures))  # a figure of the reference run's lambda path waits until there is one
    assert order == sorted(set(order)) and order[0] == 1 and order[-1] <= len(order) + 1


@notebooks
def test_every_formula_can_be_drawn_without_a_network(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            html = report.markdown(cell.source)
            assert not re.search(r"<code>[^<]*\\[a-zA-Z]+[^<]*</code>", html), cell.source[:200]
            formulas = " ".join(re.findall(r"<math.*?</math>", html, re.S))
            assert "\\" not in formulas, re.findall(r"\\\w+", formulas)


def test_data_have_their_checksums():
    data = ROOT / "data"
    assert report.damaged_files(data) == []
    if (data / "SHA256SUMS").exists():
        listed = {line.split()[1] for line in (data / "SHA256SUMS").read_text().splitlines()}
        shipped = {f"checkpoints/{path.name}" for path in (data / "checkpoints").glob("*.safetensors")}
        assert shipped <= listed and "reference.json" in listed
        assert sum(path.stat().st_size for path in (data / "checkpoints").iterdir()) <= 40e6
