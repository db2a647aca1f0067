"""Image, code and likelihood metrics against scikit-image, scikit-learn, scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from aeutils import metrics


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_psnr_equals_scikit_image(seed):
    generator = torch.Generator().manual_seed(seed)
    x, x_hat = (torch.rand(3, 1, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    oracle = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(x, x_hat)]
    assert metrics.psnr(x_hat, x).tolist() == pytest.approx(oracle)


def test_psnr_of_equal_images_is_infinite_and_shapes_must_match():
    x = torch.rand(2, 1, 4, 4)
    assert torch.isinf(metrics.psnr(x, x)).all()
    with pytest.raises(ValueError, match="must be equal"):
        metrics.psnr(x, x[:1])
    with pytest.raises(ValueError, match="must be equal"):
        metrics.latent_l2(x.flatten(1), x[:1].flatten(1))


def test_latent_distances():
    h1, h2 = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.zeros(2, 2)
    assert metrics.latent_l2(h1, h2).tolist() == [5, 1]
    start, end = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[10.0, 0.0], [0.0, 2.0]])
    assert metrics.relative_l2(h1, h2, start, end).tolist() == [0.5, 0.5]


@given(c=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_scale_free_metrics_do_not_see_the_scale_of_the_code(c):
    generator = torch.Generator().manual_seed(0)
    h, labels = torch.randn(60, 5, generator=generator).relu().double(), torch.arange(60) % 3
    other = h.flip(0)
    pairs = [
        (metrics.active_share(h, h.max(0).values), metrics.active_share(c * h, (c * h).max(0).values)),
        (metrics.hoyer(h), metrics.hoyer(c * h)),
        (metrics.scatter_ratio(h, labels), metrics.scatter_ratio(c * h, labels)),
        (
            metrics.relative_l2(h, other, h.roll(1, 0), h.roll(7, 0)).nan_to_num(0, 0).sum().item(),
            metrics.relative_l2(c * h, c * other, c * h.roll(1, 0), c * h.roll(7, 0))
            .nan_to_num(0, 0)
            .sum()
            .item(),
        ),
    ]
    for one, scaled in pairs:
        assert one == pytest.approx(scaled, rel=1e-6)


def test_active_share_counts_activations_over_a_tenth_of_the_units_maximum():
    h = torch.tensor([[1.0, 0.05, 0.0], [0.2, 0.4, 0.0]])
    assert metrics.active_share(h, torch.tensor([1.0, 1.0, 1.0])) == pytest.approx(3 / 6)
    assert metrics.lifetime_sparsity(h, torch.ones(3)).tolist() == [1.0, 0.5, 0.0]
    assert metrics.dead_units(h.max(0).values) == 1


def test_active_share_has_a_threshold_for_every_unit_and_counts_both_signs():
    h_max = torch.tensor([100.0, 1.0, 0.01])
    h = torch.tensor([[50.0, -0.5, 0.005], [9.0, 0.09, -0.0005], [-11.0, 0.11, 0.0011], [0.0, 0.0, 0.02]])
    assert metrics.active_share(h, h_max) == pytest.approx(7 / 12)
    torch.testing.assert_close(metrics.lifetime_sparsity(h, h_max), torch.tensor([0.5, 0.5, 0.75]))


def test_hoyer_is_1_for_one_active_unit_and_0_for_equal_magnitudes():
    eye = torch.cat([torch.eye(4), -torch.eye(4)])
    assert metrics.hoyer(eye) == pytest.approx(1.0)
    flat = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert metrics.hoyer(flat) == pytest.approx(0.0, abs=1e-6)


def test_hoyer_does_not_see_where_the_codes_lie():
    h = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double() ** 3
    assert metrics.hoyer(h + torch.linspace(-5, 5, 6)) == pytest.approx(metrics.hoyer(h))
    for nothing in (torch.ones(4, 3), torch.rand(4, 1)):
        with pytest.raises(ValueError, match="not defined"):
            metrics.hoyer(nothing)


def test_contraction_is_relative_to_the_variance_of_all_units():
    h = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 7.0], [6.0, 7.0]])  # variances 20/3 and 12
    assert metrics.jacobian_over_variance(torch.tensor([1.0, 3.0]), h) == pytest.approx(2 / (20 / 3 + 12))


def test_active_units_are_those_whose_mean_kl_exceeds_a_hundredth_of_a_nat():
    mu = torch.tensor([[0.0, 0.1, 0.2, 3.0], [0.0, 0.1, 0.2, 0.0]])  # KL is mu^2 / 2
    assert metrics.active_units(mu, torch.zeros(2, 4)).tolist() == [False, False, True, True]
    assert metrics.active_units(mu.flip(0), torch.zeros(2, 4)).tolist() == [False, False, True, True]


def test_scatter_ratio_closed_form():
    h = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])  # within: 4, between: 4 * 25
    assert metrics.scatter_ratio(h, torch.tensor([0, 0, 1, 1])) == pytest.approx(4 / 100)
    with pytest.raises(ValueError, match="class has no image"):
        metrics.scatter_ratio(h, torch.tensor([0, 0, 2, 2]))


def test_neighbours_equal_scikit_learns():
    generator = torch.Generator().manual_seed(1)
    h, labels = torch.randn(300, 4, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    oracle = NearestNeighbors(n_neighbors=11).fit(h).kneighbors(h, return_distance=False)[:, 1:]
    assert (metrics.nearest(h, h, 10, leave_self_out=True).numpy() == oracle).mean() == 1
    assert metrics.purity_at_k(h, labels) == pytest.approx(
        (labels.numpy()[oracle] == labels.numpy()[:, None]).mean()
    )
    knn = KNeighborsClassifier(5).fit(h[:200], labels[:200])
    assert metrics.knn_accuracy(h[:200], labels[:200], h[200:], labels[200:]) == pytest.approx(
        knn.score(h[200:], labels[200:])
    )


def test_a_point_is_not_its_own_neighbour_even_among_duplicates():
    for n in (4, 1500):
        own = torch.arange(n)[:, None]
        h = (own // 4).float()
        assert not (metrics.nearest(h, h, 2, leave_self_out=True) == own).any()


def test_bits_per_dim():
    assert metrics.bits_per_dim(560 * math.log(2)) == pytest.approx(1)
    assert metrics.bits_per_dim(math.log(2), n_pixels=1) == pytest.approx(1)


class LinearGaussian:
    """p(z) = N(0, 1), p(x|z) = N(w z, s^2 I): log p(x) is known. q is a given, deliberately wrong, Gaussian."""

    w, s = torch.tensor([0.8, -0.5], dtype=torch.float64), 0.7

    def __init__(self, shift):
        self.shift = shift

    def encode(self, x):
        precision = 1 + self.w @ self.w / self.s**2
        mu = (x.flatten(1) @ self.w / self.s**2 / precision)[:, None] + self.shift
        return mu, torch.full_like(mu, -precision.log().item())

    def reparameterize(self, mu, logvar, generator=None):
        return mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=generator, dtype=mu.dtype)

    def log_likelihood(self, x, z):
        return torch.distributions.Normal(z * self.w, self.s).log_prob(x.flatten(1)).sum(1)

    def log_marginal(self, x):
        covariance = torch.outer(self.w, self.w) + self.s**2 * torch.eye(2, dtype=torch.float64)
        zero = torch.zeros(2, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x.flatten(1))


def test_iwae_is_exact_with_the_true_posterior_and_a_bound_that_tightens_with_another():
    x = torch.randn(64, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = LinearGaussian(0.0)
    for k in (1, 7):
        torch.testing.assert_close(
            metrics.iwae(exact, x, k, torch.Generator().manual_seed(1)), exact.log_marginal(x)
        )
    wrong = LinearGaussian(0.8)
    gaps = [
        (exact.log_marginal(x) - metrics.iwae(wrong, x, k, torch.Generator().manual_seed(2))).mean().item()
        for k in (1, 10, 1000)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -0.01 and gaps[2] < 0.02
    precision = 1 + wrong.w @ wrong.w / wrong.s**2
    assert gaps[0] == pytest.approx((0.8**2 * precision / 2).item(), abs=0.25)  # KL(q || posterior)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_t_interval_equals_scipy(values):
    mean, low, high = metrics.t_interval(values)
    sem = stats.sem(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if sem > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=sem)
        assert (low, high) == pytest.approx(expected, abs=1e-6)


def test_t_interval_of_one_value_has_no_width_to_report():
    mean, low, high = metrics.t_interval([2.0])
    assert mean == 2 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(
    ("differences", "greater", "threshold", "word"),
    [
        ([1, 1.1, 0.9, 1, 1.05], True, 0, "supported"),
        ([1, 1.1, 0.9, 1, 1.05], False, 0, "refuted"),
        ([-1, -1.1, -0.9, -1, -1.05], False, 0, "supported"),
        ([-1, -1.1, -0.9, -1, -1.05], True, 0, "refuted"),
        ([1, -1, 0.5, -0.5, 0.1], True, 0, "inconclusive"),
        ([1, 1.1, 0.9, 1, 1.05], True, 2, "refuted"),
        ([1, 1.1, 0.9, 1, 1.05], True, 1, "inconclusive"),
        ([1, 1.1, 0.9, 1], True, 0, "not enough seeds"),
        ([1], True, 0, "not enough seeds"),
    ],
)
def test_verdicts(differences, greater, threshold, word):
    result = metrics.verdict(differences, greater, threshold)
    assert result["verdict"] == word and result["n"] == len(differences)
