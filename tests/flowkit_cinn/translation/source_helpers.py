"""Small photographs, and shards of them."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image


def colourful(seed, width=48, height=40):
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_shard(path, entries):
    with tarfile.open(path, "w") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in ("ab", "photo"))
