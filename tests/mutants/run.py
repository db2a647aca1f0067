"""Mutation tests: every mistake in table.toml, planted by itself, must turn a test or a notebook cell red.

python tests/mutants/run.py [-k NAME_OR_FILE] [--jobs N]
"""

import argparse
import ast
import contextlib
import io
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parents[2]
LARGE = ("data/MNIST/", "data/checkpoints/")
SLOW_IMPORTS = [
    "torch",
    "scipy.stats",
    "skimage.metrics",
    "sklearn.svm",
    "hypothesis",
    "pytest",
    "nbval.plugin",
]


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str


class Cells(NamedTuple):
    """Cells of a notebook, each named by one of its lines; code to run after the imports, parameters to change."""

    file: str
    lines: list
    first: str = ""
    parameters: str = ""


def read_table():
    """(mutants, {name: Cells}) of table.toml."""
    table = tomllib.loads(Path(__file__).with_name("table.toml").read_text(encoding="utf-8"))
    cells = {name: Cells(**entry) for name, entry in table.pop("cells", {}).items()}
    return [Mutant(name, file, *row) for file, rows in table.items() for name, row in rows.items()], cells


def copy_tree(tree):
    """The working tree's files, those of git and new ones, without what git ignores; large data are linked."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                if name.startswith(LARGE):
                    os.link(ROOT / name, tree / name)
                    continue
            shutil.copy(ROOT / name, tree / name)


def sources(path):
    """A file's text, or the source of each code cell of a notebook, as a list."""
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def mutate(mutant, tree):
    """Replace `old` by `new` in the tree's file; ValueError where it is not there exactly once."""
    path = tree / mutant.file
    found = sum(source.count(mutant.old) for source in sources(path))
    if found != 1:
        raise ValueError(f"{mutant.name}: its old text is {found} times in {mutant.file}, not once.")
    if path.suffix != ".ipynb":
        path.write_text(sources(path)[0].replace(mutant.old, mutant.new), encoding="utf-8")
        return
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace(mutant.old, mutant.new)
    nbformat.write(notebook, path)


def only_imports(source):
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def choose(cells, tree):
    """Which of the notebook's code cells are meant, with its imports; ValueError where a line is not in exactly one."""
    every = [source.splitlines() for source in sources(tree / cells.file)]
    for line in cells.lines:
        found = sum(line in lines for lines in every)
        if found != 1:
            raise ValueError(f"the line {line!r} is in {found} cells of {cells.file}, not in one.")
    return [
        i for i, lines in enumerate(every) if only_imports("\n".join(lines)) or set(cells.lines) & set(lines)
    ]


def run_cells(cells, chosen, tree):
    """The first line of the first chosen cell that raises or prints what is not committed with it; "" if none does.

    The committed text is compared as nbval does it: strictly, except in cells that are tagged to be ignored.
    """
    notebook, space = nbformat.read(tree / cells.file, as_version=4), {"__name__": "__main__"}
    every, waiting = [cell for cell in notebook.cells if cell.cell_type == "code"], cells.first
    for i in chosen:
        cell, printed = every[i], io.StringIO()
        source, tags = cell.source, cell.metadata.get("tags", [])
        source += f"\n{cells.parameters}" if "parameters" in tags else ""
        if waiting and not only_imports(source):
            source, waiting = f"{waiting}\n{source}", ""
        committed = "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        try:
            with contextlib.redirect_stdout(printed):
                exec(source, space)
            red = "nbval-ignore-output" not in tags and printed.getvalue() != committed
        except Exception:
            traceback.print_exc()
            red = True
        if red:
            print(f"{source}\nprinted\n{printed.getvalue()}\nbut committed is\n{committed}")
            return "the cell " + cell.source.splitlines()[0]
    return ""


class Witness:
    """The first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.failed:
            self.failed = report.nodeid.removeprefix("tests/")


def examine(mutant, tests, cells):
    """(exit status, what failed first, log, seconds) of the tests on a copy with the mutation, or without one."""
    import pytest

    start, witness = time.monotonic(), Witness()
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        chosen = choose(cells, tree) if cells else None
        if mutant:
            mutate(mutant, tree)
        os.chdir(tree / "notebooks" if cells else tree)
        os.environ |= {
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_CACHE_HOME": str(tree / "cache"),
        }
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        with open(tree / "log", "w+", encoding="utf-8") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            if cells:
                witness.failed = run_cells(cells, chosen, tree)
                status = bool(witness.failed)
            else:
                options = ["-x", "-q", "-p", "no:cacheprovider"]
                status = pytest.main([*shlex.split(tests), *options], plugins=[witness])
            import aeutils

            assert Path(aeutils.__file__).is_relative_to(tree), aeutils.__file__
            sys.stdout.flush()
            log.seek(0)
            text = log.read()
        os.chdir(ROOT)
    return int(status), witness.failed, text, time.monotonic() - start


def everything(mutants, cells):
    """What the mutants' tests are part of: the test files in one run, and every [cells] entry."""
    named = {mutant.tests for mutant in mutants}
    files = sorted({tests.split()[0] for tests in named - cells.keys()})
    return [*filter(None, [shlex.join(files)]), *sorted(named & cells.keys())]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="NAME", help="only mutants with this in their name or file")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    options = parser.parse_args()
    mutants, cells = read_table()
    mutants = [mutant for mutant in mutants if options.k in f"{mutant.file} {mutant.name}"]
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    context.set_forkserver_preload(SLOW_IMPORTS)
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        before = [pool.submit(examine, None, tests, cells.get(tests)) for tests in everything(mutants, cells)]
        for future in before:
            status, failed, log, _ = future.result()
            if status:
                sys.exit(f"{log}\nwithout a mutation all must pass, and this does not: {failed or status}")
        print(f"the tests pass without a mutation; {len(mutants)} mutants", flush=True)
        futures = [pool.submit(examine, m, m.tests, cells.get(m.tests)) for m in mutants]
        killed = 0
        for mutant, future in zip(mutants, futures):
            status, failed, log, seconds = future.result()
            if status > 1:
                print(log)
            word = failed or ("SURVIVED" if status == 0 else f"exit status {status}")
            killed += bool(failed)
            print(f"{mutant.name:36} {mutant.file:44} {word:70} {seconds:5.1f} s", flush=True)
    print(f"{killed} of {len(mutants)} mutants killed")
    sys.exit(killed < len(mutants))


if __name__ == "__main__":
    main()
