"""What the architectures promise: shapes, no way past the code, a scale that cannot be cheated, a true likelihood."""

import math
import re

import pytest
import torch
from scipy import stats

from aeutils.losses import jacobian_frobenius
from aeutils.models import VAE, Autoencoder, Decoder, Encoder, Up, discretised_logistic, from_neighbours


@pytest.mark.parametrize("code", ["linear", "relu", "sigmoid"])
def test_autoencoder_shapes_and_ranges(code):
    model, x = Autoencoder(12, code=code).eval(), torch.rand(3, 1, 28, 28)
    h, x_hat = model.encode(x), model(x)
    assert h.shape == (3, 12) and x_hat.shape == x.shape
    assert x_hat.min() >= 0 and x_hat.max() <= 1
    if code != "linear":
        assert h.min() >= 0
    torch.testing.assert_close(x_hat, model.decode(h))


def test_levels_run_at_28_14_and_7_pixels_with_two_convolutions_each():
    encoder, decoder = Encoder(8), Decoder(8)
    assert [tuple(m.shape[1:]) for m in encoder.features(torch.rand(1, 1, 28, 28))] == [
        (8, 28, 28),
        (16, 14, 14),
        (16, 7, 7),
    ]
    for level in (*encoder.levels, *decoder.levels):
        kernels = [m.kernel_size for m in level.modules() if isinstance(m, torch.nn.Conv2d)]
        assert kernels == [(3, 3), (3, 3)]


def test_a_pixel_becomes_four_as_by_torch_s_transposed_convolution():
    torch.manual_seed(0)
    up, x = Up(3, 5).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    y = up(x.contiguous(memory_format=torch.channels_last))
    expected = torch.nn.functional.conv_transpose2d(x, up.weight, up.bias, stride=2)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    g, inputs = torch.randn_like(y), (x, up.weight, up.bias)
    for gradient, right in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g)):
        torch.testing.assert_close(gradient, right)


def test_the_decoder_sees_the_code_alone():
    torch.manual_seed(0)
    model = Autoencoder(6, widths=(2, 4, 4), code="relu", size=(8, 8)).train()
    x = torch.rand(4, 1, 8, 8)
    x_hat, h, _ = model.reconstruct(x)
    model.eval()
    torch.testing.assert_close(model.decode(h), x_hat)
    constant = torch.ones_like(h)
    assert (model.decode(constant) - model.decode(constant)[:1]).abs().max() < 1e-6


def test_with_skips_the_decoder_sees_past_the_code():
    torch.manual_seed(0)
    model = Autoencoder(6, widths=(2, 4, 4), code="relu", size=(8, 8), skips=True).eval()
    x = torch.rand(4, 1, 8, 8)
    maps = model.encoder.features(x)
    zeroed = model.decoder(torch.zeros(4, 6), maps)
    assert zeroed.std(0).max() > 1e-3  # images differ although every code is 0


@pytest.mark.parametrize("code", ["linear", "relu"])
def test_rescaled_activations_change_no_code(code):
    torch.manual_seed(0)
    model, x = Autoencoder(6, widths=(2, 4, 4), code=code, size=(8, 8)), torch.rand(64, 1, 8, 8)
    model.train()
    for _ in range(200):
        model.reconstruct(x)
    before = model.eval().encode(x)
    with torch.no_grad():
        model.encoder.dense.weight *= 0.01
        model.encoder.dense.bias *= 0.01
    model.train()
    for _ in range(200):
        model.reconstruct(x)
    torch.testing.assert_close(model.eval().encode(x), before, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("code", ["linear", "relu"])
def test_in_training_too_the_scale_of_the_activations_changes_neither_code_nor_jacobian(code):
    torch.manual_seed(0)
    model = Autoencoder(6, widths=(2, 4, 4), code=code, size=(8, 8)).double().train()
    x = torch.rand(8, 1, 8, 8, dtype=torch.float64)

    def code_and_jacobian():
        _, h, stats = model.reconstruct(x)
        return h.detach(), jacobian_frobenius(lambda x: model.encode(x, stats), x)

    h, jacobian = code_and_jacobian()
    with torch.no_grad():
        model.encoder.dense.weight *= 100
    h_scaled, jacobian_scaled = code_and_jacobian()
    torch.testing.assert_close(h_scaled, h, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(jacobian_scaled, jacobian, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("code", ["linear", "relu"])
def test_batch_statistics_standardise_every_unit_and_evaluation_has_their_running_means(code):
    torch.manual_seed(0)
    model = Autoencoder(6, widths=(2, 4, 4), code=code, size=(8, 8)).train()
    x = torch.rand(64, 1, 8, 8)
    a = model.encoder(x).detach()
    for _ in range(60):
        _, h, _ = model.reconstruct(x)
    u = (a - a.mean(0)) / a.std(0, correction=0)
    expected = u.relu() if code == "relu" else u
    torch.testing.assert_close(h.detach(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(model.eval().encode(x).detach(), expected, rtol=1e-2, atol=1e-2)


def test_initial_weights_have_the_variance_of_he():
    torch.manual_seed(0)
    model = Autoencoder(64)
    for layer, fan_in in [
        (model.encoder.dense, 16 * 7 * 7),
        (model.decoder.dense, 64),
        (model.encoder.levels[2][3], 16 * 9),
        (model.decoder.ups[0], 16),  # stride 2: one weight of every channel reaches a pixel
    ]:
        assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=0.1)


def test_input_noise_is_drawn_in_training_only():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 28, 20)
    for noise in (0.0, 0.02):
        vae = VAE(4, widths=(4, 8, 8), dropout=0.0, input_noise=noise).train()
        assert torch.equal(vae.encode(x)[0], vae.encode(x)[0]) == (noise == 0)
        vae.eval()
        assert torch.equal(vae.encode(x)[0], vae.encode(x)[0])


def test_encoding_treats_the_examples_apart_in_training_mode_too():
    torch.manual_seed(0)
    model, x = Autoencoder(6, widths=(2, 4, 4), code="relu", size=(8, 8)).train(), torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model.encode(x)[:2], model.encode(x[:2]))
    _, _, stats = model.reconstruct(x)
    torch.testing.assert_close(model.encode(x, stats)[:2], model.encode(x[:2], stats))


def test_evaluation_changes_nothing_and_draws_nothing():
    for model, x in [
        (Autoencoder(4, code="relu"), torch.rand(3, 1, 28, 28)),
        (VAE(4), torch.rand(3, 1, 28, 20)),
    ]:
        model.eval()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("arguments", [{"code": "tanh"}, {"latent_dim": 0}, {"size": (28, 30)}])
def test_autoencoder_refuses(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Autoencoder(**arguments)


@pytest.mark.parametrize("arguments", [{"latent_dim": 0}, {"reach": -1}, {"size": (28, 18)}])
def test_vae_refuses(arguments):
    with pytest.raises(ValueError, match=re.escape(" is ".join(map(str, *arguments.items())))):
        VAE(**arguments)


def test_vae_shapes():
    vae, x = VAE(20).eval(), torch.rand(2, 1, 28, 20)
    mu, logvar = vae.encode(x)
    assert mu.shape == logvar.shape == (2, 20)
    assert vae.decode(mu).shape == x.shape and vae.log_likelihood(x, mu).shape == (2,)
    assert vae.sample(5).shape == (5, 1, 28, 20)


def test_reparameterize_has_the_mean_and_the_standard_deviation_of_q():
    vae = VAE(2)
    mu, logvar = (
        torch.tensor([[1.0, -2.0]]).repeat(40_000, 1),
        torch.tensor([[math.log(4.0), math.log(0.25)]]),
    )
    z = vae.reparameterize(mu, logvar.repeat(40_000, 1), torch.Generator().manual_seed(0))
    assert z.mean(0).tolist() == pytest.approx([1, -2], abs=0.05)
    assert z.std(0).tolist() == pytest.approx([2, 0.5], rel=0.03)


def test_reparameterize_passes_gradients_to_mu_and_logvar():
    mu, logvar = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    z = VAE(3).reparameterize(mu, logvar, torch.Generator().manual_seed(0))
    z.sum().backward()
    assert torch.equal(mu.grad, torch.ones(1, 3))
    torch.testing.assert_close(logvar.grad, z.detach() / 2)  # dz/dlogvar = eps exp(logvar / 2) / 2


def test_samples_are_decoded_draws_of_the_prior_and_seeded():
    vae = VAE(3).eval()
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(vae.sample(4, torch.Generator().manual_seed(7)), vae.decode(z))


def test_the_256_greys_have_probability_1():
    x = torch.arange(256).double() / 255
    for mean, log_scale in [(0.5, -3.0), (0.0, -5.0), (0.98, -2.0), (0.3, -6.5)]:
        mean, log_scale = (
            torch.tensor(mean).double().expand(256),
            torch.tensor(log_scale).double().expand(256),
        )
        log_p = discretised_logistic(x, mean, log_scale)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
        edges = (torch.arange(1, 256).double() - 0.5) / 255
        cdf = torch.from_numpy(
            stats.logistic.cdf(edges.numpy(), loc=mean[0].item(), scale=math.exp(log_scale[0]))
        )
        mass = torch.diff(cdf, prepend=torch.zeros(1).double(), append=torch.ones(1).double())
        seen = mass > 1e-9
        torch.testing.assert_close(log_p.exp()[seen], mass[seen], rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_an_error_is_told_from_those_above_and_to_the_left_alone(reach):
    torch.manual_seed(0)
    error, weights = torch.randn(2, 1, 4, 5).double(), torch.randn(2 * reach * (reach + 1)).double()
    told = torch.zeros_like(error)
    offsets = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if (dy, dx) < (0, 0)]
    assert len(offsets) == len(weights)
    for (dy, dx), weight in zip(offsets, weights):
        for y in range(max(0, -dy), 4):
            for x in range(max(0, -dx), min(5, 5 - dx)):
                told[..., y, x] += weight * error[..., y + dy, x + dx]
    torch.testing.assert_close(from_neighbours(error, weights), told)


@pytest.mark.parametrize("size", [(1, 2), (2, 1)])
def test_all_images_together_have_probability_1(size):
    torch.manual_seed(0)
    greys = torch.arange(256).double() / 255
    x = torch.cartesian_prod(greys, greys).view(-1, 1, *size)
    mean, log_scale = torch.rand(1, 1, *size).double(), torch.full((1, 1, *size), -2.5).double()
    told = from_neighbours(x - mean, torch.randn(4).double())
    log_p = discretised_logistic(x, mean + told, log_scale).sum((1, 2, 3))
    assert told.abs().max() > 0.1 and log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_log_likelihood_is_the_sum_over_pixels_and_finite_far_from_the_mean():
    vae, x = VAE(3).eval(), torch.randint(0, 256, (2, 1, 28, 20)) / 255
    z = torch.randn(2, 3)
    mean, log_scale = vae.pixel_distribution(z)
    independent = discretised_logistic(x, mean, log_scale)
    torch.testing.assert_close(vae.log_likelihood(x, z), independent.sum((1, 2, 3)))
    torch.nn.init.normal_(vae.neighbours, std=0.1)
    pixels = discretised_logistic(x, mean + from_neighbours(x - mean, vae.neighbours), log_scale)
    torch.testing.assert_close(vae.log_likelihood(x, z), pixels.sum((1, 2, 3)))
    far = discretised_logistic(
        torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor(-6.0)
    )
    assert torch.isfinite(far).all()


def test_only_a_decoder_that_normalises_its_code_is_blind_to_the_code_s_length():
    torch.manual_seed(0)
    z = torch.randn(4, 6)
    for norm_code in (True, False):
        decoder = Decoder(6, widths=(2, 4, 4), size=(8, 8), norm_code=norm_code).eval()
        torch.nn.init.zeros_(decoder.dense.bias)
        difference = (decoder(5 * z) - decoder(z)).abs().max()
        assert (difference < 1e-3) == norm_code
    assert not VAE(3).decoder.norm_code


def test_the_vaes_distributions_are_those_worked_out_by_hand():
    torch.manual_seed(0)
    vae = VAE(3, widths=(4, 4), size=(8, 8)).eval()
    vae.bias.data.copy_(4 * torch.randn(2, 8, 8))  # some beyond the clip
    z, x = torch.randn(5, 3), torch.rand(5, 1, 8, 8)
    out = vae.decoder(z)
    mean, log_scale = vae.pixel_distribution(z)
    assert torch.allclose(mean, 1 / (1 + torch.exp(-(out[:, :1] + vae.bias[0]))), atol=1e-6)
    s = out[:, 1:] + vae.bias[1]
    clipped = torch.where(s > 3, torch.tensor(0.0), torch.where(s < -3, torch.tensor(-6.0), s - 3))
    assert torch.allclose(log_scale, clipped, atol=1e-6) and (s.abs() > 3).any() and (s.abs() < 3).any()
    vae.encoder.dense.bias.data.copy_(torch.tensor([9.0, 0.0, -9.0, 9.0, -20.0, 2.0]))
    mu, logvar = vae.encode(x)
    a = vae.encoder(x)
    assert torch.equal(mu, a[:, :3])
    assert torch.equal(logvar[:, 2], a[:, 5]) and (logvar[:, 0] == 4).all() and (logvar[:, 1] == -12).all()


def test_the_relu_code_is_the_one_worked_out_by_hand():
    model = Autoencoder(3, widths=(4, 4), code="relu", size=(8, 8)).eval()
    model.threshold.data.copy_(torch.tensor([0.5, -0.5, 0.0]))
    a, m, s = torch.tensor([[1.0, 1.0, -4.0]]), torch.tensor([2.0, 0.0, 0.0]), torch.tensor([2.0, 4.0, 1.0])
    assert torch.equal(model.activate(a, (m, s)), torch.tensor([[0.0, 0.0, 0.0]]))
    assert torch.equal(model.activate(a + 3, (m, s)), torch.tensor([[1.5, 0.5, 0.0]]))
