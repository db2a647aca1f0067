"""The notebooks with every exercise answered as its text answers it.

python tests/answers.py write FOLDER: copies of the notebooks there, each `my_... = None` replaced by the answer
python tests/answers.py check RUN: whether a run of these found every exercise right
"""

import json
import re
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
ANSWER = re.compile(r"<summary>Answer</summary>.*?```python\n(.*?)```", re.S)
BLANK = re.compile(r"^(my_\w+) = None.*\n?", re.M)


def answered(notebook):
    """The notebook, answered; ValueError where a function has no answer in the text before it."""
    text = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = cell.source
        blanks = BLANK.findall(cell.source) if cell.cell_type == "code" else []
        if blanks:
            answer = "".join(ANSWER.findall(text))
            for name in blanks:
                if f"def {name}(" not in answer:
                    raise ValueError(f"no answer defines {name}.")
            cell.source = answer + BLANK.sub("", cell.source)
    return notebook


def write(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        nbformat.write(answered(nbformat.read(path, as_version=4)), Path(folder) / path.name)


def check(run):
    exercises = json.loads((Path(run) / "metrics.json").read_text())["exercises"]
    wrong = {name: said for name, said in exercises.items() if said != "right"}
    print(f"{len(exercises) - len(wrong)} of {len(exercises)} exercises answered right", wrong or "")
    return not exercises or bool(wrong)


if __name__ == "__main__":
    sys.exit({"write": write, "check": check}[sys.argv[1]](sys.argv[2]))
