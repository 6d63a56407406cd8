"""A small conditional flow and its data."""

import io
import tarfile

import torch
from torch.utils.data import Dataset

import flowkit as fk


class Points(Dataset):
    """Items by index: a label, and a point that depends on it."""

    def __init__(self, items=64, bad=None):
        generator = torch.Generator().manual_seed(1)
        self.label = torch.eye(3)[torch.randint(3, (items,), generator=generator)]
        self.x = torch.randn(items, 4, generator=generator) + self.label @ torch.ones(3, 4).cumsum(0)
        if bad is not None:
            self.x[bad] = float("nan")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "label": self.label[index], "index": index}


def write_shard(path, names, sizes=(1,)):
    """A tar in which each name is a sample: its name as `.num`, and so many bytes as `.big`."""
    with tarfile.open(path, "w") as shard:
        for name in names:
            for kind, size in zip(("num", "big"), sizes, strict=False):
                entry = tarfile.TarInfo(f"{name}.{kind}")
                content = str(name).encode() if kind == "num" else b"x" * size
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    return str(path)


def number_shards(folder, sizes):
    """Shards of so many samples, numbered on through all of them."""
    first, found = 0, []
    for number, size in enumerate(sizes):
        found.append(write_shard(folder / f"s-{number:02}.tar", range(first, first + size)))
        first += size
    return found


def make_flow(seed=0, dropout=0.0, norm=False):
    torch.manual_seed(seed)
    graph = fk.Graph()
    label = graph.condition("label", (3,))
    if norm:
        label = graph.features(torch.nn.BatchNorm1d(3), label, name="norm")
    x = graph.input("x", (4,))
    for _ in range(3):
        x = graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=(8,), dropout=dropout))
        x = graph.add(fk.Permute, x)
    graph.output("z", x)
    return fk.Flow(graph)
