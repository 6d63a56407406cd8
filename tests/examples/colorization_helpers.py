"""Small photographs, and the command run in this process or in another."""

import signal
import subprocess
import sys

import numpy as np
from PIL import Image

from flowkit.cli import app


def photograph(path, size=(90, 70), seed=0):
    """Soft colours with an edge: something that a photograph might be."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def photographs(folder, count=5):
    folder.mkdir()
    for i in range(count):
        photograph(folder / f"photo {i}.png", seed=i)
    return folder


def colorization(*words):
    """The exit code of `flowkit examples colorization ...`."""
    return app.run(["examples", "colorization", *map(str, words)])


def started(*words, cwd):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from flowkit.cli import main; main()", "examples", "colorization", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(process, when):
    """What a command said on standard output that gets Ctrl-C at the first line of progress that begins with `when`."""
    for line in process.stderr:
        if line.startswith(when):
            break
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return said
