"""Shards are streamed without loss or repetition, in an order of the run alone, and gone on with where it was."""

import bz2
import gzip
import lzma
import sys
import tarfile
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from flowkit.errors import ConfigError, InputError, MissingDependencyError
from flowkit.training import FlowModule, batches, fit, read_checkpoint, streamed_batches
from flowkit.training.tars import samples_of_shard

from .training_helpers import Points, make_flow, number_shards, write_shard

pytest.importorskip("webdataset")

EQUAL, UNEVEN, ONE = (6, 6, 6, 6), (3, 1, 7, 5, 2, 6), (24,)


def number_of(entries, number):
    return int(entries["num"]), number


def pairs_of(items):
    return items


def new_run(items_seen=0, positions=None):
    return SimpleNamespace(items_seen=items_seen, position=None, positions=positions)


def stream(shards, run=None, rank=0, world=1, monkeypatch=None, **options):
    """The batches of one process, as lists of (sample, number of the item)."""
    options = {"decode": number_of, "batch_size": 4, "steps": 6, "shuffle": 5, "collate": pairs_of, **options}
    loader = streamed_batches(shards, run or new_run(), **options)
    if monkeypatch is not None:
        monkeypatch.setattr("flowkit.training.shards.process_place", lambda: (rank, world))
    return loader


def of_all(shards, monkeypatch, world=2, **options):
    return [list(stream(shards, rank=rank, world=world, monkeypatch=monkeypatch, **options)) for rank in range(world)]


@pytest.mark.parametrize("sizes", [EQUAL, UNEVEN, ONE])
@pytest.mark.parametrize(("split", "workers"), [("items", 0), ("items", 2), ("shards", 2)])
def test_two_processes_of_two_workers_see_each_sample_once_a_pass(tmp_path, monkeypatch, sizes, split, workers):
    shards = number_shards(tmp_path, sizes)
    found = of_all(shards, monkeypatch, split=split, workers=workers)
    items = [item for process in found for batch in process for item in batch]
    assert sorted(number for _, number in items) == list(range(24))
    if split == "items" or sizes != UNEVEN:  # where shards differ in size, passes end at different steps
        assert sorted(sample for sample, _ in items) == list(range(24))


def test_uneven_shards_of_ones_own_are_all_read_once_a_pass(tmp_path):
    """Each worker goes on to its next pass by itself: in what it reads of one pass, each sample is there once."""
    from flowkit.training.shards import _samples

    shards = number_shards(tmp_path, UNEVEN)
    plan = SimpleNamespace(shards=shards, shuffle=4, seed=0)
    seen = Counter()
    for slot in range(4):
        for block, order, here, (passes, _) in _samples(plan, (0, 0), slot, 4):
            if passes == 2:
                break
            seen[passes, int(block[order[here]]["num"])] += 1
    assert seen == Counter({(passes, sample): 1 for passes in range(2) for sample in range(24)})


def test_processes_and_workers_change_no_number(tmp_path, monkeypatch):
    shards = number_shards(tmp_path, UNEVEN)
    whole = list(stream(shards))
    assert list(stream(shards, workers=2)) == whole
    for workers in (0, 2):
        first, second = of_all(shards, monkeypatch, workers=workers)
        for batch, one, two in zip(whole, first, second, strict=True):
            assert batch == [one[0], two[0], one[1], two[1]]


def test_passes_are_shuffled_each_in_its_own_way_by_the_seed(tmp_path):
    shards = number_shards(tmp_path, UNEVEN)
    passes = [[i[0] for batch in stream(shards, steps=12) for i in batch][at : at + 24] for at in (0, 24)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(24))
    assert passes[0] != passes[1]
    assert list(stream(shards, seed=1)) != list(stream(shards)) == list(stream(shards))
    assert [i for batch in stream(shards, shuffle=0) for i, _ in batch] == list(range(24))


@pytest.mark.parametrize(("split", "workers"), [("items", 0), ("items", 2), ("shards", 0), ("shards", 2)])
def test_a_run_goes_on_at_its_next_sample(tmp_path, monkeypatch, split, workers):
    shards = number_shards(tmp_path, UNEVEN)
    options = {"split": split, "workers": workers, "steps": 17, "world": 2, "monkeypatch": monkeypatch}
    whole = [list(stream(shards, rank=rank, **options)) for rank in range(2)]
    for done, ahead in ((1, 0), (7, 1), (16, 1)):
        positions = []
        for rank in range(2):
            run = new_run()
            read = iter(stream(shards, run, rank=rank, **options))
            for _ in range(done + ahead):  # Lightning is a batch ahead of the step
                next(read)
            positions.append(run.position(4 * done))
            read.close()
        for rank in range(2):
            rest = list(stream(shards, new_run(4 * done, positions), rank=rank, **options))
            assert rest == whole[rank][done:]
            assert rest[0][0] in whole[rank][done]


def test_a_run_goes_on_with_other_processes_where_items_are_split(tmp_path, monkeypatch):
    shards, run = number_shards(tmp_path, UNEVEN), new_run()
    whole = list(stream(shards))
    read = iter(stream(shards, run, workers=2))
    next(read), next(read)
    kept = [run.position(8)]
    read.close()
    for rank in range(2):
        rest = list(stream(shards, new_run(8, kept), rank=rank, world=2, monkeypatch=monkeypatch))
        assert rest == [batch[rank::2] for batch in whole[2:]]
    four = [stream(shards, new_run(8, kept), batch_size=8, steps=3, rank=0, world=1, monkeypatch=monkeypatch)]
    assert [item for batch in four[0] for item in batch] == [item for batch in whole[2:] for item in batch]


def test_what_cannot_be_gone_on_with_is_said(tmp_path, monkeypatch):
    shards, run = number_shards(tmp_path, EQUAL), new_run()
    read = iter(stream(shards, run, split="shards", workers=2))
    next(read)
    kept = [run.position(4)]
    read.close()
    for options, sentence in (
        ({"workers": 1}, "the number of workers was 2, and is 1"),
        ({"workers": 2, "seed": 1}, "the seed was 0, and is 1"),
        ({"workers": 2, "shuffle": 7}, "shuffle was 5, and is 7"),
        ({"workers": 2, "split": "items"}, "the split was shards, and is items"),
        ({"workers": 2, "world": 2, "monkeypatch": monkeypatch}, "the number of processes was 1, and is 2"),
    ):
        with pytest.raises(ConfigError, match=f"cannot go on at its place in the shards: {sentence}"):
            next(iter(stream(shards, new_run(4, kept), **{"split": "shards", **options})))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="the number of shards was 4, and is 3"):
        next(iter(stream(shards[:3], new_run(4, kept), split="shards", workers=2)))
    with pytest.raises(ConfigError, match="has used 4 items, and it is not known where in these shards it is"):
        next(iter(stream(shards, new_run(4))))
    run = new_run()
    read = iter(stream(shards, run, steps=6))
    for _ in range(5):
        next(read)
    kept = [run.position(20)]
    number_shards(tmp_path, (2, 2, 2, 2))
    with pytest.raises(InputError, match="hold 8 samples, and the run had used 20 of them"):
        next(iter(stream(shards, new_run(20, kept))))


def test_a_sample_that_cannot_be_used_is_replaced_by_the_next_in_every_process(tmp_path, monkeypatch):
    shards = number_shards(tmp_path, UNEVEN)
    bad = {0, 5, 6, 20}

    def decode(entries, number):
        return None if int(entries["num"]) in bad else number_of(entries, number)

    whole = list(stream(shards, decode=decode))
    plain = [item for batch in stream(shards) for item in batch]
    items = [item for batch in whole for item in batch]
    assert {sample for sample, _ in items} == set(range(24)) - bad
    assert [a for a, b in zip(items, plain, strict=True) if b[0] not in bad] == [b for b in plain if b[0] not in bad]
    for rank, found in enumerate(of_all(shards, monkeypatch, decode=decode)):
        assert found == [batch[rank::2] for batch in whole]
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"5 samples in a row cannot be used, from '\d+' of the shard '.*\.tar' on"):
        next(iter(stream(shards, decode=lambda entries, number: None)))


def test_files_of_one_name_are_one_sample(tmp_path):
    write_shard(tmp_path / "a.tar", ["dir/1", "dir/2"], (1, 2000))
    found = list(samples_of_shard(str(tmp_path / "a.tar")))
    assert [sample["__key__"] for sample in found] == ["dir/1", "dir/2"]
    assert found[1]["num"] == b"dir/2"
    assert found[1]["big"] == b"x" * 2000


def test_pipes_braces_globs_and_packed_shards(tmp_path):
    shards = number_shards(tmp_path, EQUAL)
    whole = list(stream(shards, shuffle=0))
    for kind, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        (tmp_path / f"s.tar.{kind}").write_bytes(pack((tmp_path / "s-00.tar").read_bytes()))
    assert list(stream(f"pipe:cat {tmp_path}/s-{{00..03}}.tar", shuffle=0)) == whole
    assert list(stream(f"{tmp_path}/s-{{00..03}}.tar", shuffle=0)) == whole
    assert list(stream(tmp_path / "s-*.tar", shuffle=0)) == whole
    assert list(stream(f"file:{tmp_path}/s-{{00..03}}.tar", shuffle=0)) == whole
    for kind in ("gz", "bz2", "xz"):
        assert list(stream([tmp_path / f"s.tar.{kind}", *shards[1:]], shuffle=0)) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_shards_are_one_sentence(tmp_path, workers):
    good = write_shard(tmp_path / "good.tar", range(3), (1, 3000))
    content = (tmp_path / "good.tar").read_bytes()
    between = 512 + 512 + 512 + 3072  # the headers and the blocks of the first sample's two files
    for name, data in (
        ("empty", b""),
        ("text", b"no tar " * 200),
        ("within", content[: between + 2400]),
        ("between", content[:between]),
        ("packed", gzip.compress(content, 0)[: between + 1200]),
    ):
        (tmp_path / f"{name}.tar").write_bytes(data)
    write_shard(tmp_path / "twice.tar", [1, 1])
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    for shard, sentence in (
        ("gone.tar", r"'.*gone\.tar' cannot be read, or is no tar: No such file"),
        ("empty.tar", r"'.*empty\.tar' cannot be read, or is no tar: empty file"),
        ("text.tar", r"'.*text\.tar' cannot be read, or is no tar"),
        ("within.tar", r"'.*within\.tar' is cut short"),
        ("between.tar", r"'.*between\.tar' is damaged or cut short: the mark with which a tar ends was not reached"),
        ("packed.tar", r"'.*packed\.tar' .*cut short"),
        ("twice.tar", r"'.*twice\.tar' cannot be read, or is no tar: .*duplicate file name"),
        ("none.tar", r"the shards '.*none\.tar' to '.*none\.tar' hold no samples"),
    ):
        with pytest.raises(InputError, match=sentence) as caught:
            list(stream([tmp_path / shard], workers=workers))
        assert "\n" not in str(caught.value)
    half = f"pipe:head -c {between} {good}"
    with pytest.raises(InputError, match="cut short"):
        list(stream([half], workers=workers))
    with pytest.raises(InputError, match="cannot be read"):
        list(stream([f"pipe:cat {tmp_path}/gone.tar 2>{tmp_path}/said"], workers=workers))
    with pytest.raises(InputError, match="matches nothing"):
        stream(str(tmp_path / "no-*.tar"))


def test_webdataset_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingDependencyError, match="streaming shards needs webdataset: python -m pip install"):
        stream(number_shards(tmp_path, ONE))


def test_settings_that_are_refused(tmp_path):
    shards = number_shards(tmp_path, ONE)
    for wrong in ({"batch_size": 0}, {"steps": 0}, {"shuffle": -1}, {"workers": -1}, {"split": "bytes"}):
        with pytest.raises(ConfigError, match="a stream of shards needs"):
            stream(shards, **wrong)


def test_a_batch_that_cannot_be_shared_out(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="evenly over 3 processes"):
        next(iter(stream(number_shards(tmp_path, ONE), world=3, monkeypatch=monkeypatch)))


def point_of(entries, number):
    return Points()[int(entries["num"])]


@pytest.mark.parametrize(("split", "workers"), [("items", 0), ("shards", 2)])
def test_a_resumed_run_equals_one_in_one_piece(tmp_path, split, workers):
    shards = number_shards(tmp_path, (10, 30, 24))

    def trained(steps, **options):
        module = FlowModule(make_flow(dropout=0.3), lr=1e-2, noise=0.1, clip=1.0)
        loader = streamed_batches(
            shards, module, decode=point_of, batch_size=8, steps=12, split=split, workers=workers, shuffle=20
        )
        return module.flow.state_dict(), fit(module, loader, steps=steps, device="cpu", **options)

    whole, result = trained(12)
    trained(5, checkpoint=tmp_path / "c.ckpt")
    assert read_checkpoint(tmp_path / "c.ckpt")["flowkit_training"]["positions"][0]["settings"]["shuffle"] == 20
    resumed, again = trained(12, checkpoint=tmp_path / "c.ckpt", resume=True)
    assert again.losses == result.losses
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_checkpoint_without_a_place_in_shards_is_refused(tmp_path):
    module = FlowModule(make_flow())
    loader = batches(Points(), module, batch_size=8, steps=2)
    fit(module, loader, steps=2, checkpoint=tmp_path / "c.ckpt", device="cpu")
    module = FlowModule(make_flow())
    loader = streamed_batches(number_shards(tmp_path, ONE), module, decode=point_of, batch_size=8, steps=4)
    with pytest.raises(ConfigError, match="only a run that streamed shards before can go on with them"):
        fit(module, loader, steps=4, checkpoint=tmp_path / "c.ckpt", resume=True, device="cpu")
