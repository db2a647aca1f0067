"""The README's results and pictures, written from the reference run so that no figure there is typed."""

import json
import shutil

from aeutils.course.results import load_reference
from aeutils.data import DATA, write_atomically

README = DATA.parent / "README.md"
PICTURES = DATA.parent / "notebooks" / "pictures"
SPEED = DATA.parent / "SPEED.md"
BENCH = DATA / "bench.json"
TARGET = 0.005  # test MSE that the choices of the recipe race to
CHOSEN = {"01": "1.18", "02": "2.1", "03": "3.8", "04": "4.15"}  # the figure that stands for each notebook

MODELS = ("ae", "sae", "cae", "dae")
CODES = {  # row: (metric of notebooks 01 to 03, decimals)
    "test MSE": ("01.{}.test_mse", 5),
    "share of active units": ("01.{}.active_share", 3),
    "squared Jacobian norm over code variance": ("01.{}.jacobian_over_variance", 2),
    "within- over between-class scatter": ("02.{}.scatter_ratio", 3),
    "5-NN accuracy": ("02.{}.knn5", 4),
    "PSNR of the two blends, dB": ("02.{}.psnr_db", 1),
    "relative latent L2 of the two blends": ("02.{}.relative_l2", 3),
    "logistic regression, clean": ("03.{}.logreg_accuracy", 4),
    "SVM, clean": ("03.{}.svm_accuracy", 4),
    "SVM, clean, all 60,000 labels (first seed)": ("03.{}.svm_accuracy.n_60000", 4),
    "SVM, noise of standard deviation 0.3": ("03.{}.svm_accuracy.gaussian_0.3", 3),
}
FACE = {
    "−ELBO, bits/dim": ("04.vae.neg_elbo_bits", 3),
    "importance-weighted bound, bits/dim": ("04.vae.iwae_bits", 3),
    "reconstruction PSNR, dB": ("04.vae.psnr_db", 1),
    "active units of 20": ("04.vae.active_units", 0),
    "precision of samples from the prior": ("04.vae.precision", 2),
    "the same of training frames, the yardstick": ("04.ceiling.precision", 2),
    "recall of samples from the prior": ("04.vae.recall", 2),
    "the same of training frames": ("04.ceiling.recall", 2),
}


def figure(entry, decimals):
    """ "mean [low, high]", or a dash where the reference run has no such metric."""
    if entry is None:
        return "–"
    interval = entry["ci95"]
    ends = f" [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]" if interval else ""
    return f"{entry['value']:.{decimals}f}{ends}"


def measured(found):
    """(effect, interval, number of seeds) of a verdict, in text."""
    effect = "–" if found["effect"] is None else f"{found['effect']:.3g}"
    return effect, "[{:.3g}, {:.3g}]".format(*found["ci95"]) if found["ci95"] else "–", str(found["n"])


def results_tables(reference):
    """The Markdown between the README's markers."""
    metrics, lines = reference["metrics"], []
    lines += [f"| digits | {' | '.join(model.upper() for model in MODELS)} |", "| --- " * 5 + "|"]
    for row, (key, decimals) in CODES.items():
        cells = (figure(metrics.get(key.format(model)), decimals) for model in MODELS)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "| faces, random split | VAE, 20 units |", "| --- | --- |"]
    lines += [f"| {row} | {figure(metrics.get(key), decimals)} |" for row, (key, decimals) in FACE.items()]
    for kind in ("random", "blocks"):
        usual = {name: reference["parameters"]["04"][name] for name in ("beta", "reach")} | {"split": kind}
        found = [row for row in reference["face_studies"] if usual.items() <= row.items()]
        if not found:
            continue
        seeds = ", ".join(str(row["split_seed"]) for row in found)
        for bound, key in (
            ("−ELBO", "neg_elbo_bits"),
            (f"IWAE, K = {found[0]['iwae_samples']},", "iwae_bits"),
        ):
            values = [row["metrics"][f"vae.{key}"] for row in found]
            each = ", ".join(f"{value:.3f}" for value in values)
            mean = sum(values) / len(values)
            lines.append(
                f"| {bound} under {kind.removesuffix('s')} splits {seeds}, first training seed | {mean:.3f} ({each}) |"
            )
    lines += ["", "| claim of the course | contrast | effect | 95 % interval | seeds | verdict |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name, found in sorted(reference["verdicts"].items()):
        row = (f"{name}: {found['claim']}", found["contrast"], *measured(found))
        lines.append(f"| {' | '.join(row)} | **{found['verdict']}** |")
    fixed = (
        "Intervals are over training seeds, on one set of test images; notebook 03 adds those over images."
    )
    lines += ["", fixed]
    return "\n".join(lines)


def between(text, name, content):
    """`text` with what stands between the markers `name` replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(start)
    return f"{head}{start}\n{content}\n{end}{rest.split(end)[1]}"


def pictures(folder):
    """Copy the chosen figures of a run folder beside the notebooks; return the Markdown that shows them."""
    PICTURES.mkdir(exist_ok=True)
    lines = []
    for notebook, number in CHOSEN.items():
        shutil.copyfile(folder / "figures" / f"figure_{number}.png", PICTURES / f"notebook_{notebook}.png")
        lines.append(
            f"![Figure {number} of notebook {notebook}](notebooks/pictures/notebook_{notebook}.png)\n"
        )
    return "\n".join(lines)


def write_readme(folder):
    """Rewrite the README's results from data/reference.json and its pictures from the run folder's figures."""
    text = between(README.read_text(encoding="utf-8"), "results", results_tables(load_reference()))
    write_atomically(README, between(text, "pictures", pictures(folder)).encode())


def speed_tables(found):
    """The Markdown between the markers of SPEED.md, from what is in data/bench.json."""
    median = {name: row["median"] for name, row in found["speeds"].items()}
    lines = ["| images a second | |", "| --- | --- |"]
    lines += [f"| {name} | {value:,.0f} |" for name, value in median.items() if "product" not in name]
    lines += ["", "| ratio | |", "| --- | --- |"]
    lines += [f"| {name} | {value:.2f} |" for name, value in found["ratios"].items()]
    lines += [
        "",
        "| epochs of an AE | seconds | test MSE | SVM accuracy |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {quality(row)} | {row['svm_accuracy']:.4f} |" for row in found["time_to"]]
    lines += ["", "| one choice changed | epochs | seconds | test MSE |", "| --- | --- | --- | --- |"]
    for name, rows in found["ablation"].items():
        lines.append(f"| {name} | {quality(rows[-1]) if rows else '– | it fails | –'} |")
    sooner = sooner_than_shipped(found["ablation"], TARGET)
    lines += [
        "",
        f"In fewer epochs and seconds than as shipped: {', '.join(sooner) or 'none'}. One training a line, on a "
        "machine that others use: a few seconds more or less say nothing.",
        "",
        "| choices of the VAE of faces changed | epochs | seconds | −ELBO of validation frames, bits/dim |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {row['epochs']} | {row['seconds']:.0f} | {row['bits']:.3f} |"
            for name, row in found.get("faces", {}).items()
        ),
        "",
        "| probes an image | share of the batches | seconds | test MSE | squared Jacobian norm over variance |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["penalty"]:
        measured = (f"{row['seconds']:.0f}", f"{row['test_mse']:.5f}", f"{row['jacobian_over_variance']:.2f}")
        lines.append(f"| {row['probes']} | {row['share']:g} | {' | '.join(measured)} |")
    lines += ["", "| 10,000 codes | seconds | accuracy |", "| --- | --- | --- |"]
    for name, row in found["libraries"].items():
        lines.append(f"| {name} | {row['seconds']:.1f} | {row['accuracy']:.4f} |")
    lines += ["", "| what grows | from, to | seconds | GB at most | exponent of time |", "| --- " * 5 + "|"]
    for what, grown in found["growth"].items():
        ends = (
            f"{grown['sizes'][0]:,}, {grown['sizes'][-1]:,}",
            f"{grown['seconds'][0]:.1f}, {grown['seconds'][-1]:.1f}",
            f"{grown['memory'][0]:.2f}, {grown['memory'][-1]:.2f}",
        )
        lines.append(f"| {what} | {' | '.join(ends)} | {grown['exponent']:.2f} |")
    return "\n".join(lines)


def sooner_than_shipped(ablation, target):
    """The choices whose training reaches the error in fewer epochs and seconds than that of the recipe as shipped."""
    reached = {name: rows[-1] for name, rows in ablation.items() if rows and rows[-1]["test_mse"] <= target}
    usual = reached.get("as shipped", {"epochs": 0, "seconds": 0})
    return [
        name for name, row in reached.items() if all(row[key] < usual[key] for key in ("epochs", "seconds"))
    ]


def quality(row):
    return f"{row['epochs']} | {row['seconds']:.0f} | {row['test_mse']:.5f}"


def write_speed():
    """Rewrite the tables of SPEED.md from data/bench.json."""
    found = json.loads(BENCH.read_text(encoding="utf-8"))
    text = between(SPEED.read_text(encoding="utf-8"), "speed", speed_tables(found))
    write_atomically(SPEED, text.encode())
