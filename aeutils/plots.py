"""Figures that the notebooks share: one style, one colour a model, a number, a caption and an alternative text each."""

import io
from base64 import b64encode

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.colors import ListedColormap
from PIL import Image

# Okabe and Ito's palette, told apart by readers with any colour vision
COLOURS = {
    "pixels": "#999999",
    "pca": "#000000",
    "untrained": "#CC79A7",
    "ae": "#E69F00",
    "sae": "#D55E00",
    "cae": "#0072B2",
    "dae": "#009E73",
    "vae": "#56B4E9",
}
# Tol's muted scheme and a grey, one colour a digit; no model has one of them
DIGITS = [
    "#CC6677",
    "#332288",
    "#DDCC77",
    "#117733",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#777777",
]
LABELS = {
    "pixels": "raw pixels",
    "pca": "PCA",
    "untrained": "untrained encoder",
    "ae": "AE",
    "sae": "SAE",
    "cae": "CAE",
    "dae": "DAE",
    "vae": "VAE",
}
NEUTRAL = plt.cycler(color=["#222222", "#777777", "#AAAAAA"])  # what is no model is grey


def style():
    """The course's figure style; call it once at the top of a notebook."""
    plt.rcParams.update(
        {
            "figure.dpi": 105,
            "savefig.dpi": 105,
            "figure.figsize": (8.5, 3.2),
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.prop_cycle": NEUTRAL,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def say(text):
    """Display a Markdown sentence made from computed values."""
    display(Markdown(text))


def show(fig, number, caption, stand_in=False):
    """Display a figure inline with its number, caption and alternative text, and close it."""
    if stand_in:
        fig.text(0.5, 0.5, "drawn stand-in faces, not Frey Face", color="#D55E00", alpha=0.35, fontsize=20,
                 ha="center", va="center", rotation=20)  # fmt: skip
        caption = f"{caption} Drawn stand-in faces, not Frey Face."
    drawn, buffer = io.BytesIO(), io.BytesIO()
    if layout := fig.get_layout_engine():
        layout.execute(fig)
        fig.set_layout_engine("none")  # savefig draws twice, and would lay out as often
    fig.savefig(drawn, format="png", bbox_inches="tight")
    plt.close(fig)
    palette = Image.Quantize.MAXCOVERAGE  # a median cut would merge the rare shades of a colour map
    picture = Image.open(drawn).convert("RGB").quantize(256, palette)  # half the size
    picture.save(buffer, "PNG", optimize=True)
    alt = f"Figure {number}. {caption}"
    image = {"image/png": {"alt": alt}, "aeutils": {"figure": number}}
    display({"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": alt}, raw=True, metadata=image)
    display(Markdown(f"**Figure {number}.** {caption}"))


def image_grid(images, n_cols, titles=None, ax=None):
    """Images (N, 1, H, W) in [0, 1] as one picture of n_cols columns, with a one-pixel gap."""
    ax = ax or plt.gca()
    images = torch.as_tensor(images).detach().cpu()[:, 0].numpy()
    n, height, width = images.shape
    rows = -(-n // n_cols)
    canvas = np.ones((rows * (height + 1) - 1, n_cols * (width + 1) - 1), dtype=np.float32)
    for i, image in enumerate(images):
        top, left = (i // n_cols) * (height + 1), (i % n_cols) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    ax.imshow(canvas, vmin=0, vmax=1)
    ax.grid(False)
    ax.set_yticks([])
    ax.set_xticks([(width + 1) * i + width / 2 for i in range(len(titles or ()))], titles or ())
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def strip(images, ax=None):
    """Images in one row."""
    return image_grid(images, len(images), ax=ax)


def training_curves(histories, key="mse", ax=None, label=None):
    """One curve a model: {name: [history, ...]}, mean over seeds, with the range over seeds shaded."""
    ax = ax or plt.gca()
    for name, runs in histories.items():
        values = np.array([[row[key] for row in history] for history in runs])
        epochs = np.arange(1, values.shape[1] + 1)
        ax.plot(
            epochs, values.mean(0), color=COLOURS.get(name), label=LABELS.get(name, name), marker="o", ms=3
        )
        ax.fill_between(epochs, values.min(0), values.max(0), color=COLOURS.get(name), alpha=0.2, lw=0)
    ax.set(xlabel="epoch", ylabel=label or key)
    return ax


def path_curves(path, ax, ylabel):
    """Values along paths {model: [(lam, error over tau, value)]} against the error; lam where there is room for it."""
    above = {"xytext": (0, 6), "ha": "center"}
    places = {"sae": {"xytext": (-3, -11), "ha": "right"}, "cae": {"xytext": (4, 4)}}
    for name, points in path.items():
        _, errors, values = zip(*points)
        ax.plot(errors, values, "o-", ms=5, color=COLOURS[name], label=LABELS[name])
    ax.axvline(1, color="k", ls=":", lw=1)
    ax.margins(x=0.08, y=0.12)
    ax.set(xlabel="validation MSE / τ", ylabel=ylabel)
    ax.figure.draw_without_rendering()
    taken = []
    for name, points in path.items():
        for lam, error, value in points if len(points) > 1 else ():
            text = ax.annotate(f"{lam:g}", (error, value), textcoords="offset points", fontsize=9,
                               color=COLOURS[name], **places.get(name, above))  # fmt: skip
            box = text.get_window_extent()
            if any(map(box.overlaps, taken)):
                text.remove()
            else:
                taken.append(box)


def digit_map(points, labels, ax=None, title=None):
    """A map (N, 2) coloured by digit, each digit's numeral at the median of its points."""
    ax = ax or plt.gca()
    ax.scatter(
        *np.asarray(points).T,
        c=np.asarray(labels),
        cmap=ListedColormap(DIGITS),
        vmin=-0.5,
        vmax=9.5,
        s=2,
        lw=0,
        rasterized=True,
    )
    for digit in range(10):
        x, y = np.median(np.asarray(points)[np.asarray(labels) == digit], axis=0)
        ax.text(x, y, str(digit), ha="center", va="center", weight="bold",
                bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8})  # fmt: skip
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    return ax
