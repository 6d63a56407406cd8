"""Photographs that are read front to back from tar shards, which need not lie on this machine."""

from __future__ import annotations

import glob
from pathlib import Path

from flowkit.training import list_shards
from flowkit_cinn.translation.sources import (
    SCAN_LIMIT,
    DataError,
    Source,
    SourceReport,
    held_out_beside,
    images_in,
    index_shard,
    noted_usable,
    skipped_clause,
    uniquely_named,
)


def open_stream(data: str, held_out: str = "") -> Source:
    """Training photographs that are streamed from tar shards, by `flowkit.training.streamed_batches`.

    Args:
        data: shards as `streamed_batches` takes them: a glob, braces, addresses, commands (`pipe:...`, which are run).
        held_out: a folder or shards on this machine, all of whose images are held out; by default the shards `val-*`
            beside `train-*`.

    Raises:
        InputError: no shards are there.
        DataError: no held-out images are there, or none can be used.
        MissingDependencyError: webdataset is not installed.
    """
    shards = list_shards(data)
    if held_out:
        path = Path(held_out).expanduser()
        found = [path] if path.is_dir() else [Path(shard) for shard in sorted(glob.glob(str(path)))]
        split = f"all of {held_out}"
    else:
        local = [path for path in map(Path, shards) if path.is_file() and "train" in path.name]
        found = sorted({sibling for shard in local for sibling in held_out_beside(shard)})
        split = "the shards val-* beside them"
    if not found:
        why = f"'{held_out}' matches nothing" if held_out else "no shards val-* lie beside it; name some by --held-out"
        raise DataError(f"no held-out images for the stream '{data}': {why}")
    if found[0].is_dir():
        images = images_in(found[0])
    else:
        images = uniquely_named(image for shard in found for image in index_shard(shard))
    report = SourceReport(data, None, split=split, checked=len(images) <= SCAN_LIMIT)
    usable = [image for image in images if not report.checked or noted_usable(image, report)]
    if not usable:
        raise DataError(f"none of the held-out images of '{data}' can be used{skipped_clause(report)}")
    report.held_out = len(usable)
    return Source((), usable, report, shards)
