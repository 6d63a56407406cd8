from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from flowkit.errors import ConfigError
from flowkit_cinn.translation import sources
from flowkit_cinn.translation.color import join_rgb
from flowkit_cinn.translation.crops import ColorCrops, central_box, held_out_batch, random_box
from flowkit_cinn.translation.images import PhotographError
from flowkit_cinn.translation.sources import ArrayImage, DataError, make_source, open_source, split_by_name

from .source_helpers import colourful, png, same, write_shard

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for i in range(10):
        colourful(i).save(tmp_path / ("deep/er" if i % 2 else "deep") / f"{i}.png")
    return tmp_path


def names(images):
    return [image.name for image in images]


def test_folder_is_searched_and_split(folder):
    source = open_source(folder)
    assert len(source.train) == 9
    assert len(source.held_out) == 1
    assert not set(names(source.train)) & set(names(source.held_out))
    assert "deep/er/1.png" in names(source.train) + names(source.held_out)
    assert names(open_source(str(folder)).train) == names(source.train)


def test_unreadable_and_colourless_images_are_skipped_counted_and_named(folder):
    (folder / "letter.png").write_text("not an image")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image by its name, and not counted")
    Image.new("RGB", (32, 32), (80, 80, 80)).save(folder / "grey.png")
    Image.new("RGB", (5, 5), (80, 0, 0)).save(folder / "tiny.png")
    source = open_source(folder)
    reasons = {skip.name: skip.reason for skip in source.report.skipped}
    assert set(reasons) == {"letter.png", "empty.jpg", "grey.png", "tiny.png"}
    assert reasons["grey.png"] == "it has no colours"
    assert "is not an image" in reasons["letter.png"]
    assert (source.report.used, source.report.held_out) == (9, 1)
    assert "Skipped 4:" in source.report.summary()
    assert not set(reasons) & set(names(source.train) + names(source.held_out))


def test_train_and_val_subfolders_are_the_split(tmp_path):
    for part, count in (("train", 5), ("val", 2)):
        (tmp_path / part).mkdir()
        for i in range(count):
            colourful(i).save(tmp_path / part / f"{i}.png")
    source = open_source(tmp_path)
    assert names(source.held_out) == ["val/0.png", "val/1.png"]
    assert len(source.train) == 5


def test_split_depends_on_names_alone():
    images = [sources.NamedImage(f"{i}.png", Path(f"{i}.png")) for i in range(100)]
    train, held_out = split_by_name(images)
    again = split_by_name(images[::-1])
    assert len(held_out) == 5
    assert set(names(held_out)) == set(names(again[1]))
    assert set(names(train)) | set(names(held_out)) == set(names(images))


def test_shards_with_their_validation_shards(tmp_path):
    for shard in range(2):
        entries = [(f"class/{i}.png", png(colourful(10 * shard + i))) for i in range(3)]
        write_shard(tmp_path / f"train-0{shard}.tar", [*entries, ("class/readme.txt", b"text")])
    write_shard(tmp_path / "val-00.tar", [("v.png", png(colourful(99)))])
    source = open_source(str(tmp_path / "train-*.tar"))
    assert len(source.train) == 6
    assert len(set(names(source.train))) == 6  # equal names in two shards are told apart
    assert names(source.held_out) == ["v.png"]
    np.testing.assert_array_equal(np.asarray(source.train[4].read().image), np.asarray(colourful(11)))


def test_one_shard_is_split_by_name(tmp_path):
    write_shard(tmp_path / "photos.tar", [(f"{i}.png", png(colourful(i))) for i in range(6)])
    source = open_source(tmp_path / "photos.tar")
    assert (len(source.train), len(source.held_out)) == (5, 1)


def test_bad_shards_are_refused(tmp_path):
    (tmp_path / "text.tar").write_text("no tar " * 100)
    with pytest.raises(DataError, match="not an uncompressed tar"):
        open_source(tmp_path / "text.tar")
    write_shard(tmp_path / "none.tar", [("a.txt", b"text")])
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path / "none.tar")
    write_shard(tmp_path / "cut.tar", [(f"{i}.png", png(colourful(i, 300, 200))) for i in range(6)])
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: sources.index_shard(tmp_path / "cut.tar")[-1].span[0] + 100])
    with pytest.raises(DataError, match=r"cut short|damaged"):
        open_source(tmp_path / "cut.tar")


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_shard_that_ends_or_is_damaged_between_two_files_is_refused(tmp_path, damage):
    """Python's tarfile takes either for a whole tar with fewer files."""
    path = tmp_path / "photos.tar"
    write_shard(path, [(f"{i}.png", png(colourful(i))) for i in range(6)])
    header = sources.index_shard(path)[4].span[0] - 512
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[header:]
    else:
        content[header : header + 100] = b"?" * 100
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"photos\.tar' is damaged or cut short behind '3\.png'"):
        open_source(path)


def test_a_shard_that_is_cut_short_after_it_was_opened(tmp_path):
    write_shard(tmp_path / "photos.tar", [(f"{i}.png", png(colourful(i, 300, 200))) for i in range(6)])
    last = sources.index_shard(tmp_path / "photos.tar")[-1]
    content = (tmp_path / "photos.tar").read_bytes()
    (tmp_path / "photos.tar").write_bytes(content[: last.span[0] + last.span[1] // 2])
    with pytest.raises(PhotographError, match=r"the photograph '5\.png' is truncated or damaged"):
        last.read()


def test_nothing_and_too_few_are_refused(tmp_path):
    with pytest.raises(DataError, match="matches nothing"):
        open_source(str(tmp_path / "no-*.tar"))
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)
    for i in range(3):
        colourful(i).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").touch()
    with pytest.raises(
        DataError, match=r"too few photographs: 3 can be used, at least 4 .*skipped 1, the first 'bad.png'"
    ):
        open_source(tmp_path)


def test_bundled_regions_are_disjoint():
    source = open_source("bundled")
    assert names(source.train) == [
        *("astronaut", "chelsea", "coffee", "motorcycle", "rocket", "retina", "hubble"),
        *("china", "flower"),
    ]
    assert len(source.held_out) == 18
    for image in source.train:
        for other in source.held_out:
            assert other.path != image.path or other.region[0] >= image.region[2]
    for image in [*source.train, *source.held_out]:
        assert sources.why_unusable(image) is None


def test_no_pixel_of_the_held_out_strip_reaches_training(tmp_path, monkeypatch):
    """The strip is painted pure green in the file: no crop, reduced or not, may show any of it."""
    pixels = np.full((301, 997, 3), (255, 0, 0), np.uint8)
    pixels[:, round(0.7 * 997) :] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(sources, "bundled_photographs", lambda: [("a", tmp_path / "a.png")])
    source = open_source("bundled")
    crops = ColorCrops(source.train, photo_size=(16, 16), ab_size=(16, 16), length=64)
    rgb = torch.stack([join_rgb(crop["photo"], crop["ab"]) for crop in crops.__getitems__(range(64))])
    assert rgb[:, 1].max() < 1e-3
    batch, _ = held_out_batch(source.held_out, photo_size=(16, 16), ab_size=(16, 16))
    assert join_rgb(batch["photo"], batch["ab"])[:, 0].max() < 1e-3


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_torchvisions_data_sets_that_are_not_there(name, tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match=f"is not in '{tmp_path}'"):
        open_source(name, root=tmp_path)


def test_cifar10(monkeypatch, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")

    class Fake:
        def __init__(self, root, train, download):
            self.data = np.stack([np.asarray(colourful(i + 50 * train, 32, 32)) for i in range(8 if train else 3)])

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    source = open_source("cifar10", root=tmp_path)
    assert (len(source.train), len(source.held_out)) == (8, 3)
    assert ColorCrops(source.train, photo_size=(32, 32), ab_size=(32, 32))[0]["ab"].shape == (2, 32, 32)


def test_imagenet(monkeypatch, folder):
    datasets = pytest.importorskip("torchvision.datasets")

    class Fake:
        def __init__(self, root, split):
            odd = {"train": 1, "val": 0}[split]
            self.samples = [(str(p), 0) for p in sorted(folder.rglob("*.png")) if int(p.stem) % 2 == odd]

    monkeypatch.setattr(datasets, "ImageNet", Fake)
    source = open_source("imagenet", root=folder)
    assert (len(source.train), len(source.held_out)) == (5, 5)
    assert source.train[0].name == "train/er/1.png"


def arrays(count, width=40, height=30):
    return [ArrayImage(str(i), np.asarray(colourful(i, width, height))) for i in range(count)]


def test_crops_have_their_shapes_and_ranges():
    crops = ColorCrops(arrays(3), photo_size=(32, 48), ab_size=(8, 12), seed=1)
    item = crops[2]
    assert len(crops) == 3
    assert item["photo"].shape == (1, 32, 48)
    assert item["ab"].shape == (2, 8, 12)
    assert all(value.dtype == torch.float32 for value in item.values())
    assert item["photo"].min() > -2
    assert item["photo"].max() < 2.1
    with pytest.raises(IndexError):
        crops[3]


def test_a_crop_is_determined_by_seed_and_number():
    crops = ColorCrops(arrays(5), seed=3, length=50)
    batch = crops.__getitems__(range(50))
    fresh = ColorCrops(arrays(5), seed=3, length=50, cache_bytes=0)
    for index in (49, 0, 17, 17):
        assert same(batch[index], fresh[index])
    other = ColorCrops(arrays(5), seed=4, length=50)
    assert sum(same(batch[i], other[i]) for i in range(50)) == 0
    assert sum(same(batch[i], batch[j]) for i in range(50) for j in range(i)) == 0


def test_workers_and_resuming_change_nothing():
    crops = ColorCrops(arrays(5), seed=3, length=24)
    alone = list(DataLoader(crops, batch_size=4))
    with_workers = list(DataLoader(crops, batch_size=4, num_workers=2, multiprocessing_context="fork"))
    resumed = list(DataLoader(Subset(crops, range(12, 24)), batch_size=4))
    assert all(same(a, b) for a, b in zip(alone, with_workers, strict=True))
    assert all(same(a, b) for a, b in zip(alone[3:], resumed, strict=True))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    ColorCrops(arrays(3))[1]
    assert torch.equal(before, torch.get_rng_state())


def test_every_image_comes_once_an_epoch():
    images = [ArrayImage(str(i), np.full((20, 20, 3), 20 * i, np.uint8)) for i in range(10)]
    crops = ColorCrops(images, photo_size=(8, 8), ab_size=(8, 8), length=40)
    levels = [round(crop["photo"].mean().item(), 4) for crop in crops.__getitems__(range(40))]
    epochs = [levels[i : i + 10] for i in range(0, 40, 10)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_half_of_the_crops_are_flipped():
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[...] = np.arange(0, 256, 4, dtype=np.uint8)[None, :, None]
    crops = ColorCrops([ArrayImage("ramp", ramp)], photo_size=(8, 8), ab_size=(8, 8), length=400)
    rising = sum(bool(c["photo"][0, 0, -1] > c["photo"][0, 0, 0]) for c in crops.__getitems__(range(400)))
    assert 150 < rising < 250  # five standard deviations


def test_random_boxes_keep_area_and_aspect():
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        left, top, right, bottom = random_box((640, 480), 1.0, torch.rand(4, generator=generator).tolist())
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        assert 0.74 < (right - left) / (bottom - top) < 1.35
        assert (right - left) * (bottom - top) >= 0.19 * 640 * 480


def test_central_box_is_central():
    assert central_box((50, 20), 1.0) == (15, 0, 35, 20)
    assert central_box((20, 50), 2.0) == (0, 20, 20, 30)


def test_large_sources_are_checked_while_they_are_read(folder, monkeypatch):
    (folder / "letter.png").write_text("not an image")
    Image.new("RGB", (48, 48), (80, 80, 80)).save(folder / "grey.png")
    monkeypatch.setattr(sources, "SCAN_LIMIT", 5)
    source = open_source(folder)
    assert not source.report.checked
    assert source.report.skipped == []
    crops = ColorCrops(source.train, photo_size=(8, 8), ab_size=(8, 8), length=22, report=source.report)
    assert len(crops.__getitems__(range(22))) == 22
    assert {skip.name for skip in source.report.skipped} == {"letter.png", "grey.png"} & set(names(source.train))


def test_a_source_without_any_usable_image_is_given_up(tmp_path):
    gone = [sources.NamedImage("a.png", tmp_path / "a.png")]
    with pytest.raises(DataError, match="cannot be used"):
        ColorCrops(gone)[0]
    with pytest.raises(DataError, match="held-out"):
        held_out_batch(gone)


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="one aspect"):
        ColorCrops(arrays(2), photo_size=(64, 64), ab_size=(16, 32))
    with pytest.raises(ConfigError, match="one aspect"):
        held_out_batch(arrays(2), photo_size=(0, 0), ab_size=(0, 0))
    with pytest.raises(ConfigError, match="at least one image"):
        ColorCrops([])


def test_held_out_batch_is_the_centre_and_the_same_again():
    batch, found = held_out_batch(arrays(5), photo_size=(16, 16), ab_size=(8, 8), count=3)
    again, _ = held_out_batch(arrays(5), photo_size=(16, 16), ab_size=(8, 8), count=3)
    assert found == ["0", "1", "2"]
    assert same(batch, again)
    assert batch["photo"].shape == (3, 1, 16, 16)
    centre = colourful(0, 40, 30).crop((5, 0, 35, 30)).resize((16, 16), Image.Resampling.BILINEAR)
    exact, _ = held_out_batch([ArrayImage("c", np.asarray(centre))], photo_size=(16, 16), ab_size=(16, 16))
    torch.testing.assert_close(batch["photo"][:1], exact["photo"], atol=0.02, rtol=0)


def test_too_few_held_out_are_refused():
    with pytest.raises(DataError, match="too few"):
        make_source("x", arrays(5), [])


@pytest.mark.skipif(not (SHARED / "photos-256").is_dir(), reason="../shared/data is not there")
def test_shared_photographs():
    source = open_source(str(SHARED / "photos-256" / "train-*.tar"))
    assert len(source.train) + len(source.report.skipped) == 780 + 100 - len(source.held_out)
    assert not set(names(source.train)) & set(names(source.held_out))
    batch = next(iter(DataLoader(ColorCrops(source.train, photo_size=(64, 64), ab_size=(16, 16)), batch_size=16)))
    assert batch["ab"].shape == (16, 2, 16, 16)
    assert 0.2 < batch["ab"].std() < 3


@pytest.mark.skipif(not (SHARED / "day-night").is_dir(), reason="../shared/data is not there")
def test_shared_tar_without_a_split():
    index = sources.index_shard(SHARED / "day-night" / "day-night.tar")
    assert len(index) == 352
    train, held_out = split_by_name(index)
    assert len(held_out) == 18
    assert min(index[0].read().image.size) == 256
    assert len(train) == 334
