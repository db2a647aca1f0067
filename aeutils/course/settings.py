"""What the notebooks have in common: their parameters, the profiles, and the headline models' configurations."""

from pathlib import Path

import pooch

from aeutils.training import SHIPPED, AutoencoderConfig, VAEConfig, load_or_train, pick_device

VALIDATION = 5000  # the last training images never train a model: they choose lam
READ = 10_000  # training codes from which the classifiers on the path of lam learn

PROFILES = {  # parameters that a profile overrides, in every notebook that has them
    "reference": {},
    "full": {"n_seeds": 3},
    "quick": {
        "n_train": 1024,
        "n_test": 1000,
        "n_repeats": 2,
        "n_exact": 40,
        "epochs": 1,
        "latent_dim": 32,
        "n_interval_pairs": 100,
        "n_tsne": 300,
        "n_svm": 1000,
        "n_noisy": 300,
        "face_epochs": 6,
        "iwae_samples": 10,
        "n_drawn": 700,
    },
}

PARAMETERS = {  # name: (type, smallest, largest, an example) or (str, allowed values)
    "profile": (str, tuple(PROFILES)),
    "seed": (int, 0, 2**31 - 1, 0),
    "n_seeds": (int, 1, 100, 5),
    "n_face_seeds": (int, 1, 100, 5),
    "device": (str, ("auto", "cpu", "cuda", "mps")),
    "checkpoints": (str, None),
    "latent_dim": (int, 2, 784, 256),
    "lam_sae": (float, 0, 1000, 0.045),
    "lam_cae": (float, 0, 1000, 0.03),
    "sigma_dae": (float, 0, 1, 0.25),
    "epochs": (int, 1, 1000, 4),
    "n_train": (int, 1024, 60000 - VALIDATION, 60000 - VALIDATION),
    "n_test": (int, 300, 10000, 10000),
    "n_repeats": (int, 2, 100, 5),
    "n_exact": (int, 2, 10000, 500),
    "n_pairs": (int, 1, 100, 20),
    "n_interval_pairs": (int, 2, 5000, 1000),
    "pair_seed": (int, 0, 2**31 - 1, 0),
    "perplexity": (float, 2, 1000, 30.0),
    "n_tsne": (int, 300, 10000, 10000),
    "n_svm": (int, 200, 60000, 20000),
    "n_svm_more": (int, 0, 60000, 60000),
    "noise_seed": (int, 0, 2**31 - 1, 0),
    "n_noisy": (int, 100, 10000, 2000),
    "faces": (str, ("auto", "frey", "synthetic")),
    "split": (str, ("random", "blocks")),
    "split_seed": (int, 0, 2**31 - 1, 0),
    "face_latent_dim": (int, 1, 560, 20),
    "face_epochs": (int, 1, 10000, 80),
    "beta": (float, 0, 1000, 1.0),
    "reach": (int, 0, 10, 2),
    "n_samples": (int, 1, 1024, 64),
    "iwae_samples": (int, 1, 100000, 500),
    "n_drawn": (int, 700, 100000, 1965),
}


def check_parameters(values):
    """Raise ValueError at the first of the values {name: value} that is not allowed, saying what is."""
    for name, value in values.items():
        if name not in PARAMETERS:
            raise ValueError(f"{name} is no parameter; the parameters are {', '.join(PARAMETERS)}.")
        kind, *allowed = PARAMETERS[name]
        if kind is str:
            check_text(name, value, *allowed)
            continue
        smallest, largest, example = allowed
        right = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not right or not smallest <= value <= largest:
            noun = "a number" if kind is float else "an integer"
            raise ValueError(
                f"{name} is {value!r}; it must be {noun} from {smallest} to {largest}, such as {example}."
            )
    for small, large, times in (
        ("n_tsne", "n_test", 1),
        ("n_noisy", "n_test", 1),
        ("perplexity", "n_tsne", 3),
    ):
        if small in values and large in values and times * values[small] > values[large]:
            most = "a third of " if times == 3 else ""
            raise ValueError(
                f"{small} is {values[small]!r}; it must be at most {most}{large}, which is {values[large]!r}, "
                f"so lower {small} or raise {large}."
            )
    pairs, more, n_test = (values.get(name, 0) for name in ("n_pairs", "n_interval_pairs", "n_test"))
    if more and n_test and 2 * (pairs + more) > n_test:
        raise ValueError(
            f"n_interval_pairs is {more!r}; with the {pairs!r} of n_pairs it needs two of the {n_test!r} images of "
            "n_test a pair, so lower it or raise n_test."
        )


def check_text(name, value, allowed):
    if not isinstance(value, str):
        raise ValueError(
            f"{name} is {value!r}; it must be {'one of ' + ', '.join(allowed) if allowed else 'text'}."
        )
    if allowed and value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
    if name == "device":
        pick_device(value)
    if name == "checkpoints" and value and Path(value).exists() and not Path(value).is_dir():
        raise ValueError(f"checkpoints is {value!r}, which is no folder; name a folder, or leave it empty.")


def seeds_of(seed, n_seeds):
    """The training seeds of a run."""
    return list(range(seed, seed + n_seeds))


def folders_for(checkpoints):
    """Where weights are looked for; they are trained into the last. "": the shipped ones, then the user's cache."""
    if checkpoints:
        return [Path(checkpoints)]
    return [SHIPPED, Path(pooch.os_cache("aeutils")) / "checkpoints"]


def validation(n_train):
    """How many of the last training images choose lam and train no model: 5,000, and no more than train one."""
    return min(VALIDATION, n_train)


def digit_configs(*, seed, latent_dim, lam_sae, lam_cae, sigma_dae, epochs):
    """{"ae", "sae", "cae", "dae"}: the same everything but the penalty, or the noise that the input gets."""
    common = {"latent_dim": latent_dim, "epochs": epochs, "seed": seed}
    return {
        "ae": AutoencoderConfig(**common),
        "sae": AutoencoderConfig(penalty="l1", lam=lam_sae, **common),
        "cae": AutoencoderConfig(penalty="contractive", lam=lam_cae, **common),
        "dae": AutoencoderConfig(penalty="denoising", lam=sigma_dae, **common),
    }


def digit_models(
    names,
    *,
    seeds,
    latent_dim,
    lam_sae,
    lam_cae,
    sigma_dae,
    epochs,
    n_train,
    checkpoints,
    device,
    images,
    progress=True,
):
    """{name: [Trained, one a seed]} for names of digit_configs, reloaded or trained.

    `images` are all 60,000 training images: the first n_train train, the last ones validate.
    """
    train, val, folders = images[:n_train], images[-validation(n_train) :], folders_for(checkpoints)
    models = {name: [] for name in names}
    for seed in seeds:
        configs = digit_configs(
            seed=seed,
            latent_dim=latent_dim,
            lam_sae=lam_sae,
            lam_cae=lam_cae,
            sigma_dae=sigma_dae,
            epochs=epochs,
        )
        for name in names:
            models[name].append(
                load_or_train(configs[name], train, val, folders=folders, device=device, progress=progress)
            )
    return models


def face_configs(*, seed, face_latent_dim, face_epochs, beta, reach, data):
    """{"vae", "ae"}: the VAE of notebook 04, and the same network without a price on its code: beta = 0.

    `data` names the images and their split, such as "frey/random-0": without the images it is all that tells
    one checkpoint from another.
    """
    common = {"latent_dim": face_latent_dim, "epochs": face_epochs, "seed": seed}
    common |= {"reach": reach, "data": data}
    return {"vae": VAEConfig(beta=beta, **common), "ae": VAEConfig(beta=0.0, **common)}


def face_models(
    names,
    *,
    seeds,
    face_latent_dim,
    face_epochs,
    beta,
    reach,
    faces,
    split,
    split_seed,
    checkpoints,
    device,
    train_images,
    val_images,
    progress=True,
):
    """{name: [Trained, one a seed]} for names of face_configs, reloaded or trained.

    `faces` is "frey" or "synthetic". With train_images None the weights must be there (FileNotFoundError).
    """
    models = {name: [] for name in names}
    for seed in seeds:
        configs = face_configs(
            seed=seed,
            face_latent_dim=face_latent_dim,
            face_epochs=face_epochs,
            beta=beta,
            reach=reach,
            data=f"{faces}/{split}-{split_seed}",
        )
        for name in names:
            models[name].append(
                load_or_train(
                    configs[name],
                    train_images,
                    val_images,
                    folders=folders_for(checkpoints),
                    device=device,
                    progress=progress,
                )
            )
    return models
