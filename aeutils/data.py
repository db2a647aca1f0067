"""The two data sets, read from verified bytes, with the split and the corruptions that the studies share."""

import gzip
import hashlib
import io
import math
import os
import pickle
import site
import sysconfig
import tempfile
import threading
import warnings
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from aeutils.faces import synthetic_faces

PLACES = (  # of data/ and notebooks/: the project's folder, and where pip puts them
    Path(__file__).resolve().parent.parent,
    Path(sysconfig.get_path("data")) / "share" / "aeutils",
    Path(site.getuserbase()) / "share" / "aeutils",
)
HOME = next((folder for folder in PLACES if (folder / "notebooks").is_dir()), PLACES[0])
DATA = HOME / "data"

MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
FREY_FILES = {
    "frey_rawface.mat": "265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64",
    "freyfaces.pkl": "3b69410c6a5fd6e03f09012905168be3712373a094a776f7e58fcd0670d2138a",
}
FREY_PIXELS = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"
_RAW = "https://raw.githubusercontent.com"
FREY_MIRRORS = tuple(
    (f"{folder}/{name}", FREY_FILES[name], name)
    for name, folder in (
        ("frey_rawface.mat", "https://cs.nyu.edu/~roweis/data"),
        (
            "frey_rawface.mat",
            f"{_RAW}/mrashutoshnigam/ai-ml-course/main/DeepLearning/Assignment01/data/input/q2",
        ),
        ("freyfaces.pkl", f"{_RAW}/jmtomczak/vae_vampprior/master/datasets/Freyfaces"),
    )
)
TIMEOUT = (5, 10)  # seconds to connect, and between two reads
BLOCKS, GUARD = (32, 4, 4), 5
CORRUPTIONS = ("gaussian", "salt_pepper", "occlusion", "shift", "contrast")

_failed: dict[str, str] = {}  # URL -> why it failed in this process, so that nobody waits twice


class MNIST(NamedTuple):
    """Images (N, 1, 28, 28) float32 in [0, 1] and labels (N,) int64; N = 60,000 and 10,000."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


class Faces(NamedTuple):
    """Images (1965, 1, 28, 20) float32 k/255 in time order; factors (1965, 8), None for Frey Face."""

    images: torch.Tensor
    name: str
    factors: torch.Tensor | None


class Split(NamedTuple):
    """Disjoint, ascending int64 frame indices."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor


def load_mnist(root=None) -> MNIST:
    """MNIST, read in memory from the four .gz, whose SHA-256 is verified on every load.

    They are looked for in `MNIST/raw` of `root` (default: the project's data/), of $AEUTILS_DATA and of the
    user's cache, then downloaded, unless $AEUTILS_OFFLINE is 1. ValueError: a file is corrupt.
    FileNotFoundError: a file is nowhere to be had.
    """

    def read(name, magic):
        def mirrors():
            from torchvision.datasets import MNIST as torchvision_mnist

            return [(mirror + name, sha256, path) for mirror in torchvision_mnist.mirrors]

        path, sha256 = f"MNIST/raw/{name}", MNIST_FILES[name]
        raw = gzip.decompress(_find("MNIST", {path: sha256}, mirrors, root, seconds=120)[1])
        axes = magic % 256
        found, *shape = (int(v) for v in np.frombuffer(raw, ">u4", count=1 + axes))
        if found != magic or len(raw) != 4 * (1 + axes) + math.prod(shape):
            raise ValueError(f"{name} is no IDX file of {axes} axes: magic {found}, shape {shape}.")
        return torch.tensor(np.frombuffer(raw, np.uint8, offset=4 * (1 + axes)).reshape(shape))

    arrays = [read(name, 0x803 if "images" in name else 0x801) for name in MNIST_FILES]
    return MNIST(*(a.unsqueeze(1).float().div_(255) if a.ndim == 3 else a.long() for a in arrays))


def load_frey_faces(root=None, source="auto") -> Faces:
    """Frey Face from verified bytes, or drawn faces of the same shape.

    The file is looked for in `root` (default: the project's data/), in $AEUTILS_DATA and in the user's cache,
    then downloaded from `FREY_MIRRORS`, unless $AEUTILS_OFFLINE is 1; a mirror that failed is not asked again
    in the same process. If all fail, source "auto" warns and draws `synthetic_faces`, and "frey" raises
    FileNotFoundError; "synthetic" draws at once. ValueError: a file is corrupt, or `source` is unknown.
    """
    if source not in ("auto", "frey", "synthetic"):
        raise ValueError(f"source must be 'auto', 'frey' or 'synthetic', not {source!r}.")
    if source != "synthetic":
        try:
            name, content = _find("Frey Face", FREY_FILES, lambda: FREY_MIRRORS, root, seconds=30)
            return Faces(_frey_images(name, content), "frey", None)
        except FileNotFoundError:
            if source == "frey":
                raise
        warnings.warn(
            "Frey Face was not found, so a drawn stand-in (synthetic_faces) takes its place; "
            "load_frey_faces(source='frey') says where it was looked for and how to add it.",
            stacklevel=2,
        )
    images, factors = synthetic_faces()
    return Faces(images, "synthetic", factors)


def split_frames(n, kind="blocks", seed=0) -> Split:
    """Train, validation and test indices of a video of `n` frames.

    "blocks": 40 contiguous blocks of n/40 frames, shuffled by `seed` into 32/4/4; where two neighbouring
    blocks belong to different parts, the last 5 frames of the one and the first 5 of the other are dropped:
    frames of different parts are at least 11 apart. "random": 1565/200/200 frames of 1965, in proportion for
    other n, where neighbours in time end up in different parts. ValueError: unknown kind, or too few frames.
    """
    least = {"blocks": sum(BLOCKS) * (2 * GUARD + 1), "random": 5}
    if kind not in least:
        raise ValueError(f"kind must be 'blocks' or 'random', not {kind!r}.")
    if n < least[kind]:
        raise ValueError(f"a split of kind {kind!r} needs at least {least[kind]} frames, not {n}.")
    rng = np.random.default_rng(seed)
    if kind == "random":
        held = round(n * 200 / 1965)
        part = rng.permutation(np.repeat([0, 1, 2], [n - 2 * held, held, held]))
    else:
        part = rng.permutation(np.repeat([0, 1, 2], BLOCKS))[np.arange(n) * sum(BLOCKS) // n]
        for border in np.flatnonzero(np.diff(part)) + 1:
            part[border - GUARD : border + GUARD] = -1
    return Split(*(torch.from_numpy(np.flatnonzero(part == p)) for p in range(3)))


def corrupt(x, kind, level, generator) -> torch.Tensor:
    """Corrupted copies of images `x` (N, C, H, W) in [0, 1]; level 0 is the identity.

    "gaussian": clamp(x + level·ε, 0, 1), ε ~ N(0, I). "salt_pepper": each pixel is replaced with probability
    `level`, by 0 or 1 with even odds. "occlusion": a square of side round(level·H) at a random place inside
    each image is set to 0. "shift": each image moves up, down, left or right by round(level) pixels, zeros
    following. "contrast": (1 − level)·x, fading towards the dark background. ValueError: unknown kind, images
    outside [0, 1], or level outside [0, 1] ([0, min(H, W)] for "shift").
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}, not {kind!r}.")
    n, _, height, width = x.shape
    most = min(height, width) if kind == "shift" else 1
    if not 0 <= level <= most:
        raise ValueError(f"level of {kind!r} must be in [0, {most}], not {level}.")
    low, high = x.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"x lies in [{low:g}, {high:g}]; scale the images to [0, 1].")

    def uniform(*shape):
        return torch.rand(shape, generator=generator, device=generator.device).to(x.device)

    if kind == "contrast":
        return (1 - level) * x
    if kind == "gaussian":
        eps = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        return (x + level * eps.to(x.device)).clamp(0, 1)
    if kind == "salt_pepper":
        u = uniform(*x.shape)
        return torch.where(u < level, (u < level / 2).to(x.dtype), x)
    rows, cols = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    if kind == "occlusion":
        side = round(level * height)
        top = (uniform(n, 1) * (height - side + 1)).long()
        left = (uniform(n, 1) * max(width - side + 1, 1)).long()
        in_rows = (rows >= top) & (rows < top + side)
        in_cols = (cols >= left) & (cols < left + side)
        return x.masked_fill((in_rows[:, :, None] & in_cols[:, None, :])[:, None], 0)
    steps = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]], device=x.device) * round(level)
    dy, dx = steps[(uniform(n) * 4).long()].T[:, :, None]
    padded = F.pad(x, [round(level)] * 4)
    image = torch.arange(n, device=x.device)[:, None, None]
    moved = padded[image, :, (rows - dy + round(level))[:, :, None], (cols - dx + round(level))[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def fingerprint(images) -> str:
    """The first 16 hex digits of the SHA-256 of a tensor's type, shape and bytes."""
    array = np.ascontiguousarray(images.detach().cpu().numpy())
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(array.data)
    return digest.hexdigest()[:16]


def _find(what, files, mirrors, root, seconds) -> tuple[str, bytes]:
    """Name and verified bytes of the first of `files` (name -> SHA-256) in a folder, else on a mirror."""
    import pooch

    first, cache = Path(root or DATA), Path(pooch.os_cache("aeutils"))
    folders = [first, *filter(None, [os.environ.get("AEUTILS_DATA")]), cache]
    for path, name in ((Path(folder) / name, name) for folder in folders for name in files):
        if os.path.isfile(path):
            content = path.read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if found != files[name]:
                raise ValueError(
                    f"{path} is corrupt (SHA-256 {found}, expected {files[name]}): delete it, "
                    "and it is looked for elsewhere and downloaded anew."
                )
            return name, content
    tried = [f"{folder}: no {' or '.join(files)}" for folder in folders]
    if os.environ.get("AEUTILS_OFFLINE", "0") not in ("", "0"):
        tried.append("mirrors: not asked, AEUTILS_OFFLINE is set")
        mirrors = tuple
    for url, sha256, name in mirrors():
        if url not in _failed:
            try:
                content = _download(url, sha256, seconds)
            except (OSError, ValueError) as error:
                _failed[url] = f"{type(error).__name__}: {str(error) or f'not complete after {seconds} s'}"
            else:
                _place(content, name, [first, cache] if first.is_dir() else [cache])
                return name, content
        tried.append(f"{url}: {_failed[url]}")
    by_hand = "\n".join(f"  {first / name} (SHA-256 {sha256})" for name, sha256 in files.items())
    places = "\n".join(f"  {place}" for place in tried)
    raise FileNotFoundError(
        f"{what} was not found. Tried:\n{places}\nTo add it by hand, place it at\n{by_hand}"
    )


def _download(url, sha256, seconds) -> bytes:
    """The bytes at `url`; any error if they do not have that SHA-256 or are not there after `seconds`."""
    import pooch

    outcome = Future()

    def retrieve(folder):
        try:
            downloader = pooch.HTTPDownloader(timeout=TIMEOUT)
            path = pooch.retrieve(url, f"sha256:{sha256}", fname="file", path=folder, downloader=downloader)
            outcome.set_result(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            outcome.set_exception(error)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        threading.Thread(target=retrieve, args=(folder,), daemon=True).start()
        return outcome.result(timeout=seconds)


def _place(content, name, folders):
    """Write `content` atomically into the first writable folder; without one it stays in memory only."""
    for folder in folders:
        with suppress(OSError):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(folder, name), content)
            return


def write_atomically(path, content):
    """Write bytes beside their place, then rename: whatever happens, `path` is whole, old or new.

    An OSError names `path`.
    """
    part = None
    try:
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException as error:
        if part:
            with suppress(OSError):
                os.unlink(part)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and nothing else."""

    def find_class(self, module, name):
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a pickle of arrays.")


def _frey_images(name, content) -> torch.Tensor:
    if name.endswith(".pkl"):
        pixels = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()[0]
    else:
        from scipy.io import loadmat

        pixels = loadmat(io.BytesIO(content))["ff"].T
    pixels = np.array(pixels, np.uint8, order="C")
    if hashlib.sha256(pixels).hexdigest() != FREY_PIXELS:
        raise ValueError(f"the pixels read from {name} are not Frey Face's 1965 frames of 560 grey levels.")
    return torch.from_numpy(pixels).reshape(-1, 1, 28, 20).float().div_(255)
