"""The studies of the recipe: each line changes what its name says, and what grows is measured."""

import dataclasses
import json
import math
from importlib.util import find_spec

import psutil
import pytest
import torch

from aeutils import models, training
from aeutils.course import bench, readme, reference, speed
from aeutils.data import Faces, load_mnist, split_frames
from aeutils.faces import synthetic_faces
from aeutils.losses import contractive_penalty
from aeutils.models import Autoencoder
from aeutils.training import AutoencoderConfig, TrainingFailed, VAEConfig


@pytest.fixture
def few(monkeypatch):
    """MNIST of which 64 images train; what is trained learns for a moment and may remain grey."""
    mnist = load_mnist()
    small = mnist._replace(
        train_images=mnist.train_images[:64],
        train_labels=mnist.train_labels[:64],
        test_images=mnist.test_images[:32],
    )
    small = small._replace(test_labels=mnist.test_labels[:32])
    monkeypatch.setattr(speed, "load_mnist", lambda: small)
    monkeypatch.setattr(training, "check_alive", lambda model, x: None)
    return small


def trained_with(monkeypatch, choice):
    """{"model", the optimiser's arguments, "autocast"} of two steps of a choice."""
    changes, context = speed.recipes()[choice]
    seen, make, cast = {"autocast": False}, torch.optim.AdamW, training.autocast
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *a, **settings: seen.update(settings) or make(*a, **settings)
    )
    monkeypatch.setattr(training, "autocast", lambda device: seen.update(autocast=True) or cast(device))
    images = load_mnist().train_images[:256]
    with context:
        seen["model"], _ = training.fit(AutoencoderConfig(**{"epochs": 1} | changes), images, progress=False)
    return seen


def normalised(model):
    return [any(isinstance(m, torch.nn.GroupNorm) for m in level) for level in model.encoder.levels]


def test_each_recipe_changes_what_its_name_says(few, monkeypatch):
    usual = trained_with(monkeypatch, "as shipped")
    assert usual["fused"] and usual["autocast"] and normalised(usual["model"]) == [False, True, True]
    for choice, level in (("no level normalised", []), ("every level normalised", [True] * 3)):
        found = normalised(trained_with(monkeypatch, choice)["model"])
        assert found == (level or [False] * 3)
    unfused = speed.unfused([torch.nn.Parameter(torch.zeros(1))], fused=True, lr=0.1)
    assert not unfused.defaults["fused"] and unfused.defaults["lr"] == 0.1
    recipes = speed.recipes()
    with recipes["nearest-neighbour upsampling"][1]:
        ups = AutoencoderConfig().build((28, 28)).decoder.ups
        assert [up(torch.rand(2, 16, 7, 7)).shape for up in ups] == [(2, 16, 14, 14), (2, 8, 14, 14)]
        y = ups[0](torch.rand(1, 16, 3, 3))
        assert (y[:, :, ::2, ::2] == y[:, :, 1::2, 1::2]).all()
    with recipes["float32 throughout"][1]:
        assert not isinstance(training.autocast("cpu"), torch.autocast)
    with recipes["default memory layout"][1]:
        assert torch.channels_last is torch.contiguous_format
    with recipes["torch's transposed convolution"][1]:
        assert models.Up.forward is torch.nn.ConvTranspose2d.forward
    with recipes["constant lr .001"][1]:
        assert [training.one_cycle(step, 10, 0.001) for step in (0, 5, 9)] == [0.001] * 3
    with recipes["PyTorch's initialisation"][1]:
        torch.manual_seed(0)
        assert models.Autoencoder(4).encoder.dense.bias.abs().sum() > 0
    assert models.Autoencoder(4).encoder.dense.bias.abs().sum() == 0
    for name, (changes, _) in recipes.items():
        config = AutoencoderConfig(**changes)
        assert (config == AutoencoderConfig()) == (not changes), name


def test_the_patches_of_the_recipes_end_with_them():
    before = training.autocast, torch.channels_last, torch.optim.AdamW, training.one_cycle, models.initialise
    for _, context in speed.recipes().values():
        with context:
            pass
    assert before == (
        training.autocast,
        torch.channels_last,
        torch.optim.AdamW,
        training.one_cycle,
        models.initialise,
    )


def test_the_time_to_a_target_is_that_of_the_shortest_training_that_reaches_it(few, monkeypatch):
    asked = []

    def fit(config, images, device, progress):
        asked.append((config.penalty, config.epochs))
        assert device == "cpu"
        torch.manual_seed(0)
        return Autoencoder(4, code="relu").eval(), []

    monkeypatch.setattr(speed, "fit", fit)
    torch.manual_seed(0)
    error = (Autoencoder(4, code="relu").eval()(few.test_images) - few.test_images).square().mean().item()
    rows = speed.time_to(lambda row: row["test_mse"] <= error / 2, epochs=(1, 2))
    assert asked == [("none", 1), ("none", 2)] and [row["epochs"] for row in rows] == [1, 2]
    assert all(row["test_mse"] == pytest.approx(error) and row["seconds"] > 0 for row in rows)
    assert len(speed.time_to(lambda row: row["test_mse"] <= error * 2, epochs=(1, 2))) == 1


def test_a_recipe_that_fails_has_no_rows(few, monkeypatch):
    def time_to(reached, config, measure):
        if config.lr == 0.02:
            raise TrainingFailed("the model collapsed")
        assert measure is speed.test_error
        return [{"epochs": 1, "seconds": 1.0, "test_mse": 0.1}]

    monkeypatch.setattr(speed, "time_to", time_to)
    found = speed.ablation()
    assert (
        found["lr .02"] == []
        and found["lr .005"][0]["test_mse"] == 0.1
        and list(found) == list(speed.recipes())
    )


def test_a_recipe_of_faces_is_scored_on_frames_that_did_not_train_it(monkeypatch):
    images, trained, scored = synthetic_faces(60)[0], [], []

    def fit(config, x, device, progress):
        trained.append((config, x))
        return "model", []

    def score(config, model, x):
        scored.append(x)
        return 560 * math.log(2) * config.lr

    monkeypatch.setattr(speed, "load_frey_faces", lambda source: Faces(images, "frey", None))
    monkeypatch.setattr(speed, "fit", fit)
    monkeypatch.setattr(speed, "score", score)
    found, index = speed.face_recipes(), split_frames(60, "random", 0)
    assert [config for config, _ in trained] == [VAEConfig(**c) for c in speed.FACE_RECIPES.values()]
    assert len({config for config, _ in trained}) == len(trained)
    assert all(torch.equal(x, images[index.train]) for _, x in trained)
    assert all(torch.equal(x, images[index.val]) for x in scored)
    for row, (config, _) in zip(found.values(), trained):
        assert row["epochs"] == config.epochs and row["bits"] == pytest.approx(config.lr)

    def fails(config, *_, **__):
        if config.lr == 1.6e-2:
            raise TrainingFailed("the model collapsed")
        return "model", []

    monkeypatch.setattr(speed, "fit", fails)
    assert list(speed.face_recipes()) == [name for name in speed.FACE_RECIPES if name != "lr .016"]

    def nowhere(source):
        raise FileNotFoundError

    monkeypatch.setattr(speed, "load_frey_faces", nowhere)
    assert speed.face_recipes() == {}


def test_the_frontier_takes_the_probes_and_the_share_that_it_names(few, monkeypatch):
    asked = []

    def spy(encode, x, probes, generator=None):
        asked.append(probes)
        return contractive_penalty(encode, x, probes, generator)

    monkeypatch.setattr(speed, "contractive_penalty", spy)
    monkeypatch.setattr(speed, "PROBES", ((1, 1.0), (3, 1.0)))
    monkeypatch.setattr(
        speed,
        "AutoencoderConfig",
        lambda **settings: AutoencoderConfig(batch_size=32, latent_dim=4, **settings),
    )
    rows = speed.penalty_frontier(epochs=1)
    assert [(row["probes"], row["share"]) for row in rows] == [(1, 1.0), (3, 1.0)] and asked == [1, 1, 3, 3]
    assert all(row["seconds"] > 0 and row["jacobian_over_variance"] > 0 for row in rows)
    assert training.contractive_penalty is contractive_penalty


def test_an_exponent_is_that_of_the_measured_times(monkeypatch):
    class Pool:
        def __init__(self, *arguments):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def submit(self, run, what, size):
            return type("Future", (), {"result": lambda self: (3.0 * size**1.5, 0.5)})()

    monkeypatch.setattr(speed, "ProcessPoolExecutor", Pool)
    for what, grown in speed.growth().items():
        memory = [0.5 * size if what == speed.AT_ONCE else 0.5 for size in grown["sizes"]]
        assert grown["exponent"] == pytest.approx(1.5) and list(grown["memory"]) == memory
        assert grown["seconds"] == tuple(3.0 * size**1.5 for size in grown["sizes"])


def test_what_grows_is_what_its_name_says(monkeypatch):
    monkeypatch.setattr(speed, "stored_codes", lambda: (torch.rand(50, 3), torch.arange(50) % 10))
    for what, size, expected in (
        ("images", 300, [(1, 256, 300, 0)]),
        ("latent_dim", 16, [(1, 16, 5000, 0)]),
        ("epochs", 3, [(3, 256, 5000, 0)]),
        ("seeds", 2, [(1, 256, 5000, 0), (1, 256, 5000, 1)]),
        ("threads", 1, [(1, 256, 5000, 0)]),
        (speed.AT_ONCE, 2, [(1, 256, 5000, 0)]),
    ):
        runs = [(run.args[0], len(run.args[1])) for run in speed.work(what, size)]
        assert [(c.epochs, c.latent_dim, n, c.seed) for c, n in runs] == expected, what
    assert len(speed.work("SVM, codes", 40)[0]().support_) > 0
    assert 0 <= speed.work("5-NN, codes", 40)[0]() <= 1


def test_memory_and_time_of_a_size_are_measured(monkeypatch):
    held = []
    monkeypatch.setattr(speed, "work", lambda what, size: [lambda: held.append(torch.ones(size))])
    before, now = speed.peak_memory(), psutil.Process().memory_info().rss / 1e9
    seconds, memory = speed.cost("images", int((before - now + 0.4) * 1e9 / 4))  # 0.4 GB more than ever
    assert seconds > 0 and memory - before == pytest.approx(0.4, abs=0.1)


def test_the_libraries_agree(monkeypatch):
    mnist = load_mnist()
    h = mnist.train_images[:6000].flatten(1)
    monkeypatch.setattr(speed, "stored_codes", lambda: (h, mnist.train_labels[:6000]))
    found = speed.libraries(n=800)
    accuracy = {name: row["accuracy"] for name, row in found.items()}
    intel = accuracy.get("SVM, scikit-learn-intelex")
    assert (intel is None) == (speed.SVC is speed.svm.SVC)
    assert intel is None or intel == pytest.approx(accuracy["SVM, scikit-learn"], abs=0.003)
    assert accuracy["5-NN, one matrix product a block"] == pytest.approx(
        accuracy["5-NN, scikit-learn"], abs=0.003
    )
    maps = {name: accuracy.pop(name) for name in list(accuracy) if name.startswith("t-SNE")}
    assert len(maps) == 1 + bool(find_spec("openTSNE")) and min(maps.values()) > 0.7
    assert max(maps.values()) - min(maps.values()) < 0.03
    assert min(accuracy.values()) > 0.8 and all(math.isfinite(row["seconds"]) for row in found.values())


def test_the_tables_of_speed_are_those_of_the_record():
    found = json.loads(readme.BENCH.read_text(encoding="utf-8"))
    text = readme.SPEED.read_text(encoding="utf-8")
    assert readme.between(text, "speed", readme.speed_tables(found)) == text
    assert set(found["ablation"]) == set(speed.recipes()) and set(found["growth"]) == set(speed.GROWTH)
    assert set(found["faces"]) == set(speed.FACE_RECIPES)
    for row in found["penalty"]:
        assert f"| {row['probes']} | {row['share']:g} | {row['seconds']:.0f} |" in text


def test_a_record_is_kept_where_the_page_reads_it(tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(bench, "BENCH", kept / "bench.json")
    monkeypatch.setattr(bench, "PICTURES", kept)
    called = []
    monkeypatch.setattr(bench, "write_speed", lambda: called.append("page"))
    monkeypatch.setattr(bench, "write_sums", lambda: called.append("sums"))
    (tmp_path / "bench.json").write_text("{}")
    (tmp_path / "studies.png").write_bytes(b"png")
    bench.record(tmp_path)
    assert (kept / "bench.json").read_text() == "{}" and (kept / "studies.png").read_bytes() == b"png"
    assert called == ["page", "sums"] and reference.BENCH == readme.BENCH
    assert dataclasses.asdict(AutoencoderConfig())["probe_share"] in {share for _, share in speed.PROBES}


def test_only_what_reaches_the_error_in_fewer_epochs_and_seconds_is_sooner():
    def rows(epochs, seconds, error):
        last = {"epochs": epochs, "seconds": seconds, "test_mse": error}
        return [{"epochs": 1, "seconds": 1.0, "test_mse": 9.0}, last]

    ablation = {"as shipped": rows(3, 40, 0.005), "a": rows(2, 39, 0.005), "b": rows(2, 20, 0.006), "d": []}
    ablation |= {"c": rows(2, 41, 0.001), "e": rows(3, 30, 0.001)}
    assert readme.sooner_than_shipped(ablation, 0.005) == ["a"]
    assert readme.sooner_than_shipped(ablation | {"as shipped": rows(3, 40, 0.006)}, 0.005) == []


def test_models_at_once_count_all_their_images():
    grown = {
        speed.AT_ONCE: {"sizes": [1, 2], "seconds": [1.0, 2.0]},
        "threads": {"sizes": [1, 2], "seconds": [3.0, 1.5]},
    }
    assert bench.at_once_over_one_on_all(grown) == pytest.approx((2 / 2.0) / (1 / 1.5))
