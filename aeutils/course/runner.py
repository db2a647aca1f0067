"""Running the notebooks into a folder: parameters checked first, then papermill, then the report."""

import ast
import csv
import io
import multiprocessing
import os
import queue
import re
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import filelock
import nbformat
import papermill
import psutil
import torch
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from aeutils.course import report
from aeutils.course.results import MIME, write_json
from aeutils.course.settings import PARAMETERS, PROFILES, check_parameters, folders_for, seeds_of
from aeutils.data import HOME, write_atomically
from aeutils.training import pick_device

NOTEBOOKS = HOME / "notebooks"
MOST_TRAININGS = 4  # at a time
VERSIONS = ("aeutils", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")
EXERCISE = re.compile(r"^exercise (\d+): (.+)$", re.M)
CHECKED = re.compile(r"^exercise\(\s*(\d+),", re.M)  # the call of a check, whether or not it came to run
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunFailed(RuntimeError):
    """A run that stopped; the message names the notebook and the cell."""


class Plan(NamedTuple):
    notebooks: dict  # path -> its parameters
    profile: str
    folder: Path
    weights: list  # the folders where weights are looked for; they are trained into the last


def plan(notebooks, profile, overrides, folder, reuse=False):
    """Everything that can be wrong before anything runs; ValueError in one sentence, and nothing is written."""
    paths = sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ValueError(
            f"{str(notebooks)!r} holds no notebook named like 01_title.ipynb; name the course's folder."
        )
    known = {path: defaults(path) for path in paths}
    for name, value in overrides.items():
        if not any(name in names for names in known.values()):
            raise ValueError(f"{name!r} is no parameter of a notebook; the parameters are {listing(known)}.")
        if name == "profile":
            raise ValueError(f"profile is {value!r}; choose the profile with --profile, not with -p.")
    given = {name: coerce(name, value) for name, value in overrides.items()}
    folder = check_folder(folder)
    if folder.resolve() == Path(notebooks).resolve():
        raise ValueError(
            f"--output is {str(folder)!r}, where the notebooks are, which a run would overwrite; name another folder."
        )
    weights = {} if reuse else {"checkpoints": str(folder / "checkpoints")}
    chosen = PROFILES[profile] | {"profile": profile} | weights | given
    if chosen.get("checkpoints"):
        chosen["checkpoints"] = os.path.abspath(chosen["checkpoints"])  # a kernel runs in the run's folder
    parameters = {}
    for path, names in known.items():
        parameters[path] = names | {name: value for name, value in chosen.items() if name in names}
        check_parameters(parameters[path])
    return Plan(parameters, profile, folder, folders_for(chosen.get("checkpoints", "")))


def check_folder(folder):
    """The folder, absolute; ValueError where none of this name can be made."""
    if not str(folder):
        raise ValueError("--output is ''; name a folder.")
    folder = Path(folder).absolute()
    if any(part.exists() and not part.is_dir() for part in (folder, *folder.parents)):
        raise ValueError(f"--output is {str(folder)!r}, which is, or lies in, a file; name a folder.")
    return folder


def defaults(path):
    """{name: default} of the notebook's parameters cell; ValueError where they cannot be read."""
    try:
        found = papermill.inspect_notebook(str(path))
        return {name: ast.literal_eval(parameter["default"]) for name, parameter in found.items()}
    except (ValueError, SyntaxError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(
            f"{path} is no notebook whose parameters can be read ({str(error).splitlines()[0]}); restore it."
        ) from None


def coerce(name, value):
    """The text of a command line as the parameter's type; left as it is where it has no such value."""
    if isinstance(value, str) and PARAMETERS.get(name, (str,))[0] is not str:
        try:
            return PARAMETERS[name][0](value)
        except ValueError:
            return value
    return value


def listing(known):
    """The parameters by notebook: "in all: seed, ...; in 02: n_pairs, ..."."""
    shared = [name for name in next(iter(known.values())) if all(name in names for names in known.values())]
    groups = {"in all": shared} if len(known) > 1 else {}
    groups |= {
        f"in {p.name[:2]}": [n for n in names if n not in groups.get("in all", ())]
        for p, names in known.items()
    }
    return "; ".join(f"{where}: {', '.join(names)}" for where, names in groups.items() if names)


def execute(plan, profile=None, keep_going=False, timeout=None):
    """Run the notebooks, write the run folder and return what is in its metrics.json.

    RunFailed if a cell fails, or takes longer than `timeout` seconds. With `keep_going` the cells after one that
    fails and the other notebooks run all the same, and the report is written first.
    """
    folder, failed, begun = plan.folder, {}, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with only_run_in(folder):
        killed = [*(folder / "checkpoints").glob(".*.tmp"), *folder.glob(".[0-9][0-9]_*.tmp*")]
        for stale in (*(folder / name for name in ("metrics.json", "index.html", "exercises.csv")), *killed):
            stale.unlink(missing_ok=True)
        seconds = {}
        for path, took, error in run_side_by_side(plan, keep_going, timeout):
            seconds[path.stem] = took
            if error:
                failed[path.name[:2]] = str(error)
        seconds = {path.stem: seconds[path.stem] for path in plan.notebooks}
        metrics = collect(folder, plan, profile or plan.profile, seconds)
        metrics |= {"failed": failed, "wall_seconds": round(time.monotonic() - begun, 1)}
        write_json(folder / "metrics.json", metrics)
        write_exercises(folder / "exercises.csv", metrics["exercises"])
        report.write(folder)
    if failed:
        raise RunFailed("\n\n".join([*failed.values(), f"Report: {folder / 'index.html'}"]))
    return metrics


def trainings_of(plan):
    """{notebook: headline trainings that it needs and that are missing}; None where notebooks train for themselves.

    They do outside of the full profile, on a GPU, with one core, and where OMP_NUM_THREADS is set.
    """
    from aeutils.course import reference

    if plan.profile != "full" or torch.get_num_threads() < 2 or "OMP_NUM_THREADS" in os.environ:
        return None
    tasks = {p: reference.tasks_of(plan._replace(notebooks={p: n})) for p, n in plan.notebooks.items()}
    on_cpu = all(pick_device(p.get("device", "auto")) == "cpu" for p in plan.notebooks.values())
    return tasks if on_cpu or not any(tasks.values()) else None


@contextmanager
def training(tasks, folder):
    """{task: future} of the tasks while processes train them into the folder, up to four at a time.

    What fails is left to the notebook that needs it, which says where.
    """
    from aeutils.course import reference

    at_once = min(torch.get_num_threads(), MOST_TRAININGS)
    alone = {"OMP_NUM_THREADS": str(torch.get_num_threads() // at_once)}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, spawn, initializer=end_with_parent) as pool:
        with patch.dict(os.environ, alone):
            futures = {task: pool.submit(reference.perform, task, folder, "cpu", False) for task in tasks}
        yield futures


def end_with_parent():
    """Let this process end when the one that started it does, however it ends."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def children():
    return set(psutil.Process().children(recursive=True))


def stop(futures, others):
    """End the processes that work for these futures: all children but the `others`."""
    while wait(futures, timeout=0.2).not_done:
        for child in children() - others:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def run_side_by_side(plan, keep_going, timeout):
    """(notebook, seconds, RunFailed or None) as each ends; two run at a time, with half of the threads each.

    Two networks this small on half of the cores each train faster than one on all. A notebook waits for the headline
    trainings that it needs, and the first starts when those left leave half of the cores idle. Where notebooks train
    for themselves, the first of those that share models trains them, and the others wait for it. One at a time where
    there is one core, or OMP_NUM_THREADS is set.
    At the first failure without `keep_going`, or Ctrl-C, all that runs is stopped.
    """
    threads, others, needs = torch.get_num_threads(), children(), trainings_of(plan)
    half = {} if "OMP_NUM_THREADS" in os.environ or threads < 2 else {"OMP_NUM_THREADS": str(threads // 2)}
    trains = {models_of(names): path for path, names in reversed(plan.notebooks.items())}
    ended = {path: threading.Event() for path in trains.values()}
    order = sorted(plan.notebooks, key=lambda path: path not in ended)
    stopped, places = threading.Event(), queue.SimpleQueue()

    def run(path):
        parameters, place = plan.notebooks[path], places.get()
        found = needs is not None and not any(trained[task].exception() for task in needs[path])
        if not found and path not in ended:
            ended[trains[models_of(parameters)]].wait()
        start, error = time.monotonic(), None
        try:
            if not stopped.is_set():
                run_notebook(path, plan.folder / path.name, parameters, keep_going, timeout, place)
        except Exception as failure:
            if not (keep_going and isinstance(failure, RunFailed)):
                stopped.set()
                raise
            error = failure
        finally:
            places.put(place)
            ended.get(path, threading.Event()).set()
        return path, round(time.monotonic() - start, 1), error

    tasks = list(dict.fromkeys(chain(*needs.values()))) if needs else []
    pool = ThreadPoolExecutor(2 if "OMP_NUM_THREADS" in half else 1)
    with training(tasks, plan.weights[-1]) as trained, patch.dict(os.environ, half):
        threading.Thread(target=open_places, args=(places, trained.values()), daemon=True).start()
        prepare_kernels()
        bar = tqdm(total=len(order), desc="notebooks", unit="notebook", position=0)
        futures = [pool.submit(run, path) for path in order]
        try:
            for future in as_completed(futures):
                yield future.result()
                bar.update()
        finally:
            stopped.set()
            for event in ended.values():
                event.set()
            stop([*futures, *trained.values()], others)
            pool.shutdown()
            bar.close()


def open_places(places, trainings):
    """Put two places for notebooks: one when half of the trainings at a time are left, the other when none is."""
    bar = tqdm(total=len(trainings), desc="trainings", unit="model", position=3, disable=not trainings)
    for place, left in ((1, min(torch.get_num_threads(), MOST_TRAININGS) // 2), (2, 0)):
        while len(trainings) > left:
            done, trainings = wait(trainings, return_when=FIRST_COMPLETED)
            bar.update(len(done))
        places.put(place)
    bar.close()


def models_of(parameters):
    """What notebooks that train the same models have in common: the parameters that name a width."""
    return tuple(sorted(name for name in parameters if name.endswith("latent_dim")))


@contextmanager
def only_run_in(folder):
    """Hold the folder's lock, which the system lets go when the process ends, however it ends."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"another run is writing into {folder}; wait for its end, or name another --output."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Engine(NBClientEngine):
    """papermill's engine; it would write the notebook twice a cell, this one every five seconds and at the end."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, *args, **kwargs):
        save = nb_man.save

        def save_seldom():
            if (nb_man.now() - nb_man.last_save_time).total_seconds() >= 5:
                save()

        nb_man.save = save_seldom
        try:
            super().execute_managed_notebook(nb_man, *args, **kwargs)
        finally:
            del nb_man.save


papermill_engines.register("aeutils", Engine)


def run_notebook(path, output, parameters, keep_going=False, timeout=None, place=1):
    """Execute one notebook into `output`, which keeps what ran if a cell fails."""
    source = path
    if keep_going:
        source = output.with_name(f".{output.stem}.tmp.ipynb")
        nbformat.write(tolerant(nbformat.read(path, as_version=4)), source)
    quiet = ["--IPKernelApp.log_level=CRITICAL"]
    bar = {"desc": f"  {path.stem}", "leave": False, "position": place}
    try:
        papermill.execute_notebook(
            source,
            output,
            parameters,
            kernel_name="python3",
            engine_name="aeutils",
            progress_bar=bar,
            resources={"metadata": {"path": str(output.parent)}},  # cwd= would move this process too
            autosave_cell_every=5,
            execution_timeout=timeout,
            extra_arguments=quiet,
        )
    except PapermillExecutionError:
        raise RunFailed(failure(output)) from None
    except DeadKernelError:
        raise RunFailed(
            f"{path.name}: the kernel died in cell {last_cell(output)}, perhaps for want of memory. "
            f"The notebook up to there is kept in {output}; the same command goes on with what is trained so far."
        ) from None
    except CellTimeoutError:
        raise RunFailed(
            f"{path.name}: cell {last_cell(output)} took longer than {timeout} s, the --timeout of a cell. "
            f"The notebook up to there is kept in {output}; allow more, or repair the cell."
        ) from None
    except RuntimeError as error:
        raise RunFailed(
            f"{path.name}: its kernel did not start ({error}); run the same command again."
        ) from None
    except OSError as error:
        output.unlink(missing_ok=True)  # papermill leaves it half-written
        error.filename = error.filename or str(output)
        raise
    finally:
        if keep_going:
            source.unlink(missing_ok=True)


def failure(output):
    """Where an executed notebook failed first, and how; cells are counted as in its source."""
    (number, cell, error), *more = (
        (i, cell, out)
        for i, cell in enumerate(own_cells(output), 1)
        for out in cell.get("outputs", ())
        if out.output_type == "error"
    )
    trace = "\n".join(ANSI.sub("", line) for line in error.traceback)
    later = f", and {len(more)} after it" if more else ""
    return (
        f"{output.name} failed in cell {number} (In [{cell.execution_count}]){later}:\n\n{trace}\n\n"
        f"{error.ename}: {error.evalue}\nThe notebook as far as it ran is kept in {output}."
    )


def own_cells(path):
    """The cells of an executed notebook without those that papermill adds."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if not added & set(cell.metadata.get("tags", ()))]


def tolerant(notebook):
    """The notebook with every cell allowed to fail, the parameters aside."""
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "code" and "parameters" not in tags:
            tags.append("raises-exception")
    return notebook


def prepare_kernels():
    """Let the kernel "python3" be this interpreter's, and AEUTILS_DATA what it is here: kernels start elsewhere."""
    if os.environ.get("AEUTILS_DATA"):
        os.environ["AEUTILS_DATA"] = os.path.abspath(os.environ["AEUTILS_DATA"])
    own = str(Path(sys.prefix) / "share" / "jupyter")
    paths = os.environ.get("JUPYTER_PATH", "").split(os.pathsep)
    if paths[0] != own:
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [own, *paths]))


def last_cell(path):
    """The number of the last cell that began to run, counted as in the notebook's source."""
    begun = (cell.metadata.get("papermill", {}).get("start_time") for cell in own_cells(path))
    return max((i for i, time in enumerate(begun, 1) if time), default=0)


def collect(folder, plan, profile, seconds):
    """The run's metrics.json, from what the notebooks published."""
    published, exercises = [], {}
    for path in plan.notebooks:
        for cell in nbformat.read(folder / path.name, as_version=4).cells:
            for number in CHECKED.findall(cell.source):
                exercises[f"{path.name[:2]}.{number}"] = "did not run"
            published += [out["data"][MIME] for out in cell.get("outputs", ()) if MIME in out.get("data", {})]
            for out in cell.get("outputs", ()):
                for number, said in EXERCISE.findall(out.get("text", "")):
                    exercises[f"{path.name[:2]}.{number}"] = said
    first = next(iter(plan.notebooks.values()))
    faces = [results["faces"] for results in published if results["number"] == "04"]
    return {
        "profile": profile,
        "seeds": seeds_of(first.get("seed", 0), first.get("n_seeds", 1)),
        "device": pick_device(first.get("device", "auto")),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in VERSIONS},
        "seconds": seconds,
        "faces": faces[0] if faces else None,
        "parameters": {path.name[:2]: parameters for path, parameters in plan.notebooks.items()},
        "metrics": {key: entry for results in published for key, entry in results["metrics"].items()},
        "verdicts": {key: entry for results in published for key, entry in results["verdicts"].items()},
        "exercises": exercises,
        "labels": {f"{r['number']}.{key}": text for r in published for key, text in r["labels"].items()},
    }


def write_exercises(path, exercises):
    """One row an exercise: notebook, exercise, what its check said."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("notebook", "exercise", "result"))
    rows.writerows((*key.split("."), said) for key, said in exercises.items())
    write_atomically(path, text.getvalue().encode())
