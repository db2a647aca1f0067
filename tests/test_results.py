"""Metrics, verdicts and their comparison with the reference run."""

import hashlib
import json
import math
import os
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from small_notebooks import make_notebook

from aeutils import plots
from aeutils.course import reference as reference_run
from aeutils.course import report, results, settings
from aeutils.course.results import MIME, Results, load_reference, write_json
from aeutils.course.settings import check_parameters, digit_configs, face_configs, folders_for, seeds_of
from aeutils.data import corrupt, load_frey_faces, split_frames
from aeutils.faces import synthetic_faces
from aeutils.latent import different_pairs
from aeutils.metrics import active_share
from aeutils.training import AutoencoderConfig, load_or_train


def entry(value, tolerance=0.1, per_seed=(), **more):
    return {"value": value, "per_seed": list(per_seed), "tolerance": tolerance, "reloaded": tolerance} | more


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Record a reference run: recorded(metrics, ...) writes reference.json and its checksum."""
    monkeypatch.setattr(results, "REFERENCE", tmp_path / "reference.json")

    def record(metrics=None, verdicts=None, seeds=(0,), faces="frey", parameters=None):
        content = {"metrics": metrics or {}, "verdicts": verdicts or {}, "seeds": list(seeds), "faces": faces}
        write_json(results.REFERENCE, content | {"parameters": parameters or {}})
        digest = hashlib.sha256(results.REFERENCE.read_bytes()).hexdigest()
        (tmp_path / "SHA256SUMS").write_text(f"{digest}  reference.json\n")

    return record


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_a_metric_has_students_interval(values):
    run = Results(2, "full", range(len(values)))
    run.add("cae.psnr_db", values, "dB")
    got, n = run.metrics["02.cae.psnr_db"], len(values)
    error = np.std(values, ddof=1) / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    assert got["value"] == pytest.approx(np.mean(values), abs=1e-9)
    assert got["ci95"] == pytest.approx([np.mean(values) - half, np.mean(values) + half], abs=1e-6)
    if error > 1e-9:
        assert got["ci95"] == pytest.approx(
            list(stats.t.interval(0.95, n - 1, np.mean(values), error)), abs=1e-6
        )


@pytest.mark.parametrize(
    "values", [torch.tensor([1.0, 2.0]), np.array([1, 2]), [np.float32(1), torch.tensor(2.0)]]
)
def test_arrays_become_plain_numbers(values):
    run = Results(1, "full", [0, 1])
    run.add("a", values)
    assert json.loads(json.dumps(run.metrics))["01.a"]["per_seed"] == [1, 2]


@pytest.mark.parametrize(
    "values", [math.nan, math.inf, [1.0, math.nan], [1.0], [1.0, 2.0, 3.0], "1", None, [], [1.0, True]]
)
def test_what_is_no_metric_is_refused(values):
    run = Results(1, "full", [0, 1])
    with pytest.raises(ValueError):
        run.add("a", values)
    assert not run.metrics


def test_a_verdict_on_what_is_not_finite_is_refused():
    run = Results(1, "full", range(5))
    with pytest.raises(ValueError, match="differences of E1"):
        run.verdict("E1", "claim", "contrast", [1.0, 1.0, 1.0, 1.0, math.nan])
    assert not run.verdicts


@pytest.mark.parametrize(
    "differences, greater, threshold, word",
    [
        ([1, 1.1, 0.9, 1.05, 0.95], True, 0, "supported"),
        ([1, 1.1, 0.9, 1.05, 0.95], False, 0, "refuted"),
        ([1, 1.1, 0.9, 1.05, 0.95], True, 2, "refuted"),
        ([1, 1.1, 0.9, 1.05, 0.95], False, 2, "supported"),
        ([1, -1, 2, -2, 0.1], True, 0, "inconclusive"),
        ([1, 1.1, 0.9, 1.05], True, 0, "not enough seeds"),
        ([1], True, 0, "not enough seeds"),
    ],
)
def test_verdicts(differences, greater, threshold, word):
    run = Results(2, "full", range(len(differences)))
    run.verdict("E3", "claim", "contrast", torch.tensor(differences), greater, threshold)
    found = run.verdicts["E3"]
    assert found["verdict"] == word and found["n"] == len(differences)
    assert found["effect"] == pytest.approx(np.mean(differences))
    assert (found["ci95"] is None) == (len(differences) < 2)
    json.dumps(found, allow_nan=False)


def test_a_quick_run_claims_nothing():
    run = Results(2, "quick", range(5))
    run.verdict("E3", "claim", "contrast", [1, 1.1, 0.9, 1.05, 0.95])
    assert run.verdicts["E3"]["verdict"] == "not enough seeds"


def test_check_prints_a_line_a_metric(recorded, capsys):
    recorded({"02.a": entry(1.0), "02.b": entry(2.0), "02.gone": entry(3.0), "03.other": entry(1.0)})
    run = Results(2, "reference", [0])
    run.add("a", 1.05)
    run.add("b", 1.9001)
    run.add("new", 7)
    run.check()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["02.a ok", "02.b ok", "02.gone skipped (not computed)", "02.new skipped (no reference)"]


@pytest.mark.parametrize("value, word", [(1.85, "off"), (1.95, "ok"), (2.05, "ok"), (2.15, "off")])
def test_check_allows_an_absolute_difference_on_both_sides(recorded, capsys, value, word):
    recorded({"02.a": entry(2.0, tolerance=0.1)})
    run = Results(2, "full", [0])
    run.add("a", value)
    run.check()
    assert capsys.readouterr().out == f"02.a {word}\n"


def test_check_fails_where_a_metric_is_off(recorded, capsys):
    recorded({"02.a": entry(1.0), "02.b": entry(2.0)})
    run = Results(2, "reference", [0])
    run.add("a", 1.2)
    run.add("b", 2.0)
    with pytest.raises(AssertionError, match="02.a is 1.2, the reference 1, the tolerance 0.1"):
        run.check()
    assert capsys.readouterr().out.splitlines() == ["02.a off", "02.b ok"]


@pytest.mark.parametrize("profile, line", [("full", "02.a off"), ("quick", "02.a skipped (quick profile)")])
def test_other_profiles_do_not_fail(recorded, capsys, profile, line):
    recorded({"02.a": entry(1.0)})
    run = Results(2, profile, [0])
    run.add("a", 1.2)
    run.check()
    assert capsys.readouterr().out.splitlines() == [line]


def test_check_compares_the_same_seeds(recorded, capsys):
    recorded({"02.a": entry(3.0, per_seed=[1, 3, 5])}, seeds=[0, 1, 2])
    for seeds, values in ([[0], [1.0]], [[1, 2], [3.0, 5.0]], [[7, 8], [2.0, 4.0]]):
        run = Results(2, "reference", seeds)
        run.add("a", values)
        run.check()
    assert capsys.readouterr().out.splitlines() == ["02.a ok"] * 3


def test_a_figure_of_one_seed_is_compared_with_the_same_seed_alone(recorded, capsys):
    recorded({"02.a": entry(3.0)}, seeds=[0, 1, 2])
    for seeds in ([0, 1], [0], [1], [7]):
        run = Results(2, "reference", seeds)
        run.add("a", 3.05)
        run.check()
    skipped = "02.a skipped (recorded for seed 0 alone)"
    assert capsys.readouterr().out.splitlines() == ["02.a ok", "02.a ok", skipped, skipped]


def test_seeds_whose_weights_are_not_shipped_have_the_wider_tolerance(recorded, capsys):
    recorded({"02.a": entry(3.0, per_seed=[1, 3, 5], tolerance=0.5, reloaded=0.01)}, seeds=[0, 1, 2])
    for seeds, values in (([2], [5.005]), ([2, 3], [3.4, 3.4]), ([9], [3.4])):
        run = Results(2, "reference", seeds)
        run.add("a", values)
        run.check()
    assert capsys.readouterr().out.splitlines() == ["02.a ok"] * 3
    run = Results(2, "reference", [2])
    run.add("a", [5.4])
    with pytest.raises(AssertionError, match="02.a is 5.4, the reference 5, the tolerance 0.01"):
        run.check()


def test_shipped_weights_have_the_narrower_tolerance(recorded, capsys):
    recorded({"02.a": entry(1.0, tolerance=0.5, reloaded=0.01)})
    run = Results(2, "reference", [0], parameters={"checkpoints": "folder"})
    run.add("a", 1.2)
    run.check()
    run.parameters["checkpoints"] = ""
    with pytest.raises(AssertionError):
        run.check()


def test_changed_parameters_and_other_faces_are_not_compared(recorded, capsys):
    recorded({"04.a": entry(1.0)}, seeds=[3], parameters={"04": {"beta": 1.0, "seed": 0}})
    for faces, beta in (("frey", 4.0), ("synthetic", 1.0), ("frey", 1.0)):
        run = Results(4, "reference", [3], faces, {"beta": beta, "seed": 3})
        run.add("a", 1.0)
        run.check()
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "04.a skipped (beta is 4.0, not 1.0)"
        and "synthetic" in lines[1]
        and lines[2] == "04.a ok"
    )


def test_without_a_reference_nothing_is_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "REFERENCE", tmp_path / "reference.json")
    run = Results(2, "reference", [0])
    run.add("a", 1.0)
    run.check()
    assert capsys.readouterr().out == "02.a skipped (no reference)\n"


def test_a_damaged_reference_is_recorded_anew(recorded, monkeypatch, tmp_path):
    recorded({"02.a": entry(1.0)})
    results.REFERENCE.write_bytes(b"{}")
    kept = []
    for name in ("lambda_path", "width_study", "face_studies", "write_sums"):
        monkeypatch.setattr(reference_run, name, lambda: [])
    monkeypatch.setattr(reference_run, "REFERENCE", results.REFERENCE)
    monkeypatch.setattr(reference_run.runner, "plan", lambda *_: None)
    monkeypatch.setattr(reference_run.runner, "execute", lambda *_, **__: {"metrics": {}})
    monkeypatch.setattr(reference_run, "add_machine_spread", lambda *_: None)
    monkeypatch.setattr(reference_run, "keep", lambda metrics, folder: kept.append(metrics))
    reference_run.record()
    assert kept == [{"metrics": {}, "lambda_path": [], "width_study": [], "face_studies": []}]
    assert json.loads(results.REFERENCE.read_text())["verdicts"] == {}


def test_every_damaged_reference_is_refused(recorded):
    recorded({"02.a": entry(1.5)})
    other = results.REFERENCE.read_bytes()
    recorded({"02.a": entry(1.0)})
    sound = results.REFERENCE.read_bytes()
    assert load_reference()["metrics"]["02.a"]["value"] == 1.0
    for bad in damaged(sound, [other, b"{}"]):
        results.REFERENCE.write_bytes(bad)
        with pytest.raises(ValueError, match="SHA256SUMS"):
            load_reference()
    results.REFERENCE.write_bytes(sound)
    results.REFERENCE.with_name("SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="SHA256SUMS"):
        load_reference()


@pytest.mark.parametrize("value", [math.nan, {1}, "\ud800"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, value):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_publish_and_tables(recorded, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, **_: shown.append(getattr(data, "data", data))
    )
    found = {"verdict": "supported", "effect": 2.0, "ci95": [1.0, 3.0], "n": 5, "claim": "c", "contrast": "x"}
    recorded({"02.cae.mse": entry(0.5, ci95=[0.4, 0.6])}, {"E3": found})
    run = Results(2, "full", [0, 1])
    run.add("cae.mse", [0.5, 0.7], "MSE")
    run.add("sae.mse", 0.25)
    run.verdict("E3", "a | b", "b - a", [1.0, 2.0])
    run.publish()
    run.table("cae")
    run.verdicts_table()
    assert shown[0][MIME]["metrics"] == run.metrics and shown[0][MIME]["number"] == "02"
    assert (
        "| `cae.mse` | 0.6 (" in shown[1]
        and "| 0.5 (0.4 to 0.6) | MSE |" in shown[1]
        and "sae" not in shown[1]
    )
    assert r"a \| b" in shown[2] and "supported: +2 (+1 to +3), n = 5" in shown[2]


def test_tolerances_cover_new_seeds_and_other_machines():
    widest = stats.t.ppf(1 - 0.05 / 2, 4)
    fixed = {"value": 20.0, "per_seed": [], "unit": "dB"}
    assert reference_run.tolerances(fixed, widest) == pytest.approx((0.1, 0.4))
    assert reference_run.tolerances(fixed | {"machine": 0.03}, widest) == pytest.approx((0.3, 0.4))
    spread = [10.0, 12.0, 14.0, 16.0, 18.0]
    reloaded, anew = reference_run.tolerances({"value": 14.0, "per_seed": spread, "unit": "dB"}, widest)
    s = np.std(spread, ddof=1)
    assert reloaded == pytest.approx(s / 4) and anew == pytest.approx(widest * s * math.sqrt(1 / 3 + 1 / 5))
    of_one = reference_run.tolerances({"value": 14.0, "per_seed": spread, "unit": "dB"}, widest, 1)[1]
    assert of_one == pytest.approx(widest * s * math.sqrt(1 + 1 / 5))
    wide = {"value": 0.9, "per_seed": [0.1, 0.5, 0.9, 1.3, 1.7], "unit": ""}
    assert reference_run.tolerances(wide, widest)[1] is None  # it would hold nothing


def test_only_what_no_training_enters_is_held_to_its_figure_by_a_run_that_trains_anew(monkeypatch, tmp_path):
    one = {"value": 20.0, "per_seed": [], "unit": "dB"}
    names = ("01.ae.atom_area", "02.pca.map_purity", "02.pca.knn5", "04.known.mig")
    metrics = {"metrics": {name: dict(one) for name in names}, "seeds": [0], "parameters": {}}
    monkeypatch.setattr(reference_run, "REFERENCE", tmp_path / "reference.json")
    monkeypatch.setattr(reference_run, "write_sums", lambda: None)
    monkeypatch.setattr(reference_run, "write_readme", lambda folder: None)
    reference_run.keep(metrics, tmp_path)
    kept = json.loads((tmp_path / "reference.json").read_text(encoding="utf-8"))["metrics"]
    assert [kept[name]["tolerance"] for name in names] == [None, None, pytest.approx(0.4), None]
    assert [kept[name]["reloaded"] for name in names] == [pytest.approx(0.1), None, *[pytest.approx(0.1)] * 2]


def test_the_recorded_tolerances_follow_the_rule(monkeypatch, tmp_path):
    recorded = results.load_reference()
    monkeypatch.setattr(reference_run, "REFERENCE", tmp_path / "reference.json")
    monkeypatch.setattr(reference_run, "write_sums", lambda: None)
    monkeypatch.setattr(reference_run, "write_readme", lambda folder: None)
    reference_run.keep(json.loads(json.dumps(recorded)), tmp_path)
    assert json.loads((tmp_path / "reference.json").read_text(encoding="utf-8")) == recorded


def test_every_tolerance_has_a_measured_difference_between_machines():
    metrics = results.load_reference()["metrics"]
    assert all("machine" in entry for entry in metrics.values())
    held = [entry for entry in metrics.values() if entry["reloaded"] is not None]
    assert all(10 * entry["machine"] <= entry["reloaded"] for entry in held)


def test_a_run_on_another_machine_gives_each_metric_its_largest_difference(monkeypatch, tmp_path):
    found = iter([{"a": [1.5], "b": 2.0}, {"a": [1.2], "b": 1.9}, {"a": [0.9], "b": 2.25}])

    def run(plan):
        values = next(found)
        ran.append(
            {
                name: os.environ[name]
                for name in ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE")
                if name in os.environ
            }
        )
        assert plan.folder.parent == tmp_path and all(v["checkpoints"] == "" for v in plan.notebooks.values())
        entries = {
            "a": {"value": values["a"][0], "per_seed": values["a"]},
            "b": {"value": values["b"], "per_seed": []},
        }
        return {"metrics": entries}

    ran, metrics = [], {"a": {"value": 3.0, "per_seed": [1.0, 5.0]}, "b": {"value": 2.0, "per_seed": []}}
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(reference_run.runner, "execute", run)
    reference_run.add_machine_spread(metrics, tmp_path)
    assert metrics["a"]["machine"] == 0.5 and metrics["b"]["machine"] == 0.25
    cores = ("SkylakeX", "Haswell")
    assert ran[0] == {"OMP_NUM_THREADS": "2"}
    assert ran[1:] == [{"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": core} for core in cores]
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_sums_list_what_is_read_and_find_damage(tmp_path, monkeypatch):
    for name in (
        "MNIST/raw/a.gz",
        "checkpoints/b.safetensors",
        "reference.json",
        "bench.json",
        "frey_rawface.mat",
        "README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(reference_run, "DATA", tmp_path)
    monkeypatch.setattr(reference_run, "SHIPPED", tmp_path / "checkpoints")
    monkeypatch.setattr(reference_run, "REFERENCE", tmp_path / "reference.json")
    monkeypatch.setattr(reference_run, "BENCH", tmp_path / "bench.json")
    reference_run.write_sums()
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in lines] == [
        "MNIST/raw/a.gz",
        "bench.json",
        "checkpoints/b.safetensors",
        "reference.json",
    ]
    assert report.damaged_files(tmp_path) == []
    (tmp_path / "MNIST/raw/a.gz").unlink()
    (tmp_path / "reference.json").write_text("other")
    assert report.damaged_files(tmp_path) == ["MNIST/raw/a.gz", "reference.json"]
    (tmp_path / "SHA256SUMS").unlink()
    assert report.damaged_files(tmp_path) == ["SHA256SUMS"]


@pytest.mark.parametrize(
    "latex",
    [
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\bigl\|h\bigr\|^2 + \arg\max_k a_k",
        r"\lVert \partial h / \partial x \rVert_F^2",
        r"\operatorname*{arg\,max}_x \tfrac12 \sum_{j=1}^d \bigl(\mu_j^2 + \sigma_j^2\bigr)",
    ],
)
def test_formulas_become_mathml(latex):
    html = report.markdown(f"$${latex}$$ and ${latex}$")
    assert html.count("<math") == 2 and "\\" not in html and "&amp;" not in html and "<mi>&</mi>" not in html


def test_code_is_escaped_and_an_svg_is_a_picture():
    svg = nbformat.v4.new_output(
        "display_data", data={"image/svg+xml": "<svg><script>alert(1)</script></svg>"}
    )
    cell = nbformat.v4.new_code_cell("'<script>alert(2)</script>' # <b>", outputs=[svg])
    body = report.notebook_html(nbformat.v4.new_notebook(cells=[cell]))
    assert "<script>" not in body and "<b>" not in body and "&lt;b&gt;" in body and "svg+xml;base64," in body


def test_what_pandas_writes_becomes_valid_html(tmp_path):
    head = pd.MultiIndex.from_product([['border="1" is text'], ["a", "b"]])
    table = pd.DataFrame([[1, 2]], columns=head)._repr_html_()
    assert "<style" in table and "border=" in table and "halign=" in table
    path = make_notebook(tmp_path / "01_one.ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("display_data", {"text/html": table})]
    body = report.notebook_html(notebook)
    assert not re.search(r"<style|<\w+[^>]* (border|halign|valign|scoped)=", body)
    assert 'border="1" is text' in body and "<td>2</td>" in body


def test_a_report_shows_a_run_before_the_reference():
    def entry(value):
        return {"value": value, "ci95": [value - 0.001, value + 0.001]}

    here = {"01.ae.test_mse": entry(0.1), "01.cae.test_mse": entry(0.3), "04.vae.psnr_db": entry(31.0)}
    there = {"01.ae.test_mse": entry(0.2), "04.vae.psnr_db": entry(32.0)}
    codes, faces = report.key_figures(here, there)
    row = re.search(r"<tr><td>test MSE</td>.*?</tr>", codes)[0]
    shown = ["0.10000 [0.09900, 0.10100]", "–", "0.30000 [0.29900, 0.30100]", "–"]
    assert re.findall(r"<td>(.*?)</td>", row) == ["test MSE", *shown, "0.20000 [0.19900, 0.20100]", *"–––"]
    assert "<td>31.0 [31.0, 31.0]</td><td>32.0 [32.0, 32.0]</td>" in faces
    found = {
        "claim": "a",
        "contrast": "b",
        "verdict": "refuted",
        "effect": -2.0,
        "ci95": [-3.0, -1.0],
        "n": 5,
    }
    body = report.verdicts_table({"E1": found}, {"E1": {"verdict": "supported"}})
    cells = ["E1", "a", "refuted", "supported", "-2", "[-3, -1]", "5", "b"]
    assert re.findall(r"<td>(.*?)</td>", body) == cells
    nothing = found | {"effect": None, "ci95": None}
    assert "<td>refuted</td><td>–</td><td>–</td><td>–</td>" in report.verdicts_table({"E1": nothing}, {})


def test_settings():
    assert seeds_of(3, 2) == [3, 4]
    assert folders_for("some/folder")[0].as_posix() == "some/folder" and len(folders_for("some/folder")) == 1
    shipped, cache = folders_for("")
    assert shipped.parts[-2:] == ("data", "checkpoints") and cache.name == "checkpoints" and shipped != cache
    with pytest.raises(ValueError, match="seed is True"):
        check_parameters({"seed": True})


def test_the_four_digit_models_differ_in_nothing_but_the_penalty():
    configs = digit_configs(seed=1, latent_dim=32, lam_sae=0.2, lam_cae=0.3, sigma_dae=0.4, epochs=2)
    own = {name: (config.penalty, config.lam) for name, config in configs.items()}
    assert own == {
        "ae": ("none", 0.0),
        "sae": ("l1", 0.2),
        "cae": ("contractive", 0.3),
        "dae": ("denoising", 0.4),
    }
    rest = [{k: v for k, v in vars(c).items() if k not in ("penalty", "lam")} for c in configs.values()]
    assert rest[0] == rest[1] == rest[2] == rest[3]


def test_digit_models_train_on_the_first_images_and_validate_on_the_last_ones(monkeypatch):
    asked, images = [], torch.arange(60_000)
    monkeypatch.setattr(settings, "load_or_train", lambda *given, **_: asked.append(given))
    common = {
        "latent_dim": 4,
        "lam_sae": 0.1,
        "lam_cae": 0.2,
        "sigma_dae": 0.3,
        "epochs": 1,
        "checkpoints": "x",
        "device": "cpu",
    }
    settings.digit_models(("ae", "cae"), seeds=[3, 4], n_train=55_000, images=images, **common)
    assert [(config.seed, config.penalty) for config, *_ in asked] == [
        (seed, penalty) for seed in (3, 4) for penalty in ("none", "contractive")
    ]
    for _, train, val in asked:
        assert train.tolist() == list(range(55_000)) and val.tolist() == list(range(55_000, 60_000))
    assert settings.validation(1024) == 1024
    with pytest.raises(ValueError, match="n_train is 55001"):
        check_parameters({"n_train": 55_001})


def test_the_reference_trains_on_no_validation_image(monkeypatch):
    images = torch.arange(60_000)
    monkeypatch.setattr(reference_run, "load_mnist", lambda: SimpleNamespace(train_images=images))
    asked = {
        "n_train": 55_000,
        "latent_dim": 4,
        "lam_sae": 0.1,
        "lam_cae": 0.2,
        "sigma_dae": 0.3,
        "epochs": 1,
        "seed": 0,
    }
    tasks = list(reference_run.digit_tasks(asked))
    assert len(tasks) == 20
    for task in tasks:
        train, val = reference_run.images_of(task.config.data, task.n_train)
        assert train.tolist() == list(range(55_000)) and val.tolist() == list(range(55_000, 60_000))
    reference_run.images_of.cache_clear()


def test_faces_are_split_as_a_configuration_says():
    drawn = load_frey_faces(source="synthetic").images
    independent = synthetic_faces(900, 3, independent=True)[0]
    for data, images, split in (
        ("synthetic/blocks-3", drawn, ("blocks", 3)),
        ("synthetic/random-0", drawn, ("random", 0)),
        ("independent/random-3", independent, ("random", 3)),
    ):
        train, val = reference_run.images_of(data, 900 if images is independent else None)
        index = split_frames(len(images), *split)
        assert torch.equal(train, images[index.train]) and torch.equal(val, images[index.val])


def test_the_plain_faces_differ_from_the_vae_in_nothing_but_the_price_of_the_code():
    faces = face_configs(seed=4, face_latent_dim=8, face_epochs=3, beta=2.5, reach=1, data="frey/random-0")
    assert faces["vae"].seed == 4 and faces["vae"].latent_dim == 8 and faces["vae"].epochs == 3
    assert (
        faces["vae"].beta == 2.5
        and faces["vae"].reach == 1
        and faces["ae"] == replace(faces["vae"], beta=0.0)
    )


def test_the_lambda_path_has_a_row_for_every_lam_measured_on_validation_images(monkeypatch, tmp_path):
    images = torch.rand(456, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    small = {"n_train": 256, "latent_dim": 4, "epochs": 1}
    monkeypatch.setattr(reference_run, "PATH", {"none": {0.0: 2}, "l1": {0.1: 2, 0.2: 1}})
    monkeypatch.setattr(reference_run, "VALIDATION", 200)
    labels = torch.arange(456) % 10
    mnist = SimpleNamespace(train_images=images, train_labels=labels)
    monkeypatch.setattr(reference_run, "load_mnist", lambda: mnist)
    monkeypatch.setattr(reference_run, "READ", 150)
    monkeypatch.setattr(reference_run, "different_pairs", lambda labels, n: different_pairs(labels, n // 50))
    monkeypatch.setattr(reference_run.runner, "defaults", lambda path: small)
    rows = reference_run.lambda_path(tmp_path)
    assert [(row["penalty"], row["lam"]) for row in rows] == [("none", 0.0), ("l1", 0.1), ("l1", 0.2)]

    def errors(n_seeds, **penalty):
        configs = [AutoencoderConfig(latent_dim=4, epochs=1, seed=k, **penalty) for k in range(n_seeds)]
        models = [load_or_train(config, images[:256], folders=[tmp_path]).model for config in configs]
        return [(model(images[256:]) - images[256:]).square().mean().item() for model in models]

    ae, sae = errors(2), errors(2, penalty="l1", lam=0.1)
    assert rows[0]["val_mse"] == pytest.approx(np.mean(ae)) and rows[0]["of_tau"] == pytest.approx(1 / 1.25)
    assert rows[1]["seeds"] == 2
    config = AutoencoderConfig(latent_dim=4, epochs=1, penalty="l1", lam=0.2)
    model = load_or_train(config, images[:256], folders=[tmp_path]).model
    h, h_read = model.encode(images[256:]), model.encode(images[:150])
    assert rows[2]["l1"] == pytest.approx(h.abs().sum(1).mean().item(), rel=1e-4)
    assert rows[2]["code_scale"] == pytest.approx(
        (h - h.mean(0)).square().sum(1).sum().div(199).sqrt().item()
    )
    mean, scale = h_read.mean(0), h_read.var(0).mean().sqrt()
    reader = SVC(C=10, gamma=1 / 4).fit(((h_read - mean) / scale).detach(), labels[:150])
    right = reader.predict(((h - mean) / scale).detach()) == labels[256:].numpy()
    assert rows[2]["svm_accuracy"] == pytest.approx(right.mean())
    x_noisy = corrupt(images[256:], "gaussian", 0.3, torch.Generator().manual_seed(0))
    right = reader.predict(((model.encode(x_noisy) - mean) / scale).detach()) == labels[256:].numpy()
    assert rows[2]["svm_noisy"] == pytest.approx(right.mean())
    (one, two), decibels = images[256:][different_pairs(labels[256:], 20)].unbind(1), []
    for alpha in (0.2, 0.4, 0.6, 0.8):
        blend = model(alpha * one + (1 - alpha) * two)
        line = model.decode(alpha * model.encode(one) + (1 - alpha) * model.encode(two))
        decibels.append(-10 * (blend - line).square().flatten(1).mean(1).log10().mean().item())
    assert rows[2]["blend_db"] == pytest.approx(np.mean(decibels), rel=1e-4)
    assert rows[1]["of_tau"] == pytest.approx(np.mean([s / (1.25 * a) for s, a in zip(sae, ae)]))
    assert rows[2]["of_tau"] == pytest.approx(errors(1, penalty="l1", lam=0.2)[0] / (1.25 * ae[0]))
    assert rows == reference_run.lambda_path(tmp_path)  # from the weights that are there


def test_a_recorded_path_is_compared_at_equal_error(monkeypatch):
    kinds = {
        "none": [(0, 0.8, 5)],
        "l1": [(0.2, 1.2, 1), (0.1, 0.8, 3), (0.3, 1.4, 4)],
        "denoising": [(0.5, 1, 0)],
    }
    kinds["contractive"] = [(3, 1.5, 9), (1, 0.9, 4), (0.5, 0.7, 9), (2, 1.3, 2)]
    rows = [
        {"penalty": kind, "lam": lam, "of_tau": error, "blend_db": value}
        for kind, points in kinds.items()
        for lam, error, value in points
    ]
    monkeypatch.setattr(results, "load_reference", lambda: {"lambda_path": rows})
    path = results.recorded_path("blend_db")
    assert path["ae"] == [(0, 0.8, 5)] and path["sae"] == [(0.1, 0.8, 3), (0.2, 1.2, 1), (0.3, 1.4, 4)]
    assert [lam for lam, *_ in path["cae"]] == [0.5, 1, 2, 3]
    leads = results.at_equal_error(path["cae"], path["sae"])
    assert [lam for lam, _ in leads] == [1, 2]  # 0.7 and 1.5 lie beyond the other path
    assert [lead for _, lead in leads] == pytest.approx([4 - 2.5, 2 - 2.5])
    ax = plt.figure().add_subplot()
    plots.path_curves(path, ax, "dB")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn["SAE"] == [[0.8, 3], [1.2, 1], [1.4, 4]] and drawn["AE"] == [[0.8, 5]]
    assert [text.get_text() for text in ax.texts] == ["0.1", "0.2", "0.3", "0.5", "1", "2", "3"]
    ax = plt.figure().add_subplot()  # no room beside 0.1, whose neighbour leaves 0.3 its own
    plots.path_curves({"sae": [(0.1, 1, 1), (0.2, 1.01, 1), (0.3, 1.05, 1), (9, 2, 2)]}, ax, "dB")
    assert [text.get_text() for text in ax.texts] == ["0.1", "0.3", "9"]
    assert results.recorded_path("svm_noisy") == {}
    monkeypatch.setattr(results, "load_reference", lambda: {})
    assert results.recorded_path("blend_db") == {}


def test_the_width_study_takes_the_largest_strength_within_tau(monkeypatch, tmp_path):
    errors = {"none": {0.0: 1.0}, "l1": {0.1: 1.2, 0.2: 1.24, 0.4: 1.26}, "contractive": {0.1: 1.3, 0.2: 1.4}}
    small = {"n_train": 256, "epochs": 1, "lam_sae": 0.1, "lam_cae": 0.2}
    mnist = SimpleNamespace(train_images=torch.rand(456, 1, 28, 28))
    monkeypatch.setattr(reference_run, "load_mnist", lambda: mnist)
    monkeypatch.setattr(reference_run.runner, "defaults", lambda path: small)
    strengths = {"l1": (0.4, 0.1, 0.2), "contractive": (0.2, 0.1)}
    wide = {"latent_dim": 8, "code": "sigmoid", "epochs": 3}
    kl = {"kl": strengths["l1"], "contractive": None}
    monkeypatch.setattr(reference_run, "WIDTHS", (({"latent_dim": 4}, strengths), (wide, kl)))
    errors["kl"] = errors["l1"]

    def trained(config, train, val, folders):
        assert len(train) == 256 and config.seed == 0
        assert (config.epochs, config.code) == {4: (1, "relu"), 8: (3, "sigmoid")}[config.latent_dim]
        history = [{"val": 9.0}, {"val": errors[config.penalty][config.lam]}]
        return SimpleNamespace(history=history, model=config.build((28, 28)))

    monkeypatch.setattr(reference_run, "load_or_train", trained)
    monkeypatch.setattr(
        reference_run, "read_width", lambda model: {"logreg_C": model.latent_dim, "blend_db": 1.0}
    )
    rows = reference_run.width_study(tmp_path)
    found = [(row["latent_dim"], row["model"], row["lam"], row.get("val_mse")) for row in rows]
    assert found == [
        (4, "untrained", 0.0, None), (4, "ae", 0.0, 1.0), (4, "sae", 0.2, 1.24), (4, "cae", 0.1, 1.3),
        (8, "untrained", 0.0, None), (8, "ae", 0.0, 1.0), (8, "sae", 0.2, 1.24), (8, "cae", 0.2, 1.4),
    ]  # fmt: skip
    assert [(row["code"], row["epochs"]) for row in rows] == [("relu", 1)] * 4 + [("sigmoid", 3)] * 4
    assert rows[2]["of_tau"] == pytest.approx(1.24 / 1.25) and rows[7]["logreg_C"] == 8
    assert ["blend_db" in row for row in rows] == [False, True, True, True] * 2


class Flat(torch.nn.Linear):
    """The first row of the image is its code, and the code's image: both blends are one."""

    latent_dim, code = 28, "linear"

    def encode(self, x):
        return x[:, 0, 0]

    def decode(self, h):
        return torch.nn.functional.pad(h[:, None, None], (0, 0, 0, 27))


def test_what_is_read_from_a_width_is_learned_from_training_codes_only(monkeypatch):
    """Every class is told by a plane, and the noise shows the class after it."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(900, 1, 28, 28, generator=rng)
    labels = torch.arange(900) % 10
    x[torch.arange(900), 0, 0, labels] = 8.0
    mnist = SimpleNamespace(
        train_images=x[:600], train_labels=labels[:600], test_images=x[600:], test_labels=labels[600:]
    )
    monkeypatch.setattr(reference_run, "load_mnist", lambda: mnist)
    monkeypatch.setattr(reference_run, "different_pairs", lambda labels, n: different_pairs(labels, 20))
    monkeypatch.setattr(reference_run, "corrupt", lambda x, *_: x.roll(1, dims=3))
    model = Flat(1, 1)
    found = reference_run.read_width(model)
    assert found["logreg_accuracy"] == found["svm_accuracy"] == 1.0 and found["knn5"] == 1.0
    assert found["svm_noisy"] < 0.15 and 0.003 <= found["logreg_C"] <= 0.3
    h_max = x[:600].flatten(1)[:, :28].abs().amax(0)
    assert found["active_share"] == pytest.approx(active_share(x[600:].flatten(1)[:, :28], h_max))
    assert found["blend_db"] > 100
    stopped = partial(LogisticRegression, max_iter=3)
    monkeypatch.setattr(reference_run, "LogisticRegression", lambda tol, max_iter: stopped(tol=tol))
    short = reference_run.read_width(model)
    assert found.keys() - short.keys() == {"logreg_C", "logreg_accuracy"}


FACES = """
profile: str = "reference"  # which
seed: int = 0  # first
n_face_seeds: int = 1  # how many
checkpoints: str = ""  # weights
faces: str = "auto"  # which
split: str = "random"  # how
split_seed: int = 0  # its seed
beta: float = 1.0  # price
reach: int = 2  # neighbours
iwae_samples: int = 500  # K
"""
FOUND = """
from IPython.display import display
entry = {"value": beta + split_seed, "per_seed": [], "ci95": None, "unit": ""}
results = {"number": "04", "profile": profile, "seeds": [seed], "faces": faces, "verdicts": {}, "labels": {}}
results |= {"parameters": {"beta": beta, "split": split, "split_seed": split_seed, "reach": reach}}
results["parameters"]["iwae_samples"] = iwae_samples
results["metrics"] = {"04.vae.bits": entry, "04.data.frames": entry}
display({"application/vnd.aeutils.results+json": results, "text/plain": ""}, raw=True)
"""


def test_a_study_of_faces_changes_the_notebook_s_parameters_and_is_found_again(monkeypatch, tmp_path):
    notebooks, folder, execute = tmp_path / "notebooks", tmp_path / "studies", reference_run.runner.execute
    notebooks.mkdir()
    make_notebook(notebooks / "04_faces.ipynb", FOUND, parameters=FACES)
    monkeypatch.setattr(reference_run.runner, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(reference_run, "FACE_STUDIES", ({"beta": 4.0, "split_seed": 2}, {"reach": 0}))
    ran = []
    monkeypatch.setattr(reference_run.runner, "execute", lambda plan: ran.append(1) or execute(plan))
    usual = {"split": "random", "split_seed": 0, "beta": 1.0, "reach": 2, "iwae_samples": 500}
    rows = reference_run.face_studies(folder)
    assert rows == [
        usual | {"beta": 4.0, "split_seed": 2, "metrics": {"vae.bits": 6.0}},
        usual | {"reach": 0, "metrics": {"vae.bits": 1.0}},
    ]
    assert reference_run.face_studies(folder) == rows and len(ran) == 2
    make_notebook(notebooks / "04_faces.ipynb", FOUND.replace("beta +", "10 * beta +"), parameters=FACES)
    assert reference_run.face_studies(folder)[0]["metrics"] == {"vae.bits": 42.0} and len(ran) == 4


@pytest.mark.parametrize(
    ("mine", "holds", "said"),
    [
        (None, lambda f: True, "not tried yet"),
        (len, lambda f: f("ab") == 2, "right"),
        (len, lambda f: f("ab") == 3, "not yet"),
        (len, lambda f: f(1), "not yet (TypeError: object of type 'int' has no len())"),
    ],
)
def test_an_exercise_answers_back_and_never_stops_the_notebook(mine, holds, said, capsys):
    results.exercise(7, mine, holds)
    assert capsys.readouterr().out == f"exercise 7: {said}\n"
