"""The README's figures are those of data/reference.json, and its links lead somewhere."""

import re

from aeutils.course.readme import README, between, figure, results_tables
from aeutils.course.results import load_reference


def test_the_results_are_current():
    text = README.read_text(encoding="utf-8")
    assert between(text, "results", results_tables(load_reference())) == text


def test_every_picture_and_link_within_the_project_is_there():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert targets and not [target for target in targets if not (README.parent / target).exists()]


def test_a_figure_is_its_mean_and_interval():
    assert figure({"value": 0.12345, "ci95": [0.1, 0.2]}, 3) == "0.123 [0.100, 0.200]"
    assert figure({"value": 2.0, "ci95": None}, 1) == "2.0"
    assert figure(None, 1) == "–"
