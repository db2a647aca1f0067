"""The drawn faces: each known factor does what its name says, and nothing else moves."""

import math

import pytest
import torch
from scipy import stats

from aeutils import faces
from aeutils.faces import FACTORS, draw_faces, synthetic_faces


def sweep(name, n=21):
    """Images (n, 28, 20) of the neutral face with one factor swept from −1 to 1."""
    factors = torch.zeros(n, len(FACTORS))
    factors[:, FACTORS.index(name)] = torch.linspace(-1, 1, n)
    return draw_faces(factors)[:, 0]


def rising(values):
    return (values.diff() > 0).all()


@pytest.fixture(scope="module")
def video():
    return synthetic_faces()


def test_the_video_has_the_shape_and_greys_of_frey_face(video):
    images, factors = video
    assert images.shape == (1965, 1, 28, 20) and images.dtype == torch.float32
    assert factors.shape == (1965, 8) and factors.dtype == torch.float32 and len(FACTORS) == 8
    assert images.min() >= 0 and images.max() <= 1 and factors.abs().max() <= 1
    assert torch.equal((images * 255).round() / 255, images)
    assert len(images.unique()) > 150
    assert torch.equal(draw_faces(factors), images)


def test_the_seed_decides_the_video_and_a_shorter_one_is_its_beginning(video):
    images, _ = video
    again, _ = synthetic_faces(n=100)
    other, _ = synthetic_faces(n=100, seed=1)
    assert torch.equal(again, images[:100])
    assert (other - again).abs().mean() > 0.02


def test_the_video_is_smooth_and_forgets(video):
    images, factors = video
    assert (factors[1:] - factors[:-1]).abs().max() < 0.3
    assert (factors[1:] - factors[:-1]).abs().mean() > 0.01

    def change(lag):
        return (images[lag:] - images[:-lag]).square().mean().item()

    assert change(1) < 0.02 * change(200)
    assert change(1) < change(5) < change(20) < change(60)


def test_the_factors_are_a_gaussian_process_made_uniform(monkeypatch):
    monkeypatch.setattr(faces, "draw_faces", lambda factors: factors)
    drawn = torch.stack(
        [synthetic_faces(33, seed=s)[1] for s in range(1000)]
    ).double()  # (videos, frames, factors)
    assert stats.kstest(drawn[:, 0].flatten(), stats.uniform(-1, 2).cdf).statistic < 0.02
    g = math.sqrt(2) * torch.erfinv(drawn)
    for lag in (0, 8, 16, 32):
        oracle = math.exp(-(lag**2) / (2 * 16**2))
        assert (g[:, 0] * g[:, lag]).mean().item() == pytest.approx(oracle, abs=0.05)


def test_each_factor_covers_its_range(video):
    _, factors = video
    assert (factors.min(0).values < -0.9).all() and (factors.max(0).values > 0.9).all()
    assert torch.corrcoef(factors.T).triu(1).abs().max() < 0.4


def test_independent_factors_are_uniform_and_unrelated():
    images, factors = synthetic_faces(n=4000, seed=3, independent=True)
    assert images.shape == (4000, 1, 28, 20)
    assert factors.mean(0).abs().max() < 0.05
    assert (factors.var(0) - 1 / 3).abs().max() < 0.02
    assert torch.corrcoef(factors.T).triu(1).abs().max() < 0.06
    assert torch.corrcoef(torch.stack([factors[1:, 0], factors[:-1, 0]]))[0, 1].abs() < 0.06


@pytest.mark.parametrize("name", FACTORS)
def test_every_factor_is_visible_everywhere_and_continuous(name):
    images = sweep(name)
    assert (images[-1] - images[0]).abs().mean() > 0.008
    assert (images.diff(dim=0).abs().amax((1, 2)) > 0.01).all()
    assert sweep(name, 201).diff(dim=0).abs().max() < 0.03


def test_brightness_raises_every_pixel():
    images = sweep("brightness")
    assert rising(images.mean((1, 2)))
    assert (images[-1] > images[0]).all() and (images.diff(dim=0) >= 0).all()


def test_light_from_the_right_brightens_the_right():
    images = sweep("light")
    assert rising(images[:, 8:20, 12:16].mean((1, 2)) - images[:, 8:20, 4:8].mean((1, 2)))
    assert torch.allclose(images, images.flip(0, 2), atol=0.03)


def test_mouth_opens_downwards_and_darkens_the_lower_face_only():
    images = sweep("mouth")
    assert rising(-images[:, 17:27, 5:15].mean((1, 2)))
    assert (images[-1] < 0.3)[17:27, 5:15].sum() > (images[0] < 0.3)[17:27, 5:15].sum() + 10
    assert (images - images[0])[:, :14].abs().max() == 0


def test_smile_lifts_the_corners_above_the_middle():
    images = sweep("smile")
    rows = torch.arange(17, 27).float()

    def height(cols):
        dark = (1 - images[:, 17:27, cols].mean(2)) ** 8
        return (dark * rows).sum(1) / dark.sum(1)

    assert rising(height(slice(9, 11)) - (height(slice(6, 8)) + height(slice(12, 14))) / 2)
    assert (images - images[0])[:, :14].abs().max() == 0


def test_eyes_open_inside_the_eye_band():
    images = sweep("eyes")
    changed = (images - images[0]).abs().amax(0)
    assert changed[:6].max() == 0 and changed[17:].max() == 0
    iris = (images[:, 8:13] < 0.25).sum((1, 2))
    assert (iris.diff() >= 0).all() and iris[-1] >= iris[0] + 6


def test_brows_rise():
    images = sweep("brows")
    dark = (0.65 - images[:, 4:10, 12:16].mean(2)).clamp(min=0)
    assert rising(-(dark * torch.arange(4, 10)).sum(1) / dark.sum(1))
    assert (images - images[0])[:, 14:].abs().max() == 0


def test_turn_moves_the_features_to_the_right_and_mirrors():
    images = sweep("turn")
    cols = torch.arange(20).float()
    dark = (1 - images[:, 20:24].mean(1)) ** 8
    assert rising((dark * cols).sum(1) / dark.sum(1))
    assert torch.allclose(images, images.flip(0, 2), atol=0.03)


def test_tilt_leans_the_head_clockwise_and_mirrors():
    images = sweep("tilt")
    left, right = (images[:, 6:15, cols].flatten(1).argmin(1) for cols in (slice(0, 10), slice(10, 20)))
    lower, across = right // 10 - left // 10, (right % 10 + 10 + left % 10) / 2
    assert lower[0] < 0 < lower[-1]
    assert across[0] < 8.5 and across[-1] > 10.5
    assert torch.allclose(images, images.flip(0, 2), atol=0.03)


@pytest.mark.parametrize("shape", [(8,), (5, 7), (2, 3, 8)])
def test_factors_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(n, 8\)"):
        draw_faces(torch.zeros(shape))
