"""Notebooks small enough to be run within a second or two."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PARAMETERS = 'profile: str = "reference"  # which\nseed: int = 0  # first\nn_seeds: int = 1  # how many\n'
DIGITS = """
checkpoints: str = ""  # weights
latent_dim: int = 2  # units
lam_sae: float = 0.001  # weight
lam_cae: float = 0.001  # weight
sigma_dae: float = 0.1  # noise
epochs: int = 1  # epochs
n_train: int = 1024  # images
"""  # the parameters of a notebook that loads the digit models
PUBLISH = """
from IPython.display import Markdown, display
key, draw = "application/vnd.aeutils.results+json", {{"value": 2.5, "per_seed": [2.5], "ci95": None, "unit": "dB"}}
found = {{"claim": "a < b", "contrast": "b - a", "verdict": "not enough seeds", "effect": 1.0, "ci95": None, "n": 1}}
results = {{"number": "{n}", "profile": profile, "seeds": [0], "faces": "{faces}", "parameters": {{}},
           "metrics": {{"{n}.cae.psnr_db": draw}}, "verdicts": {{"E{n}": found}}, "labels": {{"unit_0": "smile"}}}}
alt = "Figure {n}.1. A pixel with <b>a tag</b>."
display({{"image/png": "{pixel}", "text/plain": alt}}, raw=True,
        metadata={{"image/png": {{"alt": alt}}, "aeutils": {{"figure": "{n}.1"}}}})
display(Markdown("Said **aloud** <script>alert(1)</script> $x^2$"))
display({{key: results, "text/plain": "1 metric"}}, raw=True)
"""


def make_notebook(path, *cells, parameters=PARAMETERS):
    """A notebook of a title, a parameters cell and the given code cells."""
    code = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    title = new_markdown_cell(f"# Notebook {path.stem}\n\n$$h = f(Wx + b)$$")
    nbformat.write(new_notebook(cells=[title, *code], metadata={"kernelspec": kernel}), path)
    return path


def publish(n, faces="frey"):
    """A cell that shows a figure and publishes one metric and one verdict, without importing aeutils."""
    return PUBLISH.format(n=n, faces=faces, pixel=PIXEL)
