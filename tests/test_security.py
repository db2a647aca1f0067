"""No file that can be swapped runs code, no text that can be given becomes markup, and nothing is written elsewhere."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from small_notebooks import PIXEL

import aeutils
from aeutils import data
from aeutils.course import explorer, report, results, settings

PACKAGE = Path(aeutils.__file__).parent
NOTEBOOKS = sorted((PACKAGE.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
UNSAFE_MODULES = {
    "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "subprocess", "tarfile",
    "zipfile",
}  # fmt: skip
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {
    "torch.load", "torch.hub", "torch.jit", "pickle.load", "pickle.loads", "os.system", "os.popen", "np.load",
    "numpy.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "os.execv", "os.spawnv",
    "pandas.read_pickle", "shutil.unpack_archive", "pooch.Unzip", "pooch.Untar", "joblib.load",
}  # fmt: skip


def unsafe(source):
    """What in the source could run what a file holds."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    aliases = {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = (
                [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            )
            yield from UNSAFE_MODULES & {str(module).split(".")[0] for module in modules}
            if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "os", "yaml"):
                yield f"from {node.module}"
            if isinstance(node, ast.ImportFrom):
                yield from {f"{node.module}.{alias.name}" for alias in node.names} & UNSAFE_ATTRIBUTES
        elif isinstance(node, ast.Name) and node.id in UNSAFE_NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            name = f"{aliases.get(head, head)}.{rest}"
            shell = node.attr in ("system", "getoutput", "create_subprocess_shell")
            if (
                {name, ast.unparse(node)} & UNSAFE_ATTRIBUTES
                or shell
                or node.attr.startswith(("spawn", "popen"))
            ):
                yield name
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "weights_only"):
            yield node.arg


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_can_run_what_a_file_holds(name):
    assert list(unsafe(SOURCES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_can_run_what_a_file_holds(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found = [name for cell in cells for name in unsafe(cell)]
    assert set(found) <= {"joblib"}  # its Parallel, which reads no file


@pytest.mark.parametrize(
    "source",
    ["torch.load(f)", "import pickle\npickle.loads(b)", "from pickle import load", "run(c, shell=True)", "exec(s)",
     "np.load(f, allow_pickle=True)", "import joblib.numpy_pickle", "yaml.load(f)", "os.system(c)", "import dill",
     "from torch import load", "from numpy import load", "import pickle as p; p.loads(b)", "get_ipython().system(c)",
     "asyncio.create_subprocess_shell(c)", "os.spawnlp(m, c)", "import tarfile", "shutil.unpack_archive(f)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert list(unsafe(source))


def test_the_only_unpickler_is_the_one_that_knows_arrays():
    pickles = {
        name: [ast.unparse(n) for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(n, ast.Attribute) and ast.unparse(n).startswith("pickle.")]
        for name, path in SOURCES.items()
    }  # fmt: skip
    assert {name: set(uses) for name, uses in pickles.items() if uses} == {
        "data.py": {"pickle.Unpickler", "pickle.UnpicklingError"}
    }


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "subprocess Popen", "nt system",
     "numpy load", "numpy fromfile", "numpy.core.multiarray fromstring", "numpy.testing._private.utils runstring",
     "importlib import_module", "operator attrgetter", "torch load", "codecs decode", "functools partial"],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_may_name_nothing_but_arrays(name, protocol):
    module, attribute = name.split()
    content = f"c{module}\n{attribute}\n.".encode()
    if protocol == 4:
        words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute))
        content = b"\x80\x04" + words + b"\x93."
    with pytest.raises(Exception, match=f"{module}.{attribute} has no place in a pickle of arrays"):
        data._frey_images("freyfaces.pkl", content)


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def hostile_run(folder, figures=("01.1",)):
    """A run folder in which every text that somebody could give is markup."""
    alt = {"image/png": {"alt": HOSTILE}}
    outputs = [
        new_output("display_data", {"image/png": PIXEL}, metadata=alt | {"aeutils": {"figure": number}})
        for number in figures
    ]
    outputs.append(
        new_output("display_data", {"text/markdown": f"{HOSTILE} [x](javascript:alert(3)) ${HOSTILE}$"})
    )
    outputs.append(new_output("stream", text=HOSTILE))
    outputs.append(new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE]))
    cell = new_code_cell(f"# {HOSTILE}", outputs=outputs)
    stem = re.sub(r'[/"<>]' if sys.platform == "win32" else "/", "", f"01_{HOSTILE}")
    nbformat.write(new_notebook(cells=[cell]), folder / f"{stem}.ipynb")
    verdict = {"claim": HOSTILE, "contrast": HOSTILE, "verdict": HOSTILE, "effect": 1.0, "ci95": None, "n": 1}
    metrics = {
        "profile": HOSTILE, "seeds": [0], "device": HOSTILE, "versions": {HOSTILE: HOSTILE}, "seconds": {stem: 1.5},
        "wall_seconds": 2,
        "failed": {"01": f"{HOSTILE}\n{HOSTILE}"},
        "faces": HOSTILE, "parameters": {"01": {"checkpoints": HOSTILE, HOSTILE: 1}},
        "metrics": {f"01.{HOSTILE}": {"value": 1.0, "per_seed": [], "ci95": None, "unit": HOSTILE}},
        "verdicts": {HOSTILE: verdict}, "exercises": {f"01.{HOSTILE}": HOSTILE}, "labels": {HOSTILE: HOSTILE},
    }  # fmt: skip
    results.write_json(folder / "metrics.json", metrics)


def test_no_text_becomes_markup_in_a_report(tmp_path):
    hostile_run(tmp_path)
    report.write(tmp_path)
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")]
    assert len(pages) == 2
    for page in pages:
        assert page.count("&lt;script&gt;alert(1)") > 3
        assert "<script" not in page and "<img src=x" not in page and 'href="javascript' not in page


def test_a_report_names_the_seeds_of_the_faces_apart(tmp_path):
    hostile_run(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    for n_faces, said in ((1, "seeds 0, on"), (2, "seeds 0 (of faces 0, 1), on")):
        metrics["parameters"]["04"] = {"seed": 0, "n_face_seeds": n_faces}
        assert said in report.index_html(metrics, [])


@pytest.mark.parametrize("number", ["../../x", "/x", "a/b", "..\\x", "", "1\n", "1\x00", "..", "1 2", "ü/.."])
def test_a_figures_number_cannot_lead_out_of_its_folder(tmp_path, number):
    folder = tmp_path / "a" / "run"
    folder.mkdir(parents=True)
    hostile_run(folder, figures=("01.1", number))
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    report.write(folder)
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before
    figures = [path.name for path in (folder / "figures").iterdir()]
    assert "figure_01.1.png" in figures and len(figures) == 1 + (number == "..")


def test_the_explorer_carries_text_as_data(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "face", lambda parameters: {"units": [{"meaning": "</script>" + HOSTILE}]})
    monkeypatch.setattr(explorer, "blends_and_map", lambda *_: {})
    page = explorer.write(tmp_path / "explorer.html").read_text(encoding="utf-8")
    payload = page.split('<script id="payload" type="application/json">')[1].split("</script>")[0]
    assert json.loads(payload)["face"]["units"][0]["meaning"] == "</script>" + HOSTILE
    assert "alert(1)</script>" not in page


def test_markup_in_a_parameter_is_a_value_like_any_other():
    for name, (kind, *allowed) in settings.PARAMETERS.items():
        if kind is not str or allowed[0]:
            with pytest.raises(ValueError, match="must be"):
                settings.check_parameters({name: HOSTILE})
