"""Training learns, is reproducible bit for bit, resumes, and takes a checkpoint only if it is the right one."""

import dataclasses
import json
import math
import os

import pytest
import torch
from damage import damaged
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.func import jacrev, vmap

from aeutils import training
from aeutils.losses import gaussian_kl, jacobian_frobenius, l1_sparsity, reconstruction_loss
from aeutils.training import (
    AutoencoderConfig,
    TrainingFailed,
    VAEConfig,
    checkpoint_path,
    fit,
    load_or_train,
    one_cycle,
    pick_device,
    read_checkpoint,
)

SMALL = AutoencoderConfig(latent_dim=8, widths=(4, 4, 8), epochs=3, batch_size=32, lr=5e-3)
FACES = VAEConfig(latent_dim=4, widths=(4, 8, 8), epochs=3, batch_size=16)


def squares(n, size=(28, 28), seed=0):
    """Bright squares at random places, in 8-bit greys."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 1, *size)
    for image in x:
        top, left = (torch.randint(0, s - 8, (), generator=generator).item() for s in size)
        image[0, top : top + 8, left : left + 8] = torch.randint(100, 256, (), generator=generator) / 255
    return x


@pytest.fixture(scope="module")
def images():
    return squares(128)


def same_weights(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def quiet(config, images, **kw):
    return fit(config, images, progress=False, **kw)


def test_training_learns(images):
    _, history = quiet(dataclasses.replace(SMALL, epochs=12), images, val_images=squares(32, seed=1))
    assert history[-1]["mse"] < 0.5 * history[0]["mse"] and history[-1]["val"] < 0.5 * history[0]["val"]


def test_the_seed_determines_the_weights(images):
    first, again = quiet(SMALL, images)[0], quiet(SMALL, images)[0]
    other = quiet(dataclasses.replace(SMALL, seed=1), images)[0]
    assert same_weights(first, again) and not same_weights(first, other)


@pytest.mark.parametrize(
    ("penalty", "lam", "measure"),
    [
        ("l1", 20.0, lambda m, x: l1_sparsity(m.encode(x))),
        ("contractive", 0.3, lambda m, x: jacobian_frobenius(m.encode, x).mean()),
    ],
)
def test_a_penalty_lowers_what_it_penalises(images, penalty, lam, measure):
    config = dataclasses.replace(SMALL, epochs=10)
    plain = quiet(config, images)[0]
    penalised = quiet(dataclasses.replace(config, penalty=penalty, lam=lam), images)[0]
    assert measure(penalised, images) < 0.7 * measure(plain, images)


def test_the_loss_is_the_error_plus_lam_times_the_penalty(images):
    config = dataclasses.replace(SMALL, penalty="l1", lam=0.7)
    torch.manual_seed(0)
    model = config.build((28, 28)).eval()
    loss, terms = config.loss(model, images, torch.Generator())
    x_hat, h, _ = model.reconstruct(images)
    assert loss.item() == pytest.approx(
        (reconstruction_loss(x_hat, images) + 0.7 * l1_sparsity(h)).item(), rel=1e-5
    )
    assert terms["mse"].item() == pytest.approx((x_hat - images).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.375, 0.5), (0.75, 1.0), (1.0, 1.0)])
def test_lam_rises_in_the_loss_over_three_quarters_of_the_training(images, progress, share):
    config = dataclasses.replace(SMALL, penalty="kl", code="sigmoid", lam=0.7, rho=0.2)
    torch.manual_seed(0)
    model = config.build((28, 28)).eval()
    loss, terms = config.loss(model, images, torch.Generator(), progress)
    target, actual = Bernoulli(torch.full((8,), 0.2)), Bernoulli(model.encode(images).mean(0))
    penalty = kl_divergence(target, actual).sum()
    expected = reconstruction_loss(model(images), images) + share * 0.7 * penalty
    assert terms["penalty"].item() == pytest.approx(penalty.item(), rel=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_a_cae_of_one_unit_has_the_exact_jacobian(images):
    one_unit = {"penalty": "contractive", "lam": 0.3, "latent_dim": 1, "code": "linear"}
    config = dataclasses.replace(SMALL, probe_share=1.0, **one_unit)
    torch.manual_seed(0)
    model = config.build((28, 28)).double().train()
    x = images[:8].double()
    loss, _ = config.loss(model, x, torch.Generator())
    x_hat, _, stats = model.reconstruct(x)
    jacobian = vmap(jacrev(lambda one: model.encode(one[None], stats)[0]))(x)  # one unit: no variance
    expected = reconstruction_loss(x_hat, x) + 0.3 * jacobian.square().sum() / 8
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    weight = model.encoder.dense.weight
    gradients = (torch.autograd.grad(value, weight)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_a_probe_on_a_share_of_the_batches_is_unbiased(images):
    config = dataclasses.replace(
        SMALL, penalty="contractive", lam=0.3, latent_dim=1, code="linear", probe_share=0.25
    )
    torch.manual_seed(0)
    model, generator = config.build((28, 28)).train(), torch.Generator().manual_seed(0)
    found = torch.stack([config.loss(model, images[:4], generator)[1]["penalty"] for _ in range(400)])
    stats = model.reconstruct(images[:4])[2]
    exact = jacobian_frobenius(lambda x: model.encode(x, stats), images[:4]).mean()  # one unit: no variance
    on = found > 0
    torch.testing.assert_close(found[on], (exact / 0.25).expand(int(on.sum())), rtol=1e-3, atol=0)
    assert abs(on.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def spy_on_batches(monkeypatch):
    """The batches, and whether the model was in training mode, of every step from now on."""
    seen, loss = [], AutoencoderConfig.loss

    def spy(self, model, x, *rest):
        seen.append((x, model.training))
        return loss(self, model, x, *rest)

    monkeypatch.setattr(AutoencoderConfig, "loss", spy)
    return seen


def test_every_epoch_sees_every_image_once_in_an_order_of_the_epoch_and_the_seed(monkeypatch):
    x, seen, orders = squares(64), spy_on_batches(monkeypatch), set()
    x[:, 0, 0, 0] = torch.arange(64) / 255
    for seed in (0, 1):
        seen.clear()
        quiet(dataclasses.replace(SMALL, epochs=2, seed=seed), x)
        assert all(training_mode for _, training_mode in seen)
        epochs = (torch.cat([batch for batch, _ in seen])[:, 0, 0, 0] * 255).round().int().view(2, 64)
        assert torch.equal(epochs.sort(1).values, torch.arange(64).int().expand(2, 64))
        orders |= {tuple(order) for order in epochs.tolist()}
    assert len(orders) == 4 and tuple(range(64)) not in orders


def test_the_seed_draws_the_first_weights(images, monkeypatch):
    monkeypatch.setattr(training, "one_cycle", lambda step, steps, peak: 0.0)
    for seed in (0, 3):
        config = dataclasses.replace(SMALL, epochs=1, seed=seed)
        torch.manual_seed(seed)
        drawn = config.build((28, 28)).decoder.dense.weight
        assert torch.equal(quiet(config, images)[0].decoder.dense.weight, drawn)


def test_every_step_has_its_learning_rate_of_the_cycle(images, monkeypatch):
    rates = []

    class Spy(torch.optim.AdamW):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    quiet(SMALL, images)
    assert rates == [one_cycle(step, 12, SMALL.lr) for step in range(12)]


def test_the_history_is_a_mean_over_images_and_val_a_score_in_evaluation_mode(monkeypatch):
    loss, val = AutoencoderConfig.loss, squares(530, seed=1)

    def of_its_size(self, model, x, *rest):
        return loss(self, model, x, *rest)[0], {"mse": torch.tensor(float(len(x)))}

    monkeypatch.setattr(AutoencoderConfig, "loss", of_its_size)
    model, history = quiet(SMALL, squares(80), val_images=val)
    assert history[-1]["mse"] == pytest.approx((32**2 + 32**2 + 16**2) / 80)
    assert history[-1]["val"] == pytest.approx((model(val) - val).square().mean().item(), rel=1e-4)


def test_a_score_is_taken_in_evaluation_mode_and_is_the_same_every_time():
    config, x = VAEConfig(latent_dim=3, dropout=0.5), torch.randint(0, 256, (6, 1, 28, 20)) / 255
    model = config.build((28, 20)).train()
    first = training.score(config, model, x)
    assert not model.training and training.score(config, model.train(), x) == first


def test_kl_sparsity_trains_sigmoid_codes(images):
    config = dataclasses.replace(SMALL, penalty="kl", code="sigmoid", lam=5.0, rho=0.1, epochs=12)
    model, _ = quiet(config, images)
    assert abs(model.encode(images).mean().item() - 0.1) < 0.1


def test_a_denoising_autoencoder_sees_noise_and_is_asked_for_the_clean_image(images):
    config = dataclasses.replace(SMALL, penalty="denoising", lam=0.3)
    torch.manual_seed(0)
    model = config.build((28, 28)).eval()
    loss, _ = config.loss(model, images, torch.Generator().manual_seed(1))
    noisy = training.corrupt(images, "gaussian", 0.3, generator=torch.Generator().manual_seed(1))
    assert loss.item() == pytest.approx(reconstruction_loss(model(noisy), images).item(), rel=1e-5)


def test_the_vae_loss_is_in_nats_and_beta_weighs_the_kl():
    x = squares(16, (28, 20))
    torch.manual_seed(0)
    model = FACES.build((28, 20)).eval()
    terms = []
    for beta in (1.0, 4.0):
        config = dataclasses.replace(FACES, beta=beta)
        loss, parts = config.loss(model, x, torch.Generator().manual_seed(1))
        assert loss.item() == pytest.approx(
            parts["reconstruction"].item() + beta * parts["kl"].item(), rel=1e-5
        )
        terms.append(parts)
    assert terms[0]["kl"].item() == pytest.approx(gaussian_kl(*model.encode(x)).mean().item(), rel=1e-5)
    assert terms[0]["reconstruction"] == terms[1]["reconstruction"]


def test_bfloat16_is_used_only_where_it_may_be(images, tmp_path, monkeypatch):
    cast, seen = torch.autocast("cpu", torch.bfloat16), []

    def loss(x_hat, x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return reconstruction_loss(x_hat, x)

    monkeypatch.setattr(training, "autocast", lambda device: cast)
    monkeypatch.setattr(training, "reconstruction_loss", loss)
    config = dataclasses.replace(SMALL, epochs=1, batch_size=128)
    load_or_train(config, images, folders=[tmp_path / "mixed"], progress=False)
    load_or_train(config, images, folders=[tmp_path / "float32"], mixed=False, progress=False)
    assert seen == [True, False]


@pytest.mark.parametrize("config", [SMALL, FACES], ids=["autoencoder", "vae"])
def test_an_interrupted_training_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    x = squares(64, (28, 28) if config is SMALL else (28, 20))
    val = x[:16]
    whole, history = quiet(config, x, val_images=val)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    save, resume = training.save_resume, tmp_path / "training.resume"
    calls = []

    def save_and_die(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_resume", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quiet(config, x, val_images=val, resume=resume)
    resumed, resumed_history = quiet(config, x, val_images=val, resume=resume)
    assert len(calls) >= 2 and same_weights(whole, resumed) and history == resumed_history


def test_a_resume_file_of_another_training_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    resume = tmp_path / "training.resume"
    quiet(SMALL, images, resume=resume)
    with pytest.raises(ValueError, match="belongs to another training"):
        quiet(dataclasses.replace(SMALL, seed=9), images, resume=resume)
    with pytest.raises(ValueError, match="belongs to another training"):
        quiet(SMALL, squares(128, seed=4), resume=resume)


def test_load_or_train_trains_once_and_reloads_the_same_weights(images, tmp_path):
    first = load_or_train(SMALL, images, images[:32], folders=[tmp_path], progress=False)
    again = load_or_train(SMALL, images, images[:32], folders=[tmp_path], progress=False)
    assert not first.reused and again.reused and not first.model.training and not again.model.training
    assert same_weights(first.model, again.model) and first.history == again.history
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_a_checkpoint_of_another_config_or_other_data_is_not_taken(images, tmp_path):
    load_or_train(SMALL, images, folders=[tmp_path], progress=False)
    other = dataclasses.replace(SMALL, lr=4e-3)
    assert not load_or_train(other, images, folders=[tmp_path], progress=False).reused
    checkpoint_path(SMALL, tmp_path).rename(checkpoint_path(dataclasses.replace(SMALL, seed=5), tmp_path))
    assert not load_or_train(
        dataclasses.replace(SMALL, seed=5), images, folders=[tmp_path], progress=False
    ).reused
    assert not load_or_train(SMALL, squares(128, seed=4), folders=[tmp_path], progress=False).reused


def test_a_checkpoint_of_other_data_is_trained_anew(images, tmp_path):
    load_or_train(SMALL, images, folders=[tmp_path], progress=False)
    assert not load_or_train(SMALL, squares(128, seed=4), folders=[tmp_path], progress=False).reused


def test_every_setting_has_a_checkpoint_path_of_its_own(tmp_path):
    settings = [
        {},
        {"seed": 1},
        {"lr": 4e-3},
        {"penalty": "l1"},
        {"penalty": "l1", "lam": 0.1},
        {"epochs": 4},
        {"penalty": "contractive", "lam": 0.1},
        {"penalty": "contractive", "lam": 0.1, "probe_share": 0.5},
    ]
    configs = [dataclasses.replace(SMALL, **setting) for setting in settings]
    assert len({checkpoint_path(config, tmp_path) for config in configs}) == len(settings)


def test_without_images_only_a_checkpoint_will_do(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_or_train(SMALL, None, folders=[tmp_path], progress=False)
    load_or_train(SMALL, images, folders=[tmp_path], progress=False)
    assert load_or_train(SMALL, None, folders=[tmp_path], progress=False).reused


def test_every_one_of_100_corruptions_of_a_checkpoint_is_found(images, tmp_path):
    other = dataclasses.replace(SMALL, seed=1)
    for config in (SMALL, other):
        load_or_train(config, images, folders=[tmp_path], progress=False)
    path = checkpoint_path(SMALL, tmp_path)
    sound, found = path.read_bytes(), []
    for bad in damaged(sound, [checkpoint_path(other, tmp_path).read_bytes(), b"<html>"]):
        path.write_bytes(bad)
        with pytest.raises((ValueError, FileNotFoundError), match="is damaged|no checkpoint") as refusal:
            load_or_train(SMALL, None, folders=[tmp_path])
        found.append(refusal.type)
    assert len(found) == 100 and found.count(ValueError) > 80  # the others are sound, of another training
    path.write_bytes(sound)
    assert json.loads(read_checkpoint(path)[1]["config"])["seed"] == 0


def test_a_full_disk_leaves_nothing_half_written(images, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        load_or_train(SMALL, images, folders=[tmp_path], progress=False)
    assert list(tmp_path.iterdir()) == []


def test_nan_stops_the_training_and_names_the_step(images):
    with pytest.raises(TrainingFailed, match=r"step \d+ of epoch \d+") as failed:
        quiet(dataclasses.replace(SMALL, lr=1e30), images)
    assert "kept in" not in str(failed.value)


@pytest.mark.parametrize(
    ("n", "sizes"), [(257, [128, 129]), (258, [128, 128, 2]), (256, [128, 128]), (1, [1])]
)
def test_no_batch_of_one_image_is_left_over(n, sizes):
    parts = training.batches(torch.arange(n), 128)
    assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), torch.arange(n))


def test_a_whole_number_where_a_real_one_is_meant_names_the_same_checkpoint(tmp_path):
    assert checkpoint_path(VAEConfig(beta=1), tmp_path) == checkpoint_path(VAEConfig(beta=1.0), tmp_path)
    assert checkpoint_path(AutoencoderConfig(lam=2), tmp_path) == checkpoint_path(
        AutoencoderConfig(lam=2.0), tmp_path
    )


def test_reconstructions_that_are_no_numbers_are_no_life():
    with pytest.raises(TrainingFailed, match="collapsed"):
        training.check_alive(lambda x: x * torch.nan, torch.rand(4, 1, 8, 8))


def test_a_collapsed_model_is_an_error(images, monkeypatch):
    monkeypatch.setattr(training, "one_cycle", lambda step, steps, peak: 0.0)
    config = dataclasses.replace(SMALL, epochs=1)
    build = AutoencoderConfig.build

    def blind(self, size):
        model = build(self, size)
        torch.nn.init.zeros_(model.decoder.dense.weight)
        return model

    monkeypatch.setattr(AutoencoderConfig, "build", blind)
    with pytest.raises(TrainingFailed, match="collapsed"):
        quiet(config, images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(64, 28, 28), "shape"),
        (torch.rand(64, 3, 28, 28), "shape"),
        (2 * torch.rand(64, 1, 28, 28), r"\[0, 1\]"),
        (torch.rand(64, 1, 28, 28) - 1, r"\[0, 1\]"),
        (torch.full((64, 1, 28, 28), math.nan), r"\[0, 1\]"),
        (torch.full((64, 1, 28, 28), 0.5), "constant"),
        (torch.rand(8, 1, 28, 28), "fewer than one batch"),
        (torch.rand(0, 1, 28, 28), "shape"),
        (torch.rand(64, 1, 28, 28).double(), "float64"),
        (torch.randint(0, 2, (64, 1, 28, 28)), "int64"),
    ],
)
def test_images_that_cannot_be_trained_on_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        quiet(SMALL, images)


@pytest.mark.parametrize(
    "setting",
    [
        {"penalty": "lasso"},
        {"lam": -1},
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 1},
        {"lam": math.nan},
        {"lr": math.nan},
        {"lr": 0.0},
        {"code": "tanh"},
        {"probe_share": 0.0},
        {"probe_share": 1.5},
    ],
)
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        dataclasses.replace(SMALL, **setting).build((28, 28))


@pytest.mark.parametrize("setting", [{"latent_dim": 0}, {"beta": -1.0}, {"beta": math.nan}])
def test_vae_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        VAEConfig(**setting)


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="momentum"):
        AutoencoderConfig(momentum=0.9)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device is 'tpu'"):
        pick_device("tpu")


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    rates = [one_cycle(step, 100, 0.5) for step in range(100)]
    assert max(rates) == pytest.approx(0.5, rel=0.01) and rates.index(max(rates)) in (28, 29, 30)
    assert rates[0] < 0.02 and rates[-1] == pytest.approx(0, abs=1e-9)
    assert all(a <= b for a, b in zip(rates[:29], rates[1:30])) and all(
        a >= b for a, b in zip(rates[30:], rates[31:])
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_training_runs_on_cuda(images):
    model, _ = quiet(SMALL, images, device="cuda")
    assert next(model.parameters()).is_cuda


def test_a_vaes_score_is_its_loss_with_beta_summed_over_the_batch():
    torch.manual_seed(0)
    config, x = VAEConfig(latent_dim=3, beta=2.5), torch.randint(0, 256, (4, 1, 28, 20)) / 255
    model = config.build((28, 20)).eval()
    model.encoder.dense.bias.data.fill_(0.5)  # a KL above 0
    mu, logvar = model.encode(x)
    z = mu + torch.exp(logvar / 2) * torch.randn(mu.shape, generator=torch.Generator().manual_seed(3))
    kl = kl_divergence(Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)).sum()
    expected = 2.5 * kl - model.log_likelihood(x, z).sum()
    found = config.score(model, x, torch.Generator().manual_seed(3))
    assert kl > 1 and found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_vae_is_built_as_its_configuration_says():
    model = VAEConfig(latent_dim=3, dropout=0.3, input_noise=0.04, reach=1).build((28, 20))
    assert (model.latent_dim, model.input_noise, len(model.neighbours)) == (3, 0.04, 4)
    assert model.encoder.dropout.p == model.decoder.dropout.p == 0.3


def test_the_optimiser_has_the_configurations_weight_decay(images, monkeypatch):
    given, adamw = [], torch.optim.AdamW

    def spy(parameters, **settings):
        given.append(settings["weight_decay"])
        return adamw(parameters, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    quiet(dataclasses.replace(SMALL, weight_decay=0.07, epochs=1), images)
    assert given == [0.07]
