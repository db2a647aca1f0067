"""What tests start in processes of their own, to interrupt and to kill them."""

import itertools
import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from aeutils import training
from aeutils.course import cli

MODULES = [
    "aeutils.course.cli",
    "torch._dynamo",
    "safetensors.torch",
]  # seconds to import: once for all processes


@contextmanager
def started(target, *arguments):
    """A process of target(*arguments, tells), and what hears it; killed at the end if it still runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    hears, tells = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, tells))
    process.start()
    tells.close()
    try:
        yield process, hears
    finally:
        process.kill()
        process.join()
        hears.close()


def train(config, images, folder, tells):
    """Train in full precision, with a resume file after every epoch, telling before each is written."""
    torch.set_num_threads(1)
    torch.Tensor.half = torch.Tensor.float
    training.SAVE_SECONDS, save = 0, training.save_resume

    def tell_and_save(*arguments):
        tells.send_bytes(b".")
        save(*arguments)

    training.save_resume = tell_and_save
    training.load_or_train(config, images, images[:16], folders=[folder], progress=False)


def rewrite(path, tells):
    """Write one checkpoint after another into one path, telling after ten."""
    for n in itertools.count():
        training.write_checkpoint(path, {"n": torch.full((1000,), n % 10)}, {"n": str(n % 10)})
        if n == 10:
            tells.send_bytes(b".")


def command(arguments, log, most_bytes, tells):
    """The command line, what it says in the file `log`; a file of more than `most_bytes` bytes cannot be written."""
    import resource

    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes or resource.RLIM_INFINITY,) * 2)
    tells.send_bytes(b".")
    status = cli.command_line(arguments)
    sys.stdout.flush()
    sys.exit(status)


def command_on_two_cores(*arguments):
    """The same where two models can be trained at once, whatever the tests leave to each process."""
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(2)
    command(*arguments)


def said(log):
    return Path(log).read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
