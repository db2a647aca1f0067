"""The command line: run, data, report, explorer, bench, reference. Exit 1: a run failed; 2: bad input, figures off."""

import os
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pooch

from aeutils.course import report as reporting
from aeutils.course import runner
from aeutils.course.runner import RunFailed
from aeutils.training import TrainingFailed


def command_line(arguments=None):
    """Run the command line and return its exit status; an error is one sentence."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    kept = given[:1] in (["run"], ["reference"])
    again = "goes on, with what is trained so far" if kept else "starts anew"
    try:
        return cli.main(given, prog_name="python -m aeutils", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.UsageError as error:
        help_of = error.ctx.command_path if error.ctx else "python -m aeutils"
        print(f"Error: {error.format_message()} See what is allowed: {help_of} --help.", file=sys.stderr)
        return 2
    except click.ClickException as error:
        print(f"Error: {error.format_message()}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except (RunFailed, TrainingFailed) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Error: {in_a_sentence(error, again)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, click.Abort):
        same = shlex.join(["python", "-m", "aeutils", *given])
        print(f"\nInterrupted. The same command {again}: {same}", file=sys.stderr)
        return 130


def in_a_sentence(error, again):
    """What an OSError says, and what to do about it."""
    if error.errno is None:
        return str(error)
    return (
        f"{error.filename or 'a file'} cannot be used ({error.strerror}); put that right, or name another folder, "
        f"and the same command {again}."
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli():
    """The course on autoencoders: run its notebooks, fetch its data, show a run's report."""


@cli.command()
@click.option(
    "--profile",
    type=click.Choice(["quick", "full"]),
    default="full",
    help="quick: small subsets, minutes. full (default): everything trained anew.",
)
@click.option("--output", metavar="DIR", help="The run folder; runs/PROFILE if not given.")
@click.option("--reuse", is_flag=True, help="Take the shipped weights instead of training anew.")
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a notebook parameter; may be repeated.",
)
@click.option("--notebooks", metavar="DIR", default=str(runner.NOTEBOOKS), help="Run those in DIR instead.")
@click.option(
    "--keep-going", is_flag=True, help="Run on after a cell that fails; the exit status is 1 all the same."
)
@click.option(
    "--timeout",
    type=click.IntRange(1),
    metavar="SECONDS",
    help="Give up a notebook whose cell takes longer; no limit if not given.",
)
def run(profile, output, reuse, parameters, notebooks, keep_going, timeout):
    """Run the four notebooks and write a report, with what the exercises' checks said in exercises.csv.

    Weights are trained into DIR/checkpoints. The same command again takes up the weights that are there, and a
    training where it was interrupted.
    """
    output = Path("runs") / profile if output is None else output
    plan = runner.plan(notebooks, profile, dict(parameters), output, reuse)
    if any(plan.weights[-1].glob("*")) and not reuse:
        click.echo(
            f"Weights found in {plan.weights[-1]} are taken up where their configuration and images match."
        )
    metrics = runner.execute(plan, keep_going=keep_going, timeout=timeout)
    rows, off = reporting.comparison(metrics)
    click.echo(reporting.as_text(rows))
    click.echo(f"Report: {plan.folder / 'index.html'}")
    if off and profile != "quick":
        click.echo(f"Error: {len(off)} figures are out of tolerance: {', '.join(off)}.", err=True)
        return 2
    return 0


@cli.command()
def data():
    """Fetch, verify and list the data sets, and verify the shipped files."""
    from aeutils import data as sets

    mnist = sets.load_mnist()
    click.echo(
        f"MNIST: {len(mnist.train_images)} training and {len(mnist.test_images)} test images, verified."
    )
    status = 0
    try:
        click.echo(f"Frey Face: {len(sets.load_frey_faces(source='frey').images)} frames, verified.")
    except FileNotFoundError as error:
        click.echo(f"{error}\nUntil then notebook 04 shows drawn stand-in faces.", err=True)
        status = 1
    names = [*(f"MNIST/raw/{name}" for name in sets.MNIST_FILES), *sets.FREY_FILES]
    folders = filter(None, [sets.DATA, os.environ.get("AEUTILS_DATA"), pooch.os_cache("aeutils")])
    for path in (Path(folder) / name for folder in folders for name in names):
        if path.is_file():
            click.echo(f"  {path}  {path.stat().st_size:,} bytes")
    bad = reporting.damaged_files(sets.DATA)
    for name in bad:
        click.echo(f"Error: data/{name} is missing or not the file that data/SHA256SUMS lists.", err=True)
    return 1 if bad else status


@cli.command()
@click.argument("folder", metavar="DIR")
def report(folder):
    """Write the HTML, figures and index.html of the run folder DIR anew, without running anything."""
    if not (Path(folder) / "metrics.json").is_file():
        raise click.ClickException(
            f"{folder!r} holds no metrics.json; name the folder of a run that finished."
        )
    try:
        click.echo(f"Report: {reporting.write(Path(folder))}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise click.ClickException(
            f"{folder} is not as a run left it ({type(error).__name__}: {error}); run into it again."
        ) from None


@cli.command()
@click.option(
    "--output", metavar="FILE", default="explorer.html", help="Where to; explorer.html if not given."
)
def explorer(output):
    """Write a page on which three of the trained networks run, and can be moved by sliders."""
    if Path(output).is_dir() or not Path(output).absolute().parent.is_dir():
        raise click.ClickException(
            f"--output is {output!r}, which is a folder or lies in none; name a file in a folder that is there."
        )
    from aeutils.course import explorer as make

    click.echo(f"Explorer: {make.write(Path(output))}")


@cli.command()
@click.option("--output", metavar="DIR", default="runs/bench", help="Where to; runs/bench if not given.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, help="Rounds of measurement (5).")
@click.option(
    "--studies", is_flag=True, help="Also what each choice of the recipe is worth, and growth: an hour."
)
@click.option("--record", is_flag=True, help="The studies as well, kept in data/bench.json and SPEED.md.")
def bench(output, rounds, studies, record):
    """Measure training and encoding speed on this machine's processor against the usual ways."""
    from aeutils.course import bench as make

    runner.check_folder(output)
    folder = make.write(output, rounds, studies or record)
    if record:
        make.record(folder)
    click.echo(f"Table, picture and figures: {folder}")


@cli.command()
@click.option("--notebooks", "only_notebooks", is_flag=True, help="Only re-execute the notebooks in place.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="A Dask scheduler, tcp://host:port, whose workers train; pip install distributed.",
)
@click.option(
    "--seeds", metavar="LIST", help="A study of its own: these training seeds, such as 0-19 or 0,3,7."
)
@click.option("--lam", "lams", metavar="LIST", help="The strengths of its penalties, such as 0.01,0.03,0.1.")
@click.option("--output", metavar="DIR", help="Where the study goes; runs/study if not given.")
def reference(only_notebooks, scheduler, seeds, lams, output):
    """Train the reference weights, record the reference figures, and re-execute the notebooks from them.

    Takes hours; a training that is there is skipped, so that the same command goes on after an interruption. With
    --seeds and --lam it trains SAE and CAE for each of them instead, and writes study.json.
    """
    from aeutils.course import reference as make

    if scheduler is not None:
        check_scheduler(scheduler)
    if seeds is not None or lams is not None or output is not None:
        if seeds is None or lams is None or only_notebooks:
            raise ValueError(
                f"--seeds is {seeds!r} and --lam is {lams!r}; a study, and its --output, must be given both and no "
                "--notebooks, such as --seeds 0-4 --lam 0.01,0.03."
            )
        folder = runner.check_folder(Path("runs") / "study" if output is None else output)
        make.study(whole_numbers(seeds), strengths(lams), folder, scheduler)
        click.echo(f"Study: {folder / 'study.json'}")
        return
    if not only_notebooks:
        make.train(make.reference_tasks(), make.SHIPPED, scheduler)
        make.record()
    make.reexecute()


def check_scheduler(address):
    """ValueError where no Dask scheduler can be at the address, or Dask is missing."""
    if not find_spec("distributed"):
        raise ValueError(f"--scheduler is {address!r}, and Dask is not installed; pip install distributed.")
    if not re.fullmatch(r"tcp://[\w.\-\[\]:]+:\d+", address):
        raise ValueError(f"--scheduler is {address!r}; it must be an address such as tcp://127.0.0.1:8786.")


def whole_numbers(text):
    """[0, 1, 2, 7] of "0-2,7"."""
    found = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        first, last = (int(end or ends[1]) for end in ends.groups()) if ends else (1, 0)
        if last < first or last - first > 9999:
            raise ValueError(
                f"--seeds is {text!r}; it must be whole numbers and ranges of at most 10,000, such as 0-19 or 0,3,7."
            )
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def strengths(text):
    """[0.01, 0.1] of "0.01,0.1"."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= lam <= 1000 for lam in found):
        raise ValueError(f"--lam is {text!r}; it must be numbers from 0 to 1000, such as 0.01,0.03,0.1.")
    return list(dict.fromkeys(found))
