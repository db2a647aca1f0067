"""Drawn faces with known factors: the stand-in for Frey Face where there is no network."""

import math

import torch

FACTORS = ("turn", "tilt", "smile", "mouth", "eyes", "brows", "light", "brightness")
HEIGHT, WIDTH = 28, 20
TIMESCALE = 16  # frames over which a factor of the video changes


def synthetic_faces(n=1965, seed=0, independent=False) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawn video: images (n, 1, 28, 20) float32 of greys k/255, and its factors (n, 8) in [-1, 1].

    Each factor is 2Φ(g(t)) − 1 of a smooth Gaussian process g with covariance exp(−(t − t')² / 2·16²), t in
    frames, so it is uniform on [-1, 1] over many videos; `independent` draws every frame on its own instead.
    """
    generator = torch.Generator().manual_seed(seed)
    if independent:
        factors = 2 * torch.rand(n, len(FACTORS), generator=generator) - 1
    else:
        waves = 64
        omega = torch.randn(waves, len(FACTORS), generator=generator, dtype=torch.float64) / TIMESCALE
        phase = 2 * math.pi * torch.rand(waves, len(FACTORS), generator=generator, dtype=torch.float64)
        t = torch.arange(n, dtype=torch.float64)[:, None, None]
        g = math.sqrt(2 / waves) * torch.cos(omega * t + phase).sum(1)
        factors = torch.erf(g / math.sqrt(2)).float()
    return draw_faces(factors), factors


def draw_faces(factors) -> torch.Tensor:
    """Images (n, 1, 28, 20) float32 of greys k/255 from factors (n, 8) in [-1, 1], ordered as `FACTORS`.

    At +1 the head turns to the right of the image and leans clockwise, the mouth smiles and is open, the eyes
    are wide, the brows up, the light comes from the right and the image is bright. ValueError: another shape.
    """
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"factors must have shape (n, {len(FACTORS)}), not {tuple(factors.shape)}.")
    turn, tilt, smile, mouth, eyes, brows, light, brightness = factors.float().T[:, :, None, None]
    v, u = torch.meshgrid(torch.arange(HEIGHT) - 13.5, torch.arange(WIDTH) - 9.5, indexing="ij")
    neck, angle = 10, 0.2 * tilt
    x = torch.cos(angle) * u + torch.sin(angle) * (v - neck)
    y = torch.cos(angle) * (v - neck) - torch.sin(angle) * u + neck

    def ellipse(cx, cy, rx, ry, soft=0.5):
        radius = torch.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + 1e-6)
        return torch.sigmoid((1 - radius) * (torch.as_tensor(ry) / soft).clamp(min=3))

    def across(longitude, depth=9.0):
        """Horizontal place and foreshortening of a point on the turned head, `depth` pixels from its axis."""
        return depth * torch.sin(longitude + 0.4 * turn), torch.cos(longitude + 0.4 * turn)

    def paint(image, mask, grey):
        return image + mask * (grey - image)

    head_x, head_y, head_rx, head_ry = 0.8 * turn, 0.5, 8.0, 14.0
    nx, ny = (x - head_x) / head_rx, (y - head_y) / head_ry
    nz = torch.sqrt((1 - nx**2 - ny**2).clamp(min=0.05))
    azimuth = 0.9 * light
    lambert = torch.sin(azimuth) * nx - 0.25 * ny + torch.cos(azimuth) * nz
    skin = 0.42 + 0.48 * torch.nn.functional.softplus(6 * lambert) / 6

    image = 0.7 - 0.01 * v
    image = paint(image, ellipse(head_x - 0.6 * turn, -4, 9.6, 11.5), 0.14)
    image = paint(image, ellipse(head_x, head_y, head_rx, head_ry), skin)
    image = paint(image, ellipse(head_x - 0.6 * turn, -15.5, 10, 5, soft=0.8), 0.14)

    for side in (-1, 1):
        place, narrow = across(torch.tensor(0.42 * side))
        image = image * (1 - 0.25 * ellipse(place, -3.5, 3.2, 2.4, soft=1.0))
        opening = 1.2 + 1.0 * eyes
        lid = ellipse(place, -3.0, 2.4 * narrow, opening, soft=0.35)
        image = paint(image, ellipse(place, -3.0, 2.4 * narrow, 0.5, soft=0.35), 0.2)
        image = paint(image, lid, 0.4 * skin + 0.6)
        image = paint(image, lid * ellipse(place + 0.3 * turn, -3.0, 1.2, 1.5, soft=0.3), 0.05)
        brow = -6.9 - 1.4 * brows + 0.08 * (x - place) ** 2
        image = paint(image, 0.85 * ellipse(place, brow, 2.6 * narrow, 0.75, soft=0.35), 0.15)

    nose, _ = across(torch.tensor(0.0), depth=10.5)
    for side in (-1, 1):
        shade = 0.3 * torch.sigmoid(-4 * side * light)
        image = image * (1 - shade * ellipse(nose + 1.3 * side, 0.5, 1.1, 3.2, soft=0.7))
        image = paint(image, 0.7 * ellipse(nose + 1.0 * side, 3.6, 0.7, 0.5, soft=0.4), 0.15)

    place, narrow = across(torch.tensor(0.0))
    half = (3.6 + 0.7 * smile) * narrow
    across_lips = ((x - place) / half).clamp(-1.3, 1.3) ** 2
    bend = 8.2 + smile * (0.6 - 1.7 * across_lips)
    gap = 0.4 + 0.9 * (mouth + 1)
    image = paint(image, 0.6 * ellipse(place, bend, half + 0.5, gap + 1.0), 0.5 * skin)
    image = paint(image, 0.9 * ellipse(place, bend, half, gap, soft=0.35), 0.1)

    return ((0.85 + 0.2 * brightness) * image).clamp(0, 1).mul(255).round().div(255)[:, None]
