"""The t-SNE map: the divergence that it says is that of its points, and both libraries reach the same."""

import math
import sys
from importlib.util import find_spec

import pytest
import torch

from aeutils.data import load_mnist
from aeutils.metrics import purity_at_k
from aeutils.tsne import tsne_map


def exact_kl(h, y, perplexity):
    """KL(P || Q) in nats from the definition, with P of the 3 * perplexity nearest and Q of all."""
    d2 = torch.cdist(h.double(), h.double()).square().fill_diagonal_(torch.inf)
    d2, neighbours = d2.topk(int(3 * perplexity), largest=False)
    low, high = torch.full((len(h), 1), -20.0).double(), torch.full((len(h), 1), 20.0).double()
    for _ in range(60):  # of log beta, until every conditional distribution has the perplexity
        beta = (low + high) / 2
        p = torch.softmax(-beta.exp() * d2, dim=1)
        too_wide = torch.special.entr(p).sum(1, keepdim=True) > math.log(perplexity)
        low, high = torch.where(too_wide, beta, low), torch.where(too_wide, high, beta)
    p = torch.zeros(len(h), len(h)).double().scatter(1, neighbours, p)
    p = (p + p.T) / (2 * len(h))
    q = (1 / (1 + torch.cdist(y, y).square())).fill_diagonal_(0)
    q /= q.sum()
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q.clamp(min=1e-300))).sum().item()


@pytest.fixture(scope="module")
def digits():
    mnist = load_mnist()
    return mnist.test_images[:900].flatten(1), mnist.test_labels[:900]


@pytest.fixture(params=["openTSNE", "scikit-learn"])
def library(request, monkeypatch):
    if request.param == "scikit-learn":
        monkeypatch.setitem(sys.modules, "openTSNE", None)  # as where it has no wheels
    elif not find_spec("openTSNE"):
        pytest.skip("openTSNE is not installed")


@pytest.mark.parametrize("perplexity", [10.0, 50.0])
def test_a_map_has_the_divergence_that_it_says(digits, library, perplexity):
    h, labels = digits
    y, kl = tsne_map(h, perplexity)
    assert y.shape == (900, 2) and y.dtype == torch.float64
    assert kl == pytest.approx(exact_kl(h, y, perplexity), rel=0.04)
    assert purity_at_k(y, labels, 10) > purity_at_k(h, labels, 10) - 0.05


def test_a_large_map_has_it_too():
    h = load_mnist().test_images[:5000].flatten(1)
    y, kl = tsne_map(h)
    assert kl == pytest.approx(exact_kl(h, y, 30.0), rel=0.04)


def test_both_libraries_reach_one_divergence(digits, monkeypatch):
    pytest.importorskip("openTSNE")
    h, found = digits[0], []
    for hidden in ({}, {"openTSNE": None}):
        for name in hidden:
            monkeypatch.setitem(sys.modules, name, None)
        y, _ = tsne_map(h)
        found.append(exact_kl(h, y, 30.0))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_a_map_hangs_on_its_random_start_and_on_nothing_else_random(digits, library):
    h = digits[0][:300]
    first, again, other = (tsne_map(h, 20.0, init="random", random_state=k)[0] for k in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1.0)
    assert not torch.allclose(first, tsne_map(h, 20.0)[0], atol=1.0)


@pytest.mark.parametrize("perplexity", [0.0, 101.0])
def test_a_perplexity_that_the_codes_do_not_allow(digits, perplexity):
    with pytest.raises(ValueError, match=f"perplexity is {perplexity}; .* at most a third of the 300 codes"):
        tsne_map(digits[0][:300], perplexity)
