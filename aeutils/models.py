"""The networks: a U-Net encoder and decoder that meet in a code, and the two models built from them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

CODES = ("linear", "relu", "sigmoid")


def conv_block(c_in, c_out, norm=False, activation=nn.ReLU):
    """Two 3x3 convolutions at one resolution: (B, c_in, H, W) -> (B, c_out, H, W)."""
    layers = []
    for c in (c_in, c_out):
        layers += [nn.Conv2d(c, c_out, 3, padding=1)]
        layers += [nn.GroupNorm(1, c_out)] if norm else []
        layers += [activation()]
    return nn.Sequential(*layers)


def initialise(module):
    """He initialisation (He et al., 2015): Var[w] = 2 / fan_in keeps the signal's scale through ReLU layers."""
    if isinstance(module, (nn.Conv2d, Up, nn.Linear)):
        fan_in = module.in_channels if isinstance(module, Up) else module.weight[0].numel()
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
        nn.init.zeros_(module.bias)


class Up(nn.ConvTranspose2d):
    """A pixel becomes 2x2: y[o, 2i + k, 2j + l] = sum_c W[c, o, k, l] x[c, i, j] + b[o], as one matrix product.

    A transposed convolution of stride 2 whose windows do not overlap: (B, c_in, H, W) -> (B, c_out, 2H, 2W).
    """

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 2, stride=2)

    def forward(self, x):
        weight = self.weight.permute(2, 3, 1, 0)
        y = F.linear(x.movedim(1, -1), weight.flatten(0, 2), self.bias.repeat(4))
        y = y.unflatten(-1, weight.shape[:3]).transpose(2, 3)  # (B, H, 2, W, 2, c_out)
        return y.flatten(3, 4).flatten(1, 2).movedim(-1, 1)


class Encoder(nn.Module):
    """The contracting path of a U-Net, closed by a dense layer: (B, 1, H, W) -> (B, out_dim).

    A level is two 3x3 convolutions; max pooling halves the resolution between levels. Levels from `norm_from` on are
    normalised image by image (Wu and He, 2018), the finest ones, where it costs most, are not.
    Raises ValueError where a side of `size`, (H, W), cannot be halved between all levels.
    """

    def __init__(
        self, out_dim, widths=(8, 16, 16), size=(28, 28), norm_from=1, dropout=0.0, activation=nn.ReLU
    ):
        super().__init__()
        self.levels = nn.ModuleList(
            conv_block(c_in, c_out, i >= norm_from, activation)
            for i, (c_in, c_out) in enumerate(zip((1, *widths), widths))
        )
        shrink = 2 ** (len(widths) - 1)
        if any(side % shrink for side in size):
            raise ValueError(
                f"size is {tuple(size)}; with {len(widths)} levels both must be multiples of {shrink}."
            )
        self.dense = nn.Linear(widths[-1] * (size[0] // shrink) * (size[1] // shrink), out_dim)
        self.dropout = nn.Dropout(dropout)

    def features(self, x):
        """The output of every level, finest first: [(B, widths[0], H, W), (B, widths[1], H/2, W/2), ...]."""
        maps = []
        for i, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        return maps

    def forward(self, x):
        return self.close(self.features(x)[-1])

    def close(self, coarsest):
        """The dense layer on the normalised coarsest map: (B, widths[-1], h, w) -> (B, out_dim)."""
        flat = coarsest.flatten(1)
        return self.dense(self.dropout(F.layer_norm(flat, flat.shape[1:])))


class Decoder(nn.Module):
    """The expanding path: (B, latent_dim) -> (B, channels, H, W), from the code alone.

    With `skips` each level also reads the encoder's map of its resolution (Ronneberger et al., 2015): the
    shortcut that the autoencoders of this course do without. With `norm_code` the dense layer's output is
    normalised, which hides the length of the code.
    """

    def __init__(
        self,
        latent_dim,
        widths=(8, 16, 16),
        size=(28, 28),
        channels=1,
        norm_from=1,
        dropout=0.0,
        activation=nn.ReLU,
        norm_code=True,
        skips=False,
    ):
        super().__init__()
        self.norm_code, self.activation = norm_code, activation()
        shrink = 2 ** (len(widths) - 1)
        self.shape = (widths[-1], size[0] // shrink, size[1] // shrink)
        self.dense = nn.Linear(latent_dim, math.prod(self.shape))
        self.dropout = nn.Dropout(dropout)
        up = widths[::-1]
        self.levels = nn.ModuleList(
            conv_block(c * (2 if skips and i else 1), c, len(widths) - 1 - i >= norm_from, activation)
            for i, c in enumerate(up)
        )
        self.ups = nn.ModuleList(Up(c_in, c_out) for c_in, c_out in zip(up, up[1:]))
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, z, skips=()):
        y = self.dense(z)
        y = F.layer_norm(y, y.shape[1:]) if self.norm_code else y
        y = self.dropout(self.activation(y))
        y = self.levels[0](y.unflatten(1, self.shape))
        for i, (up, level) in enumerate(zip(self.ups, self.levels[1:])):
            y = up(y)
            y = level(torch.cat([y, skips[-2 - i]], dim=1) if skips else y)
        return self.head(y)


class Autoencoder(nn.Module):
    """A U-Net autoencoder without skip connections: h = E(x), x_hat = D(h).

    `code` is the activation of h, computed from the dense layer's output a, standardised unit by unit with its mean m_j
    and standard deviation s_j over the images: u_j = (a_j - m_j) / s_j, and h = u (`linear`) or h = relu(u + b) with
    learned b (`relu`). To shrink a changes no code, no penalty and no Jacobian: scale is not structure. Training takes
    m and s from the batch (Ioffe and Szegedy, 2015), evaluation from running means. A `sigmoid` code is h = sigmoid(a).

    Shapes: x and x_hat (B, 1, H, W) in [0, 1], h (B, latent_dim). Raises ValueError on an unknown code, a latent_dim
    below 1 and a size that cannot be halved between the levels.
    """

    def __init__(self, latent_dim=256, widths=(8, 16, 16), code="sigmoid", size=(28, 28), skips=False):
        super().__init__()
        if code not in CODES:
            raise ValueError(f"code is {code!r}; it must be one of {', '.join(CODES)}.")
        if latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim}; it must be 1 or more.")
        self.code, self.skips, self.latent_dim = code, skips, latent_dim
        self.encoder = Encoder(latent_dim, widths, size)
        self.decoder = Decoder(latent_dim, widths, size, skips=skips)
        self.apply(initialise)
        nn.init.normal_(self.decoder.head.weight, std=0.1)
        if code == "relu":
            self.threshold = nn.Parameter(torch.zeros(latent_dim))
        if code != "sigmoid":
            self.register_buffer("running_mean", torch.zeros(latent_dim))
            self.register_buffer("running_std", torch.ones(latent_dim))

    def activate(self, a, stats=None):
        """h from a, standardised with stats = (m, s), the running ones if None."""
        if self.code == "sigmoid":
            return torch.sigmoid(a)
        m, s = stats or (self.running_mean, self.running_std)
        u = (a - m) / s
        return F.relu(u + self.threshold) if self.code == "relu" else u

    def encode(self, x, stats=None):
        """E(x), example by example. For a Jacobian in training, `stats` are constants of x, not of the parameters."""
        return self.activate(self.encoder(x).to(x.dtype), stats)

    def decode(self, h):
        return torch.sigmoid(self.decoder(h).to(h.dtype))

    def forward(self, x):
        return self.reconstruct(x)[0]

    def reconstruct(self, x):
        """(x_hat, h, stats) in one pass: stats are the batch's in training mode, None (the running ones) otherwise."""
        maps = self.encoder.features(x)
        a = self.encoder.close(maps[-1]).to(x.dtype)
        stats = self.batch_stats(a) if self.training and self.code != "sigmoid" else None
        h = self.activate(a, stats)
        return torch.sigmoid(self.decoder(h, maps if self.skips else ()).to(x.dtype)), h, stats

    def batch_stats(self, a, momentum=0.1):
        """(m, s) of the batch; the running mean and standard deviation move towards them by `momentum`."""
        m, s = a.mean(0), (a.var(0, correction=0) + 1e-6).sqrt()
        self.running_mean = self.running_mean.lerp(m.detach(), momentum)
        self.running_std = self.running_std.lerp(s.detach(), momentum)
        return m, s


class VAE(nn.Module):
    """A variational autoencoder of 8-bit greys (Kingma and Welling, 2014): q(z|x) = N(mu, diag exp(logvar)).

    p(x|z) is a discretised logistic a pixel (Salimans et al., 2017), its mean m(z) and scale s(z) both decoded from z:
    p(k|z) = sigmoid((x + 1/510 - m) / s) - sigmoid((x - 1/510 - m) / s) with x = k/255, and the tails of the logistic
    belong to k = 0 and k = 255. m = sigmoid(c + D_1(z)) and log s = clip(c' + D_2(z), -3, 3) - 3: c and c' are maps
    learned for all images, D is the U-Net decoder. Smooth activations make a decoder that is smooth in z.

    Errors of neighbouring pixels go together, so p(x|z) is a product over the pixels, each given those before it: what
    `from_neighbours` tells of a pixel's error x - m is added to its m, with weights learned for all pixels. With a
    `reach` of 0 pixels are independent given z.

    Shapes: x (B, 1, H, W) in [0, 1], mu, logvar and z (B, latent_dim). Raises ValueError on a latent_dim below 1 and a
    reach below 0.
    """

    def __init__(
        self, latent_dim=20, widths=(16, 32, 64), size=(28, 20), dropout=0.1, input_noise=0.02, reach=2
    ):
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim}; it must be 1 or more.")
        if reach < 0:
            raise ValueError(f"reach is {reach}; it must be 0 (independent pixels) or more.")
        self.latent_dim, self.input_noise = latent_dim, input_noise
        smooth = {"norm_from": 0, "dropout": dropout, "activation": nn.SiLU}
        self.encoder = Encoder(2 * latent_dim, widths, size, **smooth)
        self.decoder = Decoder(latent_dim, widths, size, channels=2, norm_code=False, **smooth)
        self.bias = nn.Parameter(torch.zeros(2, *size))
        self.neighbours = nn.Parameter(torch.zeros(2 * reach * (reach + 1)))
        self.apply(initialise)
        for last in (self.encoder.dense, self.decoder.head):
            nn.init.normal_(last.weight, std=0.01)

    def encode(self, x):
        if self.training:
            x = x + self.input_noise * torch.randn_like(x)
        mu, logvar = self.encoder(x).to(x.dtype).chunk(2, dim=1)
        return mu, logvar.clamp(-12, 4)

    def reparameterize(self, mu, logvar, generator=None):
        """z = mu + exp(logvar / 2) eps, eps ~ N(0, I): a sample of q, differentiable in mu and logvar."""
        eps = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
        return mu + torch.exp(logvar / 2) * eps

    def pixel_distribution(self, z):
        """Mean m and log scale log s of every pixel's logistic, (B, 1, H, W) each."""
        mean, log_scale = (self.decoder(z).to(z.dtype) + self.bias).chunk(2, dim=1)
        return torch.sigmoid(mean), log_scale.clamp(-3, 3) - 3

    def decode(self, z):
        return self.pixel_distribution(z)[0]

    def log_likelihood(self, x, z):
        """log p(x|z) in nats, summed over the pixels: (B,)."""
        mean, log_scale = self.pixel_distribution(z)
        mean = mean + from_neighbours(x - mean, self.neighbours)
        return discretised_logistic(x, mean, log_scale).flatten(1).sum(1)

    def forward(self, x):
        return self.decode(self.encode(x)[0])

    def sample(self, n, generator=None):
        """n faces: the means m(z) of p(x|z) at z ~ N(0, I), (n, 1, H, W)."""
        device = self.decoder.dense.weight.device
        return self.decode(torch.randn(n, self.latent_dim, generator=generator, device=device))


def from_neighbours(error, weights):
    """What the errors of the pixels before pixel i, row by row, tell of its own: sum_j w_j error_(i+j).

    The 2 r (r + 1) offsets j reach r rows up and r columns to either side: (-r, -r), (-r, -r + 1), ..., (0, -1);
    outside of the image the error is 0. A linear autoregression in the plane (Whittle, 1954). Shapes: error and result
    (B, 1, H, W), weights (2 r (r + 1),).
    """
    reach = (math.isqrt(1 + 2 * len(weights)) - 1) // 2
    around = F.unfold(F.pad(error, (reach, reach, reach, 0)), (reach + 1, 2 * reach + 1))  # (B, window, H W)
    return (weights[:, None] * around[:, : len(weights)]).sum(1).view_as(error)


def discretised_logistic(x, mean, log_scale):
    """log of the logistic's mass in the bin of each grey k/255 (width 1/255, tails to +-inf), in nats, elementwise."""
    inv = torch.exp(-log_scale)
    upper, lower = (x - mean + 1 / 510) * inv, (x - mean - 1 / 510) * inv
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)  # log of the mass below and above a bin's edges
    # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b)): exact in the tails
    middle = below + above + torch.log(-torch.expm1(-inv / 255))
    return torch.where(x < 0.5 / 255, below, torch.where(x > 254.5 / 255, above, middle))
