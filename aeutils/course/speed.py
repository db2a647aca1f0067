"""What each choice of the training recipe is worth in seconds, and how time and memory grow."""

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import torch
from sklearn import neighbors, svm
from sklearn.manifold import TSNE
from torch import nn

from aeutils import models, training
from aeutils.course.readme import TARGET
from aeutils.data import load_frey_faces, load_mnist, split_frames
from aeutils.latent import decode_dataset, encode_dataset
from aeutils.losses import contractive_penalty, jacobian_frobenius
from aeutils.metrics import bits_per_dim, jacobian_over_variance, knn_accuracy, purity_at_k
from aeutils.svm import SVC
from aeutils.training import SHIPPED, AutoencoderConfig, TrainingFailed, VAEConfig, fit, load_or_train, score
from aeutils.tsne import tsne_map

TARGET_SVM, LABELLED = 0.98, 20_000
EPOCHS = (2, 3, 4)  # lengths of a whole training, each with its own one-cycle, tried in this order
PROBES = ((1, 0.0625), (1, 0.125), (1, 0.25), (1, 0.5), (1, 1.0), (2, 0.5), (4, 0.25), (4, 1.0))
N_IMAGES = 5000  # of the trainings in which something else grows
FACE_RECIPES = {  # what each changes of the VAE's configuration
    "as shipped": {},
    "lr .003, dropout .2, weight decay .05, 150 epochs": {
        "lr": 3e-3,
        "dropout": 0.2,
        "weight_decay": 0.05,
        "epochs": 150,
    },
    "lr .003": {"lr": 3e-3},
    "lr .016": {"lr": 1.6e-2},
    "dropout .2": {"dropout": 0.2},
    "no dropout": {"dropout": 0.0},
    "weight decay .01": {"weight_decay": 0.01},
    "batch 64": {"batch_size": 64},
    "60 epochs": {"epochs": 60},
}
AT_ONCE = "models at once, a thread each"
GROWTH = {  # what grows: its sizes
    "images": (1000, 4000, 15_000, 60_000),
    "latent_dim": (16, 64, 256, 512),
    "epochs": (1, 2, 4, 8),
    "seeds": (1, 2, 3, 5),
    "threads": (1, 2),
    AT_ONCE: (1, 2),
    "t-SNE, images": (1000, 2500, 5000, 10_000),
    "SVM, codes": (2500, 10_000, 60_000),
    "5-NN, codes": (2500, 10_000, 60_000),
}


def unfused(parameters, fused, make=torch.optim.AdamW, **settings):
    return make(parameters, **settings)


def compiled(config, size, build=AutoencoderConfig.build):
    model = build(config, size)
    model.reconstruct = torch.compile(model.reconstruct)
    return model


def nearest(config, size, build=AutoencoderConfig.build):
    """A 1x1 convolution and nearest-neighbour upsampling where the decoder has a transposed convolution."""
    model = build(config, size)
    model.decoder.ups = nn.ModuleList(
        nn.Sequential(nn.Conv2d(up.in_channels, up.out_channels, 1), nn.Upsample(scale_factor=2))
        for up in model.decoder.ups
    )
    model.decoder.ups.apply(models.initialise)
    return model


def normalised_from(level):
    parts = {name: partial(getattr(models, name), norm_from=level) for name in ("Encoder", "Decoder")}
    return patch.multiple(models, **parts)


def with_torch_s_upsampling():
    return patch.object(models.Up, "forward", nn.ConvTranspose2d.forward)


def recipes():
    """{choice: (what it changes of the configuration, the context to train in)}, one choice changed in each."""
    as_it_is = nullcontext()
    return {
        "as shipped": ({}, as_it_is),
        "float32 throughout": ({}, patch.object(training, "autocast", lambda device: nullcontext())),
        "default memory layout": ({}, patch.object(torch, "channels_last", torch.contiguous_format)),
        "optimiser not fused": ({}, patch.object(torch.optim, "AdamW", unfused)),
        "torch's transposed convolution": ({}, with_torch_s_upsampling()),
        "compiled": ({}, patch.object(AutoencoderConfig, "build", compiled)),
        "batch 64": ({"batch_size": 64}, as_it_is),
        "batch 256": ({"batch_size": 256}, as_it_is),
        "batch 256, lr .02": ({"batch_size": 256, "lr": 0.02}, as_it_is),
        "lr .005": ({"lr": 0.005}, as_it_is),
        "lr .02": ({"lr": 0.02}, as_it_is),
        "constant lr .001": (
            {"lr": 0.001},
            patch.object(training, "one_cycle", lambda step, steps, peak: peak),
        ),
        "PyTorch's initialisation": ({}, patch.object(models, "initialise", lambda module: None)),
        "no level normalised": ({}, normalised_from(3)),
        "every level normalised": ({}, normalised_from(0)),
        "nearest-neighbour upsampling": ({}, patch.object(AutoencoderConfig, "build", nearest)),
        "widths (4, 16, 16)": ({"widths": (4, 16, 16)}, as_it_is),
        "widths (8, 16, 32)": ({"widths": (8, 16, 32)}, as_it_is),
        "widths (16, 16, 16)": ({"widths": (16, 16, 16)}, as_it_is),
        "linear code": ({"code": "linear"}, as_it_is),
        "sigmoid code": ({"code": "sigmoid"}, as_it_is),
    }


def trained(config):
    """(seconds, model) of a training, without a checkpoint, on the images that train the headline models."""
    images = load_mnist().train_images[:55_000]
    start = time.perf_counter()
    model, _ = fit(config, images, device="cpu", progress=False)
    return time.perf_counter() - start, model


def test_error(model):
    x = load_mnist().test_images
    return {"test_mse": (decode_dataset(model, encode_dataset(model, x)) - x).square().mean().item()}


def quality(model):
    """Test MSE, and the test accuracy of an RBF SVM that learns from LABELLED codes."""
    mnist, n = load_mnist(), LABELLED
    h, h_test = encode_dataset(model, mnist.train_images[:n]), encode_dataset(model, mnist.test_images)
    mean, scale = h.mean(0), h.var(0).mean().sqrt()
    reader = SVC(C=10, gamma=1 / h.shape[1]).fit((h - mean) / scale, mnist.train_labels[:n])
    return test_error(model) | {"svm_accuracy": reader.score((h_test - mean) / scale, mnist.test_labels)}


def time_to(reached, config=None, measure=quality, epochs=EPOCHS):
    """[{"epochs", "seconds", ...}] of longer and longer trainings until reached(row); measure(model) is in each row."""
    rows = []
    for n in epochs:
        seconds, model = trained(replace(config or AutoencoderConfig(), epochs=n))
        rows.append({"epochs": n, "seconds": seconds} | measure(model))
        if reached(rows[-1]):
            break
    return rows


def ablation():
    """{choice: rows of time_to the error TARGET}; a training that fails has none."""
    found = {}
    for name, (changes, context) in recipes().items():
        with context:
            try:
                config = AutoencoderConfig(**changes)
                rows = time_to(lambda row: row["test_mse"] <= TARGET, config, test_error)
                last = f"{rows[-1]['epochs']} epochs, {rows[-1]['seconds']:.0f} s, MSE {rows[-1]['test_mse']:.5f}"
            except RuntimeError as error:  # TrainingFailed, or no compiler
                rows, last = [], str(error)
        found[name] = rows
        print(f"{name:32}{last}", flush=True)
    return found


def face_recipes():
    """{choice: {"epochs", "seconds", "bits"}} of a VAE of FACE_RECIPES; {} where Frey Face is not to be had.

    The bits are -ELBO in bits/dim of the validation frames of the random split 0. A training that fails is left out.
    """
    try:
        images = load_frey_faces(source="frey").images
    except FileNotFoundError:
        return {}
    index, found = split_frames(len(images), "random", 0), {}
    for name, changes in FACE_RECIPES.items():
        config, start = VAEConfig(**changes), time.perf_counter()
        try:
            model, _ = fit(config, images[index.train], device="cpu", progress=False)
        except TrainingFailed as error:
            print(f"{name:52}{error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        bits = bits_per_dim(score(config, model, images[index.val]))
        found[name] = {"epochs": config.epochs, "seconds": seconds, "bits": bits}
        print(f"{name:52}{config.epochs:4} epochs{seconds:7.0f} s{bits:8.3f} bits/dim", flush=True)
    return found


def penalty_frontier(epochs=2, lam=0.03):
    """A row for each number of probes and share of the batches: seconds, error and exact contraction of a CAE.

    The estimate is unbiased in every row, so all minimise the same loss; what differs is its variance and its cost.
    """
    x, rows = load_mnist().test_images, []
    for probes, share in PROBES:
        config = AutoencoderConfig(penalty="contractive", lam=lam, probe_share=share, epochs=epochs)
        with patch.object(training, "contractive_penalty", partial(contractive_penalty, probes=probes)):
            seconds, model = trained(config)
        h, norms = encode_dataset(model, x), jacobian_frobenius(model.encode, x[:200]).detach()
        contraction = {"jacobian_over_variance": jacobian_over_variance(norms, h)}
        rows.append({"probes": probes, "share": share, "seconds": seconds} | test_error(model) | contraction)
        print(*(f"{name} {value:.4g}" for name, value in rows[-1].items()), sep="  ", flush=True)
    return rows


def stored_codes():
    """Codes of all training images by the stored AE, standardised, and their labels."""
    mnist = load_mnist()
    images = mnist.train_images
    train, val = images[:55_000], images[55_000:]
    model = load_or_train(
        AutoencoderConfig(), train, val, folders=[SHIPPED], device="cpu", progress=False
    ).model
    h = encode_dataset(model, images)
    return (h - h.mean(0)) / h.var(0).mean().sqrt(), mnist.train_labels


def scikit_learn_s_map(h):
    return torch.from_numpy(TSNE(init="pca", angle=0.7, n_jobs=2, random_state=0).fit_transform(h.numpy()))


def libraries(n=10_000):
    """{name: {"seconds", "accuracy"}}: what reads n codes, by the course's libraries and by scikit-learn's defaults."""
    h, y = stored_codes()
    h, y, h_val, y_val = h[:n], y[:n], h[-5000:], y[-5000:]
    machine, near = {"C": 10, "gamma": 1 / h.shape[1]}, neighbors.KNeighborsClassifier(5)
    runs = {
        "SVM, scikit-learn": lambda: svm.SVC(**machine).fit(h, y).score(h_val, y_val),
        "5-NN, one matrix product a block": lambda: knn_accuracy(h, y, h_val, y_val, 5),
        "5-NN, scikit-learn": lambda: near.fit(h, y).score(h_val, y_val),
        "t-SNE, scikit-learn, purity@10 of the map": lambda: purity_at_k(scikit_learn_s_map(h), y, 10),
    }
    if find_spec("openTSNE"):
        runs["t-SNE, openTSNE, purity@10 of the map"] = lambda: purity_at_k(tsne_map(h)[0], y, 10)
    if SVC is not svm.SVC:
        runs = {"SVM, scikit-learn-intelex": lambda: SVC(**machine).fit(h, y).score(h_val, y_val)} | runs
    found = {}
    for name, run in runs.items():
        start = time.perf_counter()
        accuracy = run()
        found[name] = {"seconds": time.perf_counter() - start, "accuracy": accuracy}
        print(f"{name:36}{found[name]['seconds']:8.2f} s   accuracy {accuracy:.4f}", flush=True)
    return found


def work(what, size):
    """The functions, without arguments, that are one size of what grows."""
    if what in ("t-SNE, images", "SVM, codes", "5-NN, codes"):
        h, y = stored_codes()
        h, y = h[:size], y[:size]
        return {
            "t-SNE, images": [lambda: tsne_map(h)],
            "SVM, codes": [lambda: SVC(C=10, gamma=1 / h.shape[1]).fit(h, y)],
            "5-NN, codes": [lambda: knn_accuracy(h, y, h[:2500], y[:2500], 5)],
        }[what]
    images = load_mnist().train_images[: size if what == "images" else N_IMAGES]
    changes = {what: size} if what in ("latent_dim", "epochs") else {}
    configs = [
        replace(AutoencoderConfig(epochs=1, seed=seed), **changes)
        for seed in range(size if what == "seeds" else 1)
    ]
    return [partial(fit, config, images, device="cpu", progress=False) for config in configs]


def cost(what, size):
    """(seconds, peak memory of this process in GB) of one size of what grows."""
    if what in ("threads", AT_ONCE):
        torch.set_num_threads(size if what == "threads" else 1)
    with suppress(TrainingFailed):  # a process's first steps, which choose kernels, belong to no size
        fit(AutoencoderConfig(epochs=1), load_mnist().train_images[:1024], device="cpu", progress=False)
    runs, start = work(what, size), time.perf_counter()
    for run in runs:
        with suppress(TrainingFailed):  # so short a training may end grey: it took its time all the same
            run()
    return time.perf_counter() - start, peak_memory()


def peak_memory():
    """The most memory in GB that this process has held; where the system does not tell (not Linux), what it holds."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e9
    return psutil.Process().memory_info().rss / 1e9


def growth():
    """{what grows: {"sizes", "seconds", "memory", "exponent"}}, each size measured in a process of its own.

    Of models at once the seconds are those of the slowest, the memory that of all. The exponent p is that of
    seconds = c size^p, by least squares on the logarithms.
    """
    found = {}
    for what, sizes in GROWTH.items():
        points = []
        for size in sizes:
            at_once = size if what == AT_ONCE else 1
            with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as processes:
                costs = [processes.submit(cost, what, size) for _ in range(at_once)]
                seconds, memory = zip(*[each.result() for each in costs])
            points.append((max(seconds), sum(memory)))
            print(f"{what:16}{size:8}{points[-1][0]:9.1f} s{points[-1][1]:7.2f} GB", flush=True)
        seconds, memory = zip(*points)
        exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0].item()
        found[what] = {"sizes": sizes, "seconds": seconds, "memory": memory, "exponent": exponent}
    return found
