"""What the notebooks define for themselves, run by itself against sklearn, closed forms and simulations."""

import ast
import math
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC as svm_of_scikit_learn
from test_metrics import LinearGaussian
from torch.func import jacrev, vmap

from aeutils.course.results import Results
from aeutils.data import load_mnist, split_frames
from aeutils.faces import FACTORS, synthetic_faces
from aeutils.latent import interpolate
from aeutils.models import VAE, Autoencoder, from_neighbours
from aeutils.svm import SVC

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@cache
def sources(number):
    """The source of every code cell of a notebook."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def imported(number):
    """A namespace of what a notebook imports."""
    space, tree = {}, ast.parse("\n".join(sources(number)))
    exec(ast.unparse([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]), space)
    return space


def functions(number, *names, **known):
    """The functions of these names that a notebook defines, in a namespace with what is known besides its imports."""
    tree, space = ast.parse("\n".join(sources(number))), imported(number) | known
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in defined} == set(names)
    exec(ast.unparse(defined), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def run_cell(number, line, **known):
    """The namespace after running the one cell that holds this line."""
    (source,) = (source for source in sources(number) if line in source.splitlines())
    space = imported(number) | known
    exec(source, space)
    return SimpleNamespace(**{name: value for name, value in space.items() if name != "__builtins__"})


def said(*_, **__):
    plt.close("all")


def test_the_common_scale_is_that_of_the_training_codes():
    rng = np.random.default_rng(0)
    raw = rng.normal(3, (1, 2, 5), (400, 3))
    known = functions("03", "common_scale")
    cell = run_cell(
        "03", "scale, H, H_test = {}, {}, {}", common_scale=known.common_scale, say=said, n_train=1,
        n_test=1, n_svm=1, spaces=[("a", 0)], encoders={"a": [lambda x: x]}, x_train=raw,
        x_test=np.concatenate([raw[:9], 10 + raw[:9]]),
    )  # fmt: skip
    h, h_test = cell.H["a", 0], cell.H_test["a", 0]
    assert h.mean(0) == pytest.approx(0, abs=1e-9) and h.var(0).sum() == pytest.approx(3)
    assert h.var(0) / raw.var(0) == pytest.approx(3 / raw.var(0).sum())
    assert h_test[:9] == pytest.approx(h[:9])


def test_labels_follow_their_images_and_no_test_image_reaches_the_training():
    labels = torch.arange(400) % 10
    mnist = SimpleNamespace(train_images=(labels / 10).view(-1, 1, 1, 1), train_labels=labels)
    mnist.test_images, mnist.test_labels = torch.full((40, 1, 1, 1), -1.0), labels[:40]
    asked = {}
    names = ("seeds", "latent_dim", "lam_sae", "lam_cae", "sigma_dae", "epochs", "checkpoints", "device")
    cell = run_cell(
        "03", "mnist = load_mnist()", load_mnist=lambda: mnist, say=said, validation=lambda n: n // 7, n_train=350,
        n_test=40, n_svm=100, digit_models=lambda *_, **kw: asked.update(kw) or {}, **dict.fromkeys(names, ()),
    )  # fmt: skip
    assert (cell.x_train[:, 0, 0, 0] * 10).round().int().tolist() == cell.y_train.tolist()
    assert len(cell.x_train) == 400 and asked["images"] is mnist.train_images and asked["n_train"] == 350


@pytest.mark.parametrize(
    ("number", "line"), [("01", "trained = settings.digit_models("), ("02", "mnist = load_mnist()")]
)
def test_digit_models_are_given_training_images_alone(number, line):
    asked, train, test = {}, torch.zeros(400, 1), torch.ones(40, 1)
    mnist = SimpleNamespace(train_images=train, train_labels=train, test_images=test, test_labels=test)

    def models(*_, **given):
        return asked.update(given) or {}

    names = ("seeds", "latent_dim", "lam_sae", "lam_cae", "sigma_dae", "epochs", "checkpoints", "device")
    run_cell(
        number, line, mnist=mnist, load_mnist=lambda: mnist, digit_models=models, say=said, n_train=350, n_test=40,
        settings=SimpleNamespace(digit_models=models), n_seeds=1, training={"n_train": 350},
        **dict.fromkeys(names, ()),
    )  # fmt: skip
    assert asked["images"] is train and asked["n_train"] == 350


def test_pca_is_scikit_learns_on_the_training_images():
    spread = torch.cat([torch.tensor([9.0, 7.0, 5.0]), torch.full((781,), 0.1)])
    x = (3 + spread * torch.randn(400, 784, generator=torch.Generator().manual_seed(0))).view(-1, 1, 28, 28)
    mnist = SimpleNamespace(train_images=x[:300], test_images=x[300:].flip(3))
    pca = run_cell(
        "02", "class PCA(torch.nn.Module):", mnist=mnist, latent_dim=3, n_train=200, seeds=(), models={}
    ).pca
    oracle, new = PCA(3).fit(x[:200].flatten(1)), x[200:]
    found = pca.decode(pca.encode(new)).flatten(1).numpy()
    assert found == pytest.approx(oracle.inverse_transform(oracle.transform(new.flatten(1))), abs=1e-3)


def test_cross_validation_equals_scikit_learns():
    rng = np.random.default_rng(1)
    y = np.arange(90) % 3
    h = rng.standard_t(2, (90, 4)) * (1, 10, 100, 1000) + np.eye(3, 4)[y] * (1, 10, 100, 1000)
    known = functions("03", "common_scale", "unit_scale", "make_logreg")
    validate = functions("03", "cross_validate", **vars(known)).cross_validate
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    Cs, oracle = (0.001, 0.01, 1.0), []
    for C in Cs:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-5, max_iter=5000))
        oracle.append(cross_val_score(pipeline, h, y, cv=folds).mean())
    assert len(set(oracle)) == len(Cs)
    assert validate(known.make_logreg, Cs, h, y, known.unit_scale) == pytest.approx(oracle)


def test_swapped_codes_are_the_neighbours_and_zeros_are_zeros():
    torch.manual_seed(0)
    x = torch.rand(5, 1, 28, 28)
    swap_errors = functions("01", "decode_with", "swap_errors", "mse").swap_errors
    plain, skipping = (Autoencoder(6, code="relu", skips=skips).eval() for skips in (False, True))
    oracle = [
        plain.decode(h).detach() - x for h in (plain.encode(x), plain.encode(x.roll(1, 0)), torch.zeros(5, 6))
    ]
    assert swap_errors(plain, x) == pytest.approx([error.square().mean().item() for error in oracle])
    own = (skipping(x) - x).square().mean().item()
    assert swap_errors(skipping, x)[0] == pytest.approx(own)


def test_the_active_rows_are_the_jacobian_and_their_singular_values_those_of_lapack():
    torch.manual_seed(0)
    encode, x = Autoencoder(9, code="relu").double().eval().encode, torch.rand(5, 1, 28, 28).double()
    cells = functions("01", "active_rows", "singular_values")
    J = cells.active_rows(encode, x)
    assert torch.allclose(J, vmap(jacrev(lambda one: encode(one[None])[0]))(x).flatten(2), atol=1e-12)
    silent = (J == 0).all(2).sum(1)
    assert silent.min() > 0 and silent.max() > silent.min()
    for one in J:
        assert torch.allclose(cells.singular_values(one), torch.linalg.svdvals(one), atol=1e-9)


def test_a_path_rises_or_falls_only_where_no_step_goes_the_other_way():
    values = {"ae": [5], "sae": [3, 2, 2], "cae": [1, 3, 2], "dae": [1, 2, 3]}
    paths = {name: [(k, 1.0, value) for k, value in enumerate(row)] for name, row in values.items()}
    directions = functions("03", "directions").directions
    assert directions(paths) == "never rises: SAE; never falls: DAE; rises and falls: CAE"
    assert directions({"sae": paths["sae"], "dae": paths["dae"]}) == "never rises: SAE; never falls: DAE"


def test_paths_are_compared_at_the_points_of_both_within_chance():
    cae = [(1, 0.9, 0.94), (2, 1.1, 0.90)]
    sae = [(0.1, 0.8, 0.92), (0.2, 1.0, 0.88), (0.3, 1.2, 0.80)]
    leads, images, seed = functions("03", "compared").compared(cae, sae, [0.02, 0.04, 0.06])
    assert leads == pytest.approx([100 * (0.94 - 0.90), 100 * (0.90 - 0.84), 100 * (0.92 - 0.88)])
    assert images == pytest.approx(100 * math.sqrt(2 * 0.8 * 0.2 / 5000)) and seed == pytest.approx(2)
    assert functions("03", "compared").compared(cae, [(1, 0.1, 0.5)], [])[0::2] == ([], 0.0)


def test_the_measures_of_a_path_equal_those_of_numpy():
    torch.manual_seed(0)
    model, (x1, x2) = Autoencoder(6, code="relu").eval(), torch.rand(2, 3, 1, 28, 28)
    path = interpolate(model, x1, x2, [0.0, 0.3, 0.6, 1.0])
    measured = functions("02", "measure").measure(path, x1, x2)
    for pair in range(3):
        for a, alpha in enumerate((0.0, 0.3, 0.6, 1.0)):
            decoded, line = path.x_blend[pair, a].numpy(), path.x_linear[pair, a].numpy()
            pixels = (alpha * x1 + (1 - alpha) * x2)[pair].numpy()
            compared = {"psnr_db": (decoded, line), "line_vs_pixels_db": (line, pixels)}
            for name, (one, two) in (compared | {"blend_vs_pixels_db": (decoded, pixels)}).items():
                if name != "psnr_db" or a in (1, 2):
                    oracle = peak_signal_noise_ratio(one, two, data_range=1)
                    assert measured[name][pair, a].item() == pytest.approx(oracle, rel=1e-3)
            h1, h2 = (model.encode(x)[pair].detach().numpy() for x in (x1, x2))
            distance = np.linalg.norm(path.h_blend[pair, a].numpy() - alpha * h1 - (1 - alpha) * h2)
            assert measured["latent_l2"][pair, a].item() == pytest.approx(distance, rel=1e-3, abs=1e-4)
            relative = distance / np.linalg.norm(h1 - h2)
            assert measured["relative_l2"][pair, a].item() == pytest.approx(relative, rel=1e-3, abs=1e-4)


def near(value):
    """Five seeds' figures."""
    return value + np.linspace(0, 0.01, 5)


CLAIMS = {  # what makes a claim of the course true, and what the notebook computes from it
    ("01", "E2"): ([], {"pairs": [({"active_share": s}, {"active_share": c}) for s, c in zip(near(0.1), near(0.6))]}),
    ("01", "E6"): ([], {"ratio": {False: near(3.0), True: near(1.0)}, "contrast": ""}),
    ("02", "E1"): (["E1"], {
        "quality": {name: [{"scatter_ratio": v} for v in near(k)] for name, k in (("cae", 1), ("sae", 2))},
    }),
    ("02", "E3"): (["gap"], {
        "per_seed": {n: {"psnr_db": torch.tensor(near(k))[:, None].expand(5, 6)} for n, k in (("cae", 3), ("sae", 2))},
        "inner": slice(1, -1),
    }),
    ("03", "E4"): (["clean_gain"], {
        "right": {("svm", n, i): v for n, k in (("sae", 0.9), ("cae", 0.8)) for i, v in enumerate(near(k))},
        "seeds": range(5),
    }),
    ("03", "E5"): (["noise_gain"], {"area": lambda kind, name: near({"cae": 0.9, "sae": 0.5}[name])}),
    ("04", "E7"): (["gain"], {"quality": torch.tensor([0.9, 0.8, 0.8, 0.1, 0.3])[None, :, None].expand(5, 5, 2)}),
    ("04", "E8"): ([], {"steps": [torch.tensor([1.1, 1.3, 1.2])] * 5}),
}  # fmt: skip


@pytest.mark.parametrize(("number", "claim"), CLAIMS)
def test_a_claim_is_supported_by_figures_that_make_it_true(number, claim):
    computed, known = CLAIMS[number, claim]
    run = Results(int(number), "full", range(5))
    space = imported(number) | known | {"res": run, "results": run}
    wanted = (*(f"{name} = " for name in computed), f"res.verdict('{claim}'", f"results.verdict('{claim}'")
    for node in ast.parse("\n".join(sources(number))).body:
        if ast.unparse(node).startswith(wanted):
            exec(ast.unparse(node), space)
    assert run.verdicts[claim]["verdict"] == "supported"


class Remembers:
    """A classifier that keeps what it was fitted on and reads the answer off the first column."""

    def fit(self, h, y):
        self.h, self.y = h, y
        return self

    def predict(self, h):
        return h[:, 0]


def test_classifiers_are_fitted_on_training_codes_with_their_own_labels_and_tested_on_test_codes():
    y_train, y_test = np.arange(30) % 10, 100 + np.arange(20) % 10
    h, h_test = (np.stack([y, np.arange(len(y))], 1) for y in (y_train, y_test))
    kinds = {kind: (lambda C, h: Remembers(), (1.0,)) for kind in ("svm", "logreg")}
    cell = run_cell(
        "03", 'n_fit = {"svm": n_svm, "logreg": len(x_train)}', n_svm=12, x_train=h, spaces=[("a", 0)],
        H={("a", 0): h}, H_test={("a", 0): h_test}, y_train=y_train, y_test=y_test, KINDS=kinds,
        best_C={("svm", "a"): 1.0, ("logreg", "a"): 1.0},
        svm_predict=lambda classifier, h: classifier.predict(h), each_case=functions("03", "each_case").each_case,
    )  # fmt: skip
    for kind, n in (("svm", 12), ("logreg", 30)):
        fitted = cell.classifiers[kind, "a", 0]
        assert fitted.h.tolist() == h[:n].tolist() and fitted.y.tolist() == y_train[:n].tolist()
        assert cell.predicted[kind, "a", 0].tolist() == y_test.tolist()
        assert cell.right[kind, "a", 0].tolist() == [True] * 20
        assert cell.seen[kind, "a", 0].tolist() == [True] * n


def test_few_labels_are_drawn_evenly_over_the_digits():
    y_train = np.random.default_rng(0).integers(0, 10, 2000)
    draw = functions("03", "draw", y_train=y_train).draw
    chosen = draw(30, 0)
    assert len(set(chosen)) == 30 and np.bincount(y_train[chosen]).tolist() == [3] * 10
    assert draw(30, 0).tolist() == chosen.tolist() != draw(30, 1).tolist()


def test_noise_meets_test_images_and_the_scale_of_the_training_codes():
    x_test, y_test = (
        torch.rand(120, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        np.arange(120) % 10,
    )
    drawn = run_cell(
        "03", "noisy = {}", image_grid=said, show=said, n_test=120,
        n_noisy=100, noise_seed=0, x_test=x_test, y_test=y_test, x_train=torch.zeros(120, 1, 28, 28),
    )  # fmt: skip
    faded = drawn.noisy["contrast", 0.5]
    assert len(set(drawn.sample)) == 100 and torch.allclose(faded, 0.5 * x_test[drawn.sample])
    assert (drawn.y_noisy == y_test[drawn.sample]).all()
    h_test = x_test.flatten(1).numpy()
    cell = run_cell(
        "03", "robust, moved, recoded = {}, {}, {}", spaces=[("a", 0)], conditions=drawn.conditions,
        noisy=drawn.noisy, sample=drawn.sample, y_noisy=drawn.y_noisy, KINDS=["svm"], H={("a", 0): h_test},
        H_test={("a", 0): h_test}, encoders={"a": [lambda x: x.flatten(1).numpy() + 7]},
        scale={("a", 0): lambda h: h - 7}, predict=lambda kind, name, i, h: drawn.y_noisy,
        predicted={("svm", "a", 0): y_test},
    )  # fmt: skip
    assert cell.recoded["a", 0] == pytest.approx(drawn.noisy["gaussian", 0.3].flatten(1).numpy(), abs=1e-5)
    assert cell.moved["a", 0, "contrast", 0.5] == pytest.approx(1 / 12, rel=0.02)  # E[(x / 2)^2], x uniform
    assert set(cell.robust.values()) == {1.0}
    assert all(hit.all() for hit in cell.hits.values())
    assert {key[3] for key in cell.hits} == {level for what, level in drawn.conditions if what == "gaussian"}


def test_the_area_under_the_noise_curve_is_a_mean_accuracy():
    levels = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    robust = {("svm", "a", 0, "gaussian", s): 0.8 for s in levels}
    robust |= {("svm", "a", 1, "gaussian", s): 1 - 2 * s for s in levels}
    robust |= {("svm", "a", i, "shift", k): 1 - k / 4 for i in range(2) for k in (0, 1, 4)}
    known = {"robust": robust, "encoders": {"a": [0, 1]}, "LEVELS": {"gaussian": levels, "shift": (0, 1, 4)}}
    area = functions("03", "curve", "area", **known).area
    assert area("svm", "a") == pytest.approx([0.8, 0.5])
    assert area("svm", "a", "shift") == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("machine", (SVC, svm_of_scikit_learn))
def test_the_svm_is_scikit_learns(machine):
    rng, y = np.random.default_rng(0), np.arange(600) % 10
    h = (rng.normal(size=(10, 16))[y] + rng.normal(size=(600, 16))).astype(np.float32)
    svm = functions("03", "make_svm", SVC=machine).make_svm(10.0, h).fit(h[:400], y[:400])
    oracle = svm_of_scikit_learn(C=10.0, gamma=1 / 16).fit(h[:400], y[:400])
    assert svm.intercept_ == pytest.approx(oracle.intercept_, abs=0.01)
    assert (
        svm.predict(h[400:]) == oracle.predict(h[400:])
    ).sum() >= 199  # a vote on a border may go either way


def test_logistic_regression_is_at_its_minimum_on_raw_pixels():
    """What a reader of pixels makes of noise depends on where the solver stops: it must be the one minimum."""
    mnist = load_mnist()
    x, y = mnist.train_images[:3000].flatten(1).numpy(), mnist.train_labels[:3000].numpy()
    known = functions("03", "common_scale", "make_logreg")
    u = known.common_scale(x)(x)
    reader = known.make_logreg(0.01, u).fit(u, y)
    oracle = LogisticRegression(C=0.01, tol=1e-8, max_iter=20_000).fit(u.astype(np.float64), y)
    assert np.linalg.norm(reader.coef_ - oracle.coef_) < 0.02 * np.linalg.norm(oracle.coef_)


def test_the_svm_of_all_labels_is_the_reference_run_s_unless_it_is_fitted_here():
    learned, told = ("ae", "sae"), []
    there = {
        f"03.{name}.{metric}": {"value": 0.5, "per_seed": list(seeds)}
        for name, rows in {"ae": (0.97, 0.98, 0.99), "sae": (0.96, 0.97, 0.985)}.items()
        for metric, seeds in zip(
            ("logreg_accuracy", "svm_accuracy", "svm_accuracy.n_60000"), ((r, 0.1) for r in rows)
        )
    }
    there["03.ae.svm_accuracy.n_60000"] = {"value": 0.99, "per_seed": []}  # of one seed
    here = Results(3, "full", [0])
    for name in learned:
        here.add(f"{name}.logreg_accuracy", [0.9])
        here.add(f"{name}.svm_accuracy", [0.92])
    h, y = torch.eye(10).repeat(4, 1).numpy(), np.arange(10).repeat(4).reshape(4, 10).T.ravel()
    run = {"parameters": {"03": {"n_svm": 20_000}}, "metrics": there}
    for n_svm_more, recorded in ((0, run), (40, run), (0, {"parameters": {}, "metrics": {}})):
        known = functions("03", "each_case", "make_svm", "svm_predict").__dict__ | {
            "n_svm_more": n_svm_more, "n_svm": 7, "n_fit": {"logreg": 40}, "learned": learned, "res": here,
            "best_C": {("svm", name): 10.0 for name in learned}, "H": {(name, 0): h for name in learned},
            "H_test": {(name, 0): h for name in learned}, "x_train": h, "y_train": y, "y_test": y,
            "say": told.append, "load_reference": lambda recorded=recorded: recorded,
        }  # fmt: skip
        cell = run_cell("03", "n_more = min(n_svm_more, len(x_train))", **known)
        run_cell("03", 'linear = of_first_seed("logreg_accuracy")', **cell.__dict__ | known)
    shown, fitted, nothing = told
    assert shown.startswith(
        "Reference run, at its own parameters: from 20,000 to 60,000 labels the SVM of the first seed goes "
    )
    assert "from 98.00 % to **99.00 %** (AE), from 97.00 % to **98.50 %** (SAE)." in shown
    assert shown.endswith("the curved border is worth +2.0 to +2.5 points to the learned codes.")
    share = here.metrics["03.ae.svm_accuracy.n_40"]["value"]
    assert fitted.startswith(
        f"from 7 to 40 labels the SVM of the first seed goes from 92.00 % to **{100 * share:.2f} %** (AE)"
    )
    assert nothing == "The reference run has recorded no SVM of more labels."


def test_a_recorded_study_of_widths_is_told_as_it_is():
    wide = {"of_tau": 0.9, "active_share": 0.1, "logreg_C": 0.1, "knn5": 0.97, "lam": 0.1, "epochs": 4}
    figures = {  # accuracy of the linear reader, of the SVM, under noise, dB
        ("sae", 64): (0.95, 0.98, 0.6, 22.0), ("sae", 256): (0.97, 0.97, 0.5, 21.0),
        ("cae", 64): (0.94, 0.96, 0.7, 25.0), ("cae", 256): (0.93, 0.96, 0.6, 24.0),
        ("untrained", 64): (0.8, 0.9, 0.4, None), ("untrained", 256): (0.9, 0.9, 0.3, 99.0),
        ("sae", 512): (0.96, 0.97, 0.4, 20.0),
    }  # fmt: skip
    keys = ("logreg_accuracy", "svm_accuracy", "svm_noisy", "blend_db")
    study = [wide | {"model": m, "latent_dim": d} | dict(zip(keys, row)) for (m, d), row in figures.items()]
    study = [row | {"code": "sigmoid" if row["latent_dim"] == 512 else "relu"} for row in study]
    study[3] |= {"of_tau": 0.8, "logreg_C": 0.3}
    shown, told = [], []
    known = {"learned": ("ae", "sae", "cae", "dae"), "say": told.append}
    known |= {"show": lambda fig, *_: shown.append(fig), "show_table": lambda _, rows: shown.extend(rows)}
    cells = [source for source in sources("03") if "study" in source]
    for recorded in ({"width_study": study}, {}):
        space = imported("03") | known | {"load_reference": lambda recorded=recorded: recorded}
        for source in cells:
            exec(source, space)
    figure, *rows = shown
    blends = [list(line.get_xdata()) for line in figure.axes[3].lines if np.isfinite(line.get_ydata()).any()]
    plt.close("all")
    assert len(rows) == 7 and {len(row) for row in rows} == {13} and blends == [[64, 256], [512], [64, 256]]
    assert [row[1:4] for row in rows if row[0] == "SAE"][-1] == (512, "sigmoid", 4)
    grid, frontier, wider, nothing = told
    assert "for: CAE of 256 units; a wider" in grid and "do not at 256 (0.90 and 0.80 τ)." in grid
    best = "Best for a linear reader: SAE of 256 units (error 3.00 %, 50.0 % under noise, blends 21.0 dB), by 100 of "
    best += "the 10,000 test images. Best under noise: CAE of 64 units"
    assert best in frontier and "is 20.0 points under the best in noise and 4.0 dB in blends" in frontier
    assert "does best on SAE of 64 units, by 100 images" in frontier
    assert frontier.endswith("better in one of them: SAE of 64 units; CAE of 64 units; SAE of 256 units.")
    assert "20.00 to 10.00 % (untrained encoder)" in wider
    assert "for: untrained encoder, SAE; not for: CAE. Width alone" in wider
    assert nothing == "The reference run has recorded no study of widths."


def test_frames_of_the_three_parts_stay_in_their_places():
    images, asked = torch.arange(500.0).view(-1, 1, 1, 1), {}
    cell = run_cell(
        "04", "part = split_frames(len(data.images), split, split_seed)", say=said, faces="frey", split="blocks",
        load_frey_faces=lambda source: SimpleNamespace(images=images, name=source), split_seed=3, seeds=[0],
        profile="quick", parameters={},
    )  # fmt: skip
    for x, index in zip((cell.x_train, cell.x_val, cell.x_test), split_frames(500, "blocks", 3)):
        assert x.flatten().long().tolist() == index.tolist()

    def face_models(names, train_images, val_images, **_):
        asked.update(train=train_images, val=val_images)
        model = SimpleNamespace(cpu=lambda: SimpleNamespace(requires_grad_=lambda on: "model"))
        return {name: [SimpleNamespace(model=model)] for name in names}

    names = ("face_latent_dim", "face_epochs", "beta", "reach", "checkpoints", "device")
    run_cell(
        "04", "vae, ae = vaes[0], aes[0]", **vars(cell) | dict.fromkeys(names) | {"face_models": face_models}
    )
    assert asked["train"] is cell.x_train and asked["val"] is cell.x_val


def test_attributes_follow_the_factors_that_they_name():
    faces, factors = synthetic_faces(600, seed=1, independent=True)
    cell = run_cell(
        "04",
        "BOXES = DRAWN if free_stand_in else FREY  # a box is (top, bottom, left, right)",
        free_stand_in=True,
    )
    found = functions("04", "attributes", **vars(cell)).attributes(faces)
    drawn = dict(zip(FACTORS, factors.T))
    for name, factor in (
        ("brightness", "brightness"), ("light from the right", "light"), ("right eye lower (tilt)", "tilt"),
        ("mouth darker", "mouth"), ("mouth corners up", "smile"),
    ):  # fmt: skip
        r = {f: np.corrcoef(found[name], values)[0, 1] for f, values in drawn.items()}
        assert r[factor] > 0.4 and max(r, key=lambda f: abs(r[f])) == factor


class Decodes(LinearGaussian):
    """The linear Gaussian model with a mean image."""

    def decode(self, z):
        return (z * self.w).view(-1, 1, 1, 2)


def test_the_likelihood_table_is_exact_where_the_posterior_is():
    x = torch.randn(64, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = functions("04", "likelihood", iwae_samples=7).likelihood(Decodes(0.0), x)
    truth = -Decodes(0.0).log_marginal(x).mean().item() / (560 * math.log(2))
    assert table["iwae_bits"] == pytest.approx(truth)
    assert table["neg_elbo_bits"] == pytest.approx(truth, rel=0.05)
    parts = table["reconstruction_bits"] + table["kl_nats"] / (560 * math.log(2))
    assert table["neg_elbo_bits"] == pytest.approx(parts) and table["active_units"] == 1


def test_precision_and_recall_by_temperature_shrink_the_code():
    asked = []
    table = functions(
        "04", "by_temperature", x_test=range(4), seed=0, temperatures=(0.5, 1.0),
        precision_recall=lambda x, real: asked.append(x) or (x.abs().mean().item(), 1.0),
    ).by_temperature(SimpleNamespace(latent_dim=3, decode=lambda z: z), draws=2)  # fmt: skip
    assert table.shape == (2, 2) and table[0, 0] == pytest.approx(table[1, 0].item() / 2)
    torch.testing.assert_close(2 * asked[0], asked[2])
    assert not torch.equal(asked[0], asked[1])


def test_a_drawn_face_has_the_errors_that_its_likelihood_expects():
    torch.manual_seed(0)
    vae = VAE(3, widths=(4, 8, 8)).eval().requires_grad_(False)
    torch.nn.init.normal_(vae.neighbours, std=0.1)
    cell = run_cell("04", "x = m.clone()", free=vae, seed=0)
    rest = cell.x - cell.m - from_neighbours(cell.x - cell.m, vae.neighbours)
    noise, whole = cell.log_s.exp() * torch.logit(cell.u), (cell.x > 0) & (cell.x < 1)
    assert whole.float().mean() > 0.99
    torch.testing.assert_close(rest[whole], noise[whole], atol=0.51 / 255, rtol=0)


def test_errors_are_correlated_by_their_distance():
    noise = torch.randn(2000, 1, 4, 9, generator=torch.Generator().manual_seed(0))
    smooth = noise[..., 1:] + 0.5 * noise[..., :-1]  # 0.5 / 1.25 beside each other, 0 further apart
    found = functions("04", "by_distance").by_distance(smooth, range(1, 4))
    assert found == pytest.approx([0.4, 0.0, 0.0], abs=0.02)


def test_fitted_codes_have_the_mean_and_covariance_of_the_codes():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.3, 1.0]])
    codes = torch.randn(20_000, 3, generator=generator) @ mixing.T + torch.tensor([1.0, -2.0, 0.5])
    known = functions("04", "fitted_gaussian", "drawn_codes", x_train=codes)
    eps, drawn = known.drawn_codes(
        *known.fitted_gaussian(SimpleNamespace(encode=lambda x: x)), 20_000, generator
    )
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -2.0, 0.5]), atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), mixing @ mixing.T, atol=0.15, rtol=0)
    torch.testing.assert_close(torch.cov(eps.T), torch.eye(3), atol=0.05, rtol=0)


def test_precision_and_recall_equal_those_from_scikit_learns_neighbours():
    generator = torch.Generator().manual_seed(0)
    images, real = 0.5 * torch.randn(60, 4, generator=generator), torch.randn(80, 4, generator=generator)

    def share_inside(points, others, k):
        radius = NearestNeighbors(n_neighbors=k + 1).fit(others).kneighbors(others)[0][:, -1]
        return np.mean([(np.linalg.norm(others - point, axis=1) <= radius).any() for point in points.numpy()])

    known = {"mean_face": torch.zeros(4), "components": torch.eye(4)}
    score = functions("04", "inside", "precision_recall", **known).precision_recall
    for k in (1, 3):
        oracle = share_inside(images, real.numpy(), k), share_inside(real, images.numpy(), k)
        assert score(images, real, k) == pytest.approx(oracle) and oracle[0] > oracle[1] + 0.1


def test_block_bootstrap_gives_unrelated_videos_even_p_values():
    bootstrap = functions("04", "correlations", "block_bootstrap").block_bootstrap
    generator = torch.Generator().manual_seed(0)
    eps = 3 * torch.randn(1965, 2, 12, generator=generator)
    slow = torch.zeros_like(eps)
    for t in range(1, len(eps)):
        slow[t] = 0.8 * slow[t - 1] + eps[t]
    loud = eps * torch.where(torch.rand(len(eps), 1, 1, generator=generator) < 0.5, 1.0, 5.0)
    for series in (slow, loud):  # neighbours alike, and columns that are loud together
        r, p = bootstrap(*series.unbind(1))
        oracle = np.corrcoef(series.flatten(1).T.numpy())[:12, 12:]
        assert r.numpy() == pytest.approx(oracle, abs=1e-5)
        assert p.mean().item() == pytest.approx(0.5, abs=0.06)


def test_holm_rejects_what_every_bonferroni_test_of_a_set_with_it_rejects():
    holm, generator = functions("04", "holm").holm, torch.Generator().manual_seed(0)
    for p in 0.05 * torch.rand(50, 5, generator=generator):  # the closure principle (Marcus et al., 1976)
        sets = [list(chosen) for size in range(1, 6) for chosen in combinations(range(5), size)]
        rejected = [p[chosen].min() <= 0.05 / len(chosen) for chosen in sets]
        assert holm(p).tolist() == [all(r for r, s in zip(rejected, sets) if i in s) for i in range(5)]


def test_slopes_of_a_linear_decoder_are_its_weights_over_the_spread():
    weights, sd = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 4.0]]), torch.tensor([2.0, 0.5])
    vae = SimpleNamespace(latent_dim=3, decode=lambda z: z @ weights + 5)
    known = {"sd": sd, "attributes": lambda x: {"one": x[:, 0], "two": x[:, 1]}}
    slope = functions("04", "slopes", **known).slopes(vae, torch.randn(6, 3), torch.arange(-2.0, 3.0))
    torch.testing.assert_close(slope, (weights / sd)[:, None].expand(3, 6, 2))


def test_the_scores_of_known_factors_tell_a_factor_with_two_units_from_one_with_one():
    names = ("in_bins", "mutual_information", "mig", "concentration", "scores_against")
    cells = functions("04", *names)
    generator = torch.Generator().manual_seed(0)
    v, noise = (torch.rand(2000, 3, generator=generator) for _ in range(2))
    twice = torch.cat([v[:, :1], v], dim=1) + 1e-4 * torch.randn(2000, 4, generator=generator)
    found = cells.scores_against(v[:1500], twice[:1500], v[1500:], twice[1500:])
    assert found["MIG"] == pytest.approx(2 / 3, abs=0.05)  # no lead for the factor with two units
    assert found["disentanglement"] > 0.85 > found["completeness"] > 0.5
    assert found["linear R²"] > 0.999
    wrong = cells.scores_against(v[:1500], twice[:1500], noise[1500:], twice[1500:])
    assert wrong["linear R²"] < 0.1  # it is measured on the new frames
    assert cells.in_bins(torch.tensor([[10.0], [-1.0], [3.0], [1000.0]]), 2).tolist() == [[1], [0], [0], [1]]
    one = cells.mig(v[:, :1], v[:, :1])
    assert one == pytest.approx(1, abs=0.02)  # a code of one unit has no second
