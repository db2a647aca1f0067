"""A t-SNE map by Barnes-Hut: openTSNE's (Poličar, Stražar and Zupan, 2024), scikit-learn's where there is none."""

import numpy as np
import torch


def tsne_map(h, perplexity=30.0, init="pca", random_state=0):
    """The map y, (N, 2) in float64, of the codes h, (N, d), and its KL(P || Q) in nats (van der Maaten, 2014).

    Cells of the plane that look narrower than theta are taken as one point: 0.8 from 5,000 codes on and else 0.5, with
    which openTSNE's maps have about the exact KL of scikit-learn's of 0.7. The KL returned is Barnes-Hut's, 1 or 2 %
    below the exact one.
    Raises ValueError where the perplexity is not in (0, N / 3].
    """
    if not 0 < perplexity <= len(h) / 3:
        raise ValueError(
            f"perplexity is {perplexity}; it must be above 0 and at most a third of the {len(h)} codes."
        )
    try:
        from openTSNE import TSNE
    except ImportError:  # no wheels for Linux and Windows on ARM
        from sklearn.manifold import TSNE

        tsne = TSNE(perplexity=perplexity, init=init, angle=0.7, random_state=random_state)
        return torch.from_numpy(tsne.fit_transform(h.numpy())).double(), float(tsne.kl_divergence_)
    y = TSNE(
        perplexity=perplexity,
        initialization=init,
        negative_gradient_method="bh",
        theta=0.8 if len(h) >= 5000 else 0.5,
        neighbors="exact",
        random_state=random_state,
    ).fit(h.numpy())
    return torch.from_numpy(np.asarray(y)), float(y.kl_divergence)
