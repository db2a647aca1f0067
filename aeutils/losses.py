"""The losses, one function an equation. A scalar is summed over pixels or units and averaged over the batch."""

import torch


def reconstruction_loss(x_hat, x):
    """Squared error: (1/B) sum_b ||x_hat_b - x_b||^2, a scalar. Divided by the number of pixels it is the MSE.

    Raises ValueError where the shapes differ.
    """
    if x_hat.shape != x.shape:
        raise ValueError(
            f"x_hat has shape {tuple(x_hat.shape)} and x has {tuple(x.shape)}; they must be equal."
        )
    return (x_hat - x).square().flatten(1).sum(1).mean()


def l1_sparsity(h):
    """L1 penalty: (1/B) sum_b sum_j |h_bj|, a scalar (Olshausen and Field, 1996)."""
    return h.abs().sum(1).mean()


def kl_sparsity(h, rho):
    """KL penalty: sum_j KL(rho || rho_hat_j), rho_hat_j = (1/B) sum_b h_bj, a scalar in nats (Ng, 2011).

    KL(rho || r) = rho log(rho / r) + (1 - rho) log((1 - rho) / (1 - r)): the code must lie in (0, 1). The value is that
    of r kept 1e-6 away from 0 and 1, the gradient goes through: a dead unit is pushed towards rho as well.
    Raises ValueError where rho is not in (0, 1) or a mean activation is not in [0, 1].
    """
    if not 0 < rho < 1:
        raise ValueError(f"rho is {rho}; it is a target activation and must lie between 0 and 1.")
    rho_hat = h.mean(0)
    if rho_hat.min() < 0 or rho_hat.max() > 1:
        raise ValueError("a mean activation lies outside [0, 1]; the KL penalty needs a sigmoid code.")
    rho_hat = rho_hat + (rho_hat.clamp(1e-6, 1 - 1e-6) - rho_hat).detach()
    return (rho * torch.log(rho / rho_hat) + (1 - rho) * torch.log((1 - rho) / (1 - rho_hat))).sum()


def contractive_penalty(encode, x, probes=1, generator=None):
    """Unbiased estimate of the batch mean of ||J||_F^2, J = dh/dx of one example, differentiable in the parameters.

    E||J^T v||^2 = tr(J J^T) = ||J||_F^2 for random signs v (Hutchinson, 1989): one backward pass a probe, not one a
    unit. For one example its variance is 2 (||A||_F^2 - sum_i A_ii^2) / probes, A = J J^T. x is (B, 1, H, W);
    returns a scalar. `encode` must treat the examples apart (no batch statistics). Raises ValueError where probes < 1.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}; it must be 1 or more.")
    x = x.detach().requires_grad_(True)
    h = encode(x)
    total = 0.0
    for _ in range(probes):
        v = torch.randint(0, 2, h.shape, generator=generator, device=h.device).to(h.dtype) * 2 - 1
        (vjp,) = torch.autograd.grad(h, x, grad_outputs=v, create_graph=True)
        total = total + vjp.square().flatten(1).sum(1).mean()
    return total / probes


def jacobian_frobenius(encode, x):
    """Exact ||J||_F^2 = sum_ij (dh_i/dx_j)^2 of every example, (B,): one backward pass a unit (Rifai et al., 2011)."""
    x = x.detach().requires_grad_(True)
    h = encode(x)
    rows = (torch.autograd.grad(h[:, i].sum(), x, retain_graph=True)[0] for i in range(h.shape[1]))
    return sum(row.square().flatten(1).sum(1) for row in rows)


def gaussian_kl(mu, logvar):
    """KL(N(mu, diag exp(logvar)) || N(0, I)) = 1/2 sum_j (mu_j^2 + exp(logvar_j) - logvar_j - 1), in nats, (B,)."""
    return gaussian_kl_units(mu, logvar).sum(1)


def gaussian_kl_units(mu, logvar):
    """The same KL of every unit apart, in nats, (B, latent_dim): a unit whose KL is near 0 is dead."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1)


def negative_elbo(vae, x, generator=None):
    """-ELBO(x) = -E_q[log p(x|z)] + KL(q(z|x) || p(z)) with one sample of q, in nats: its two terms, (B,) each."""
    mu, logvar = vae.encode(x)
    z = vae.reparameterize(mu, logvar, generator)
    return -vae.log_likelihood(x, z), gaussian_kl(mu, logvar)
