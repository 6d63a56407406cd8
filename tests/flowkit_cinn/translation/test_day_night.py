"""Day and night: which photographs are pairs, how they are drawn, and that what is wrong is named."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowkit as fk
from flowkit_cinn.translation.day_night import (
    Camera,
    DayNightPairs,
    held_out_pairs,
    night_to_rgb,
    open_cameras,
)
from flowkit_cinn.translation.sources import ArrayImage, DataError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "day-night"


def ramp(value, size=(40, 60)):
    """An image whose red tells the place, and whose blue tells the image."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([rows + columns, np.zeros_like(rows), np.full_like(rows, value)], -1).astype(np.uint8)


def camera(name, days, nights, size=(40, 60)):
    return Camera(
        name,
        [ArrayImage(f"{name}/day/{v}", ramp(v, size)) for v in days],
        [ArrayImage(f"{name}/night/{v}", ramp(v, size)) for v in nights],
    )


@pytest.fixture
def folder(tmp_path):
    """Two cameras for training, one in a tar, and one held out."""
    lines = ["file,camera,period,split"]
    with tarfile.open(tmp_path / "one.tar", "w") as shard:
        _fill(tmp_path, shard, lines)
    (tmp_path / "cameras.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def _fill(folder, shard, lines):
    for name, split in (("a", "train"), ("b", "train"), ("c", "test")):
        for number, period in enumerate(("day", "night", "night")):
            file = f"{name}/{period}{number}.png"
            lines.append(f"{file},{name},{period},{split}")
            buffer = io.BytesIO()
            Image.fromarray(ramp(10 * number)).save(buffer, "PNG")
            if name == "a":
                entry = tarfile.TarInfo(file)
                entry.size = len(buffer.getvalue())
                shard.addfile(entry, io.BytesIO(buffer.getvalue()))
            else:
                (folder / name).mkdir(exist_ok=True)
                (folder / file).write_bytes(buffer.getvalue())


def test_a_listed_folder_in_tars_and_beside_them(folder):
    cameras = open_cameras(folder)
    assert [c.name for c in cameras.train] == ["a", "b"]
    assert [c.name for c in cameras.test] == ["c"]
    assert [c.pairs for c in cameras.train] == [2, 2]
    assert "2 cameras for training (6 photographs, 4 pairs) and 1 cameras held out" in cameras.summary()
    assert cameras.train[0].night[0].read().image.getpixel((0, 0)) == (0, 0, 10)


def test_cameras_without_a_night_are_left_out_and_named(folder):
    table = folder / "cameras.csv"
    kept = [line for line in table.read_text().splitlines() if not line.startswith("b/night")]
    table.write_text("\n".join(kept))
    assert open_cameras(folder).left_out == ("b",)
    assert "for want of a day or a night: b" in open_cameras(folder).summary()
    table.write_text("\n".join(line for line in kept if not line.startswith("c/night")))
    with pytest.raises(DataError, match=r"no camera with a day and a night for the split 'test'; without .* are b, c"):
        open_cameras(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("period", "time"), "needs the columns .* and lacks period"),
        (lambda t: t.replace("a,night,train", "a,dusk,train"), "line 3 .* the period 'dusk' and the split 'train'"),
        (lambda t: t.replace("b/night1.png", "b/gone.png"), "line 6 .* names 'b/gone.png', which is neither"),
        (lambda t: t.replace("b,day,train", "b,day,test"), "the camera 'b' .* is both for training and for the test"),
    ],
)
def test_a_table_that_is_wrong(folder, change, message):
    table = folder / "cameras.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(DataError, match=message):
        open_cameras(folder)


def test_a_shard_that_is_cut_short(folder):
    shard = folder / "one.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"one\.tar' is .*damaged"):
        open_cameras(folder)


def test_no_folder_of_cameras(tmp_path):
    with pytest.raises(DataError, match=r"neither cameras.csv nor annotations/annotations.tsv"):
        open_cameras(tmp_path)


def test_the_transient_attributes_database(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/attributes.txt").write_text("dirty\ndaylight\nnight\n")
    levels = {"day": "0.1,1\t0.95,1\t0.0,1", "dusk": "0,1\t0.5,1\t0.5,1", "night": "0,1\t0.0,1\t0.9,1"}
    lines = [f"{n:08}/{kind}.jpg\t{level}" for n in range(21) for kind, level in levels.items()]
    (tmp_path / "annotations/annotations.tsv").write_text("\n".join(lines))
    cameras = open_cameras(tmp_path)
    assert len(cameras.train) == 20
    assert [c.name for c in cameras.test] == ["00000010"]
    assert [image.name for image in cameras.test[0].night] == ["00000010/night.jpg"]
    (tmp_path / "annotations/annotations.tsv").write_text(lines[0] + "\n" + lines[1][:20])
    with pytest.raises(DataError, match=r"line 2 .* is cut short"):
        open_cameras(tmp_path)


def test_pairs_are_even_over_cameras_however_many_photographs_they_have():
    cameras = [camera("many", range(20), range(100, 120)), camera("few", [50], [150])]
    pairs = DayNightPairs(cameras, size=8, length=200)
    days = torch.stack([pair["day"][2].mean() * 255 for pair in pairs]).round()
    assert (days == 50).sum() == 100
    assert all((days[i : i + 2] == 50).sum() == 1 for i in range(0, 200, 2))
    assert len(days.unique()) == 21


def test_one_crop_for_both_and_each_in_its_range():
    pairs = DayNightPairs([camera("a", [40], [200])], size=8, length=20)
    corners = set()
    for pair in pairs:
        rgb = night_to_rgb(pair["night"])
        torch.testing.assert_close(rgb[0], pair["day"][0])
        torch.testing.assert_close(rgb[2], torch.full((8, 8), 200 / 255, dtype=torch.float32))
        assert pair["day"].dtype == torch.float32
        corners.add(round(float(pair["day"][0, 0, 0]) * 255))
    assert len(corners) > 5


def test_a_pair_is_determined_by_seed_and_number():
    cameras = [camera("a", range(5), range(5)), camera("b", range(9), range(3))]
    pairs, again = (DayNightPairs(cameras, size=8, seed=3, length=30) for _ in range(2))
    last = [again[i] for i in reversed(range(30))]
    assert all(torch.equal(pairs[i]["night"], last[29 - i]["night"]) for i in range(30))
    other = DayNightPairs(cameras, size=8, seed=4, length=30)
    assert not all(torch.equal(pairs[i]["day"], other[i]["day"]) for i in range(30))


def test_held_out_pairs_use_days_and_nights_evenly():
    batch, names = held_out_pairs([camera("a", range(0, 80, 10), range(0, 40, 10)), camera("b", [5], [7])], size=8)
    assert names == ["a"] * 8 + ["b"]
    assert (batch["day"][:8, 2].mean((1, 2)) * 255).round().tolist() == list(range(0, 80, 10))
    assert batch["night"].shape == (9, 3, 8, 8)
    again, _ = held_out_pairs([camera("a", range(0, 80, 10), range(0, 40, 10)), camera("b", [5], [7])], size=8)
    assert torch.equal(batch["night"], again["night"])


def test_a_pair_of_two_sizes_names_the_camera():
    odd = Camera("odd", [ArrayImage("d", ramp(1))], [ArrayImage("n", ramp(1, (41, 60)))])
    for use in (lambda: DayNightPairs([odd], size=8, length=1)[0], lambda: held_out_pairs([odd], size=8)):
        with pytest.raises(DataError, match="'odd' has a day of 60 x 40 pixels and a night of 60 x 41"):
            use()


def test_nothing_to_draw_from():
    with pytest.raises(fk.ConfigError, match="got 0 cameras"):
        DayNightPairs([], size=8, length=1)
    with pytest.raises(IndexError):
        DayNightPairs([camera("a", [1], [1])], size=8, length=1)[1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/day-night")
def test_shared_photographs():
    cameras = open_cameras(SHARED)
    assert (len(cameras.train), len(cameras.test), cameras.left_out) == (11, 3, ())
    pair = DayNightPairs(cameras.train, size=64, length=11)[5]
    assert pair["night"].shape == (3, 64, 64)
    assert float(night_to_rgb(pair["night"]).mean()) < float(pair["day"].mean())
