"""Each loss against an oracle that was written by somebody else: torch.func, torch.distributions, a closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.func import jacrev, vmap

from aeutils.losses import (
    contractive_penalty,
    gaussian_kl,
    gaussian_kl_units,
    jacobian_frobenius,
    kl_sparsity,
    l1_sparsity,
    negative_elbo,
    reconstruction_loss,
)
from aeutils.models import VAE, Autoencoder


def exact_jacobian(encode, x):
    """(B, latent_dim, pixels) by forward-over-batch autodiff of one example at a time."""
    return vmap(jacrev(lambda one: encode(one[None])[0]))(x).flatten(2)


@pytest.fixture(params=["linear", "relu", "sigmoid"])
def small(request):
    torch.manual_seed(3)
    model = Autoencoder(6, widths=(2, 4, 4), code=request.param, size=(8, 8)).double().eval()
    if request.param != "sigmoid":
        model.running_std = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    return model, torch.rand(5, 1, 8, 8, dtype=torch.float64)


def test_reconstruction_loss_sums_pixels_and_averages_images():
    x, x_hat = torch.zeros(3, 1, 2, 2), torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert reconstruction_loss(x_hat, x).item() == pytest.approx((4 * 1 + 4 * 4 + 4 * 9) / 3)


def test_reconstruction_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="must be equal"):
        reconstruction_loss(torch.zeros(3, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_l1_sums_units_and_averages_images():
    assert l1_sparsity(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, -1.0]])).item() == pytest.approx(3.5)


@given(rho=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_kl_sparsity_is_the_bernoulli_divergence(rho, seed):
    h = torch.rand(7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target, actual = Bernoulli(torch.tensor(rho, dtype=torch.float64)), Bernoulli(h.mean(0))
    assert kl_sparsity(h, rho).item() == pytest.approx(
        kl_divergence(target, actual).sum().item(), rel=1e-6, abs=1e-9
    )


def test_kl_sparsity_is_finite_for_dead_and_saturated_units_and_pushes_towards_rho():
    h = torch.tensor([[0.0, 1.0, 0.3], [0.0, 1.0, 0.3]], requires_grad=True)
    loss = kl_sparsity(h, 0.1)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(h.grad).all()
    assert (h.grad[:, 0] < 0).all() and (h.grad[:, 1:] > 0).all()


@pytest.mark.parametrize("rho", [0, 1, -0.1, 2])
def test_kl_sparsity_refuses_a_target_outside_0_1(rho):
    with pytest.raises(ValueError, match=f"rho is {rho}"):
        kl_sparsity(torch.rand(2, 3), rho)


def test_kl_sparsity_refuses_codes_that_are_no_activations():
    with pytest.raises(ValueError, match="sigmoid"):
        kl_sparsity(torch.full((2, 3), 1.5), 0.1)


def test_exact_jacobian_norm_equals_jacrev(small):
    model, x = small
    oracle = exact_jacobian(model.encode, x).square().sum((1, 2))
    torch.testing.assert_close(jacobian_frobenius(model.encode, x), oracle, rtol=1e-9, atol=1e-12)


def test_contractive_estimate_is_unbiased_with_the_stated_variance(small):
    model, x = small
    jacobians = exact_jacobian(model.encode, x)
    a = jacobians @ jacobians.mT
    truth = jacobians.square().sum((1, 2)).mean().item()
    variance = (2 * (a.square().sum((1, 2)) - a.diagonal(dim1=1, dim2=2).square().sum(1))).sum().item() / len(
        x
    ) ** 2
    generator = torch.Generator().manual_seed(0)
    n, probes = 600, 2
    draws = torch.stack([contractive_penalty(model.encode, x, probes, generator).detach() for _ in range(n)])
    assert abs(draws.mean().item() - truth) < 4 * math.sqrt(variance / probes / n) + 1e-12
    if variance > 1e-20:
        assert draws.var().item() == pytest.approx(variance / probes, rel=0.35)


def test_contractive_penalty_sees_what_the_summed_gradient_cancels():
    encoder = nn.Linear(1, 2, bias=False).double()
    encoder.weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)

    def encode(x):
        return encoder(x.flatten(1))

    x = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    assert torch.autograd.functional.jacobian(lambda x: encode(x).sum(), x).abs().max() == 0  # ||J^T 1|| = 0
    torch.testing.assert_close(jacobian_frobenius(encode, x), torch.full((4,), 2.0, dtype=torch.float64))
    values = [
        contractive_penalty(encode, x, generator=torch.Generator().manual_seed(s)).item() for s in range(200)
    ]
    assert sum(values) / 200 == pytest.approx(2.0, abs=0.5)


def test_contractive_penalty_is_the_encoders_and_has_its_parameter_gradient():
    w = torch.tensor([[0.5, -0.3], [0.2, 0.8]], dtype=torch.float64, requires_grad=True)

    def encode(x):
        return torch.sigmoid(x.flatten(1) @ w.T)

    x = torch.rand(3, 1, 1, 2, dtype=torch.float64)
    h = encode(x)
    closed = ((h * (1 - h)).square() * w.square().sum(1)).sum(
        1
    )  # Rifai et al. (2011), eq. for a sigmoid layer
    torch.testing.assert_close(jacobian_frobenius(encode, x), closed.detach())
    (oracle,) = torch.autograd.grad(closed.mean(), w)
    generator = torch.Generator().manual_seed(1)
    (gradient,) = torch.autograd.grad(contractive_penalty(encode, x, probes=4000, generator=generator), w)
    torch.testing.assert_close(gradient, oracle, rtol=0.1, atol=0.01)


def test_contractive_penalty_refuses_no_probes():
    with pytest.raises(ValueError, match="probes is 0"):
        contractive_penalty(lambda x: x.flatten(1), torch.rand(1, 1, 2, 2), probes=0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_gaussian_kl_equals_torch_distributions(seed):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = (2 * torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    q, p = Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(gaussian_kl_units(mu, logvar), kl_divergence(q, p))
    torch.testing.assert_close(gaussian_kl(mu, logvar), kl_divergence(q, p).sum(1))


def test_negative_elbo_is_its_two_terms():
    torch.manual_seed(0)
    vae, x = VAE(3, widths=(4, 8, 8)).eval(), torch.randint(0, 256, (2, 1, 28, 20)) / 255
    reconstruction, kl = negative_elbo(vae, x, generator=torch.Generator().manual_seed(5))
    mu, logvar = vae.encode(x)
    z = vae.reparameterize(mu, logvar, torch.Generator().manual_seed(5))
    torch.testing.assert_close(reconstruction, -vae.log_likelihood(x, z))
    torch.testing.assert_close(kl, gaussian_kl(mu, logvar))
