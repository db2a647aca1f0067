"""explorer.html: the face's decoder, two ways between two digits, and the map of the codes, in one page."""

import io
import json
from base64 import b64encode
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aeutils.course import runner
from aeutils.course.results import load_reference
from aeutils.course.settings import digit_models, face_models
from aeutils.data import load_frey_faces, load_mnist, split_frames, write_atomically
from aeutils.latent import blend, different_pairs, encode_dataset
from aeutils.losses import gaussian_kl_units
from aeutils.plots import DIGITS, LABELS
from aeutils.tsne import tsne_map

TEMPLATE = Path(__file__).with_name("explorer.html")
N_MAP, COLUMNS, STEPS = 3000, 60, 21  # digits on the map and in a row of their sheet, values of alpha


def write(path, n_pairs=20, n_map=N_MAP):
    """Write the explorer of the shipped weights to `path`.

    Raises FileNotFoundError without Frey Face, whose frames give the poses (their codes, no picture of them).
    """
    digits = runner.defaults(next(runner.NOTEBOOKS.glob("02_*.ipynb")))
    faces = runner.defaults(next(runner.NOTEBOOKS.glob("04_*.ipynb")))
    payload = {"face": face(faces), **blends_and_map(digits, n_pairs, n_map)}
    html = TEMPLATE.read_text(encoding="utf-8")
    words = {
        "SLIDERS": len(payload["face"]["units"]),
        "ALPHAS": STEPS - 1,
        "PAYLOAD": json.dumps(payload).replace("<", r"\u003c"),
    }
    for word, value in words.items():
        html = html.replace(word, str(value), 1)
    write_atomically(Path(path), html.encode())
    return Path(path)


def face(parameters):
    """The VAE's decoder, its units by KL over the test frames with their meaning, and the codes of all frames."""
    images = load_frey_faces(source="frey").images
    split = split_frames(len(images), parameters["split"], parameters["split_seed"])
    recipe = ("face_latent_dim", "face_epochs", "beta", "reach")
    setting = {name: parameters[name] for name in (*recipe, "split", "split_seed", "checkpoints", "device")}
    trained = face_models(("vae",), seeds=[parameters["seed"]], faces="frey", train_images=images[split.train],
                          val_images=images[split.val], **setting)  # fmt: skip
    vae = trained["vae"][0].model.cpu()
    with torch.no_grad():
        kl = gaussian_kl_units(*vae.encode(images[split.test])).mean(0)
    meaning = load_reference().get("labels", {})
    units = [
        {"unit": j, "kl": kl[j].item(), "meaning": meaning.get(f"04.unit_{j}", "not measured")}
        for j in kl.argsort(descending=True).tolist()
    ]
    weights = packed(vae.decoder) | {"bias": halves(vae.bias.flatten())}
    return {
        "units": units,
        "weights": weights,
        "poses": halves(encode_dataset(vae, images)),
        "size": images.shape[-2:],
        "smooth": True,
    }


def blends_and_map(parameters, n_pairs, n_map):
    """SAE's and CAE's decoders with the codes of the pairs' pixel blends, and t-SNE maps of all three models' codes."""
    mnist = load_mnist()
    names = ("latent_dim", "lam_sae", "lam_cae", "sigma_dae", "epochs", "n_train", "checkpoints", "device")
    setting = {name: parameters[name] for name in names}
    trained = digit_models(
        ("ae", "sae", "cae"), seeds=[parameters["seed"]], images=mnist.train_images, **setting
    )
    models = {name: runs[0].model.cpu() for name, runs in trained.items()}
    # the first of the pairs that notebook 02 draws: a longer list begins with the same ones
    pairs = different_pairs(mnist.test_labels, n_pairs, parameters["pair_seed"])
    x1, x2 = (mnist.test_images[index] for index in pairs.unbind(1))
    x = blend(x1, x2, torch.linspace(0, 1, STEPS)).flatten(0, 1)
    compared = [
        {
            "name": name,
            "label": LABELS[name],
            "weights": packed(models[name].decoder),
            "codes": halves(encode_dataset(models[name], x)),
        }
        for name in ("sae", "cae")
    ]
    index = torch.randperm(len(mnist.test_images), generator=torch.Generator().manual_seed(0))[:n_map]
    shown, labels = mnist.test_images[index], mnist.test_labels[index]
    maps = [
        {"label": LABELS[name], "points": positions(encode_dataset(model, shown))}
        for name, model in models.items()
    ]
    return {
        "pairs": {
            "steps": STEPS,
            "width": parameters["latent_dim"],
            "digits": mnist.test_labels[pairs].tolist(),
            "images": encoded((255 * mnist.test_images[pairs]).round().to(torch.uint8).numpy().tobytes()),
            "models": compared,
        },
        "map": {
            "models": maps,
            "colours": DIGITS,
            "labels": encoded(labels.to(torch.uint8).numpy().tobytes()),
            "index": index.tolist(),
            "columns": COLUMNS,
            "sheet": sheet(shown),
        },
    }


def encoded(content):
    return b64encode(content).decode()


def halves(tensor):
    """A tensor as base64 of little-endian half precision, row by row."""
    return encoded(tensor.detach().contiguous().numpy().astype("<f2").tobytes())


def packed(module):
    return {name: halves(tensor) for name, tensor in module.state_dict().items()}


def positions(h):
    """The t-SNE map of the codes, each axis scaled to 0..65535."""
    y = tsne_map(h)[0].numpy()
    y = (y - y.min(0)) / np.ptp(y, axis=0)
    return encoded((65535 * y).round().astype("<u2").tobytes())


def sheet(images):
    """The images as one PNG, COLUMNS a row, in a data URL."""
    rows = -(-len(images) // COLUMNS)
    canvas = np.zeros((rows * 28, COLUMNS * 28), np.uint8)
    for i, image in enumerate((255 * images[:, 0]).round().numpy().astype(np.uint8)):
        top, left = i // COLUMNS * 28, i % COLUMNS * 28
        canvas[top : top + 28, left : left + 28] = image
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{encoded(buffer.getvalue())}"
