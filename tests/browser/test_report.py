"""A run's report in a real browser: it is drawn without a network, fits a phone, and folds its code."""

import json

import pytest

from aeutils.course import report, runner

STEMS = [path.stem for path in sorted(runner.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of the committed notebooks."""
    folder, plan = tmp_path_factory.mktemp("report"), {}
    for path in runner.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"):
        (folder / path.name).write_bytes(path.read_bytes())
        plan[path] = runner.defaults(path)
    metrics = runner.collect(folder, runner.Plan(plan, "reference", folder, [folder]), "reference", {})
    (folder / "metrics.json").write_text(json.dumps(metrics))
    report.write(folder)
    return folder


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("stem", ["index", *STEMS])
def test_a_page_of_the_report(folder, browser, stem, scheme, width):
    path = folder / f"{stem}.html"
    assert path.stat().st_size < 5e6
    page, said = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.screenshot(
        path=folder / f"{stem}_{scheme}_{width}.png", full_page=stem == "index"
    )  # a notebook is too tall
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth && i.alt)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")
    if stem != "index":
        shown = "[...document.querySelectorAll('div.input')].some(e => e.offsetParent)"
        assert page.evaluate(shown)
        page.check("#hide-code")
        assert not page.evaluate(shown)
    page.close()
    assert said == []
