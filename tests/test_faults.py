"""Kills, interruptions, full disks and shut folders: nothing half-written, and the same command goes on."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from damage import damaged
from processes import command, command_on_two_cores, rewrite, said, started, train
from small_notebooks import DIGITS, PARAMETERS, make_notebook, publish

import aeutils
from aeutils import data, training
from aeutils.course import cli, settings
from aeutils.training import AutoencoderConfig, VAEConfig, checkpoint_path, load_or_train, read_checkpoint

if sys.platform == "win32":  # which has no SIGKILL to name in a decorator
    pytest.skip("POSIX signals, permissions and limits", allow_module_level=True)

SLOW = bool(os.environ.get("AEUTILS_SLOW"))
AE = AutoencoderConfig(
    latent_dim=4, widths=(2, 4, 4), penalty="contractive", lam=0.1, epochs=30, batch_size=16
)
VAE = VAEConfig(latent_dim=3, widths=(4, 8, 8), beta=0.0, dropout=0.1, epochs=30, batch_size=16, lr=0.003)
IMAGES = torch.linspace(0, 1, 48).view(-1, 1, 1, 1) * torch.linspace(0, 1, 64).view(1, 1, 8, 8)
PATTERNS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()[torch.arange(48) % 4]
PATTERNS *= torch.linspace(0.3, 1, 48).view(
    -1, 1, 1, 1
)  # what neighbours do not tell: the VAE needs its code

TRAIN = f"""
import time
import torch
from aeutils import training
training.SAVE_SECONDS, save = 0, training.save_resume
training.save_resume = lambda *arguments: (save(*arguments), time.sleep(0.05))  # long enough to be met
images = torch.linspace(0, 1, 48).view(-1, 1, 1, 1) * torch.linspace(0, 1, 64).view(1, 1, 8, 8)
trained = training.load_or_train(training.{AE!r}, images, folders=[checkpoints], progress=False)
"""


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def all_sound(folder):
    """Every file of weights is whole, and so is metrics.json if it is there."""
    for path in (*folder.rglob("*.safetensors"), *folder.rglob("*.resume")):
        with contextlib.suppress(FileNotFoundError):  # a kernel that outlives its run ends its training
            read_checkpoint(path)
    for path in folder.rglob("metrics.json"):
        json.loads(path.read_text(encoding="utf-8"))
    return True


def contents(path):
    """A checkpoint's configuration, history and checksum of all its bits; safetensors orders them at random."""
    return read_checkpoint(path)[1]


def parents(process):
    """The process numbers above a process that may end meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [parent.pid for parent in process.parents()]
    return []


def small(config):
    return dataclasses.replace(config, epochs=2)


@pytest.mark.parametrize(("config", "images"), [(AE, IMAGES), (VAE, PATTERNS)], ids=["contractive", "vae"])
def test_a_training_killed_20_times_ends_in_the_same_bits(config, images, tmp_path):
    kills, whole, folder, draw = 20, tmp_path / "whole", tmp_path / "killed", random.Random(0)
    with started(train, config, images, whole) as (process, _):
        process.join()
    sound, path = contents(checkpoint_path(config, whole)), checkpoint_path(config, folder)
    resumed = 0
    while kills or not path.exists():
        resumed += path.with_suffix(".resume").exists()
        with started(train, config, images, folder) as (process, hears):
            try:
                for _ in range(draw.randrange(4) if kills else 10**6):
                    hears.recv_bytes()
                time.sleep(draw.uniform(0, 0.03))
                process.kill()
            except EOFError:
                pass
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL) and all_sound(folder)
        kills -= process.exitcode != 0
        if kills and path.exists():  # it came to its end before all kills: once more
            assert contents(path) == sound
            path.unlink()
    assert contents(path) == sound and resumed


def test_two_trainings_at_once_into_one_folder_end_in_the_same_bits(tmp_path):
    with started(train, AE, IMAGES, tmp_path) as (one, _), started(train, AE, IMAGES, tmp_path) as (two, _):
        one.join()
        two.join()
    assert one.exitcode == two.exitcode == 0
    assert [Path(name).suffix for name in names(tmp_path)] == [".safetensors"] and all_sound(tmp_path)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_the_old_or_the_new_one(tmp_path):
    path, seen = tmp_path / "x.resume", []
    with started(rewrite, path) as (process, hears):
        hears.recv_bytes()
        while len(seen) < 2000 or len(set(seen)) < 10:
            tensors, meta = read_checkpoint(path)
            seen.append(int(meta["n"]))
            assert (tensors["n"] == seen[-1]).all() and process.is_alive()


def test_every_one_of_100_corruptions_of_a_resume_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    for seed in (0, 1):
        config = dataclasses.replace(small(AE), seed=seed)
        training.fit(config, IMAGES, resume=tmp_path / f"{seed}.resume", progress=False)
    path, tried = tmp_path / "0.resume", 0
    for bad in damaged(path.read_bytes(), [(tmp_path / "1.resume").read_bytes(), b"<html>"]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is damaged|belongs to another"):
            training.fit(small(AE), IMAGES, resume=path, progress=False)
        tried += 1
    assert tried == 100


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also where the shell that began the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_training_says_how_to_go_on(tmp_path, monkeypatch, ctrl_c):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    whole = load_or_train(AE, IMAGES, folders=[tmp_path / "whole"], progress=False)
    loss, steps = AutoencoderConfig.loss, 0

    def loss_with_ctrl_c(*arguments):
        nonlocal steps
        steps += 1
        if steps in (2, 20):
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(AutoencoderConfig, "loss", loss_with_ctrl_c)
    for kept in ("starts anew: no epoch was kept yet", f"goes on from {tmp_path}/.*.resume"):
        with pytest.raises(KeyboardInterrupt, match=f"interrupted; the same call {kept}"):
            load_or_train(AE, IMAGES, folders=[tmp_path], progress=False)
        assert all_sound(tmp_path)
    resumed = load_or_train(AE, IMAGES, folders=[tmp_path], progress=False)
    assert resumed.history == whole.history and steps < 3 * AE.epochs + 20
    assert not list(tmp_path.glob("*.resume"))


@pytest.fixture
def course_that_trains(course):
    parameters = PARAMETERS + 'checkpoints: str = ""  # weights\n'
    make_notebook(course / "01_one.ipynb", TRAIN, publish("01"), parameters=parameters)
    return course


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_the_trainings_before_a_full_run_end_with_it(course, end):
    make_notebook(course / "01_one.ipynb", publish("01"), parameters=PARAMETERS + DIGITS)
    log = course.parent / "log"
    arguments = ["run", "--notebooks", str(course), "--output", "out", "-p", "epochs", "1000"]
    resume = course.parent / "out" / "checkpoints"
    with started(command_on_two_cores, arguments, log, 0) as (process, hears):
        hears.recv_bytes()
        until = time.monotonic() + 120
        while len(list(resume.glob("*.resume"))) < 2 and process.is_alive():
            assert time.monotonic() < until, said(log)
            time.sleep(0.05)
        workers = [child for child in psutil.process_iter() if process.pid in parents(child)]
        os.kill(process.pid, end)
        process.join()
    assert len(workers) >= 2 and psutil.wait_procs(workers, timeout=60)[1] == []
    assert process.exitcode == (130 if end == signal.SIGINT else -end) and all_sound(course.parent)
    assert not (course.parent / "out" / "01_one.ipynb").exists()


def test_a_run_interrupted_and_killed_goes_on_by_the_same_command(course_that_trains):
    root, draw = course_that_trains.parent, random.Random(0)
    folder, log = root / "Läufe, unterbrochen", root / "log"
    load_or_train(AE, IMAGES, folders=[root / "whole"], progress=False)
    whole = contents(checkpoint_path(AE, root / "whole"))
    weights = checkpoint_path(AE, folder / "checkpoints")
    arguments = ["run", "--profile", "quick", "--notebooks", str(course_that_trains), "--output", str(folder)]
    ends, met = ["ctrl-c", *["kill", "power cut"] * (10 if SLOW else 2)], 0
    while ends:
        training_begun = len(ends) % 2 == 1  # every other end waits until the training has kept something
        with started(command, arguments, log, 0) as (process, hears):
            hears.recv_bytes()
            while training_begun and process.is_alive() and not weights.with_suffix(".resume").exists():
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5 if training_begun else 3.5))
            kernels = [child for child in psutil.process_iter() if process.pid in parents(child)]
            if ends[0] == "ctrl-c":
                os.kill(process.pid, signal.SIGINT)
            else:
                process.kill()
            process.join()
            for kernel in kernels if ends[0] == "power cut" else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    kernel.kill()
        assert process.exitcode in (0, 130, -signal.SIGKILL) and all_sound(root)
        assert process.exitcode != 130 or "Interrupted. The same command goes on" in said(log)
        assert psutil.wait_procs(kernels, timeout=60)[1] == []
        met += weights.with_suffix(".resume").exists()
        if process.exitcode:  # else the run came to its end first
            ends.pop(0)
        if weights.exists() and ends:  # the training came to its end first: once more
            assert contents(weights) == whole
            weights.unlink()
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / ".x.resume-1.tmp").touch()  # as a kill within a write leaves it
    with started(command, arguments, log, 0) as (process, _):
        process.join()
    assert process.exitcode == 0, said(log)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["01.cae.psnr_db"]["value"] == 2.5
    assert contents(weights) == whole and met >= 2
    assert not [name for name in names(folder) if "tmp" in name or "resume" in name]


@pytest.mark.parametrize("most_bytes", [4_000, 6_000, 100_000])
def test_a_run_on_a_full_disk_says_so_and_the_next_goes_on(course, most_bytes):
    make_notebook(course / "01_one.ipynb", publish("01"))
    folder, log = course.parent / "out", course.parent / "log"
    arguments = ["run", "--profile", "quick", "--notebooks", str(course), "--output", str(folder)]
    with started(command, arguments, log, most_bytes) as (process, _):
        process.join()
    lines = [line for line in said(log).splitlines() if line.startswith("Error: ")]
    assert process.exitcode == 1 and len(lines) == 1 and "Traceback" not in said(log)
    assert str(folder) in lines[0] and "File too large" in lines[0] and "the same command goes on" in lines[0]
    assert not {"index.html", "math.ttf", "01_one.html"} & set(names(folder)) and all_sound(folder)
    assert ("01_one.ipynb" in names(folder)) == (most_bytes == 100_000)
    if most_bytes == 100_000:
        assert cli.command_line(["report", str(folder)]) == 0
        assert {"index.html", "math.ttf", "01_one.html"} <= set(names(folder))


def broken(monkeypatch, where, number):
    """Let a call of the system fail as on a full or a read-only disk."""

    def fail(*arguments, **_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(where, fail)


CALLS = [("tempfile.mkstemp", errno.EROFS), ("os.fsync", errno.ENOSPC), ("os.replace", errno.EROFS)]


@pytest.mark.parametrize(("where", "number"), CALLS)
def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, where, number):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        broken(patch, where, number)
        with pytest.raises(OSError) as error:
            data.write_atomically(path, b"new")
    assert str(error.value) == f"[Errno {number}] {os.strerror(number)}: '{path}'"
    assert names(tmp_path) == ["file"] and path.read_bytes() == b"old"
    data.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_fills_up_stops_a_training_which_goes_on_later(tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    config = small(AE)
    whole = load_or_train(config, IMAGES, folders=[tmp_path / "whole"], progress=False)
    size = checkpoint_path(config, tmp_path / "whole").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "full"
    write = training.write_checkpoint

    def write_within_limit(path, *arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            write(path, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(training, "write_checkpoint", write_within_limit)
    limit = size // 2
    with pytest.raises(OSError, match="File too large: .*resume"):
        load_or_train(config, IMAGES, folders=[folder], progress=False)
    assert names(folder) == []
    limit = soft
    resumed = load_or_train(config, IMAGES, folders=[folder], progress=False)
    assert resumed.history == whole.history
    assert names(folder) == [checkpoint_path(config, folder).name]


@pytest.fixture
def shut(tmp_path):
    """A folder that may be read but not written into, by a user to whom permissions apply."""
    load_or_train(small(AE), IMAGES, folders=[tmp_path], progress=False)  # imports, while all may be read
    root = Path(tempfile.mkdtemp())
    folder = root / "shut"
    folder.mkdir()
    root.chmod(0o777)
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield folder
    if is_root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(root)


def test_weights_go_to_the_users_cache_where_the_project_cannot_be_written(shut, monkeypatch):
    monkeypatch.setattr(settings, "SHIPPED", shut)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shut.parent / "cache"))
    folders = settings.folders_for("")
    first = load_or_train(small(AE), IMAGES, folders=folders, progress=False)
    again = load_or_train(small(AE), IMAGES, folders=folders, progress=False)
    assert not first.reused and again.reused and names(shut) == []
    assert str(checkpoint_path(small(AE), folders[-1])).startswith(str(shut.parent / "cache"))


@pytest.mark.parametrize("inside", ["", "new/checkpoints"])
def test_a_training_into_a_shut_folder_names_it(shut, monkeypatch, inside):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    with pytest.raises(PermissionError, match=f"Permission denied: '{shut}"):
        load_or_train(small(AE), IMAGES, folders=[shut / inside], progress=False)
    assert names(shut) == []


def test_a_run_into_a_shut_folder_is_refused(shut, capsys):
    make_notebook(shut.parent / "01_one.ipynb", publish("01"))
    assert cli.command_line(["run", "--notebooks", str(shut.parent), "--output", str(shut / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {shut / 'out'} cannot be used (Permission denied); ")
    assert error.count("\n") == 1 and names(shut) == []


def test_the_project_runs_from_a_folder_of_any_name(tmp_path):
    project = tmp_path / "mein Kurs, 100 % – 课程"
    shutil.copytree(
        Path(aeutils.__file__).parent, project / "aeutils", ignore=shutil.ignore_patterns("__pycache__")
    )
    (project / "notebooks").mkdir()
    where = "from importlib.util import find_spec\nprint(find_spec('aeutils').origin)"
    make_notebook(project / "notebooks" / "01_ä ö.ipynb", where, publish("01"))
    run = subprocess.run(
        [sys.executable, "-m", "aeutils", "run", "--profile", "quick", "--output", "Ergebnis 1"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    out = project / "Ergebnis 1"
    assert {"index.html", "01_ä ö.html", "metrics.json"} <= set(names(out))
    assert str(project / "aeutils" / "__init__.py") in (out / "01_ä ö.ipynb").read_text(encoding="utf-8")
    assert 'href="01_%C3%A4%20%C3%B6.html"' in (out / "index.html").read_text(encoding="utf-8")
