"""Training speed on this machine, interleaved in one process: models, the usual loop, the penalty, the peak."""

import gzip
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.func import jacrev, vmap
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms
from tqdm import tqdm

from aeutils.course import speed
from aeutils.course.readme import BENCH, PICTURES, write_speed
from aeutils.course.reference import write_sums
from aeutils.course.results import write_json
from aeutils.course.settings import digit_configs
from aeutils.data import DATA, MNIST_FILES, load_mnist
from aeutils.latent import encode_dataset
from aeutils.losses import contractive_penalty, jacobian_frobenius
from aeutils.training import VAEConfig, autocast

BATCH, STEPS, FEW = 128, 20, 16  # images a batch, steps a round, images of the exact penalties


def trainer(config, images, fast=True):
    """A function that takes one training step on a batch x, as `training.fit` does; not `fast`: as is usual."""
    torch.manual_seed(0)
    layout = torch.channels_last if fast else torch.contiguous_format
    model = config.build(images.shape[-2:]).to(memory_format=layout).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if fast else None)
    generator = torch.Generator().manual_seed(0)

    def step(x):
        with autocast("cpu") if fast else speed.with_torch_s_upsampling():
            loss, _ = config.loss(model, x, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def indexed(step, images, batch_size=None):
    """STEPS steps on batches indexed from one tensor; returns the number of images."""
    batch_size = batch_size or BATCH
    order = torch.randperm(len(images))[: STEPS * batch_size]
    for index in order.split(batch_size):
        step(images[index].contiguous(memory_format=torch.channels_last))
    return len(order)


def usual_loop(step, folder):
    """The same on torchvision's data set: an image at a time, through a transform and a DataLoader."""
    for name in MNIST_FILES:
        path = Path(folder) / "MNIST" / "raw" / name.removesuffix(".gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.decompress((DATA / "MNIST" / "raw" / name).read_bytes()))
    data = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())

    def run():
        for _, (x, _) in zip(range(STEPS), DataLoader(data, BATCH, shuffle=True)):
            step(x)
        return STEPS * BATCH

    return run


def penalties(model):
    """Three ways to ||J||_F^2 of x, each with its gradient: {name: function of x}."""

    def rows(x):
        x = x.requires_grad_(True)
        h = model.encode(x)
        parts = (torch.autograd.grad(h[:, i].sum(), x, create_graph=True)[0] for i in range(h.shape[1]))
        return sum(part.square().sum() for part in parts) / len(x)

    def forward_of_one(x):
        return model.encode(x[None])[0]

    return {
        "exact, by rows": rows,
        "exact, vmap(jacrev)": lambda x: vmap(jacrev(forward_of_one))(x).square().sum() / len(x),
        "one random probe": lambda x: contractive_penalty(model.encode, x),
    }


def with_gradient(penalty, model, images):
    def run():
        penalty(images[:FEW].clone()).backward()
        model.zero_grad()
        return FEW

    return run


def matrix_product(dtype, n=2048):
    a = torch.randn(n, n).to(dtype)

    def run():
        a @ a
        return 2 * n**3 / 1e9  # GFLOP

    return run


def measure(rounds=5):
    """{name: {"median", "all", "unit"}} of images (or GFLOP) a second, the contestants taking turns."""
    images = load_mnist().train_images
    configs = digit_configs(seed=0, latent_dim=256, lam_sae=0.045, lam_cae=0.03, sigma_dae=0.25, epochs=1)
    faces, vae = torch.rand(640, 1, 28, 20), VAEConfig()
    model = configs["cae"].build((28, 28)).to(memory_format=torch.channels_last).eval()
    assert torch.allclose(
        penalties(model)["exact, by rows"](images[:4].clone()),
        jacobian_frobenius(model.encode, images[:4]).mean(),
        rtol=1e-3,
    )
    step = {name: trainer(config, images) for name, config in configs.items()}
    face_step = trainer(vae, faces)
    larger, plain = (trainer(configs["ae"], images) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "AE, training": lambda: indexed(step["ae"], images),
            "SAE, training": lambda: indexed(step["sae"], images),
            "CAE, training": lambda: indexed(step["cae"], images),
            "DAE, training": lambda: indexed(step["dae"], images),
            "AE, training, batches of 256": lambda: indexed(larger, images, 256),
            "AE, training, torch's transposed convolution": speed.with_torch_s_upsampling()(
                lambda: indexed(plain, images)
            ),
            "AE, usual loop": usual_loop(trainer(configs["ae"], images, fast=False), folder),
            "VAE of faces, training": lambda: indexed(face_step, faces, vae.batch_size),
            "AE, encoding": lambda: len(encode_dataset(model, images[:5000])),
            **{
                f"penalty: {name}": with_gradient(penalty, model, images)
                for name, penalty in penalties(model).items()
            },
            "matrix product, float32": matrix_product(torch.float32),
            "matrix product, bfloat16": matrix_product(torch.bfloat16),
        }
        found = {name: [] for name in runs}
        for turn in tqdm(range(rounds + 1), desc="rounds"):  # the first warms up
            for name, run in runs.items():
                start = time.perf_counter()
                amount = run()
                if turn:
                    found[name].append(amount / (time.perf_counter() - start))
    return {
        name: {
            "median": statistics.median(values),
            "all": values,
            "unit": "GFLOP/s" if "product" in name else "images/s",
        }
        for name, values in found.items()
    }


def flops_of_a_step(config, images):
    """GFLOP of one training step on BATCH images, counted by torch."""
    step, counter = trainer(config, images, fast=False), FlopCounterMode(display=False)
    with counter:
        step(images[:BATCH])
    return counter.get_total_flops() / 1e9


STUDIES = {
    "ablation": speed.ablation,
    "faces": speed.face_recipes,
    "penalty": speed.penalty_frontier,
    "libraries": speed.libraries,
    "growth": speed.growth,
}


def good(row):
    """Whether a row of time_to is as good as both targets ask."""
    return row["test_mse"] <= speed.TARGET and row["svm_accuracy"] >= speed.TARGET_SVM


def write(output, rounds=5, studies=False):
    """Measure, print a table, write OUTPUT/bench.json and OUTPUT/bench.png; return the folder.

    With `studies` also what each choice of the recipe is worth, the penalty's frontier, the libraries and the growth.
    """
    speeds, folder = measure(rounds), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    median = {name: row["median"] for name, row in speeds.items()}
    for name, row in speeds.items():
        spread = f"{min(row['all']):,.0f} to {max(row['all']):,.0f}"
        print(f"{name:46}{row['median']:12,.1f} {row['unit']:9} ({spread})")
    ae = digit_configs(seed=0, latent_dim=256, lam_sae=0.0, lam_cae=0.0, sigma_dae=0.0, epochs=1)["ae"]
    gflops = flops_of_a_step(ae, load_mnist().train_images[:BATCH]) * median["AE, training"] / BATCH
    ratios = {
        "AE training over the usual loop": median["AE, training"] / median["AE, usual loop"],
        "the same with batches of 256": median["AE, training, batches of 256"] / median["AE, usual loop"],
        "CAE step over the plain step": median["AE, training"] / median["CAE, training"],
        "probe over exact by rows": median["penalty: one random probe"] / median["penalty: exact, by rows"],
        "AE training over the float32 peak": gflops / median["matrix product, float32"],
    }
    for name, value in ratios.items():
        print(f"{name:40}{value:8.2f}")
    settings = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "batch": BATCH,
    }
    found = {"settings": settings, "speeds": speeds, "ratios": ratios, "time_to": speed.time_to(good)}
    for row in found["time_to"]:
        print("AE:", *(f"{name} {value:.5g}" for name, value in row.items()), sep="  ")
    write_json(folder / "bench.json", found)
    draw_speeds(found, folder / "bench.png")
    if studies:
        for name, study in STUDIES.items():
            found[name] = study()
            write_json(folder / "bench.json", found)
        ratios["two models at once, a thread each, over one on both"] = at_once_over_one_on_all(
            found["growth"]
        )
        write_json(folder / "bench.json", found)
        draw_studies(found, folder / "studies.png")
    return folder


def at_once_over_one_on_all(grown):
    """Images a second of the most models at once over those of one model on the most threads."""
    together, alone = grown[speed.AT_ONCE], grown["threads"]
    return together["sizes"][-1] / together["seconds"][-1] * alone["seconds"][-1]


def draw_speeds(found, path):
    import matplotlib.pyplot as plt

    speeds = {name: row["median"] for name, row in found["speeds"].items() if "product" not in name}
    settings = found["settings"]
    fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    ax.barh(list(speeds), list(speeds.values()), color="#0072B2")
    ax.invert_yaxis()
    ax.set(
        xscale="log",
        xlabel=f"images a second, median of {settings['rounds']} rounds, {settings['threads']} threads",
    )
    fig.savefig(path, dpi=150)
    plt.close(fig)


def draw_studies(found, path):
    """The recipe's choices, the penalty's frontier, and time and memory against size."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    reached = {name: rows[-1] for name, rows in found["ablation"].items() if rows}
    right = [row["test_mse"] <= speed.TARGET for row in reached.values()]
    seconds = [row["seconds"] for row in reached.values()]
    axes[0, 0].barh(list(reached), seconds, color=["#0072B2" if r else "#BBBBBB" for r in right])
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel=f"seconds to test MSE {speed.TARGET} (grey: not reached)")
    places = {1: (0, 6, "center"), 2: (2, -14, "left"), 4: (-2, -14, "right")}
    for row in found["penalty"]:
        axes[0, 1].plot(row["seconds"], row["jacobian_over_variance"], "o", color="#D55E00")
        text, at = f"{row['probes']} on {row['share']:g}", (row["seconds"], row["jacobian_over_variance"])
        *by, side = places[row["probes"]]
        axes[0, 1].annotate(text, at, by, textcoords="offset points", ha=side, fontsize=8)
    axes[0, 1].margins(0.12)
    axes[0, 1].set(
        xlabel="seconds of training",
        ylabel="squared Jacobian norm over variance",
        title="probes an image on share of the batches",
    )
    for what, grown in found["growth"].items():
        size = np.array(grown["sizes"]) / grown["sizes"][0]
        label = f"{what}: {grown['exponent']:.2f}"
        axes[1, 0].loglog(size, np.array(grown["seconds"]) / grown["seconds"][0], "o-", label=label)
        axes[1, 1].semilogx(size, grown["memory"], "o-", label=what)
    axes[1, 0].set(
        xlabel="size over the smallest", ylabel="time over the smallest's", title="exponents of time"
    )
    axes[1, 1].set(xlabel="size over the smallest", ylabel="peak memory of the process, GB", ylim=(0, None))
    fig.legend(*axes[1, 0].get_legend_handles_labels(), ncol=5, fontsize=8, loc="outside lower center")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def record(folder):
    """Keep what a bench with its studies found in data/bench.json, and write the tables of SPEED.md from it."""
    shutil.copyfile(folder / "bench.json", BENCH)
    shutil.copyfile(folder / "studies.png", PICTURES / "studies.png")
    write_speed()
    write_sums()
