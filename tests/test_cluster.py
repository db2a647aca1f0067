"""Trainings on a real Dask scheduler with two workers on loopback, one of which is killed."""

import os
import signal
import sys
import threading
import time

import pytest
import torch

from aeutils import training
from aeutils.course import cli, reference, runner
from aeutils.training import AutoencoderConfig, read_checkpoint

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
SMALL = {"penalty": "l1", "lam": 0.001, "latent_dim": 16, "epochs": 3, "batch_size": 32, "lr": 4e-3}
LOOPBACK = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
slow = pytest.mark.skipif(not os.environ.get("AEUTILS_SLOW"), reason="two minutes: make faults")


@pytest.fixture
def cluster():
    with distributed.LocalCluster(**LOOPBACK) as cluster:
        yield cluster


@slow
def test_a_killed_worker_loses_nothing_and_nothing_is_trained_twice(cluster, tmp_path, capsys):
    tasks = [reference.Task(f"l1 {seed}", AutoencoderConfig(seed=seed, **SMALL), 1024) for seed in range(4)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of Dask has
    alone = reference.train(tasks, tmp_path / "alone")
    torch.set_num_threads(before)

    folder, first_seen, pids = tmp_path / "shared", {}, []

    def watch():
        while len(first_seen) < len(tasks):
            for path in folder.glob("*.safetensors"):
                first_seen.setdefault(path.name, path.stat().st_mtime_ns)
            if first_seen and not pids:  # the first training has ended: both workers are at the next ones
                pids.append(next(iter(cluster.workers.values())).pid)
                os.kill(pids[0], signal.SIGKILL)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found = reference.train(tasks, folder, cluster.scheduler_address)
    watcher.join(10)
    assert (
        pids and {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == first_seen
    )
    for (task, mine), (other, theirs) in zip(alone, found, strict=True):
        assert task == other and mine.figures == theirs.figures
        path = reference.checkpoint_path(task.config, folder)
        mine, theirs = (read_checkpoint(p)[0] for p in (tmp_path / "alone" / path.name, path))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(done.reused for _, done in reference.train(tasks, folder, cluster.scheduler_address))
    there = capsys.readouterr().out.count("there")
    assert there >= len(tasks)  # one more where the killed worker had just ended


def test_where_no_scheduler_answers_the_command_says_so(tmp_path, capsys):
    study = f"--seeds 0 --lam 0.1 --scheduler tcp://127.0.0.1:9 --output {tmp_path}"
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert cli.command_line(["reference", *study.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "tcp://127.0.0.1:9" in error and "Traceback" not in error


@slow
def test_a_task_that_kills_its_workers_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "perform", lambda task, folder: os._exit(1))
    task = reference.Task("l1", AutoencoderConfig(**SMALL))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(**LOOPBACK) as cluster,
        pytest.raises(runner.RunFailed, match="mnist-l1-seed0.+ended its workers"),
    ):
        reference.train([task], tmp_path, cluster.scheduler_address)


def test_checkpoints_of_workers_with_folders_of_their_own_come_home(monkeypatch, tmp_path):
    class Future:
        def __init__(self, task, key):
            self.key, self.result = key, reference.perform(task, tmp_path / "theirs")

    class Client:
        def __init__(self, address):
            self.address = address

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def submit(self, perform, task, folder, key):
            assert perform is reference.perform and folder == str(tmp_path / "home")
            return Future(task, key)

    monkeypatch.setattr(distributed, "Client", Client)
    monkeypatch.setattr(
        distributed, "as_completed", lambda futures, with_results: [(f, f.result) for f in futures]
    )
    small = SMALL | {"epochs": 1}
    tasks = [reference.Task("l1", AutoencoderConfig(seed=seed, **small), 1024) for seed in range(2)]
    reference.train(tasks, tmp_path / "home", "tcp://127.0.0.1:1")
    for path in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "home" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "home").iterdir())) == 2


def mse(model, x):
    return (model(x) - x).square().mean().item()


def test_a_study_has_a_row_for_every_penalty_strength_and_seed(monkeypatch, tmp_path):
    small = {"latent_dim": 8, "epochs": 1, "n_train": 1024}
    monkeypatch.setattr(reference.runner, "defaults", lambda path: small)
    monkeypatch.setattr(
        reference,
        "path_point",
        lambda model, images, _: {"val_mse": mse(model, images[-reference.validation(1024) :])},
    )
    monkeypatch.setattr(training, "check_alive", lambda *_: None)  # after eight steps all images look alike
    rows = reference.study([0, 3], [0.001, 0.002], tmp_path)
    assert [(row["penalty"], row["lam"], row["seed"]) for row in rows] == [
        (penalty, lam, seed) for penalty in ("l1", "contractive") for lam in (0.001, 0.002) for seed in (0, 3)
    ]
    assert all(row["val_mse"] == pytest.approx(row["val"], rel=1e-3) for row in rows)
    again = reference.study([0, 3], [0.001, 0.002], tmp_path)
    assert again == rows and (tmp_path / "study.json").exists()
