"""Moving about in code space: encode, interpolate, traverse."""

from typing import NamedTuple

import torch


@torch.no_grad()
def encode_dataset(model, images, batch_size=100):
    """Codes of all images, (N, latent_dim) on the CPU; for a VAE the posterior means mu."""
    model.eval()
    device = next(model.parameters()).device
    codes = [model.encode(x.to(device)) for x in images.split(batch_size)]
    return torch.cat([(code[0] if isinstance(code, tuple) else code).cpu() for code in codes])


@torch.no_grad()
def decode_dataset(model, h, batch_size=100):
    """Images of all codes, (N, 1, H, W) on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model.decode(part.to(device)).cpu() for part in h.split(batch_size)])


class Interpolation(NamedTuple):
    alphas: torch.Tensor
    h_blend: torch.Tensor
    h_linear: torch.Tensor
    x_blend: torch.Tensor
    x_linear: torch.Tensor


def interpolate(model, x1, x2, alphas):
    """Two ways from x2 (alpha = 0) to x1 (alpha = 1): blend the pixels, or blend the codes.

    h_blend = E(alpha x1 + (1 - alpha) x2), h_linear = alpha E(x1) + (1 - alpha) E(x2), x_blend = D(h_blend),
    x_linear = D(h_linear). x1, x2 (P, 1, H, W); the results have leading axes (P, A) for A alphas.
    Raises ValueError for an alpha outside [0, 1] and for x1, x2 of different shapes.
    """
    alphas = torch.as_tensor(alphas, dtype=x1.dtype)
    if not (alphas.min() >= 0 and alphas.max() <= 1):
        raise ValueError(f"alphas are {alphas.tolist()}; each must lie in [0, 1].")
    if x1.shape != x2.shape:
        raise ValueError(f"x1 has shape {tuple(x1.shape)} and x2 has {tuple(x2.shape)}; they must be equal.")
    x = blend(x1, x2, alphas)
    h_blend = encode_dataset(model, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    h_linear = blend(encode_dataset(model, x1), encode_dataset(model, x2), alphas)
    x_blend, x_linear = (
        decode_dataset(model, h.flatten(0, 1)).unflatten(0, x.shape[:2]) for h in (h_blend, h_linear)
    )
    return Interpolation(alphas, h_blend, h_linear, x_blend, x_linear)


def blend(a, b, alphas):
    """alpha a + (1 - alpha) b for every alpha: (P, ...) and (A,) -> (P, A, ...)."""
    alphas = alphas.view(1, -1, *[1] * (a.ndim - 1))
    return alphas * a.unsqueeze(1) + (1 - alphas) * b.unsqueeze(1)


def different_pairs(labels, n, seed=0):
    """Indices (n, 2) of seeded random pairs of images with different labels, no image in two pairs.

    Raises ValueError where the labels do not hold n such pairs.
    """
    return _pairs(labels, n, seed, same=False)


def same_pairs(labels, n, seed=0):
    """As `different_pairs`, for two images of one label: the control."""
    return _pairs(labels, n, seed, same=True)


def _pairs(labels, n, seed, same):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    waiting, pairs = [], []
    for i in order:
        match = next((j for j in waiting if (labels[i] == labels[j]).item() == same), None)
        if match is None:
            waiting.append(i)
        else:
            waiting.remove(match)
            pairs.append((match, i))
        if len(pairs) == n:
            return torch.tensor(pairs)
    kind = "one label" if same else "different labels"
    raise ValueError(
        f"there are only {len(pairs)} disjoint pairs of {kind} among {len(labels)} images, not {n}."
    )


@torch.no_grad()
def traverse(vae, z, dim, values):
    """Images decoded from z (latent_dim,) with only z[dim] changed to each of the values, (len(values), 1, H, W).

    Raises ValueError where dim is not a unit of z.
    """
    if not 0 <= dim < len(z):
        raise ValueError(f"dim is {dim}; the code has units 0 to {len(z) - 1}.")
    codes = z.repeat(len(values), 1)
    codes[:, dim] = torch.as_tensor(values, dtype=z.dtype, device=z.device)
    return decode_dataset(vae, codes)
