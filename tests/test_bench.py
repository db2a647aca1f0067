"""The speed measurement: its penalties are the penalty, and what it writes is what it measured."""

import json

import pytest
import torch

from aeutils.course import bench
from aeutils.data import load_mnist
from aeutils.losses import jacobian_frobenius
from aeutils.models import Autoencoder
from aeutils.training import AutoencoderConfig

TRAINED = [{"epochs": 1, "seconds": 2.0, "test_mse": 0.004, "svm_accuracy": 0.981}]


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
    monkeypatch.setattr(bench.speed, "time_to", lambda reached: TRAINED)
    bench.write(tmp_path / "bench", rounds=2)
    written = json.loads((tmp_path / "bench" / "bench.json").read_text())
    median = {name: row["median"] for name, row in written["speeds"].items()}
    assert all(len(row["all"]) == 2 and min(row["all"]) > 0 for row in written["speeds"].values())
    over = {
        "AE training over the usual loop": ("AE, training", "AE, usual loop"),
        "the same with batches of 256": ("AE, training, batches of 256", "AE, usual loop"),
        "CAE step over the plain step": ("AE, training", "CAE, training"),
        "probe over exact by rows": ("penalty: one random probe", "penalty: exact, by rows"),
    }
    for name, (one, other) in over.items():
        assert written["ratios"][name] == pytest.approx(median[one] / median[other])
    assert written["time_to"] == TRAINED and "ablation" not in written
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 10_000


def test_only_the_usual_loop_has_torch_s_transposed_convolution(monkeypatch):
    seen, own = [], torch.nn.functional.conv_transpose2d
    monkeypatch.setattr(
        torch.nn.functional, "conv_transpose2d", lambda *inputs: seen.append(inputs) or own(*inputs)
    )
    images = torch.rand(8, 1, 28, 28)
    for fast in (True, False):
        bench.trainer(AutoencoderConfig(), images, fast)(images)
        assert bool(seen) == (not fast)


def test_only_the_images_that_a_step_saw_count():
    seen = []
    assert bench.indexed(lambda x: seen.append(len(x)), torch.rand(50, 1, 4, 4), 8) == sum(seen) == 50


def test_a_target_is_reached_only_where_both_are():
    assert bench.good({"test_mse": 0.005, "svm_accuracy": 0.98})
    assert not bench.good({"test_mse": 0.0051, "svm_accuracy": 0.99})
    assert not bench.good({"test_mse": 0.004, "svm_accuracy": 0.979})
