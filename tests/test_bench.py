"""The speed measurement: its penalties are the penalty, and what it writes is what it measured."""

import json

import pytest
import torch

from aeutils.course import bench
from aeutils.data import load_mnist
from aeutils.losses import jacobian_frobenius
from aeutils.models import Autoencoder


def test_every_exact_penalty_is_the_exact_penalty():
    torch.manual_seed(0)
    model = Autoencoder(6, code="relu").double().eval()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    truth = jacobian_frobenius(model.encode, x).mean()
    for name, penalty in bench.penalties(model).items():
        if name.startswith("exact"):
            assert penalty(x.clone()).item() == pytest.approx(truth.item())


def test_a_bench_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 8)
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr(bench, "FEW", 1)
    mnist = load_mnist()
    monkeypatch.setattr(bench, "load_mnist", lambda: mnist._replace(train_images=mnist.train_images[:64]))
    trained = [{"epochs": 1, "seconds": 2.0, "test_mse": 0.004}]
    monkeypatch.setattr(bench, "time_to_error", lambda: trained)
    bench.write(tmp_path / "bench", rounds=2)
    written = json.loads((tmp_path / "bench" / "bench.json").read_text())
    median = {name: row["median"] for name, row in written["speeds"].items()}
    assert all(len(row["all"]) == 2 and min(row["all"]) > 0 for row in written["speeds"].values())
    ratio = written["ratios"]["CAE step over the plain step"]
    assert ratio == pytest.approx(median["AE, training"] / median["CAE, training"])
    assert written["time_to_error"] == trained
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 10_000


def test_the_time_to_an_error_is_that_of_the_shortest_training_that_reaches_it(monkeypatch):
    asked, mnist = [], load_mnist()
    few = mnist._replace(train_images=mnist.train_images[:8], test_images=mnist.test_images[:8])
    monkeypatch.setattr(bench, "load_mnist", lambda: few)

    def fit(config, images, progress):
        asked.append((config.penalty, config.epochs))
        torch.manual_seed(0)
        return Autoencoder(4, code="relu").eval(), []

    monkeypatch.setattr(bench, "fit", fit)
    torch.manual_seed(0)
    error = (Autoencoder(4, code="relu").eval()(few.test_images) - few.test_images).square().mean().item()
    rows = bench.time_to_error(target=error / 2, epochs=(1, 2))
    assert asked == [("none", 1), ("none", 2)] and [row["epochs"] for row in rows] == [1, 2]
    assert all(row["test_mse"] == pytest.approx(error) and row["seconds"] > 0 for row in rows)
    assert len(bench.time_to_error(target=error * 2, epochs=(1, 2))) == 1
