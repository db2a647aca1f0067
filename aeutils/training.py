"""Training, checkpoints and resume. A configuration, a data fingerprint and a seed determine the weights."""

import contextlib
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from .data import DATA, corrupt, fingerprint, write_atomically
from .losses import contractive_penalty, kl_sparsity, l1_sparsity, negative_elbo, reconstruction_loss
from .models import VAE, Autoencoder

FORMAT = "1"
WARM_UP = 0.75  # share of the steps over which lam rises from 0: a penalty on an untrained code kills units
SAVE_SECONDS = 5  # between two writes of the resume file
PENALTIES = ("none", "l1", "kl", "contractive", "denoising")
SHIPPED = DATA / "checkpoints"


class TrainingFailed(RuntimeError):
    """The training diverged or collapsed; the message says at which step and what is left."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """All that determines an autoencoder's weights. The loss is ||x_hat - x||^2 + lam * penalty.

    lam rises linearly from 0 over the first three quarters of the training; the noise of `denoising` stays as it is.

    `penalty`: none, l1 (on h), kl (target rho, sigmoid codes), contractive (||dh/dx||_F^2, one probe an image, on a
    random `probe_share` of the batches and divided by it: unbiased, and cheaper in proportion), denoising (the input
    gets Gaussian noise of standard deviation lam, the target does not).
    Raises ValueError on an unknown penalty, a lam below 0 and a probe_share outside (0, 1].
    """

    penalty: str = "none"
    lam: float = 0.0
    rho: float = 0.05
    probe_share: float = 0.25
    latent_dim: int = 256
    code: str = "relu"
    widths: tuple = (8, 16, 16)
    skips: bool = False
    data: str = "mnist"
    epochs: int = 4
    batch_size: int = 128
    lr: float = 1e-2
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty is {self.penalty!r}; it must be one of {', '.join(PENALTIES)}.")
        if not self.lam >= 0:
            raise ValueError(f"lam is {self.lam}; it weighs a penalty and must be 0 or more.")
        if not 0 < self.probe_share <= 1:
            raise ValueError(f"probe_share is {self.probe_share}; it must be greater than 0 and at most 1.")
        check_schedule(self)

    def build(self, size):
        return Autoencoder(self.latent_dim, self.widths, self.code, size, self.skips)

    def loss(self, model, x, generator, progress=1.0):
        """(loss, {"mse", "penalty"}) of one batch."""
        noisy = self.penalty == "denoising"
        x_hat, h, stats = model.reconstruct(
            corrupt(x, "gaussian", self.lam, generator=generator) if noisy else x
        )
        error = reconstruction_loss(x_hat, x)
        if self.penalty == "l1":
            penalty = l1_sparsity(h)
        elif self.penalty == "kl":
            penalty = kl_sparsity(h, self.rho)
        elif self.penalty == "contractive":
            penalty = torch.zeros_like(error)
            if torch.rand((), generator=generator, device=x.device) < self.probe_share:
                estimate = contractive_penalty(lambda x: model.encode(x, stats), x, generator=generator)
                penalty = estimate / self.probe_share
        else:
            return error, {"mse": error.detach() / x[0].numel()}
        lam = self.lam * min(1.0, progress / WARM_UP)
        return error + lam * penalty, {"mse": error.detach() / x[0].numel(), "penalty": penalty.detach()}

    def score(self, model, x, generator):
        """Mean squared error a pixel, summed over the batch; the lower the better."""
        return (model(x) - x).square().flatten(1).mean(1).sum()


@dataclass(frozen=True)
class VAEConfig:
    """All that determines a VAE's weights. The loss is -E_q[log p(x|z)] + beta KL(q(z|x) || N(0, I)), in nats.

    Raises ValueError on a latent_dim below 1 and a beta below 0.
    """

    latent_dim: int = 20
    beta: float = 1.0
    widths: tuple = (16, 32, 64)
    dropout: float = 0.1
    input_noise: float = 0.02
    reach: int = 2
    data: str = "frey"
    epochs: int = 80
    batch_size: int = 32
    lr: float = 8e-3
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}; it must be 1 or more.")
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}; it weighs the KL and must be 0 or more.")
        check_schedule(self)

    def build(self, size):
        return VAE(self.latent_dim, self.widths, size, self.dropout, self.input_noise, self.reach)

    def loss(self, model, x, generator, progress=1.0):
        """(loss, {"reconstruction", "kl"}) of one batch, in nats an image."""
        reconstruction, kl = (term.mean() for term in negative_elbo(model, x, generator=generator))
        return reconstruction + self.beta * kl, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}

    def score(self, model, x, generator):
        """The loss, for beta = 1 the -ELBO, in nats, summed over the batch; the lower the better."""
        reconstruction, kl = negative_elbo(model, x, generator=generator)
        return (reconstruction + self.beta * kl).sum()


def check_schedule(config):
    """The checks that both configurations share; a whole number where a real one is meant names the same checkpoint."""
    for field in fields(config):
        if field.type is float:
            object.__setattr__(config, field.name, float(getattr(config, field.name)))
    for name in ("epochs", "batch_size", "lr"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be greater than 0.")
    if config.batch_size == 1:
        raise ValueError("batch_size is 1; it must be 2 or more: codes are standardised over a batch.")


class Trained(NamedTuple):
    model: torch.nn.Module
    history: list
    reused: bool


def pick_device(name="auto"):
    """`auto` takes cuda, then mps, then cpu. Raises ValueError where the device is unknown or not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, here in there.items() if here)
    if not there.get(name, False):
        allowed = ", ".join(["auto", *(device for device, here in there.items() if here)])
        raise ValueError(f"device is {name!r}; on this machine it can be {allowed}.")
    return name


def autocast(device):
    """bfloat16 where the processor multiplies it natively (AVX-512 BF16, AMX, CUDA from Ampere on), else float32."""
    native = (device == "cpu" and torch.cpu._is_avx512_bf16_supported()) or (
        device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.autocast(device, torch.bfloat16) if native else contextlib.nullcontext()


def one_cycle(step, steps, peak):
    """Learning rate of a step: up linearly over the first 30 %, down to 0 along a cosine (Smith and Topin, 2018)."""
    t = (step + 1) / steps
    return peak * (t / 0.3 if t < 0.3 else 0.5 * (1 + math.cos(math.pi * (t - 0.3) / 0.7)))


def fit(config, images, val_images=None, *, resume=None, device="auto", mixed=True, progress=True):
    """Train config's model on images (N, 1, H, W); return (model, history), one row of means an epoch.

    With `val_images`, each row has their score as `val`. `mixed` lets the forward pass use bfloat16 where that is
    native; without it none does, and processors differ by what training makes of float32's rounding (on CUDA of TF32's
    in convolutions). `resume` names a file that is rewritten as the training goes and taken up again if it is there:
    the weights are the same, bit for bit, as those of an uninterrupted run.
    Raises ValueError for images that cannot be trained on, TrainingFailed on NaN or collapse.
    """
    check_images(images, config.batch_size)
    device = pick_device(device)
    torch.manual_seed(config.seed)
    model = config.build(images.shape[-2:]).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    per_epoch = len(batches(torch.arange(len(images)), config.batch_size))
    steps = config.epochs * per_epoch
    history, saved = [], time.monotonic()
    if resume is not None:
        with contextlib.suppress(FileNotFoundError):
            history = load_resume(resume, config, model, optimiser, images)
    bar = tqdm(total=steps, initial=len(history) * per_epoch, disable=not progress, leave=False)
    for epoch in range(len(history), config.epochs):
        torch.manual_seed(epoch_seed(config.seed, epoch))  # dropout and input noise
        generator = torch.Generator(device).manual_seed(epoch_seed(config.seed, epoch) + 1)
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
        )
        sums, model = {}, model.train()
        for i, index in enumerate(batches(order, config.batch_size)):
            step = epoch * per_epoch + i
            x = images[index].to(device).contiguous(memory_format=torch.channels_last)
            for group in optimiser.param_groups:
                group["lr"] = one_cycle(step, steps, config.lr)
            with autocast(device) if mixed else contextlib.nullcontext():
                loss, terms = config.loss(model, x, generator, step / steps)
            if not torch.isfinite(loss):
                bar.close()
                kept = resume is not None and Path(resume).exists()
                raise TrainingFailed(
                    f"the loss is {loss.item()} at step {i} of epoch {epoch}; lower lr (now {config.lr})."
                    + (f" The weights of an earlier epoch are kept in {resume}." if kept else "")
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term * len(x)
            bar.update()
        row = {name: float(total) / len(images) for name, total in sums.items()}
        if val_images is not None:
            row["val"] = score(config, model, val_images)
        history.append(row)
        bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()})
        if resume is not None and epoch + 1 < config.epochs and time.monotonic() - saved >= SAVE_SECONDS:
            save_resume(resume, config, model, optimiser, history, images)
            saved = time.monotonic()
    bar.close()
    model.eval()
    check_alive(model, images[: config.batch_size].to(device))
    return model, history


def batches(order, batch_size):
    """The order in parts of batch_size; a last one of one image, which has no deviation, joins the one before it."""
    parts = list(order.split(batch_size))
    if len(parts[-1]) == 1 < len(parts):
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def epoch_seed(seed, epoch):
    return 1_000_003 * seed + 1_009 * epoch + 17


@torch.no_grad()
def score(config, model, images, batch_size=500):
    """Mean of config.score over the images, in evaluation mode, with the same random draws every time."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    model.eval()
    return sum(config.score(model, x.to(device), generator).item() for x in images.split(batch_size)) / len(
        images
    )


def check_images(images, batch_size):
    if images.ndim != 4 or images.shape[1] != 1 or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}; they must be (N, 1, H, W).")
    if images.dtype != torch.float32:
        raise ValueError(f"images are {images.dtype}; they must be torch.float32, in [0, 1].")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images lie in [{low:g}, {high:g}]; scale them to [0, 1].")
    if low == high:
        raise ValueError(
            f"every pixel of the images is {low:g}; there is nothing to learn from constant images."
        )
    if len(images) < batch_size:
        raise ValueError(
            f"there are {len(images)} images, fewer than one batch of {batch_size}; lower batch_size."
        )


@torch.no_grad()
def check_alive(model, x):
    """Raise TrainingFailed if the reconstructions of different images are one image: the decoder ignores the code."""
    spread = model(x).std(0).mean().item()
    if not spread >= 1e-4:  # NaN included
        raise TrainingFailed(
            f"the model collapsed: its reconstructions differ by {spread:.1e} from image to image. "
            "Train for more epochs, or lower lr or the weight of the penalty."
        )


def checkpoint_path(config, folder):
    digest = hashlib.sha256(json.dumps([FORMAT, type(config).__name__, asdict(config)]).encode()).hexdigest()
    kind = config.penalty if isinstance(config, AutoencoderConfig) else "vae"
    return Path(folder) / f"{config.data.split('/')[0]}-{kind}-seed{config.seed}-{digest[:12]}.safetensors"


def find_checkpoint(config, mark, folders):
    """(tensors, metadata) of config's checkpoint on the images of fingerprint `mark`, or on any where that is None.

    That of the first of the folders that has one; None where none has. Raises ValueError on a damaged checkpoint.
    """
    for path in (checkpoint_path(config, folder) for folder in folders):
        if path.exists():
            tensors, meta = read_checkpoint(path)
            if meta["config"] == json.dumps(asdict(config)) and mark in (None, meta["data"]):
                return tensors, meta
    return None


def load_or_train(config, images, val_images=None, *, folders, device="auto", mixed=True, progress=True):
    """The checkpoint of config on these images from the first folder that has one, else train and keep it in the last.

    Weights are kept, and used, in half precision, so that a run that trains and a run that reloads give the same
    figures. A training that was interrupted goes on after the last epoch that was kept. Without `images` (None) a
    checkpoint must be there. `mixed` (see `fit`) is no part of a checkpoint's identity: train a config with one of its
    values only. Raises ValueError on a damaged checkpoint and FileNotFoundError where there is neither
    checkpoint nor images.
    """
    device, mark = pick_device(device), None if images is None else fingerprint(images)
    found, path = find_checkpoint(config, mark, folders), checkpoint_path(config, folders[-1])
    if found:
        tensors, meta = found
        model = restore(config, tensors, json.loads(meta["size"]), device)
        return Trained(model, json.loads(meta["history"]), True)
    if images is None:
        raise FileNotFoundError(
            f"there is no checkpoint {path.name} in {', '.join(map(str, folders))}, and no data."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    resume = path.with_suffix(".resume")
    try:
        model, history = fit(
            config, images, val_images, resume=resume, device=device, mixed=mixed, progress=progress
        )
    except KeyboardInterrupt:
        kept = f"goes on from {resume}" if resume.exists() else "starts anew: no epoch was kept yet"
        raise KeyboardInterrupt(f"the training was interrupted; the same call {kept}.") from None
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    size = [int(n) for n in images.shape[-2:]]
    meta = {"config": json.dumps(asdict(config)), "data": mark, "size": json.dumps(size)}
    write_checkpoint(path, tensors, meta | {"history": json.dumps(history)})
    resume.unlink(missing_ok=True)
    return Trained(restore(config, tensors, size, device), history, False)


def restore(config, tensors, size, device):
    """The model of a checkpoint's tensors, its memory laid out as in training: channels_last."""
    model = config.build(size)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.to(device, memory_format=torch.channels_last).eval()


def digest_of(tensors, meta):
    """SHA-256 of every name, tensor and metadata entry."""
    sha = hashlib.sha256(json.dumps(sorted((k, v) for k, v in meta.items() if k != "sha256")).encode())
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def write_checkpoint(path, tensors, meta):
    """Write a safetensors file that carries its own checksum, atomically."""
    from safetensors.torch import save

    meta = meta | {"format": FORMAT}
    data = save(tensors, metadata=meta | {"sha256": digest_of(tensors, meta)})
    write_atomically(path, data)


def read_checkpoint(path):
    """(tensors, metadata) of a checkpoint; ValueError if it is damaged or of another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    # at once: safe_open opens a file twice, and another run may put a newer one in its place in between
    data = Path(path).read_bytes()
    try:
        tensors = load(data)
        meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        sound = meta.get("format") == FORMAT and meta.get("sha256") == digest_of(tensors, meta)
    except (SafetensorError, AssertionError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"the checkpoint {path} is damaged (its checksum does not hold); delete it to train it anew."
        )
    return tensors, meta


def save_resume(path, config, model, optimiser, history, images):
    tensors = {f"model.{name}": tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{name}": tensor.cpu().contiguous() for name, tensor in state.items()}
    meta = {"config": json.dumps(asdict(config)), "history": json.dumps(history), "data": fingerprint(images)}
    write_checkpoint(Path(path), tensors, meta)


def load_resume(path, config, model, optimiser, images):
    """Restore model and optimiser in place and return the history; ValueError if the file is of another training."""
    tensors, meta = read_checkpoint(path)
    if meta["config"] != json.dumps(asdict(config)) or meta["data"] != fingerprint(images):
        raise ValueError(
            f"{path} belongs to another training; delete it to start this one from the beginning."
        )
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    parameters = dict(enumerate(p for group in optimiser.param_groups for p in group["params"]))
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".")
            parameter = parameters[int(i)]
            # the fused optimiser reads memory as it lies: its state must have the parameter's layout
            like = parameter if tensor.shape == parameter.shape else tensor
            optimiser.state[parameter][key] = torch.empty_like(like, device=parameter.device).copy_(tensor)
    return json.loads(meta["history"])
