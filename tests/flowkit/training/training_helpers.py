"""A small conditional flow and its data."""

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
