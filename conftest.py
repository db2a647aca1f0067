"""What nbval compares: text that a cell prints, but neither progress bars, tables nor published figures."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread a worker, and a kernel: more would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("AEUTILS_DATA"):  # a kernel starts in the notebooks' folder
    os.environ["AEUTILS_DATA"] = os.path.abspath(os.environ["AEUTILS_DATA"])

ROOT = Path(__file__).resolve().parent


def pytest_configure(config):
    if not config.getoption("nbval_sanitize_with", None):
        config.option.nbval_sanitize_with = str(ROOT / "tests" / "sanitize.cfg")


def pytest_collectstart(collector):
    if getattr(collector, "skip_compare", None):
        collector.skip_compare += (
            "stderr",
            "text/html",
            "application/vnd.aeutils.results+json",
        )
