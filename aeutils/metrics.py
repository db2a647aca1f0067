"""What is measured: image and code distances, sparsity, clusters, likelihood, and the statistics over seeds."""

import math

import torch
from scipy.special import stdtrit  # as scipy.stats.t.ppf, which takes a second to import

from .losses import gaussian_kl_units


def psnr(x_hat, x):
    """10 log10(1 / MSE) in dB at data range 1, one value an image, (N,); equal images give inf."""
    if x_hat.shape != x.shape:
        raise ValueError(
            f"x_hat has shape {tuple(x_hat.shape)} and x has {tuple(x.shape)}; they must be equal."
        )
    return -10 * torch.log10((x_hat - x).square().flatten(1).mean(1))


def latent_l2(h1, h2):
    """||h1 - h2||_2, one value a row, (N,), in the code's own unit: it compares nothing across models.

    Raises ValueError where the shapes differ.
    """
    if h1.shape != h2.shape:
        raise ValueError(f"h1 has shape {tuple(h1.shape)} and h2 has {tuple(h2.shape)}; they must be equal.")
    return torch.linalg.vector_norm(h1 - h2, dim=1)


def relative_l2(h1, h2, h_start, h_end):
    """||h1 - h2||_2 / ||h_start - h_end||_2, (N,): the same distance as a share of that of the path's ends.

    Not finite where the ends are equal. Raises ValueError where shapes differ.
    """
    return latent_l2(h1, h2) / latent_l2(h_start, h_end)


def active_share(h, h_max):
    """Share of all activations with |h_j| > 0.1 h_max_j, h_max (latent_dim,) = max |h_j| on validation images."""
    return (h.abs() > 0.1 * h_max).float().mean().item()


def dead_units(h_max):
    """Number of units that never leave 0."""
    return int((h_max < 1e-6).sum())


def hoyer(h):
    """Hoyer's sparsity (sqrt(d) - ||c||_1 / ||c||_2) / (sqrt(d) - 1) of the centred codes c, averaged over images.

    Raises ValueError for codes of one unit, and where a code is the mean of all: it has no direction.
    """
    c = h - h.mean(0)
    norms = torch.linalg.vector_norm(c, dim=1)
    if h.shape[1] < 2 or not norms.min() > 0:
        raise ValueError("a code has one unit, or is the mean of all codes; Hoyer's sparsity is not defined.")
    ratio = c.abs().sum(1) / norms
    root = math.sqrt(h.shape[1])
    return ((root - ratio) / (root - 1)).mean().item()


def lifetime_sparsity(h, h_max):
    """Share of images on which each unit is active, (latent_dim,)."""
    return (h.abs() > 0.1 * h_max).float().mean(0)


def jacobian_over_variance(squared_norms, h):
    """Mean ||J||_F^2 over the code's total variance: a contraction that rescaling the code cannot fake."""
    return (squared_norms.mean() / h.var(0).sum()).item()


def scatter_ratio(h, labels):
    """tr S_W / tr S_B: scatter of the codes about their class means over that of the class means about the mean.

    Raises ValueError where a class from 0 to max(labels) is empty.
    """
    classes = [h[labels == c] for c in range(int(labels.max()) + 1)]
    if any(len(c) == 0 for c in classes):
        raise ValueError("a class has no image; the scatter ratio needs at least one of each.")
    within = sum((c - c.mean(0)).square().sum() for c in classes)
    between = sum(len(c) * (c.mean(0) - h.mean(0)).square().sum() for c in classes)
    return (within / between).item()


def nearest(queries, points, k, leave_self_out=False):
    """Indices (N, k) of the k nearest points of every query, Euclidean; `leave_self_out` where queries are points.

    By ||p||^2 - 2 q.p, one matrix product a block: ||q||^2 orders nothing. From the points' mean norms round least.
    """
    extra, mean, parts = int(leave_self_out), points.mean(0), []
    queries, points = queries - mean, points - mean
    norms, memory = points.square().sum(1), points.new_empty(min(500, len(queries)), len(points))
    for start in range(0, len(queries), 500):
        block = queries[start : start + 500]
        distances = torch.addmm(norms, block, points.T, alpha=-2, out=memory[: len(block)])
        if leave_self_out:
            rows = torch.arange(len(block))
            distances[rows, rows + start] = -torch.inf
        parts.append(distances.topk(k + extra, largest=False).indices[:, extra:])
    return torch.cat(parts)


def purity_at_k(h, labels, k=10):
    """Share of the k nearest neighbours, the point itself left out, that carry the point's label."""
    return (labels[nearest(h, h, k, leave_self_out=True)] == labels[:, None]).float().mean().item()


def knn_accuracy(h_train, y_train, h_test, y_test, k=5):
    """Accuracy of the vote of the k nearest training codes."""
    return (y_train[nearest(h_test, h_train, k)].mode(1).values == y_test).float().mean().item()


def bits_per_dim(nats, n_pixels=560):
    """nats / (n_pixels ln 2)."""
    return nats / (n_pixels * math.log(2))


@torch.no_grad()
def iwae(vae, x, n_samples, generator=None, chunk=50):
    """Importance-weighted estimate of log p(x) in nats, (N,) (Burda, Grosse and Salakhutdinov, 2016).

    log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x), K = n_samples: a lower bound in expectation that
    grows with K to log p(x); K = 1 is the ELBO.
    """
    mu, logvar = vae.encode(x)
    total = torch.full((len(x),), -math.inf, device=x.device)
    for start in range(0, n_samples, chunk):
        k = min(chunk, n_samples - start)
        m, v, copies = (t.repeat_interleave(k, 0) for t in (mu, logvar, x))
        z = vae.reparameterize(m, v, generator)
        log_p_z = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        log_q_z = -0.5 * ((z - m).square() / v.exp() + v + math.log(2 * math.pi)).sum(1)
        log_w = (vae.log_likelihood(copies, z) + log_p_z - log_q_z).view(len(x), k)
        total = torch.logaddexp(total, log_w.logsumexp(1))
    return total - math.log(n_samples)


def active_units(mu, logvar, threshold=0.01):
    """Units whose KL, averaged over the images, exceeds `threshold` nats: a boolean mask (latent_dim,)."""
    return gaussian_kl_units(mu, logvar).mean(0) > threshold


def t_interval(values):
    """(mean, low, high): Student's 95 % interval of the mean of n values; n < 2 gives the mean and two NaN."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, math.nan, math.nan
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = stdtrit(n - 1, 0.975) * spread / math.sqrt(n)
    return mean, mean - half, mean + half


def verdict(differences, greater=True, threshold=0.0):
    """Test a claim on one paired difference a training seed: {"verdict", "effect", "ci95", "n"}.

    The claim is that the mean difference is `greater` than (or less than) the threshold: `supported` if the whole
    interval is, `refuted` if the whole interval is on the other side, else `inconclusive`; with fewer than five
    seeds `not enough seeds`.
    """
    mean, low, high = t_interval(differences)
    if len(differences) < 5:
        word = "not enough seeds"
    elif low > threshold or high < threshold:
        word = "supported" if (low > threshold) == greater else "refuted"
    else:
        word = "inconclusive"
    return {"verdict": word, "effect": mean, "ci95": [low, high], "n": len(differences)}
