"""The loaders against facts about the files, hostile files and mirrors; nothing leaves the machine."""

import gc
import gzip
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged
from scipy.io import savemat

from aeutils import data
from aeutils.faces import synthetic_faces

# pooch leaves the socket of a refused answer to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

RAW = data.DATA / "MNIST" / "raw"
FREY_FOLDERS = [data.DATA, Path(os.environ.get("AEUTILS_DATA", data.DATA))]
has_frey = any((folder / "frey_rawface.mat").is_file() for folder in FREY_FOLDERS)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def house(tmp_path, monkeypatch):
    """An empty project data/, an empty cache, no AEUTILS_DATA and no mirror."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    monkeypatch.setattr(data, "FREY_MIRRORS", ())
    monkeypatch.setattr(data, "_failed", {})
    monkeypatch.setattr(data, "TIMEOUT", (1, 0.3))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("AEUTILS_DATA", raising=False)
    monkeypatch.delenv("AEUTILS_OFFLINE", raising=False)
    return tmp_path


@pytest.fixture
def frey(house, monkeypatch):
    """A made-up Frey file: its .mat bytes and pixels, with the expected hashes set to match."""
    pixels = np.random.default_rng(0).integers(0, 256, (1965, 560), np.uint8)
    savemat(house / "made.mat", {"ff": pixels.T})
    content = (house / "made.mat").read_bytes()
    (house / "made.mat").unlink()
    monkeypatch.setattr(data, "FREY_FILES", {"frey_rawface.mat": sha256(content)})
    monkeypatch.setattr(data, "FREY_PIXELS", sha256(pixels.tobytes()))
    return content, pixels


@pytest.fixture
def server():
    """A loopback server: `answers[path]` is (status or None, bytes, declared length, pause in seconds or "drip")."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            status, body, length, pause = server.answers[self.path]
            if status is None:
                done.wait(pause)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if pause == "drip":
                while not done.wait(0.05):
                    self.wfile.write(b"x")
            elif pause:
                done.wait(pause)
            self.wfile.write(body)

        def log_message(self, *args):
            pass

        def handle(self):
            with suppress(ConnectionError):
                super().handle()

    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    done.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mirror(server, monkeypatch, frey):
    """Adds a mirror of the made-up Frey file that answers as told."""

    def add(path, status, body, length=None, pause=0):
        server.answers[path] = (status, body, len(body) if length is None else length, pause)
        entry = (server.url + path, data.FREY_FILES["frey_rawface.mat"], "frey_rawface.mat")
        monkeypatch.setattr(data, "FREY_MIRRORS", (*data.FREY_MIRRORS, entry))

    return add


@pytest.fixture(scope="module", autouse=True)
def no_socket_is_left_to_other_tests():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def mnist():
    return data.load_mnist()


def test_mnist_is_the_published_set(mnist):
    assert mnist.train_images.shape == (60000, 1, 28, 28) and mnist.test_images.shape == (10000, 1, 28, 28)
    assert mnist.train_images.dtype == torch.float32 and mnist.test_labels.dtype == torch.int64
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.train_labels.bincount().tolist() == train_counts
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9] and mnist.test_labels[:4].tolist() == [
        7,
        2,
        1,
        0,
    ]
    assert mnist.train_images.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train_images.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert (mnist.train_images[0, 0, 5, 11:18] * 255).round().int().tolist() == [0, 3, 18, 18, 18, 126, 136]
    greys = mnist.test_images.unique()
    assert torch.equal(greys, torch.arange(256).float() / 255)


@pytest.mark.parametrize("name", data.MNIST_FILES)
def test_a_flipped_bit_in_mnist_is_refused(house, monkeypatch, name):
    monkeypatch.setenv("AEUTILS_DATA", str(RAW.parent.parent))
    raw = house / "data/MNIST/raw"
    raw.mkdir(parents=True)
    content = bytearray((RAW / name).read_bytes())
    content[len(content) // 2] ^= 1
    (raw / name).write_bytes(content)
    with pytest.raises(ValueError, match="is corrupt") as refusal:
        data.load_mnist()
    for part in (str(raw / name), sha256(content), data.MNIST_FILES[name], "delete"):
        assert part in str(refusal.value)


def test_every_one_of_100_corruptions_of_an_mnist_file_is_found(house, monkeypatch):
    name, other = "t10k-labels-idx1-ubyte.gz", "train-labels-idx1-ubyte.gz"
    monkeypatch.setattr(data, "MNIST_FILES", {name: data.MNIST_FILES[name]})
    path = house / "data/MNIST/raw" / name
    path.parent.mkdir(parents=True)
    for bad in damaged((RAW / name).read_bytes(), [(RAW / other).read_bytes(), b"<html>"]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is corrupt"):
            data.load_mnist()
    assert files_in(house) == [f"data/MNIST/raw/{name}"]


def test_every_one_of_100_corruptions_of_the_frey_file_is_found(house, frey):
    content, pixels = frey
    savemat(house / "other.mat", {"ff": pixels[::-1].T})
    for bad in damaged(content, [(house / "other.mat").read_bytes(), b"<html>"]):
        (house / "data/frey_rawface.mat").write_bytes(bad)
        with pytest.raises(ValueError, match="is corrupt"):
            data.load_frey_faces()


def test_mnist_is_read_from_root_or_aeutils_data_and_nothing_is_unpacked(house, monkeypatch, mnist):
    shutil.copytree(RAW, house / "own/MNIST/raw")
    before = files_in(house)
    assert torch.equal(data.load_mnist(house / "own").test_images, mnist.test_images)
    monkeypatch.setenv("AEUTILS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.gz"):
        data.load_mnist()
    monkeypatch.setenv("AEUTILS_DATA", str(house / "own"))
    assert torch.equal(data.load_mnist().train_labels, mnist.train_labels)
    assert files_in(house) == before


def idx(array, magic):
    return gzip.compress(np.array([magic, *array.shape], ">u4").tobytes() + array.tobytes())


def test_mnist_comes_from_a_mirror_where_it_is_missing(house, monkeypatch, server):
    from torchvision.datasets import MNIST

    images, labels = np.arange(5 * 784, dtype=np.uint8).reshape(5, 28, 28), np.arange(5, dtype=np.uint8)
    made = {n: idx(images, 0x803) if "images" in n else idx(labels, 0x801) for n in data.MNIST_FILES}
    monkeypatch.setattr(data, "MNIST_FILES", {n: sha256(content) for n, content in made.items()})
    monkeypatch.setattr(MNIST, "mirrors", [server.url + "/bad/", server.url + "/good/"])
    for name, content in made.items():
        server.answers["/bad/" + name] = (200, b"<html>", 6, 0)
        server.answers["/good/" + name] = (200, content, len(content), 0)
    loaded = data.load_mnist()
    assert torch.equal(loaded.train_images, torch.from_numpy(images).float()[:, None] / 255)
    assert loaded.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert {n: (house / "data/MNIST/raw" / n).read_bytes() for n in made} == made
    assert len(files_in(house)) == 4


@pytest.mark.parametrize("fault", ["magic", "length"])
def test_an_idx_header_that_lies_is_refused(house, monkeypatch, fault):
    images = np.zeros((5, 28, 28), np.uint8)
    content = idx(images, 0x802 if fault == "magic" else 0x803)
    if fault == "length":
        content = gzip.compress(gzip.decompress(content)[:-1])
    monkeypatch.setattr(data, "MNIST_FILES", {"train-images-idx3-ubyte.gz": sha256(content)})
    (house / "data/MNIST/raw").mkdir(parents=True)
    (house / "data/MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match="is no IDX file"):
        data.load_mnist()


@pytest.mark.skipif(not has_frey, reason="Frey Face is neither in data/ nor in AEUTILS_DATA")
def test_frey_face_is_the_published_video():
    faces = data.load_frey_faces(source="frey")
    assert faces.name == "frey" and faces.factors is None
    assert faces.images.shape == (1965, 1, 28, 20) and faces.images.dtype == torch.float32
    greys = (faces.images * 255).round().to(torch.uint8)
    assert torch.equal(greys.float() / 255, faces.images)
    assert sha256(greys.numpy().tobytes()) == data.FREY_PIXELS
    step = (faces.images[1:] - faces.images[:-1]).square().mean()
    shuffled = faces.images[torch.randperm(1965, generator=torch.Generator().manual_seed(0))]
    assert step < 0.4 * (faces.images - shuffled).square().mean()


def python2_pickle(pixels):
    """The protocol-0 pickle of `[pixels]` that Python 2 writes."""
    text = (
        "(lp0\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
        f"(I{pixels.shape[0]}\nI{pixels.shape[1]}\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
        f"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS{repr(pixels.tobytes())[1:]}\ntba."
    )
    return text.encode("latin1")


@pytest.mark.parametrize("form", ["mat", "python 2 pickle", "python 3 pickle"])
def test_frey_pixels_are_read_exactly_from_each_form(house, monkeypatch, frey, form):
    content, pixels = frey
    if form != "mat":
        content = python2_pickle(pixels) if "2" in form else pickle.dumps([pixels], protocol=3)
        monkeypatch.setattr(data, "FREY_FILES", {"freyfaces.pkl": sha256(content)})
    name = "frey_rawface.mat" if form == "mat" else "freyfaces.pkl"
    (house / "data" / name).write_bytes(content)
    faces = data.load_frey_faces(source="frey")
    assert torch.equal(faces.images, torch.from_numpy(pixels).reshape(1965, 1, 28, 20).float() / 255)
    monkeypatch.setattr(data, "FREY_PIXELS", sha256(b"other pixels"))
    with pytest.raises(ValueError, match="pixels"):
        data.load_frey_faces()


def test_a_pickle_that_runs_code_is_refused_before_it_runs(house, monkeypatch, frey):
    class Evil:
        def __reduce__(self):
            return open, (str(house / "ran"), "w")

    content = pickle.dumps([Evil()], protocol=0)
    (house / "data/freyfaces.pkl").write_bytes(content)
    monkeypatch.setattr(data, "FREY_FILES", {"freyfaces.pkl": sha256(b"the real file")})
    with pytest.raises(ValueError, match="corrupt"):
        data.load_frey_faces()
    monkeypatch.setattr(data, "FREY_FILES", {"freyfaces.pkl": sha256(content)})
    with pytest.raises(pickle.UnpicklingError, match="open"):
        data.load_frey_faces()
    assert not (house / "ran").exists()
    pickle.loads(content)[0].close()
    assert (house / "ran").exists()


@pytest.mark.parametrize("source", ["auto", "frey"])
@pytest.mark.parametrize("place", range(3))
def test_places_are_asked_in_order_and_a_corrupt_file_is_never_passed_over(
    house, monkeypatch, frey, place, source
):
    content, _ = frey
    folders = [house / "root", house / "env", house / "cache/aeutils"]
    monkeypatch.setenv("AEUTILS_DATA", str(folders[1]))
    for folder in folders[place:]:
        folder.mkdir(parents=True)
        (folder / "frey_rawface.mat").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="corrupt") as refusal:
        data.load_frey_faces(folders[0], source)
    assert str(folders[place] / "frey_rawface.mat") in str(refusal.value)
    (folders[place] / "frey_rawface.mat").write_bytes(content)
    assert data.load_frey_faces(folders[0], source).name == "frey"


BAD = {
    "not found": (404, b"gone"),
    "refused": (403, b"no"),
    "the right bytes under an error": (500, "all"),
    "a page": (200, b"<html>sign in</html>"),
    "half, the connection cut": (200, "half", "all"),
    "half, declared as all": (200, "half"),
    "a flipped bit": (200, "flipped"),
    "nothing": (200, b""),
    "silence": (200, "all", "all", 5),
    "no answer": (None, "all", "all", 5),
}


@pytest.mark.parametrize("answer", BAD)
def test_a_bad_download_is_reported_and_never_placed(house, frey, mirror, server, answer):
    content, _ = frey
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    bodies = {"all": content, "half": content[: len(content) // 2], "flipped": flipped}
    status, body, length, pause = (*BAD[answer], None, None)[:4]
    mirror("/m", status, bodies.get(body, body), len(content) if length else None, pause or 0)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        data.load_frey_faces(source="frey")
    assert time.monotonic() - start < 3
    assert server.url + "/m: " in str(error.value)
    assert files_in(house) == []
    with pytest.warns(UserWarning, match="stand-in"):
        assert data.load_frey_faces().name == "synthetic"
    assert server.asked == ["/m"], "a mirror that failed was asked again"


def test_a_mirror_that_drips_is_given_up_in_time(server, house):
    server.answers["/drip"] = (200, b"", 10**6, "drip")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        data._download(server.url + "/drip", "0" * 64, seconds=0.6)
    assert 0.5 < time.monotonic() - start < 2


def test_the_next_mirror_is_asked_and_its_file_placed_whole(house, monkeypatch, frey, mirror, server):
    content, pixels = frey
    mirror("/bad", 404, b"")
    mirror("/good", 200, content)
    mirror("/never", 200, content)
    replaced = []

    def replace(source, target):
        replaced.append((Path(source).read_bytes() == content, Path(target).exists()))
        os.rename(source, target)

    monkeypatch.setattr(data.os, "replace", replace)
    faces = data.load_frey_faces(source="frey")
    assert torch.equal(faces.images.flatten(1), torch.from_numpy(pixels).float() / 255)
    assert server.asked == ["/bad", "/good"]
    assert (True, False) in replaced
    assert files_in(house) == ["data/frey_rawface.mat"]
    assert (house / "data/frey_rawface.mat").read_bytes() == content
    assert data.load_frey_faces(source="frey").name == "frey" and len(server.asked) == 2


@pytest.mark.parametrize("data_folder", ["absent", "not writable"])
def test_the_cache_takes_what_data_cannot(house, monkeypatch, frey, mirror, server, data_folder):
    content, _ = frey
    mirror("/good", 200, content)
    if data_folder == "absent":
        (house / "data").rmdir()
    else:
        replace = data.os.replace

        def refuse(source, target):
            if Path(target).parent == house / "data":
                raise PermissionError
            replace(source, target)

        monkeypatch.setattr(data.os, "replace", refuse)
    assert data.load_frey_faces().name == "frey"
    assert files_in(house) == ["cache/aeutils/frey_rawface.mat"]
    monkeypatch.setenv("AEUTILS_OFFLINE", "1")
    assert data.load_frey_faces(source="frey").name == "frey" and server.asked == ["/good"]


def test_without_frey_the_error_lists_every_place_and_auto_draws(house, monkeypatch, frey, mirror, server):
    monkeypatch.setenv("AEUTILS_DATA", str(house / "env"))
    mirror("/a", 404, b"")
    mirror("/b", 403, b"")
    with pytest.raises(FileNotFoundError) as error:
        data.load_frey_faces(source="frey")
    expected = [
        str(house / "data"),
        str(house / "env"),
        str(house / "cache/aeutils"),
        server.url + "/a",
        "404",
    ]
    expected += [server.url + "/b", "403", str(house / "data/frey_rawface.mat"), *data.FREY_FILES.values()]
    for part in expected:
        assert part in str(error.value)
    with pytest.warns(UserWarning) as caught:
        faces = data.load_frey_faces()
    (warning,) = [w for w in caught if w.category is UserWarning]
    assert "stand-in" in str(warning.message) and warning.filename == __file__
    images, factors = synthetic_faces()
    assert (
        faces.name == "synthetic"
        and torch.equal(faces.images, images)
        and torch.equal(faces.factors, factors)
    )


def test_offline_and_synthetic_ask_no_mirror(house, monkeypatch, frey, mirror, server):
    mirror("/good", 200, frey[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load_frey_faces(source="synthetic").name == "synthetic"
    monkeypatch.setenv("AEUTILS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="AEUTILS_OFFLINE"):
        data.load_frey_faces(source="frey")
    assert server.asked == []
    monkeypatch.setenv("AEUTILS_OFFLINE", "0")
    assert data.load_frey_faces(source="frey").name == "frey"


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="'auto', 'frey' or 'synthetic', not 'real'"):
        data.load_frey_faces(source="real")


def test_the_mirrors_name_known_files_and_hashes():
    assert {name for _, _, name in data.FREY_MIRRORS} == set(data.FREY_FILES)
    for url, digest, name in data.FREY_MIRRORS:
        assert url.startswith("https://") and url.endswith("/" + name) and data.FREY_FILES[name] == digest


@pytest.mark.parametrize(("n", "seed"), [(1965, 0), (1965, 1), (1965, 2), (440, 0), (1000, 3)])
def test_block_split_keeps_its_distance_and_drops_no_more_than_the_guards(n, seed):
    parts = data.split_frames(n, seed=seed)
    part = torch.full((n,), -1)
    for p, indices in enumerate(parts):
        assert indices.dtype == torch.int64 and (indices[1:] > indices[:-1]).all()
        assert (part[indices] == -1).all()
        part[indices] = p
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (parts[a][:, None] - parts[b]).abs().min() >= 11
    blocks = torch.arange(n) * 40 // n
    owners = [part[(blocks == b) & (part >= 0)].unique().tolist() for b in range(40)]
    assert sorted(owners) == [[0]] * 32 + [[1]] * 4 + [[2]] * 4
    border = [
        f for f in range(1, n) if blocks[f] != blocks[f - 1] and owners[blocks[f]] != owners[blocks[f - 1]]
    ]
    guarded = {f + d for f in border for d in range(-5, 5)}
    assert set((part == -1).nonzero().flatten().tolist()) == guarded


def test_random_split_has_the_sizes_of_the_literature():
    parts = data.split_frames(1965, "random")
    assert [len(p) for p in parts] == [1565, 200, 200]
    assert torch.cat(parts).sort().values.equal(torch.arange(1965))
    assert (parts.train[:, None] - parts.test).abs().min() == 1
    assert [len(p) for p in data.split_frames(3930, "random")] == [3130, 400, 400]
    assert [len(p) for p in data.split_frames(5, "random")] == [3, 1, 1]


@pytest.mark.parametrize("kind", ["blocks", "random"])
def test_the_seed_decides_the_split(kind):
    assert data.split_frames(1965, kind, 0).test.equal(data.split_frames(1965, kind, 0).test)
    assert not data.split_frames(1965, kind, 0).test.equal(data.split_frames(1965, kind, 1).test)


@pytest.mark.parametrize(
    ("n", "kind", "message"), [(439, "blocks", "440"), (4, "random", "5"), (1965, "odd", "odd")]
)
def test_impossible_splits_are_refused(n, kind, message):
    with pytest.raises(ValueError, match=message):
        data.split_frames(n, kind)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
def test_corruptions_are_seeded_stay_in_range_and_begin_at_the_identity(kind):
    x = torch.rand(50, 1, 28, 20, generator=seeded())
    before, level = x.clone(), 3 if kind == "shift" else 0.4
    y = data.corrupt(x, kind, level, generator=seeded())
    assert torch.equal(data.corrupt(x, kind, 0, generator=seeded()), x)
    assert y.shape == x.shape and y.dtype == x.dtype and y.min() >= 0 and y.max() <= 1
    assert not torch.equal(y, x) and torch.equal(x, before)
    assert torch.equal(data.corrupt(x, kind, level, generator=seeded()), y)
    if kind != "contrast":
        assert not torch.equal(data.corrupt(x, kind, level, generator=seeded(1)), y)


def test_gaussian_noise_has_its_standard_deviation_and_is_clamped():
    noise = data.corrupt(torch.full((200, 1, 28, 28), 0.5), "gaussian", 0.1, seeded()) - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.001)
    dark = data.corrupt(torch.zeros(200, 1, 28, 28), "gaussian", 0.1, seeded())
    assert (dark == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert dark.mean().item() == pytest.approx(0.1 / (2 * torch.pi) ** 0.5, rel=0.02)


def test_salt_and_pepper_replaces_its_share_by_both():
    y = data.corrupt(torch.full((200, 1, 28, 28), 0.5), "salt_pepper", 0.3, seeded())
    assert (y == 0).float().mean().item() == pytest.approx(0.15, abs=0.005)
    assert (y == 1).float().mean().item() == pytest.approx(0.15, abs=0.005)
    assert (y == 0.5).float().mean().item() == pytest.approx(0.7, abs=0.005)
    assert set(
        data.corrupt(torch.full((9, 1, 28, 28), 0.5), "salt_pepper", 1, seeded()).unique().tolist()
    ) == {0, 1}


@pytest.mark.parametrize(("height", "width"), [(28, 28), (28, 20)])
def test_occlusion_blanks_one_square_in_each_image_anywhere(height, width):
    y = data.corrupt(torch.ones(2000, 1, height, width), "occlusion", 0.25, seeded())
    gone = y[:, 0] == 0
    rows, cols = gone.any(2), gone.any(1)
    assert (gone == rows[:, :, None] & cols[:, None, :]).all()
    assert (rows.sum(1) == 7).all() and (cols.sum(1) == 7).all() and set(y.unique().tolist()) == {0, 1}
    for hit, size in ((rows, height), (cols, width)):
        first, last = hit.int().argmax(1), size - 1 - hit.int().flip(1).argmax(1)
        assert (last - first == 6).all()
        assert set(first.tolist()) == set(range(size - 6))


def test_shift_moves_the_content_in_all_four_directions():
    x = torch.rand(40, 1, 28, 20, generator=seeded()) * 0.9 + 0.1
    y = data.corrupt(x, "shift", 3, seeded())
    seen = set()
    for image, moved in zip(x[:, 0], y[:, 0], strict=True):
        candidates = {
            "down": (moved[3:], image[:-3], moved[:3]),
            "up": (moved[:-3], image[3:], moved[-3:]),
            "right": (moved[:, 3:], image[:, :-3], moved[:, :3]),
            "left": (moved[:, :-3], image[:, 3:], moved[:, -3:]),
        }
        hits = [d for d, (a, b, blank) in candidates.items() if torch.equal(a, b) and (blank == 0).all()]
        assert len(hits) == 1
        seen.update(hits)
    assert seen == {"up", "down", "left", "right"}


def test_contrast_fades_towards_the_dark_background():
    x = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    assert data.corrupt(x, "contrast", 0.75, seeded()).flatten().tolist() == [0, 0.125, 0.25]


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
@pytest.mark.parametrize("level", [-0.1, 29, float("nan")])
def test_levels_out_of_range_are_refused(kind, level):
    with pytest.raises(ValueError, match=rf"level of '{kind}' must be in \[0, (1|20)\]"):
        data.corrupt(torch.zeros(1, 1, 28, 20), kind, level, seeded())


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
@pytest.mark.parametrize("value", [-0.1, 128.0, float("nan")])
def test_images_off_the_greys_are_not_corrupted(kind, value):
    with pytest.raises(ValueError, match=r"scale the images to \[0, 1\]"):
        data.corrupt(torch.full((2, 1, 28, 20), value), kind, 0.1, seeded())


def test_an_unknown_corruption_is_refused():
    with pytest.raises(ValueError, match="gaussian, salt_pepper, occlusion, shift, contrast, not 'blur'"):
        data.corrupt(torch.zeros(1, 1, 28, 28), "blur", 0.1, seeded())


def test_fingerprint_tells_values_shape_and_type_apart():
    x = torch.rand(6, 1, 4, 4, generator=seeded())
    assert data.fingerprint(x) == data.fingerprint(x.clone().transpose(2, 3).contiguous().transpose(2, 3))
    assert len(data.fingerprint(x)) == 16 and int(data.fingerprint(x), 16) >= 0
    nudged = x.clone()
    nudged[5, 0, 3, 3] += 1e-6
    others = [nudged, x.reshape(3, 2, 4, 4), x.flip(0), x.view(torch.int32)]
    assert len({data.fingerprint(t) for t in (x, *others)}) == 5


def test_importing_the_package_stays_light():
    code = (
        "import sys, aeutils.data; heavy = {'scipy', 'pooch', 'torchvision', 'matplotlib', 'sklearn'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=data.DATA.parent, check=False
    )
    assert run.returncode == 0, run.stderr
