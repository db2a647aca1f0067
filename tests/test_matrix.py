"""The notebooks from a clone, strictly, in six environments: threads, processor, Frey Face and network."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aeutils import data

ROOT = Path(__file__).resolve().parent.parent
RUNS = [  # threads, OPENBLAS_CORETYPE, Frey Face, mirror, notebooks
    (1, "", True, False, "notebooks"),
    (2, "Haswell", True, True, "notebooks"),
    (2, "", False, False, "notebooks"),
    (1, "Haswell", False, True, "notebooks"),
    (2, "Haswell", False, False, "notebooks/04_frey_face_vae.ipynb"),
    (1, "", True, True, "notebooks/04_frey_face_vae.ipynb"),
]
SITE = """import os, aeutils.data as data
data.FREY_MIRRORS = tuple((f"{os.environ['MIRROR']}/{name}", sha, name) for name, sha in data.FREY_FILES.items())
"""


@pytest.mark.skipif(not os.environ.get("AEUTILS_SLOW"), reason="half an hour: make matrix")
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_notebooks_are_green(run, tmp_path):
    threads, core, frey, mirror, notebooks = run
    folders = [Path(folder) for folder in (data.DATA, os.environ.get("AEUTILS_DATA")) if folder]
    folder = next((folder for folder in folders if (folder / "frey_rawface.mat").is_file()), None)
    if frey and folder is None:
        pytest.skip("Frey Face is not on this machine")
    clone, site = tmp_path / "clone", tmp_path / "site"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    served = functools.partial(SimpleHTTPRequestHandler, directory=folder if frey else site)
    refused = "http://127.0.0.1:9"
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "PYTHONPATH": f"{clone}{os.pathsep}{site}",
            "OMP_NUM_THREADS": str(threads),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "MIRROR": f"http://127.0.0.1:{server.server_port}" if mirror else refused,
            "AEUTILS_DATA": str(folder) if frey and not mirror else "",
        }
        environment |= {"OPENBLAS_CORETYPE": core} if core else {}
        workers = ["-n", "2", "--dist", "loadfile"] if threads == 1 else []
        command = [sys.executable, "-m", "pytest", "-q", *workers, "--nbval", notebooks]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stdout[-5000:]
