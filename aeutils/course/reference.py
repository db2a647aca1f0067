"""The reference run: five seeds of every headline model, their figures with tolerances, and the notebooks as read."""

import hashlib
import json
import math
import os
import shutil
import statistics
import time
import warnings
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from aeutils.course import report, runner
from aeutils.course.readme import BENCH, write_readme
from aeutils.course.results import REFERENCE, UNKNOWN, load_reference, write_json
from aeutils.course.runner import RunFailed
from aeutils.course.settings import READ, VALIDATION, digit_configs, face_configs, seeds_of, validation
from aeutils.data import (
    DATA,
    corrupt,
    fingerprint,
    load_frey_faces,
    load_mnist,
    split_frames,
    write_atomically,
)
from aeutils.faces import synthetic_faces
from aeutils.latent import decode_dataset, different_pairs, encode_dataset, interpolate
from aeutils.losses import contractive_penalty, l1_sparsity
from aeutils.metrics import active_share, jacobian_over_variance, knn_accuracy, psnr
from aeutils.svm import SVC
from aeutils.training import (
    SHIPPED,
    AutoencoderConfig,
    VAEConfig,
    checkpoint_path,
    find_checkpoint,
    load_or_train,
)

SEEDS = 5
FACE_SEEDS = 5
FACE_STUDIES = (  # changes to notebook 04's parameters
    *({"iwae_samples": 5000, "split_seed": split_seed} for split_seed in range(3)),
    *({"split": "blocks", "split_seed": split_seed} for split_seed in range(3)),
    *({"beta": beta} for beta in (0.5, 2.0, 4.0)),
    {"reach": 0},
)
RETRAINED = {"04": 1}  # seeds of a full run's notebook, which the tolerance is for; 3 in the others
FALSE_ALARM = 0.05  # of a whole full run
PATH = {  # penalty: {lam: seeds}; several seeds where the bound is near
    "none": {0.0: 5},
    "l1": {0.01: 1, 0.02: 1, 0.045: 5, 0.05: 5, 0.09: 1, 0.18: 1},
    "contractive": {0.003: 1, 0.01: 1, 0.03: 5, 0.034: 5, 0.1: 1, 0.3: 1},
    "denoising": {0.1: 1, 0.2: 1, 0.25: 5, 0.3: 5, 0.5: 1},
}
WIDTHS = (  # what changes of the headline models' configuration, {penalty: strengths tried}; one seed
    ({"latent_dim": 64}, {"l1": (0.06, 0.1), "contractive": (0.03, 0.06)}),
    ({"latent_dim": 256}, {"l1": None, "contractive": None}),  # the strengths of the headline models
    ({"latent_dim": 1024}, {"l1": (0.02, 0.03), "contractive": (0.003, 0.01)}),
    (
        {"latent_dim": 4096, "code": "sigmoid", "epochs": 6, "lr": 3e-3},
        {"kl": (0.05,), "contractive": (0.003, 0.01)},
    ),
)
MACHINES = (  # what another machine may change: the number of threads, the processor's instructions
    {"OMP_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "SkylakeX"},
    {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
    },
)
STUDIED = ("vae.", "ae.", "ceiling.", "known.")  # the metrics of a face study that are kept
TRAINED = ("ae", "sae", "cae", "dae", "vae", "known")  # models whose weights differ by the number of threads
NAMES = {"none": "ae", "l1": "sae", "kl": "sae", "contractive": "cae"}
TAU = 1.25  # times the AE's validation MSE is what a penalty may cost
FLOORS = {"dB": 0.1, "": 0.005, "MSE": 5e-4, "%": 0.5, "bits/dim": 0.02, "nats": 2.0}  # absolute, by unit


DIGITS = ("latent_dim", "lam_sae", "lam_cae", "sigma_dae", "epochs")  # parameters that make a configuration
FACES = ("face_latent_dim", "face_epochs", "beta", "reach")


class Task(NamedTuple):
    """A training that depends on no other: what is trained, on how many images, and whether it is measured."""

    name: str
    config: AutoencoderConfig | VAEConfig
    n_train: int | None = None
    measured: bool = False


class Done(NamedTuple):
    """What a training left: its checkpoint's bytes, so that no folder need be shared, and its figures."""

    checkpoint: bytes
    seconds: float
    reused: bool
    figures: dict


@lru_cache(maxsize=1)
def images_of(data, n_train):
    """The training and the validation images that a configuration's `data` names; n_train with them, if drawn."""
    if data == "mnist":
        images = load_mnist().train_images
        return images[:n_train], images[-validation(n_train) :]
    source, split = data.split("/")
    kind, seed = split.split("-")
    if source == "independent":
        images = synthetic_faces(n_train, int(seed), independent=True)[0]
    else:
        images = load_frey_faces(source=source).images
    index = split_frames(len(images), kind, int(seed))
    return images[index.train], images[index.val]


def perform(task, folder, device="auto", progress=True):
    """Train one task into a folder of this machine, or find it there."""
    start = time.monotonic()
    Path(folder).mkdir(parents=True, exist_ok=True)
    train_images, val_images = images_of(task.config.data, task.n_train)
    trained = load_or_train(
        task.config, train_images, val_images, folders=[folder], device=device, progress=progress
    )
    figures = {"val": trained.history[-1]["val"]}
    if task.measured:
        mnist = load_mnist()
        figures |= path_point(trained.model.cpu(), mnist.train_images, mnist.train_labels)
    checkpoint = checkpoint_path(task.config, folder).read_bytes()
    return Done(checkpoint, time.monotonic() - start, trained.reused, figures)


def train(tasks, folder, scheduler=None):
    """[(task, Done)] of tasks trained into the folder, one row of a table each as it ends.

    With the address of a Dask scheduler its workers train what is missing; a task whose worker dies goes to another,
    and its checkpoint comes here as soon as it is there. Without one, the trainings run here, one after the other.
    """
    folder, results = Path(folder).absolute(), []
    print(f"{'model':24}{'seed':>5}{'validation':>14}{'seconds':>9}")
    there = [task for task in tasks if checkpoint_path(task.config, folder).exists()]
    missing = [task for task in tasks if task not in there]
    here = ((task, perform(task, folder)) for task in there + ([] if scheduler else missing))
    for task, done in chain(here, on_cluster(missing, folder, scheduler) if scheduler else ()):
        took = "there" if done.reused else f"{done.seconds:.0f}"
        print(f"{task.name:24}{task.config.seed:5}{done.figures['val']:14.6g}{took:>9}", flush=True)
        results.append((task, done))
    return sorted(results, key=lambda result: tasks.index(result[0]))


def on_cluster(tasks, folder, scheduler):
    """(task, Done) in the order in which the workers of a Dask scheduler end, each checkpoint kept before it is told.

    OSError where no scheduler answers; RunFailed where a task ends every worker that it is given to.
    """
    from distributed import Client, KilledWorker, as_completed

    folder.mkdir(parents=True, exist_ok=True)
    names = {checkpoint_path(task.config, folder).name: task for task in tasks}
    with Client(scheduler) as client:
        futures = [client.submit(perform, task, str(folder), key=name) for name, task in names.items()]
        try:
            for future, done in as_completed(futures, with_results=True):
                if not (folder / future.key).exists():  # the workers share no folder with this machine
                    write_atomically(folder / future.key, done.checkpoint)
                yield names[future.key], done
        except KilledWorker as error:
            raise RunFailed(
                f"the training of {error.task} ended its workers, for want of memory perhaps; what is trained is kept "
                f"in {folder}, and the same command goes on."
            ) from None


def reference_tasks():
    """Every headline model of every seed."""
    known = {
        path.name[:2]: runner.defaults(path) for path in sorted(runner.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    }
    return [*digit_tasks(known["01"]), *face_tasks(known["04"])]


def digit_tasks(parameters, n_seeds=SEEDS):
    for seed in seeds_of(parameters["seed"], n_seeds):
        configs = digit_configs(seed=seed, **{name: parameters[name] for name in DIGITS})
        yield from (Task(name, config, parameters["n_train"]) for name, config in configs.items())


def face_tasks(parameters, sources=(("frey", FACE_SEEDS), ("synthetic", 1))):
    kept = {name: parameters[name] for name in FACES}
    split = f"{parameters['split']}-{parameters['split_seed']}"
    known = ("independent", "random-0", ("vae",), 1, parameters["n_drawn"])  # whose factors are known
    taken = ((name, split, ("vae", "ae"), n_seeds, None) for name, n_seeds in sources)
    for source, split, names, n_seeds, n_drawn in (*taken, known):
        for seed in seeds_of(parameters["seed"], n_seeds):
            configs = face_configs(seed=seed, data=f"{source}/{split}", **kept)
            yield from (Task(f"{name} {source}", configs[name], n_drawn) for name in names)


def tasks_of(plan):
    """The headline trainings of a plan's notebooks whose weights are in none of its folders.

    Weights of digit models count only if they were trained on the plan's images; ValueError on a damaged checkpoint.
    """
    tasks = []
    for parameters in plan.notebooks.values():
        if {*DIGITS, "n_train"} <= parameters.keys():
            tasks += digit_tasks(parameters, parameters["n_seeds"])
        if {*FACES, "faces", "split", "split_seed"} <= parameters.keys():
            with suppress(FileNotFoundError):  # the notebook says so
                faces = load_frey_faces(source=parameters["faces"]).name
                tasks += face_tasks(parameters, ((faces, parameters["n_face_seeds"]),))
    sizes = {task.n_train for task in tasks if task.config.data == "mnist"}
    marks = {("mnist", n): fingerprint(load_mnist().train_images[:n]) for n in sizes}
    return [
        task
        for task in dict.fromkeys(tasks)
        if not find_checkpoint(task.config, marks.get((task.config.data, task.n_train)), plan.weights)
    ]


def study(seeds, lams, folder, scheduler=None):
    """SAE and CAE for every lam and seed into a folder: study.json has a row for each, on the validation images."""
    parameters = runner.defaults(next(runner.NOTEBOOKS.glob("01_*.ipynb")))
    common = {name: parameters[name] for name in ("latent_dim", "epochs")}
    tasks = [
        Task(
            f"{penalty} {lam:g}",
            AutoencoderConfig(penalty=penalty, lam=lam, seed=seed, **common),
            parameters["n_train"],
            True,
        )
        for penalty in ("l1", "contractive")
        for lam in lams
        for seed in seeds
    ]
    rows = [
        {"penalty": task.config.penalty, "lam": task.config.lam, "seed": task.config.seed} | done.figures
        for task, done in train(tasks, folder, scheduler)
    ]
    write_json(Path(folder) / "study.json", rows)
    return rows


def lambda_path(folder=Path("runs") / "reference" / "path"):
    """A row for every lam on the path of each penalty: means over its seeds, on the validation images.

    `of_tau` is the error over tau, each seed by the AE of that seed, so that points of few seeds compare.
    """
    parameters = runner.defaults(next(runner.NOTEBOOKS.glob("01_*.ipynb")))
    mnist, rows = load_mnist(), []
    images, labels = mnist.train_images, mnist.train_labels
    train_images, x = images[: parameters["n_train"]], images[-VALIDATION:]
    for penalty, points in PATH.items():
        for lam, n_seeds in points.items():
            configs = [
                AutoencoderConfig(
                    penalty=penalty,
                    lam=lam,
                    latent_dim=parameters["latent_dim"],
                    epochs=parameters["epochs"],
                    seed=seed,
                )
                for seed in range(n_seeds)
            ]
            trained = [
                load_or_train(config, train_images, x, folders=[SHIPPED, folder]) for config in configs
            ]
            found = [path_point(t.model.cpu(), images, labels) for t in trained]
            if penalty == "none":
                taus = [TAU * point["val_mse"] for point in found]
            for point, tau in zip(found, taus):
                point["of_tau"] = point["val_mse"] / tau
            means = {name: statistics.fmean(point[name] for point in found) for name in found[0]}
            rows.append({"penalty": penalty, "lam": lam, "seeds": n_seeds, **means})
            print(f"{penalty:12}", *(f"{value:>12.4g}" for value in list(rows[-1].values())[1:]), flush=True)
    return rows


def path_point(model, images, labels):
    """What one model costs and does, on the validation images, the last of the training images.

    Its classifiers, logistic regression and an RBF SVM, learn from the first READ training codes.
    """
    x, y = images[-VALIDATION:], labels[-VALIDATION:]
    h, h_read, h_noisy = (encode_dataset(model, part) for part in (x, images[:READ], noisy(x)))
    generator = torch.Generator().manual_seed(0)
    norms = torch.stack(
        [contractive_penalty(model.encode, part, 16, generator).detach() for part in x[:1000].split(250)]
    )
    mean, scale = h_read.mean(0), h_read.var(0).mean().sqrt()
    readers = {"logreg": LogisticRegression(C=0.1, max_iter=500), "svm": SVC(C=10, gamma=1 / h.shape[1])}
    for reader in readers.values():
        reader.fit((h_read - mean) / scale, labels[:READ])
    return {
        "val_mse": (decode_dataset(model, h) - x).square().mean().item(),
        "active_share": active_share(h, h.abs().amax(0)),
        "jacobian_over_variance": jacobian_over_variance(norms, h),
        "l1": l1_sparsity(h).item(),
        "squared_jacobian": norms.mean().item(),
        "code_scale": h.var(0).sum().sqrt().item(),
        "blend_db": blend_db(model, x, y),
        "svm_noisy": readers["svm"].score((h_noisy - mean) / scale, y),
    } | {f"{name}_accuracy": reader.score((h - mean) / scale, y) for name, reader in readers.items()}


def noisy(x):
    """The images under the noise that the studies ask about: Gaussian, of standard deviation .3, seeded."""
    return corrupt(x, "gaussian", 0.3, torch.Generator().manual_seed(0))


def blend_db(model, x, labels):
    """PSNR in dB of the two ways of notebook 02, over 1,000 pairs of different digits and the inner alphas."""
    pairs = different_pairs(labels, 1000)
    path = interpolate(model, x[pairs[:, 0]], x[pairs[:, 1]], [0.2, 0.4, 0.6, 0.8])
    return psnr(path.x_blend.flatten(0, 1), path.x_linear.flatten(0, 1)).mean().item()


def width_study(folder=Path("runs") / "reference" / "path"):
    """What width buys: a row for the untrained encoder, AE, SAE and CAE of every width, seed 0, on test images.

    Of the strengths tried, the largest whose validation MSE is at most tau = TAU times the AE's is taken, the smallest
    where none is. The row of the untrained encoder has no error and no blends.
    """
    parameters, rows = runner.defaults(next(runner.NOTEBOOKS.glob("01_*.ipynb"))), []
    headline = {"l1": (parameters["lam_sae"],), "contractive": (parameters["lam_cae"],)}
    images = load_mnist().train_images
    train_images, x = images[: parameters["n_train"]], images[-VALIDATION:]
    for changes, tried in WIDTHS:
        common = {"epochs": parameters["epochs"]} | changes
        torch.manual_seed(0)  # as training does
        best = {"untrained": (0.0, None, AutoencoderConfig(**common).build(images.shape[-2:]).eval())}
        for penalty, strengths in {"none": (0.0,), **tried}.items():
            name = NAMES[penalty]
            for lam in sorted(strengths or headline[penalty]):
                config = AutoencoderConfig(penalty=penalty, lam=lam, **common)
                trained = load_or_train(config, train_images, x, folders=[SHIPPED, folder])
                error = trained.history[-1]["val"]
                if name not in best or error <= TAU * best["ae"][1]:
                    best[name] = lam, error, trained.model.cpu()
        for name, (lam, error, model) in best.items():
            found = {"latent_dim": model.latent_dim, "code": model.code, "epochs": common["epochs"]}
            found |= {"model": name, "lam": lam} | read_width(model)
            if error is None:
                found.pop("blend_db")
            else:
                found |= {"val_mse": error, "of_tau": error / (TAU * best["ae"][1])}
            rows.append(found)
            print(
                *(
                    f"{value:>12}" if isinstance(value, str) else f"{value:>12.5g}"
                    for value in found.values()
                ),
                flush=True,
            )
    return rows


def read_width(model):
    """What is read from one model's codes of the test images, by classifiers of all the training codes.

    A logistic regression that is not at its minimum after 1,000 steps has no figure.
    """
    mnist = load_mnist()
    x_test, y, y_test = mnist.test_images, mnist.train_labels.numpy(), mnist.test_labels.numpy()
    h, h_test, h_noisy = (encode_dataset(model, x) for x in (mnist.train_images, x_test, noisy(x_test)))
    mean, scale = h.mean(0), h.var(0).mean().sqrt()
    u, u_test, u_noisy = (((codes - mean) / scale).numpy() for codes in (h, h_test, h_noisy))
    linear, found = LogisticRegression(tol=1e-5, max_iter=1000), {}
    search = GridSearchCV(linear, {"C": [0.003, 0.01, 0.03, 0.1, 0.3]}, cv=3, error_score="raise")
    with warnings.catch_warnings(), suppress(ConvergenceWarning):
        warnings.simplefilter("error", ConvergenceWarning)
        linear.set_params(**search.fit(u[:20_000], y[:20_000]).best_params_).fit(u, y)
        found = {"logreg_C": linear.C, "logreg_accuracy": linear.score(u_test, y_test)}
    svm = SVC(C=10, gamma=1 / u.shape[1], cache_size=1000).fit(u, y)
    return {
        "active_share": active_share(h_test, h[-VALIDATION:].abs().amax(0)),
        **found,
        "svm_accuracy": svm.score(u_test, y_test),
        "knn5": knn_accuracy(h, mnist.train_labels, h_test, mnist.test_labels, 5),
        "svm_noisy": svm.score(u_noisy, y_test),
        "blend_db": blend_db(model, x_test, mnist.test_labels),
    }


def face_studies(folder=Path("runs") / "reference" / "faces"):
    """What notebook 04 finds with one seed under each of FACE_STUDIES: its parameters changed, and its metrics.

    A study is found again by its changes and the notebook's source, so that an interrupted run goes on.
    """
    folder = Path(folder).absolute()  # a notebook runs in a folder of its own
    source = [cell.source for cell in nbformat.read(next(runner.NOTEBOOKS.glob("04_*.ipynb")), 4).cells]
    fixed = {"n_face_seeds": 1, "faces": "frey", "checkpoints": str(folder / "checkpoints")}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for path in [*SHIPPED.glob("frey-*"), *SHIPPED.glob("independent-*")]:
        shutil.copy(path, folder / "checkpoints")
    rows = []
    for changes in FACE_STUDIES:
        digest = hashlib.sha256(json.dumps([changes, source]).encode()).hexdigest()[:12]
        plan = runner.plan(runner.NOTEBOOKS, "full", fixed | changes, folder / digest)
        only = {path: chosen for path, chosen in plan.notebooks.items() if path.name.startswith("04")}
        done = folder / digest / "metrics.json"
        if not done.exists():
            runner.execute(plan._replace(notebooks=only))
        metrics = json.loads(done.read_text(encoding="utf-8"))
        chosen = {
            name: metrics["parameters"]["04"][name]
            for name in ("split", "split_seed", "beta", "reach", "iwae_samples")
        }
        found = {key[3:]: entry["value"] for key, entry in metrics["metrics"].items()}
        rows.append(chosen | {"metrics": {key: found[key] for key in found if key.startswith(STUDIED)}})
    return rows


def record():
    """Run the notebooks with all seeds from these weights into runs/reference, and keep what they found.

    They run as in the full profile, since their last cell holds the reference profile to the old figures.
    """
    overrides = {
        "n_seeds": SEEDS,
        "n_face_seeds": FACE_SEEDS,
        "checkpoints": str(SHIPPED),
        "faces": "frey",
        "n_svm_more": 60_000,
    }
    folder = Path("runs") / "reference"
    studies = {"lambda_path": lambda_path(), "width_study": width_study(), "face_studies": face_studies()}
    try:
        known = load_reference()
    except ValueError:  # damaged, which this run repairs
        known = UNKNOWN
    write_json(REFERENCE, known | studies)  # the notebooks read them
    write_sums()
    metrics = runner.execute(runner.plan(runner.NOTEBOOKS, "full", overrides, folder), profile="reference")
    add_machine_spread(metrics["metrics"], folder)
    keep(metrics | studies, folder)


def add_machine_spread(metrics, folder):
    """Give each metric "machine", its largest difference between these values and those found on MACHINES."""
    overrides = {"faces": "frey", "n_seeds": 1, "n_svm_more": 60_000}
    for i, environment in enumerate(MACHINES):
        plan = runner.plan(runner.NOTEBOOKS, "full", overrides, Path(folder) / f"machine_{i}", reuse=True)
        with patch.dict(os.environ, environment):  # a kernel starts with it
            found = runner.execute(plan)["metrics"]
        for key in metrics.keys() & found.keys():
            entry, there = metrics[key], found[key]
            same = entry["per_seed"][: len(there["per_seed"])]
            difference = abs(there["value"] - (statistics.fmean(same) if same else entry["value"]))
            entry["machine"] = max(difference, entry.get("machine", 0.0))


def keep(metrics, folder):
    """Write data/reference.json, data/SHA256SUMS and the README's results from a run's metrics and folder."""
    widest = stats.t.ppf(1 - FALSE_ALARM / (2 * len(metrics["metrics"])), max(1, len(metrics["seeds"]) - 1))
    for key, entry in metrics["metrics"].items():
        entry["reloaded"], entry["tolerance"] = tolerances(entry, widest, RETRAINED.get(key[:2], 3))
        if key.split(".")[1] in TRAINED and not entry["per_seed"]:
            entry["tolerance"] = None  # a figure of one training, whose spread nobody has measured
        if ".map_" in key:  # t-SNE is chaotic: rounding on another processor gives another map
            entry["reloaded"] = entry["tolerance"] = None
    for parameters in metrics["parameters"].values():
        parameters.pop("checkpoints", None)
    write_json(REFERENCE, metrics)
    write_sums()
    write_readme(folder)


def tolerances(entry, widest, retrained=3):
    """(tolerance of a run from the shipped weights, tolerance of one that trains anew).

    The first allows for another processor and number of threads: ten times the difference measured between
    MACHINES, 0.5 % of the value, a quarter of a standard deviation over seeds, or a fifth of the unit's floor,
    whichever is most. The second is at least 2 % of the value, half a standard deviation, the floor, and a prediction
    interval for the mean of m new seeds (`retrained`), t s sqrt(1/m + 1/n), with t such that all metrics together give
    a false alarm in one run of 20; it is None for a figure of a single seed, whose spread nobody has measured, and
    where it exceeds the value itself.
    """
    n, size, floor = len(entry["per_seed"]), abs(entry["value"]), FLOORS.get(entry["unit"], 5e-6)
    spread = statistics.stdev(entry["per_seed"]) if n > 1 else 0.0
    reloaded = max(10 * entry.get("machine", 0.0), 0.005 * size, spread / 4, floor / 5)
    if n == 1:
        return reloaded, None
    interval = widest * spread * math.sqrt(1 / retrained + 1 / max(n, 1))
    anew = max(reloaded, 0.02 * size, spread / 2, floor, interval)
    return reloaded, anew if anew <= max(floor, size) else None


def write_sums():
    """Write data/SHA256SUMS over what is committed there and read by the code."""
    paths = [*DATA.glob("MNIST/raw/*.gz"), *SHIPPED.glob("*.safetensors"), REFERENCE, BENCH]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(DATA).as_posix()}\n"
        for path in sorted(paths)
        if path.exists()
    ]
    write_atomically(DATA / "SHA256SUMS", "".join(lines).encode())


def reexecute():
    """Execute the committed notebooks in place, each only if all of its cells run."""
    runner.prepare_kernels()
    for path in sorted(runner.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            raise RunFailed(f"{path.name}: {error}\nThe committed notebook is as it was.") from None
        clean(notebook)
        temporary = path.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(path)
        print(f"{path.name}: executed, {path.stat().st_size / 1e6:.2f} MB")


def clean(notebook):
    """Leave what a reader needs: no times, no progress bars, no metadata of the tools that ran it."""
    report.strip_widgets(notebook)
    kept = {
        name: notebook.metadata[name] for name in ("kernelspec", "language_info") if name in notebook.metadata
    }
    notebook.metadata = nbformat.from_dict(kept)
    for cell in notebook.cells:
        for name in ("execution", "papermill"):
            cell.metadata.pop(name, None)
        if "outputs" in cell:
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
