"""Interpolation, pairs and traversals against what their equations say."""

import pytest
import torch

from aeutils.latent import (
    blend,
    decode_dataset,
    different_pairs,
    encode_dataset,
    interpolate,
    same_pairs,
    traverse,
)
from aeutils.models import VAE, Autoencoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Autoencoder(5, widths=(2, 4, 4), code="relu", size=(8, 8)).eval()


def test_encode_and_decode_do_not_depend_on_the_batch(model):
    x = torch.rand(7, 1, 8, 8)
    torch.testing.assert_close(encode_dataset(model, x, batch_size=3), model.encode(x).detach())
    h = torch.rand(7, 5)
    torch.testing.assert_close(decode_dataset(model, h, batch_size=2), model.decode(h).detach())


def test_encode_dataset_gives_a_vaes_means_without_noise():
    torch.manual_seed(0)
    vae, x = VAE(3, widths=(4, 8, 8)).train(), torch.rand(4, 1, 28, 20)
    codes = encode_dataset(vae, x)
    torch.testing.assert_close(codes, vae.eval().encode(x)[0].detach())


def test_decode_dataset_gives_means_without_dropout():
    torch.manual_seed(0)
    vae, z = VAE(3, widths=(4, 8, 8), dropout=0.5).train(), torch.randn(4, 3)
    images = decode_dataset(vae, z)
    torch.testing.assert_close(images, vae.eval().decode(z).detach())


def test_interpolate_is_its_equations(model):
    x1, x2 = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    alphas = [0, 0.2, 0.4, 0.6, 0.8, 1]
    path = interpolate(model, x1, x2, alphas)
    assert path.h_blend.shape == path.h_linear.shape == (3, 6, 5)
    assert path.x_blend.shape == path.x_linear.shape == (3, 6, 1, 8, 8)
    for a, alpha in enumerate(alphas):
        with torch.no_grad():
            h_blend = model.encode(alpha * x1 + (1 - alpha) * x2)
            h_linear = alpha * model.encode(x1) + (1 - alpha) * model.encode(x2)
        torch.testing.assert_close(path.h_blend[:, a], h_blend)
        torch.testing.assert_close(path.h_linear[:, a], h_linear)
        torch.testing.assert_close(path.x_blend[:, a], model.decode(h_blend).detach())
        torch.testing.assert_close(path.x_linear[:, a], model.decode(h_linear).detach())


def test_interpolate_starts_at_x2_and_ends_at_x1(model):
    x1, x2 = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    path = interpolate(model, x1, x2, [0.0, 1.0])
    torch.testing.assert_close(path.h_linear[:, 0], model.encode(x2).detach())
    torch.testing.assert_close(path.h_linear[:, 1], model.encode(x1).detach())
    torch.testing.assert_close(path.h_blend, path.h_linear)


def test_a_linear_encoder_maps_blends_to_the_straight_line():
    x1, x2, w = torch.rand(2, 6), torch.rand(2, 6), torch.rand(6, 3)
    alphas = torch.tensor([0.3, 0.7])
    torch.testing.assert_close(blend(x1, x2, alphas) @ w, blend(x1 @ w, x2 @ w, alphas))


@pytest.mark.parametrize("alphas", [[-0.1, 0.5], [0.5, 1.2], [0.5, float("nan")]])
def test_interpolate_refuses_alphas_off_the_segment(model, alphas):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        interpolate(model, torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), alphas)


def test_interpolate_refuses_unequal_shapes(model):
    with pytest.raises(ValueError, match="must be equal"):
        interpolate(model, torch.rand(2, 1, 8, 8), torch.rand(1, 1, 8, 8), [0.5])


@pytest.mark.parametrize(("draw", "same"), [(different_pairs, False), (same_pairs, True)])
def test_pairs_are_of_the_kind_they_say_disjoint_and_seeded(draw, same):
    labels = torch.randint(0, 10, (400,), generator=torch.Generator().manual_seed(0))
    pairs = draw(labels, 60, seed=1)
    assert pairs.shape == (60, 2) and pairs.unique().numel() == 120
    assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == same).all()
    assert torch.equal(pairs, draw(labels, 60, seed=1))
    assert not torch.equal(pairs, draw(labels, 60, seed=2))


def test_pairs_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="different labels"):
        different_pairs(torch.zeros(10, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="one label"):
        same_pairs(torch.arange(10), 1)


def test_traverse_moves_exactly_one_unit():
    torch.manual_seed(1)
    vae, z, values = VAE(4, widths=(4, 8, 8)).eval(), torch.randn(4), torch.linspace(-3, 3, 5)
    for dim in range(4):
        expected = z.repeat(5, 1)
        expected[:, dim] = values
        torch.testing.assert_close(traverse(vae, z, dim, values), vae.decode(expected).detach())


@pytest.mark.parametrize("dim", [-1, 4])
def test_traverse_refuses_units_that_are_not_there(dim):
    with pytest.raises(ValueError, match=f"dim is {dim}"):
        traverse(VAE(4, widths=(4, 8, 8)), torch.zeros(4), dim, [0.0])
