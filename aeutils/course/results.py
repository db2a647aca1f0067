"""The figures of a notebook: collected, shown beside the reference run's, checked against them, published."""

import hashlib
import json
import math
from numbers import Real
from pathlib import Path

import numpy as np

from aeutils.data import DATA, write_atomically
from aeutils.metrics import t_interval, verdict

MIME = "application/vnd.aeutils.results+json"
REFERENCE = DATA / "reference.json"
FREE = (
    "profile",
    "seed",
    "n_seeds",
    "n_face_seeds",
    "device",
    "checkpoints",
    "faces",
    "n_svm_more",
)  # no figure is defined by these; one of n_svm_more has it in its name


class Results:
    """The metrics and verdicts of notebook `number` (1 to 4) over the training `seeds`.

    `faces` is "frey" or "synthetic". `parameters` ({name: value}) are those the figures depend on: where they are
    not the reference run's, nothing is compared with it.
    """

    def __init__(self, number, profile, seeds, faces="frey", parameters=None):
        self.number, self.profile, self.seeds, self.faces = f"{int(number):02d}", profile, list(seeds), faces
        self.parameters, self.metrics, self.verdicts, self.labels = dict(parameters or {}), {}, {}, {}

    def add(self, name, values, unit=""):
        """Record a metric, "cae.psnr_db.alpha_0.4": one number, or one a seed, which gives a mean and an interval.

        ValueError: not a number, not finite, or neither one nor one a seed.
        """
        per_seed = plain(values)
        if isinstance(per_seed, Real):
            entry = {"value": per_seed, "per_seed": [], "ci95": None}
        elif len(per_seed) == len(self.seeds):
            interval = t_interval(per_seed)[1:] if len(per_seed) > 1 else None
            entry = {"value": math.fsum(per_seed) / len(per_seed), "per_seed": per_seed}
            entry["ci95"] = interval and [float(end) for end in interval]
        else:
            raise ValueError(
                f"{name} has {len(per_seed)} values; it must have one, or one for each of {self.seeds}."
            )
        if not all(math.isfinite(v) for v in (entry["value"], *entry["per_seed"])):
            raise ValueError(f"{name} is {values}; a metric must be finite.")
        self.metrics[f"{self.number}.{name}"] = entry | {"unit": unit}

    def verdict(self, name, claim, contrast, differences, greater=True, threshold=0.0):
        """Record the verdict on a claim, "E3", from one paired difference a seed; a quick run claims none.

        ValueError: a difference is not finite.
        """
        if not all(map(math.isfinite, plain(differences))):
            raise ValueError(f"the differences of {name} are {plain(differences)}; each must be finite.")
        found = verdict(plain(differences), greater=greater, threshold=threshold)
        if self.profile == "quick":
            found["verdict"] = "not enough seeds"
        if not all(map(math.isfinite, found["ci95"])):
            found["ci95"] = None
        self.verdicts[name] = {"claim": claim, "contrast": contrast} | found

    def table(self, prefix=""):
        """Display the metrics whose names begin with `prefix` beside the reference run's, as a table."""
        reference = load_reference()
        rows = [
            (f"`{key[3:]}`", figures(entry), figures(reference["metrics"].get(key)), entry["unit"])
            for key, entry in self.metrics.items()
            if key[3:].startswith(prefix)
        ]
        show_table(("metric", "this run", "reference run", "unit"), rows)

    def verdicts_table(self):
        """Display this run's verdicts beside the reference run's, as a table."""
        recorded, rows = load_reference()["verdicts"], []
        for name, found in self.verdicts.items():
            there = recorded.get(name)
            rows.append((name, found["claim"], found["contrast"], in_words(found), in_words(there)))
        show_table(("", "claim", "contrast", "this run", "reference run"), rows)

    def publish(self):
        """Display what the course runner collects; a reader sees one line."""
        from IPython.display import display

        keys = ("number", "profile", "seeds", "faces", "parameters", "metrics", "verdicts", "labels")
        line = f"{len(self.metrics)} metrics, {len(self.verdicts)} verdicts"
        display({MIME: {key: getattr(self, key) for key in keys}, "text/plain": line}, raw=True)

    def check(self):
        """Print a line a metric, and raise AssertionError if one is off in the reference profile.

        A line reads `ok`, `off`, or `skipped` with the reason.
        """
        reference, off = load_reference(), []
        names = [key for key in reference["metrics"] if key.startswith(self.number)]
        for key in sorted({*names, *self.metrics}):
            row = compare(key, self.metrics.get(key), reference, self)
            print(key, row["status"])
            if row["status"] == "off":
                value, there, tolerance = (f"{row[k]:.6g}" for k in ("value", "reference", "tolerance"))
                off.append(f"{key} is {value}, the reference {there}, the tolerance {tolerance}")
        if off and self.profile == "reference":
            raise AssertionError("out of tolerance: " + "; ".join(off) + ".")


def compare(key, entry, reference, run):
    """{"value", "reference", "tolerance", "status"} of one metric; status is ok, off or skipped (why).

    `run` has number, profile, seeds, faces and parameters. Where its seeds are some of the reference run's, the
    reference is the mean over these seeds. Figures of one seed are compared with those of the same seed alone. In the
    reference profile, figures from the shipped weights have the narrower tolerance, "reloaded".
    """
    there = reference["metrics"].get(key)
    row = {"value": entry and entry["value"], "reference": there and there["value"], "tolerance": None}
    if there is None:
        return row | {"status": "skipped (no reference)"}
    seeds = reference["seeds"]
    known = all(seed in seeds for seed in run.seeds)
    reloaded = known and run.profile == "reference" and not run.parameters.get("checkpoints")
    row["tolerance"] = there["reloaded" if reloaded else "tolerance"]
    if row["tolerance"] is None:
        return row | {"status": "skipped (no tolerance)"}
    if there["per_seed"] and known:
        same = dict(zip(seeds, there["per_seed"]))
        row["reference"] = math.fsum(same[seed] for seed in run.seeds) / len(run.seeds)
    if entry is None:
        return row | {"status": "skipped (not computed)"}
    if run.number == "04" and run.faces != reference["faces"]:
        return row | {"status": f"skipped (the faces are {run.faces}, not {reference['faces']})"}
    if run.profile == "quick":
        return row | {"status": "skipped (quick profile)"}
    if not there["per_seed"] and run.seeds[0] != seeds[0]:
        return row | {"status": f"skipped (recorded for seed {seeds[0]} alone)"}
    changed = changed_parameters(run.parameters, reference["parameters"].get(run.number, {}))
    if changed:
        return row | {"status": f"skipped ({changed})"}
    return row | {"status": "ok" if abs(row["value"] - row["reference"]) <= row["tolerance"] else "off"}


def changed_parameters(parameters, recorded):
    """Why figures under these parameters cannot be compared with the recorded ones; "" if they can."""
    names = [n for n in parameters if n not in FREE and n in recorded and parameters[n] != recorded[n]]
    return ", ".join(f"{n} is {parameters[n]}, not {recorded[n]}" for n in names)


UNKNOWN = {"metrics": {}, "verdicts": {}, "seeds": [], "faces": "frey", "parameters": {}}


def load_reference():
    """data/reference.json, verified against data/SHA256SUMS; without it, one that knows no metric."""
    if not REFERENCE.exists():
        return dict(UNKNOWN)
    content, sums = REFERENCE.read_bytes(), REFERENCE.with_name("SHA256SUMS")
    lines = sums.read_text(errors="replace").splitlines() if sums.exists() else []
    if f"{hashlib.sha256(content).hexdigest()}  {REFERENCE.name}" not in lines:
        raise ValueError(
            f"{REFERENCE} is not the file that {sums.name} lists; restore both, or run `make reference`."
        )
    return json.loads(content)


def recorded_path(key):
    """{model: [(lam, error over tau, row[key])], the smallest lam first} of the reference run's path; {} without it."""
    models = {"none": "ae", "l1": "sae", "contractive": "cae", "denoising": "dae"}
    path = {name: [] for name in models.values()}
    for row in sorted(load_reference().get("lambda_path") or [], key=lambda row: row["lam"]):
        if key in row:
            path[models[row["penalty"]]].append((row["lam"], row["of_tau"], row[key]))
    return path if all(path.values()) else {}


def at_equal_error(ours, theirs):
    """[(lam, lead)] of one recorded path over another, at those of our points whose error the other path spans.

    The other path is interpolated linearly in the error, its points sorted by it; [] if it has none.
    """
    if not theirs:
        return []
    known = sorted((error, value) for _, error, value in theirs)
    errors, values = zip(*known)
    return [
        (lam, float(value - np.interp(error, errors, values)))
        for lam, error, value in ours
        if errors[0] <= error <= errors[-1]
    ]


def exercise(number, mine, holds):
    """Say whether a reader's function `mine` has the property: holds(mine) is true, and raises nothing."""
    word = "not tried yet"
    if mine is not None:
        try:
            word = "right" if holds(mine) else "not yet"
        except AssertionError:
            word = "not yet"
        except Exception as error:  # whatever a reader's function runs into
            word = f"not yet ({type(error).__name__}: {error})".replace("\n", " ")
    print(f"exercise {number}: {word}")


def plain(values):
    """A number, or a list, array or tensor of numbers, as Python numbers; ValueError if it is anything else."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, bool) or not isinstance(values, Real):
        raise ValueError(f"{values!r} is no number.")
    return values if isinstance(values, int) else float(values)


def figures(entry):
    """An entry's value with its interval, in text."""
    if entry is None:
        return "—"
    ends = entry["ci95"] and " to ".join(f"{end:.4g}" for end in entry["ci95"])
    return f"{entry['value']:.4g}" + (f" ({ends})" if ends else "")


def in_words(found):
    """A verdict with its effect and interval, in text."""
    if not found:
        return "—"
    effect = "" if found["effect"] is None else f"{found['effect']:+.3g}"
    ends = f" ({found['ci95'][0]:+.3g} to {found['ci95'][1]:+.3g})" if found["ci95"] else ""
    return f"{found['verdict']}: {effect}{ends}, n = {found['n']}"


def show_table(head, rows):
    from IPython.display import Markdown, display

    lines = [head, ["---"] * len(head), *rows]
    cells = [" | ".join(str(cell).replace("|", r"\|") for cell in line) for line in lines]
    display(Markdown("\n".join(f"| {line} |" for line in cells)))


def write_json(path, value):
    """Write JSON atomically; NaN and infinity are refused."""
    path, text = Path(path), json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
