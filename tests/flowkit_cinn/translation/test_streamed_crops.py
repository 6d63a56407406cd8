"""Photographs that stream from tar shards, as training crops."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flowkit.errors import ConfigError
from flowkit.training import streamed_batches
from flowkit_cinn.translation import sources
from flowkit_cinn.translation.crops import ColorCrops, StreamedCrops
from flowkit_cinn.translation.sources import ArrayImage

from .source_helpers import colourful, png, same, write_shard

pytest.importorskip("webdataset")

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def streamed(folder, **options):
    run = SimpleNamespace(items_seen=0, position=None, positions=None)
    crops = StreamedCrops(photo_size=(32, 32), ab_size=(16, 16), seed=3)
    options = {"batch_size": 4, "steps": 4, "collate": crops.collate, **options}
    return list(streamed_batches(folder / "photos-*.tar", run, decode=crops, **options))


def test_streamed_crops(tmp_path):
    """The same crops by whatever workers; what cannot be used is replaced, and what is there is each used once."""
    for shard in range(2):
        entries = [(f"{shard}{i}.png", png(colourful(10 * shard + i, 300, 200))) for i in range(4)]
        write_shard(tmp_path / f"photos-{shard}.tar", [*entries, (f"{shard}.txt", b"text"), (f"{shard}x.jpg", b"bad")])
    grey = io.BytesIO()
    Image.new("RGB", (40, 40), (90, 90, 90)).save(grey, "PNG")
    write_shard(tmp_path / "photos-2.tar", [("grey.png", grey.getvalue()), ("g.png", png(colourful(9)))])
    batches = streamed(tmp_path, seed=1)
    assert {name: value.shape[1:] for name, value in batches[0].items()} == {"ab": (2, 16, 16), "photo": (1, 32, 32)}
    again = streamed(tmp_path, seed=1, workers=2)
    assert all(same(a, b) for a, b in zip(batches, again, strict=True))
    photos = torch.cat([batch["photo"] for batch in batches])
    assert len({tuple(photo.flatten()[:9].tolist()) for photo in photos}) == 16  # even one image is cut in other ways
    crops = ColorCrops(
        [ArrayImage("9", np.asarray(colourful(9)))], photo_size=(32, 32), ab_size=(16, 16), seed=3, length=9
    )
    decode = StreamedCrops(photo_size=(32, 32), ab_size=(16, 16), seed=3)
    batch = decode.collate([decode({"__key__": "g", "__url__": "u", "png": png(colourful(9))}, 8)])
    assert same({name: value[0] for name, value in batch.items()}, crops[8])
    assert decode({"__key__": "x", "__url__": "u", "png": grey.getvalue()}, 8) is None
    assert decode({"__key__": "x", "__url__": "u", "jpg": b"bad"}, 8) is None


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="one aspect"):
        StreamedCrops(photo_size=(64, 64), ab_size=(16, 32))


@pytest.mark.skipif(not (SHARED / "tiny-imagenet-64").is_dir(), reason="../shared/data is not there")
def test_shared_shards_stream():
    """Every sample of a shard, once a pass, as the index by offset has them."""
    path = SHARED / "tiny-imagenet-64" / "train-04.tar"
    index = [image.name for image in sources.index_shard(path)]
    run = SimpleNamespace(items_seen=0, position=None, positions=None)
    decode = lambda entries, number: f"{entries['__key__']}.jpg"  # noqa: E731
    read = streamed_batches(path, run, decode=decode, batch_size=6, steps=len(index) // 6, workers=2, shuffle=100)
    found = [name for batch in read for name in batch]
    assert len(index) % 6 == 0
    assert sorted(found) == sorted(index)
    assert found != index
