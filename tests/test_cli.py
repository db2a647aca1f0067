"""The command line: what it refuses, before anything is written, and what a run leaves behind."""

import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from small_notebooks import DIGITS, make_notebook, publish
from small_notebooks import PARAMETERS as USUAL

import aeutils.__main__
from aeutils.course import cli, reference, results, runner, settings
from aeutils.course.settings import PARAMETERS, check_parameters
from aeutils.data import fingerprint, load_mnist
from aeutils.training import (
    AutoencoderConfig,
    checkpoint_path,
    load_or_train,
    read_checkpoint,
    write_checkpoint,
)


def snapshot(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capsys, folder, *arguments):
    """The one sentence with which these arguments are refused; status 2, nothing written."""
    before = snapshot(folder)
    assert cli.command_line(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert snapshot(folder) == before
    assert re.fullmatch(r"Error: [^\n]+\n", err) and "Traceback" not in out + err
    assert re.search("must be|can be|are |name |choose|lower|--help|run into it again", err)
    return err


def bad_values():
    """(name, value) of every parameter: wrong types, and just out of range."""
    for name, (kind, *allowed) in PARAMETERS.items():
        if kind is str:
            values = ("", "other", "3") if allowed[0] else (__file__,)
        else:
            smallest, largest, _ = allowed
            values = ("abc", "", "nan", "None", "[1]", str(smallest - 1), str(largest + 1))
            values += ("1.5", "True", "0x10", "1e400") if kind is int else ("inf", "-inf", "1,5")
        yield from ((name, value) for value in values if name != "profile")


@pytest.fixture
def all_parameters(course):
    """A course of one notebook that has every parameter."""
    lines = []
    for name, (kind, *allowed) in PARAMETERS.items():
        default = allowed[2] if kind is not str else allowed[0][0] if allowed[0] else ""
        lines.append(f"{name}: {kind.__name__} = {default!r}  # help\n")
    make_notebook(course / "01_all.ipynb", parameters="".join(lines))
    return course


def test_every_parameter_refuses_every_bad_value(all_parameters, capsys):
    for name, value in bad_values():
        start = ("run", "--notebooks", str(all_parameters), "-p", name, value)
        sentence = refused(capsys, all_parameters.parent, *start)
        assert name in sentence and repr(value).strip("'") in sentence, sentence
        assert "must be" in sentence or "can be" in sentence or "name a folder" in sentence, sentence


@pytest.mark.parametrize("name", ["lr", "Seed", "latent_dims", "", "seed "])
def test_an_unknown_parameter_is_refused_with_the_known_ones(all_parameters, capsys, name):
    sentence = refused(
        capsys, all_parameters.parent, "run", "--notebooks", str(all_parameters), "-p", name, "1"
    )
    assert all(known in sentence for known in PARAMETERS)


def test_known_parameters_are_listed_by_notebook(course):
    known = {
        course / "01_a.ipynb": {"seed": 0, "epochs": 4},
        course / "02_b.ipynb": {"seed": 0, "n_pairs": 20},
        course / "03_c.ipynb": {"seed": 0},
    }
    assert runner.listing(known) == "in all: seed; in 01: epochs; in 02: n_pairs"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run", "--profile", "fast"], "'quick', 'full'"),
        (["run", "--profile", "reference"], "'quick', 'full'"),
        (["run", "--profile"], "--profile"),
        (["run", "--bogus"], "--bogus"),
        (["run", "extra"], "extra"),
        (["run", "-p", "seed"], "-p"),
        (["run", "-p", "profile", "quick"], "--profile"),
        (["run", "-p", "n_tsne", "9000", "-p", "n_test", "5000"], "n_tsne is 9000"),
        (["run", "-p", "perplexity", "110", "-p", "n_tsne", "300"], "perplexity is 110.0"),
        (["run", "--notebooks", "nowhere"], "nowhere"),
        (["run", "--output", "a-file"], "a-file"),
        (["run", "--output", ""], "--output is ''"),
        (["bench", "--output", ""], "--output is ''"),
        (["run", "-p", "a\nb", "1"], "a\\nb"),
        (["run", "--output", "a-file/inside"], "a-file"),
        (["walk"], "walk"),
        (["report"], "DIR"),
        (["report", "nowhere"], "nowhere"),
        (["reference", "--all"], "--all"),
        (["run", "--profile", ""], "'quick', 'full'"),
        (["run", "--reuse=1"], "does not take a value"),
        (["run", "--keep-going=yes"], "does not take a value"),
        (["run", "--timeout", "0"], "0 is not in the range"),
        (["run", "--timeout", "soon"], "'soon' is not a valid integer"),
        (["run", "--output"], "requires an argument"),
        (["run", "--notebooks"], "requires an argument"),
        (["run", "--notebooks", ""], "'' holds no notebook named like 01_title.ipynb"),
        (["run", "--notebooks", "a-file"], "'a-file' holds no notebook"),
        (["run", "--notebooks", "broken"], "01_broken.ipynb is no notebook whose parameters can be read"),
        (["run", "-p", "seed", "-p", "seed"], "extra argument (seed)"),
        (["report", "a-file"], "name the folder of a run"),
        (["report", ""], "'' holds no metrics.json"),
        (["report", "nowhere", "else"], "else"),
        (["explorer", "--output"], "requires an argument"),
        (["explorer", "--output", "notebooks"], "name a file in a folder that is there"),
        (["explorer", "--output", "nowhere/x.html"], "--output is 'nowhere/x.html'"),
        (["explorer", "--output", "a-file/x.html"], "--output is 'a-file/x.html'"),
        (["explorer", "x.html"], "x.html"),
        (["reference", "--notebooks=1"], "does not take a value"),
        (["reference", "--output", "a-file"], "a study, and its --output, must be given both"),
        (["reference", "--seeds", "0-4"], "a study, and its --output, must be given both"),
        (["reference", "--lam", "0.1"], "a study, and its --output, must be given both"),
        (["reference", "--notebooks", "--seeds", "0", "--lam", "1"], "no --notebooks"),
        (["reference", "--seeds", "4-0", "--lam", "0.1"], "--seeds is '4-0'"),
        (["reference", "--seeds", "one", "--lam", "0.1"], "--seeds is 'one'"),
        (["reference", "--seeds", "", "--lam", "0.1"], "--seeds is ''"),
        (["reference", "--seeds", "0-99999", "--lam", "0.1"], "--seeds is '0-99999'"),
        (["reference", "--seeds", "0-1", "--lam", "-0.1"], "--lam is '-0.1'"),
        (["reference", "--seeds", "0-1", "--lam", "nan"], "--lam is 'nan'"),
        (["reference", "--seeds", "0-1", "--lam", "0.1,"], "--lam is '0.1,'"),
        (["reference", "--seeds", "0-1", "--lam", "1", "--output", "a-file"], "a-file"),
        (["reference", "--scheduler", "localhost"], "--scheduler is 'localhost'"),
        (["reference", "--scheduler", ""], "--scheduler is ''"),
        (["bench", "--output"], "requires an argument"),
        (["bench", "--output", "a-file/inside"], "which is, or lies in, a file"),
        (["bench", "--studies=all"], "does not take a value"),
        (["bench", "--record=yes"], "does not take a value"),
        (["bench", "--rounds", "0"], "0 is not in the range"),
        (["bench", "--rounds", "many"], "'many' is not a valid integer"),
        (["data", "frey"], "frey"),
    ],
)
def test_bad_options_are_refused(all_parameters, capsys, arguments, said):
    (all_parameters.parent / "a-file").touch()
    broken = all_parameters.parent / "broken"
    broken.mkdir()
    (broken / "01_broken.ipynb").write_text("{}")
    if arguments[0] == "run" and "--notebooks" not in arguments:
        arguments = ["run", "--notebooks", str(all_parameters), *arguments[1:]]
    assert said in refused(capsys, all_parameters.parent, *arguments)


@pytest.mark.parametrize(
    ("values", "named"),
    [({"latent_dim": 785}, "latent_dim"), ({"n_train": 1009}, "n_train"), ({"n_tsne": 200}, "n_tsne"),
     ({"n_noisy": 301, "n_test": 300}, "n_noisy"),
     ({"n_test": 2000, "n_pairs": 20, "n_interval_pairs": 1000}, "n_interval_pairs")],
)  # fmt: skip
def test_what_a_notebook_cannot_use_is_refused(values, named):
    with pytest.raises(ValueError, match=f"^{named} is "):
        check_parameters(values)


def test_no_option_is_left_out_of_the_bad_ones():
    (table,) = (m for m in test_bad_options_are_refused.pytestmark if m.name == "parametrize")
    tried = {(row[0][0], word.split("=")[0]) for row in table.args[1] for word in row[0][1:]}
    for name, found in cli.cli.commands.items():
        for option in found.params:
            if option.param_type_name == "option":
                assert any((name, word) in tried for word in option.opts), (name, option.opts)
            else:
                assert (name, "nowhere") in tried


@pytest.mark.parametrize(
    "content",
    ["{not json", "{}", "[]", "seed: int = f()", "seed: int = ", "lr: float = 0.1", "seed: int = 'x'"],
)
def test_a_notebook_whose_parameters_cannot_be_read_is_refused(course, capsys, content):
    path = course / "01_odd.ipynb"
    if ":" in content:
        make_notebook(path, parameters=content + "\n")
    else:
        path.write_text(content)
    sentence = refused(capsys, course.parent, "run", "--notebooks", str(course), "--output", "out")
    assert "01_odd.ipynb" in sentence or "must be" in sentence or "the parameters are" in sentence


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"metrics": 1}', '{"profile": "quick"'])
def test_a_report_of_damaged_metrics_is_refused(course, capsys, content):
    (course / "metrics.json").write_text(content)
    assert cli.command_line(["report", str(course)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"Error: [^\n]+ is not as a run left it [^\n]+; run into it again.\n", error)
    assert str(course) in error and not (course / "index.html").exists()


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_refuses_what_papermill_can_pass(name):
    kind, *allowed = PARAMETERS[name]
    wrong = [None, [], [1], {}, b"1", True, 1j, math.nan, math.inf, -math.inf]
    if kind is str:
        wrong += [0, 1.5, *(["other", "", "Auto"] if allowed[0] else [__file__])]
    else:
        smallest, largest, example = allowed
        wrong += ["", str(example), smallest - 1, largest + 1, -(10**400), 10**400]
        wrong += [float(example)] if kind is int else []
    for value in wrong:
        with pytest.raises(ValueError) as refusal:
            check_parameters({name: value})
        sentence = str(refusal.value)
        assert sentence.startswith(f"{name} is {value!r}") and re.search(
            "must be|can be|name a folder", sentence
        )
        assert "\n" not in sentence and sentence.endswith(".")


def test_values_keep_their_types(all_parameters):
    given = {"latent_dim": "64", "lam_sae": "1", "faces": "frey", "checkpoints": "w"}
    plan = runner.plan(all_parameters, "quick", given, "out")
    chosen = plan.notebooks[all_parameters / "01_all.ipynb"]
    assert chosen["latent_dim"] == 64 and chosen["lam_sae"] == 1.0 and isinstance(chosen["lam_sae"], float)
    assert (
        chosen["faces"] == "frey"
        and chosen["checkpoints"] == str(Path("w").absolute())
        and chosen["profile"] == "quick"
    )
    assert chosen["n_train"] == 1024 and chosen["seed"] == 0


def test_only_reuse_takes_the_shipped_weights(all_parameters):
    path = all_parameters / "01_all.ipynb"
    anew = runner.plan(all_parameters, "full", {}, "out").notebooks[path]
    shipped = runner.plan(all_parameters, "full", {}, "out", reuse=True).notebooks[path]
    assert anew["checkpoints"] == str(all_parameters.parent / "out" / "checkpoints")
    assert shipped["checkpoints"] == "" and anew["n_seeds"] == shipped["n_seeds"] == 3


def test_a_run_leaves_notebooks_pages_figures_and_metrics(course, capsys, monkeypatch):
    monkeypatch.setattr(results, "REFERENCE", course / "reference.json")
    make_notebook(course / "01_one.ipynb", publish("01"))
    make_notebook(course / "04_four.ipynb", publish("04", "synthetic"))
    folder = course.parent / "run of ü"
    arguments = ["run", "--notebooks", str(course), "--output", str(folder), "-p", "seed", "7"]
    assert cli.command_line([*arguments, "--profile", "quick"]) == 0
    assert str(folder / "index.html") in capsys.readouterr().out
    made = {"01_one.ipynb", "01_one.html", "04_four.ipynb", "04_four.html", "index.html", "metrics.json"}
    assert made <= set(snapshot(folder)) and {"figures/figure_01.1.png"} <= set(snapshot(folder))

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["profile"] == "quick" and metrics["seeds"] == [7] and metrics["faces"] == "synthetic"
    assert metrics["metrics"]["01.cae.psnr_db"]["value"] == 2.5 and metrics["verdicts"]["E04"]["n"] == 1
    assert set(metrics["seconds"]) == {"01_one", "04_four"} and metrics["versions"]["torch"]
    assert 0 < metrics["wall_seconds"] < sum(metrics["seconds"].values()) + 60

    page, index = (folder / "01_one.html").read_text(), (folder / "index.html").read_text()
    assert "<math" in page and "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page + index)
    assert "2 notebooks in" in index and "seeds 7, on" in index and "<td>test MSE</td>" in index
    assert "stand-in" in index and "&lt;b&gt;" in index and "<b>" not in index
    assert cli.command_line(["report", str(folder)]) == 0

    # the same figures in the full profile, against a reference that they miss
    entry = {"value": 9.0, "per_seed": [], "tolerance": 0.1, "reloaded": 0.1, "unit": "dB"}
    reference = {"metrics": {"01.cae.psnr_db": entry}, "verdicts": {}, "seeds": [7], "faces": "frey"}
    monkeypatch.setattr(cli.reporting, "load_reference", lambda: reference | {"parameters": {}})
    assert cli.command_line([*arguments, "--profile", "quick"]) == 0
    assert cli.command_line([*arguments, "--profile", "full"]) == 2
    out, err = capsys.readouterr()
    assert "01.cae.psnr_db" in err and "off" in out


@pytest.mark.parametrize(
    "cell, said",
    [
        ("x = 1\nraise ValueError('broken on purpose')", "ValueError: broken on purpose"),
        ("import os\nos._exit(1)", "kernel died"),
    ],
)
def test_a_failing_cell_stops_the_run_and_keeps_what_ran(course, capsys, monkeypatch, cell, said):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one by one
    make_notebook(course / "01_good.ipynb", publish("01"))
    make_notebook(course / "02_bad.ipynb", "print('before')", cell, "print('after')")
    make_notebook(course / "03_never.ipynb", "1")
    folder = course.parent / "out"
    folder.mkdir()
    (folder / "metrics.json").write_text("of an earlier run")
    assert cli.command_line(["run", "--notebooks", str(course), "--output", str(folder)]) == 1
    err = capsys.readouterr().err
    assert "02_bad.ipynb" in err and "cell 4" in err and said in err
    assert "Traceback (most recent call last)" not in err.replace("\x1b", "").split(said)[-1]
    kept = nbformat.read(folder / "02_bad.ipynb", as_version=4)
    assert any(out.get("text") == "before\n" for c in kept.cells for out in c.get("outputs", ()))
    left = set(snapshot(folder))
    assert "01_good.ipynb" in left and not left & {"03_never.ipynb", "metrics.json", "index.html"}


def meeting(me, other):
    """A cell that ends only if the notebook `other` runs at the same time."""
    return f"""
import pathlib, time
pathlib.Path({me!r}).touch()
until = time.monotonic() + 60
while not pathlib.Path({other!r}).exists():
    assert time.monotonic() < until, "alone"
    time.sleep(0.05)
"""


WIDTH = USUAL + "latent_dim: int = 4  # units\n"
FACE_WIDTH = USUAL + "face_latent_dim: int = 4  # units\n"
THREADS = """
import os
print("threads", os.environ.get("OMP_NUM_THREADS"))
"""


def said_in(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", ()))


def test_notebooks_of_other_models_run_at_the_same_time_with_half_of_the_threads(course, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 6)
    end = "pathlib.Path('one has ended').touch()"
    make_notebook(
        course / "01_one.ipynb", THREADS, meeting("one", "four"), "time.sleep(5)", end, parameters=WIDTH
    )
    follow = "import pathlib\nassert pathlib.Path('one has ended').exists()"
    make_notebook(course / "02_two.ipynb", follow, publish("02"), parameters=WIDTH)
    make_notebook(
        course / "04_four.ipynb", THREADS, meeting("four", "one"), publish("04"), parameters=FACE_WIDTH
    )
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out", "--profile", "quick"]) == 0
    assert said_in("out/01_one.ipynb") == said_in("out/04_four.ipynb") == "threads 3\n"
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert list(metrics["seconds"]) == ["01_one", "02_two", "04_four"]


LOADS = """
from pathlib import Path
print(*sorted(path.name.split("-seed")[0] for path in Path(checkpoints).glob("*.safetensors")))
"""


def test_a_full_run_trains_the_headline_models_first_and_side_by_side(course, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 2)
    make_notebook(course / "01_one.ipynb", LOADS, publish("01"), parameters=USUAL + DIGITS)
    arguments = ["run", "--notebooks", str(course), "--output", "out"]
    assert cli.command_line([*arguments, "-p", "seed", "2", "-p", "n_seeds", "1"]) in (0, 2)
    kinds = ("contractive", "denoising", "l1", "none")
    assert said_in("out/01_one.ipynb") == " ".join(f"mnist-{kind}" for kind in kinds) + "\n"
    configs = settings.digit_configs(
        seed=2, latent_dim=2, lam_sae=0.001, lam_cae=0.001, sigma_dae=0.1, epochs=1
    )
    images, threads = load_mnist().train_images, torch.get_num_threads()
    for name in ("ae", "cae"):  # as one process alone trains them, to the bit
        load_or_train(configs[name], images[:1024], images[-1024:], folders=["alone"], progress=False)
        one, other = (
            read_checkpoint(checkpoint_path(configs[name], f))[0] for f in ("alone", "out/checkpoints")
        )
        assert threads > 1 or all(torch.equal(one[key], other[key]) for key in one)
    plan = runner.plan(course, "full", {"seed": 2, "n_seeds": 1}, "out")
    assert runner.trainings_of(plan) == {course / "01_one.ipynb": []}  # nothing is left to train


@pytest.mark.parametrize("threads, first", [(2, 1), (3, 1), (4, 2), (16, 2)])
def test_a_place_for_a_notebook_is_free_as_soon_as_trainings_leave_half_of_the_cores(
    monkeypatch, threads, first
):
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: threads)
    trainings, places = [Future() for _ in range(5)], queue.SimpleQueue()
    opener = threading.Thread(target=runner.open_places, args=(places, trainings))
    opener.start()
    for left, future in zip((4, 3, 2, 1, 0), trainings):
        with pytest.raises(queue.Empty):
            places.get(timeout=0.2)
        future.set_result(None)
        if left == first:
            assert places.get(timeout=60) == 1
    assert places.get(timeout=60) == 2
    opener.join()


@pytest.mark.parametrize("failed", [False, True])
def test_a_notebook_waits_for_its_own_trainings_alone(course, monkeypatch, failed):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 2)
    end = "import pathlib\npathlib.Path('one has ended').touch()"
    make_notebook(course / "01_one.ipynb", end, publish("01"), parameters=WIDTH)
    follow = "import pathlib\nassert pathlib.Path('faces are trained').exists()"
    make_notebook(course / "04_four.ipynb", follow, publish("04"), parameters=FACE_WIDTH)
    futures = {"digits": Future(), "faces": Future()}
    futures["digits"].set_result(None)
    needs = {course / "01_one.ipynb": ["digits"], course / "04_four.ipynb": ["faces"]}
    monkeypatch.setattr(runner, "trainings_of", lambda plan: needs)
    monkeypatch.setattr(runner, "training", lambda tasks, folder: nullcontext(futures))

    def faces():
        until = time.monotonic() + 60
        while not Path("out/one has ended").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(5)  # long enough for a kernel that does not wait
        Path("out/faces are trained").touch()
        futures["faces"].set_exception(ValueError()) if failed else futures["faces"].set_result(None)

    trainer = threading.Thread(target=faces)
    trainer.start()
    begun = time.monotonic()
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 0
    assert time.monotonic() - begun < 60
    trainer.join()


def test_what_is_trained_first_is_what_the_notebooks_load(monkeypatch, tmp_path):
    changed = {"seed": 2, "n_seeds": 2, "n_face_seeds": 2, "latent_dim": 17, "beta": 2.0, "n_drawn": 800}
    changed |= {"faces": "synthetic", "lam_cae": 0.5, "split": "blocks", "split_seed": 4, "n_train": 2048}
    plan = runner.plan(runner.NOTEBOOKS, "full", changed, tmp_path)
    loaded = []
    monkeypatch.setattr(settings, "load_or_train", lambda config, *_, **__: loaded.append(config))
    digits, faces = (plan.notebooks[next(p for p in plan.notebooks if p.name[:2] == n)] for n in ("01", "04"))
    names = ("latent_dim", "lam_sae", "lam_cae", "sigma_dae", "epochs", "n_train", "checkpoints", "device")
    settings.digit_models(
        ("ae", "sae", "cae", "dae"), seeds=[2, 3], images=torch.zeros(6000), **{n: digits[n] for n in names}
    )
    names = (
        "face_latent_dim",
        "face_epochs",
        "beta",
        "reach",
        "faces",
        "split",
        "split_seed",
        "checkpoints",
        "device",
    )
    given = {n: faces[n] for n in names} | {"train_images": None, "val_images": None}
    settings.face_models(("vae", "ae"), seeds=[2, 3], **given)
    known = {"faces": "independent", "split": "random", "split_seed": 0}
    settings.face_models(("vae",), seeds=[2], **given | known)
    tasks = reference.tasks_of(plan)
    assert {task.config for task in tasks} == set(loaded) and len(tasks) == len(loaded) == 13
    assert {(task.config.data[:5], task.n_train) for task in tasks} == {
        ("mnist", 2048),
        ("synth", None),
        ("indep", 800),
    }
    path = checkpoint_path(loaded[0], plan.weights[0])
    path.parent.mkdir()
    for n, missing in ((2048, False), (1024, True)):  # trained on these images, on others
        meta = {"config": json.dumps(asdict(loaded[0])), "data": fingerprint(load_mnist().train_images[:n])}
        write_checkpoint(path, {"w": torch.zeros(1)}, meta)
        assert (loaded[0] in [task.config for task in reference.tasks_of(plan)]) == missing
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        reference.tasks_of(plan)


def test_relative_folders_are_those_of_the_caller(course, monkeypatch):
    monkeypatch.setenv("AEUTILS_DATA", "here")
    say = "import os\nprint(os.environ['AEUTILS_DATA'], checkpoints)"
    asks = USUAL + 'checkpoints: str = ""  # folder\n'
    make_notebook(course / "01_one.ipynb", say, publish("01"), parameters=asks)
    arguments = ["run", "--notebooks", str(course), "--output", "out", "-p", "checkpoints", "weights"]
    assert cli.command_line(arguments) == 0
    assert os.environ["AEUTILS_DATA"] == "here"
    assert said_in("out/01_one.ipynb") == f"{Path('here').absolute()} {Path('weights').absolute()}\n"
    plan = runner.plan(course, "full", {"checkpoints": "weights"}, "out")
    assert plan.weights == [Path("weights").absolute()]


def test_a_run_writes_over_no_notebook_that_it_runs(course, capsys):
    make_notebook(course / "01_one.ipynb", publish("01"))
    before = snapshot(course)
    for folder in (course, course / ".." / course.name):
        assert cli.command_line(["run", "--notebooks", str(course), "--output", str(folder)]) == 2
        assert "where the notebooks are" in capsys.readouterr().err
    assert snapshot(course) == before


def test_a_kernel_that_does_not_start_is_a_sentence(course, capsys, monkeypatch):
    make_notebook(course / "01_one.ipynb", publish("01"))

    def dead(*_, **__):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", dead)
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 1
    said = "Error: 01_one.ipynb: its kernel did not start (Kernel died before replying to kernel_info); run the same"
    assert said in capsys.readouterr().err


def test_a_run_without_notebook_04_has_no_faces(course):
    make_notebook(course / "01_one.ipynb", publish("01", "synthetic"))
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 0
    assert json.loads(Path("out/metrics.json").read_text())["faces"] is None
    assert "MNIST and no faces" in Path("out/index.html").read_text()


def test_a_run_keeps_nothing_of_another_run_in_its_folder(course):
    make_notebook(course / "01_one.ipynb", publish("01"))
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 0
    (course / "01_one.ipynb").unlink()
    make_notebook(course / "02_two.ipynb", "1 / 0")
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 1
    assert not Path("out/exercises.csv").exists()
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out", "--keep-going"]) == 1
    assert "01_one" not in Path("out/index.html").read_text()


def test_what_is_trained_first_is_trained_on_the_device_that_was_asked_for(tmp_path, monkeypatch):
    asked = []

    def spy(*_, device="auto", **__):
        asked.append(device)
        raise KeyError

    monkeypatch.setattr(reference, "load_or_train", spy)
    task = reference.Task("ae", AutoencoderConfig(), 1024)
    with pytest.raises(KeyError):
        reference.perform(task, tmp_path, "cpu")
    assert asked == ["cpu"]


def test_nothing_is_trained_first_where_the_shipped_weights_are_taken(tmp_path):
    plan = runner.plan(runner.NOTEBOOKS, "full", {}, tmp_path, reuse=True)
    assert reference.tasks_of(plan) == []
    anew = reference.tasks_of(runner.plan(runner.NOTEBOOKS, "full", {}, tmp_path))
    assert len(anew) >= 4 * 3
    other = runner.plan(runner.NOTEBOOKS, "full", {"lam_cae": 0.5}, tmp_path, reuse=True)
    assert {task.config.penalty for task in reference.tasks_of(other)} == {"contractive"}


def test_notebooks_of_the_same_models_run_at_the_same_time_once_these_are_trained(course, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 6)
    make_notebook(course / "01_one.ipynb", meeting("one", "two"), publish("01"), parameters=WIDTH)
    make_notebook(course / "02_two.ipynb", meeting("two", "one"), publish("02"), parameters=WIDTH)
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 0


def test_nothing_is_trained_first_in_a_quick_run_or_where_the_threads_are_given(monkeypatch, tmp_path):
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(reference, "tasks_of", lambda plan: pytest.fail("looked for trainings"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runner.trainings_of(runner.plan(runner.NOTEBOOKS, "quick", {}, tmp_path)) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert runner.trainings_of(runner.plan(runner.NOTEBOOKS, "full", {}, tmp_path)) is None


def test_notebooks_run_one_by_one_where_the_number_of_threads_is_given(course, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    end = "import time, pathlib\ntime.sleep(1)\npathlib.Path('one has ended').touch()"
    make_notebook(course / "01_one.ipynb", THREADS, end, parameters=WIDTH)
    follow = "import pathlib\nassert pathlib.Path('one has ended').exists()"
    make_notebook(course / "04_four.ipynb", THREADS, follow, publish("04"), parameters=FACE_WIDTH)
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out", "--profile", "quick"]) == 0
    assert said_in("out/01_one.ipynb") == said_in("out/04_four.ipynb") == "threads 3\n"


@pytest.mark.parametrize("failing", ["01", "04"])
def test_a_failing_cell_stops_the_notebook_beside_it(course, capsys, monkeypatch, failing):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 2)
    for n, other, parameters in (("01", "04", WIDTH), ("04", "01", FACE_WIDTH)):
        last = "raise ValueError('broken on purpose')" if n == failing else "time.sleep(90)"
        make_notebook(course / f"{n}_some.ipynb", meeting(n, other), last, parameters=parameters)
    make_notebook(course / "02_never.ipynb", "1", parameters=WIDTH)
    start = time.monotonic()
    assert cli.command_line(["run", "--notebooks", str(course), "--output", "out"]) == 1
    said = capsys.readouterr().err
    assert "broken on purpose" in said and f"{failing}_some.ipynb failed" in said
    assert time.monotonic() - start < 60 and not Path("out/02_never.ipynb").exists()


def test_a_cell_without_end_is_given_up_and_the_other_notebooks_run(course, capsys):
    make_notebook(course / "01_one.ipynb", "print('before')", "while True: pass", publish("01"))
    make_notebook(course / "02_two.ipynb", publish("02"))
    arguments = ["run", "--notebooks", str(course), "--output", "out", "--keep-going", "--timeout", "2"]
    assert cli.command_line(arguments) == 1
    said = "01_one.ipynb: cell 4 took longer than 2 s, the --timeout of a cell."
    assert said in capsys.readouterr().err
    metrics, index = (Path("out", name).read_text() for name in ("metrics.json", "index.html"))
    assert said in json.loads(metrics)["failed"]["01"] and f"Notebook 01: {said}" in index
    assert "02.cae.psnr_db" in metrics


def test_a_run_writes_its_notebook_seldom_and_in_the_end(tmp_path, monkeypatch):
    source = make_notebook(tmp_path / "01_one.ipynb", *["1 + 1"] * 20)
    written, write = [], papermill.engines.write_ipynb
    monkeypatch.setattr(papermill.engines, "write_ipynb", lambda *given: written.append(1) or write(*given))
    runner.run_notebook(source, tmp_path / "out.ipynb", {})
    assert 2 <= len(written) < 10
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].data["text/plain"] == "2"
    assert {cell.metadata.papermill.status for cell in cells} == {"completed"}


def test_two_runs_into_one_folder_are_refused(course, capsys):
    make_notebook(course / "01_one.ipynb")
    folder = course.parent / "out"
    folder.mkdir()
    with runner.only_run_in(folder):
        before = snapshot(course.parent)
        assert cli.command_line(["run", "--notebooks", str(course), "--output", str(folder)]) == 2
        assert snapshot(course.parent) == before
    assert "another run" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    hold = f"""
import filelock, time
lock = filelock.FileLock({str(tmp_path / ".lock")!r})
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match="another run"), runner.only_run_in(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with runner.only_run_in(tmp_path):
        pass


def test_an_interrupted_run_says_how_to_go_on(all_parameters, capsys, monkeypatch):
    def interrupt(plan, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "execute", interrupt)
    assert cli.command_line(["run", "--notebooks", str(all_parameters), "--output", "out"]) == 130
    assert "The same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(cli.cli, "main", interrupt)
    assert cli.command_line(["bench"]) == 130
    assert "The same command starts anew: python -m aeutils bench" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence(all_parameters, capsys, monkeypatch):
    def full(plan, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "execute", full)
    assert cli.command_line(["run", "--notebooks", str(all_parameters), "--output", "out"]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_another_python_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(SystemExit) as exit:
        aeutils.__main__.main()
    assert exit.value.code == 2 and "3.11, 3.12 or 3.13, and this is 3.10.4" in capsys.readouterr().err


def test_keep_going_runs_on_and_lists_the_exercises(course, capsys):
    said = 'print("exercise 1: right")'
    make_notebook(
        course / "01_one.ipynb",
        said,
        "exercise(2, 0)",
        "1 / 0",
        'print("exercise 3: not yet")',
        publish("01"),
    )
    make_notebook(course / "02_two.ipynb", publish("02"), 'print("exercise 1: not tried yet")')
    arguments = ["run", "--notebooks", str(course), "--output", "out", "--profile", "quick", "--keep-going"]
    assert cli.command_line(arguments) == 1
    error = capsys.readouterr().err
    first = "01_one.ipynb failed in cell 4 (In [4]), and 1 after it:"
    assert first in error and "NameError" in error and "index.html" in error
    assert "ZeroDivisionError" not in error
    rows = (Path("out") / "exercises.csv").read_text().splitlines()
    assert rows == [
        "notebook,exercise,result", "01,1,right", "01,2,did not run", "01,3,not yet", "02,1,not tried yet"
    ]  # fmt: skip
    index = (Path("out") / "index.html").read_text()
    assert "its check says" in index and f"Notebook 01: {first}" in index
    assert "<pre>" in index and "NameError: name &#x27;exercise&#x27; is not defined" in index
    assert json.loads((Path("out") / "metrics.json").read_text())["metrics"]["01.cae.psnr_db"]["value"] == 2.5
    assert "raises-exception" not in (course / "01_one.ipynb").read_text()
