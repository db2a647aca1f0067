"""Laws that losses, metrics, splits, corruptions and interpolations obey on generated input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aeutils import data, losses, metrics
from aeutils.latent import blend, different_pairs, interpolate, same_pairs
from aeutils.models import discretised_logistic

seeds = st.integers(0, 2**31 - 1)
scales = st.floats(0.01, 100)
lawful = settings(max_examples=50, deadline=None, derandomize=True)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def isometry(seed, d):
    """A random rotation or reflection (d, d) and a shift (d,)."""
    return torch.linalg.qr(normal(seed, d, d)).Q, normal(seed + 1, d)


def close(a, b, **tolerance):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), check_dtype=False, **tolerance)


def jacobian_norm(h):
    return losses.jacobian_frobenius(lambda x: torch.tanh(x.flatten(1) @ normal(0, 6, 6)), h).mean()


MEANS = {  # losses that average over the batch, of codes (N, 6)
    "reconstruction": lambda h: losses.reconstruction_loss(h, h.flip(1)),
    "l1": losses.l1_sparsity,
    "jacobian": jacobian_norm,
    "gaussian kl": lambda h: losses.gaussian_kl(h[:, :3], h[:, 3:]).mean(),
}


@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
@given(seed=seeds, n=st.integers(1, 9), m=st.integers(1, 9))
@lawful
def test_a_loss_is_not_negative_and_of_two_batches_it_is_the_weighted_mean(loss, seed, n, m):
    h = normal(seed, n + m, 6)
    assert loss(h) >= 0
    close(loss(h), (n * loss(h[:n]) + m * loss(h[n:])) / (n + m))


@given(seed=seeds, c=st.floats(-100, 100))
@lawful
def test_losses_scale_as_their_powers(seed, c):
    h, x = normal(seed, 5, 6), normal(seed + 1, 5, 6)
    close(losses.l1_sparsity(c * h), abs(c) * losses.l1_sparsity(h))
    close(losses.reconstruction_loss(c * h, c * x), c**2 * losses.reconstruction_loss(h, x))
    close(losses.reconstruction_loss(h, x), losses.reconstruction_loss(x, h))
    w, images = normal(seed + 2, 4, 3), uniform(seed, 2, 1, 2, 2)
    for norm in (
        losses.jacobian_frobenius,
        lambda encode, x: losses.contractive_penalty(encode, x, generator=torch.Generator().manual_seed(0)),
    ):
        once, scaled = (norm(lambda x, k=k: k * x.flatten(1) @ w, images) for k in (1, c))
        close(scaled, c**2 * once)


@given(seed=seeds, rho=st.floats(0.02, 0.98), off=st.floats(0.01, 0.9))
@lawful
def test_the_kl_penalty_is_zero_only_where_the_mean_activation_is_rho(seed, rho, off):
    noise = uniform(seed, 8, 3) - 0.5
    spread = min(rho, 1 - rho) * (noise - noise.mean(0))
    h = rho + spread
    close(losses.kl_sparsity(h, rho), 0.0, atol=1e-12, rtol=0)
    other = h.clone()
    other[:, 1] = rho + off * (1 - rho)
    assert losses.kl_sparsity(other, rho) > 1e-7


@given(seed=seeds)
@lawful
def test_the_gaussian_kl_is_zero_only_at_the_prior_and_adds_over_units(seed):
    mu, logvar = normal(seed, 4, 5), normal(seed + 1, 4, 5)
    units = losses.gaussian_kl_units(mu, logvar)
    assert (units > 0).all() and (losses.gaussian_kl(0 * mu, 0 * logvar) == 0).all()
    close(units.sum(1), losses.gaussian_kl(mu, logvar))
    close(losses.gaussian_kl(-mu, logvar), losses.gaussian_kl(mu, logvar))


@given(seed=seeds, c=st.floats(0.01, 1))
@lawful
def test_psnr_is_symmetric_and_shifts_by_20_log10_of_a_scale(seed, c):
    x, x_hat = uniform(seed, 3, 1, 4, 4), uniform(seed + 1, 3, 1, 4, 4)
    close(metrics.psnr(x, x_hat), metrics.psnr(x_hat, x))
    close(metrics.psnr(c * x_hat, c * x), metrics.psnr(x_hat, x) - 20 * math.log10(c))
    close(metrics.psnr(x + c, x), torch.full((3,), -20 * math.log10(c)))


@given(seed=seeds, c=scales)
@lawful
def test_latent_l2_is_a_metric_and_its_share_of_the_path_has_no_unit(seed, c):
    a, b, d = (normal(seed + i, 7, 4) for i in range(3))
    distance = metrics.latent_l2
    assert (distance(a, b) > 0).all() and (distance(a, a) == 0).all()
    close(distance(a, b), distance(b, a))
    assert (distance(a, d) <= distance(a, b) + distance(b, d) + 1e-12).all()
    close(distance(c * a, c * b), c * distance(a, b))
    close(metrics.relative_l2(c * a, c * b, c * a, c * d), metrics.relative_l2(a, b, a, d))
    close(metrics.relative_l2(a, d, a, d), torch.ones(7))


@given(seed=seeds, c=scales)
@lawful
def test_clusters_do_not_depend_on_scale_rotation_or_shift(seed, c):
    labels = torch.arange(40) % 4
    h = normal(seed, 40, 5) + labels[:, None]
    rotation, shift = isometry(seed + 7, 5)
    moved = c * h @ rotation + c * shift
    close(metrics.scatter_ratio(moved, labels), metrics.scatter_ratio(h, labels), rtol=1e-6, atol=0)
    assert metrics.purity_at_k(moved, labels) == metrics.purity_at_k(h, labels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    assert metrics.purity_at_k(h[order], labels[order]) == pytest.approx(metrics.purity_at_k(h, labels))
    accuracy = metrics.knn_accuracy(h[:30], labels[:30], h[30:], labels[30:])
    assert metrics.knn_accuracy(moved[:30], labels[:30], moved[30:], labels[30:]) == accuracy


@given(seed=seeds)
@lawful
def test_shares_lie_between_0_and_1(seed):
    h, labels = normal(seed, 30, 6), torch.arange(30) % 3
    h_max = h.abs().amax(0)
    shares = (metrics.active_share(h, h_max), metrics.hoyer(h), metrics.purity_at_k(h, labels, 5))
    assert all(0 <= share <= 1 for share in shares)
    assert metrics.lifetime_sparsity(h, h_max).mean().item() == pytest.approx(shares[0])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9), st.floats(-10, 10), st.floats(-10, 10))
@lawful
def test_the_t_interval_moves_and_stretches_with_its_values(values, a, b):
    mean, low, high = metrics.t_interval(values)
    ends = sorted((a * low + b, a * high + b))
    assert metrics.t_interval([a * v + b for v in values]) == pytest.approx((a * mean + b, *ends), abs=1e-6)
    assert low <= mean <= high
    flipped = metrics.t_interval([-v for v in values])
    assert flipped == pytest.approx((-mean, -high, -low), abs=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=5, max_size=9), st.floats(-5, 5))
@lawful
def test_a_verdict_turns_over_with_its_claim(values, threshold):
    swap = {"supported": "refuted", "refuted": "supported", "inconclusive": "inconclusive"}
    word = metrics.verdict(values, True, threshold)["verdict"]
    assert metrics.verdict(values, False, threshold)["verdict"] == swap[word]
    assert metrics.verdict([-v for v in values], False, -threshold)["verdict"] == word


@pytest.mark.parametrize("kind", ["blocks", "random"])
@given(n=st.integers(440, 4000), seed=seeds)
@lawful
def test_parts_of_a_split_are_ordered_disjoint_and_kept_apart(kind, n, seed):
    parts = data.split_frames(n, kind, seed)
    frames = torch.cat(parts)
    assert len(frames.unique()) == len(frames) and frames.min() >= 0 and frames.max() < n
    assert all(len(p) and (p.diff() > 0).all() for p in parts)
    if kind == "random":
        assert len(frames) == n
    else:
        own = torch.repeat_interleave(torch.arange(3), torch.tensor([len(p) for p in parts]))
        frames, order = frames.sort()
        borders = own[order].diff() != 0
        assert (frames.diff()[borders] >= 2 * data.GUARD + 1).all()
        assert ((frames.diff() == 1) | borders | (frames.diff() >= 2 * data.GUARD + 1)).all()


@pytest.mark.parametrize("kind", data.CORRUPTIONS)
@given(seed=seeds, share=st.floats(0, 1), height=st.integers(1, 9), width=st.integers(1, 9))
@lawful
def test_a_corruption_stays_in_range_is_seeded_and_nothing_at_level_0(kind, seed, share, height, width):
    x = uniform(seed, 3, 1, height, width).float()
    level = share * min(height, width) if kind in ("shift", "occlusion") else share
    level = min(level, 1) if kind == "occlusion" else level
    once, again = (data.corrupt(x, kind, level, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(once, again) and once.shape == x.shape and once.min() >= 0 and once.max() <= 1
    assert torch.equal(data.corrupt(x, kind, 0, torch.Generator().manual_seed(seed)), x)


class Affine(nn.Module):
    """An encoder h = W x + b with a decoder of the same kind."""

    def __init__(self, seed):
        super().__init__()
        self.w, self.b = nn.Parameter(normal(seed, 3, 16)), nn.Parameter(normal(seed + 1, 3))

    def encode(self, x):
        return x.flatten(1) @ self.w.T + self.b

    def decode(self, h):
        return torch.tanh(h @ self.w).view(-1, 1, 4, 4)


alphas = st.lists(st.floats(0, 1), min_size=1, max_size=5)


@given(seed=seeds, alphas=alphas)
@lawful
def test_swapping_the_ends_turns_a_path_round(seed, alphas):
    x1, x2 = uniform(seed, 2, 1, 4, 4), uniform(seed + 1, 2, 1, 4, 4)
    values = torch.tensor(alphas, dtype=torch.float64)
    close(blend(x1, x2, values), blend(x2, x1, 1 - values))
    there, back = interpolate(Affine(seed), x1, x2, values), interpolate(Affine(seed), x2, x1, 1 - values)
    for name in ("h_blend", "h_linear", "x_blend", "x_linear"):
        close(getattr(there, name), getattr(back, name))


@given(seed=seeds, alphas=alphas)
@lawful
def test_an_affine_encoder_blends_codes_by_blending_pixels(seed, alphas):
    x1, x2 = uniform(seed, 2, 1, 4, 4), uniform(seed + 1, 2, 1, 4, 4)
    path = interpolate(Affine(seed), x1, x2, alphas)
    close(path.h_blend, path.h_linear)
    close(path.x_blend, path.x_linear)
    assert blend(x1, x2, path.alphas).min() >= 0 and blend(x1, x2, path.alphas).max() <= 1


@given(seed=seeds, c=scales)
@lawful
def test_contraction_and_activity_do_not_depend_on_the_code_s_scale(seed, c):
    h, norms = normal(seed, 20, 4), uniform(seed + 1, 20)
    scaled = metrics.jacobian_over_variance(c**2 * norms, c * h)
    close(scaled, metrics.jacobian_over_variance(norms, h), rtol=1e-6, atol=0)
    close(metrics.bits_per_dim(c * math.log(2), 1), c)
    assert not metrics.active_units(0 * h, 0 * h).any() and metrics.active_units(h + 3, 0 * h).all()


@pytest.mark.parametrize(("draw", "same"), [(different_pairs, False), (same_pairs, True)])
@given(seed=seeds, n=st.integers(1, 30))
@lawful
def test_pairs_are_disjoint_and_of_their_kind(draw, same, seed, n):
    labels = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(seed))
    pairs = draw(labels, n, seed)
    assert len(pairs) == n and len(pairs.unique()) == 2 * n
    assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == same).all()


@given(mean=st.floats(0, 1), log_scale=st.floats(-6, 0))
@lawful
def test_the_greys_have_probability_1(mean, log_scale):
    x = torch.arange(256).double() / 255
    log_p = discretised_logistic(x, torch.full_like(x, mean), torch.full_like(x, log_scale))
    close(log_p.exp().sum(), 1.0, atol=1e-9, rtol=0)
