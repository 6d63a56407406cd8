"""The samples in a tar shard, read front to back by WebDataset; one that is cut short is found out."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowkit.errors import FlowkitError, InputError, MissingDependencyError

PACKINGS: dict[bytes, Callable[[Any], Any]] = {  # by the bytes with which they begin
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
LONGEST_MARK = 6

Entries = dict[str, Any]


def samples_of_shard(shard: str) -> Iterator[Entries]:
    """The samples in a shard, in the order in which they lie there; what they hold is read, not decoded.

    Raises:
        InputError: it is missing, damaged or cut short.
    """
    webdataset = webdataset_package()
    try:
        yield from webdataset.tariterators.group_by_keys(_files(shard))
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, FlowkitError):
            raise
        # WebDataset adds to the arguments of what it passes on
        reason = getattr(error, "strerror", None) or str(error.args[0] if error.args else error).split(" @ ")[0]
        cut = isinstance(error, EOFError) or "unexpected end of data" in reason
        what = "is cut short" if cut else "cannot be read, or is no tar"
        raise InputError(f"the shard '{shard}' {what}: {reason}") from error


def _files(shard: str) -> Iterator[dict[str, Any]]:
    file = _opened(shard)
    try:
        stream = _Watched(_unpacked(file))
        yield from webdataset_package().tariterators.tar_file_expander([{"url": shard, "stream": stream}])
    finally:
        with suppress(OSError):  # of a command that had more to say than was read
            file.close()
    if not stream.ends_well():
        raise InputError(f"the shard '{shard}' is damaged or cut short: the mark with which a tar ends was not reached")


class _Watched:
    """A stream that remembers its last bytes: tarfile takes one that ends between two files for whole."""

    def __init__(self, file: Any):
        self.file, self.tail = file, b""

    def read(self, size: int = -1) -> bytes:
        """What the stream reads."""
        found: bytes = self.file.read(size)
        self.tail = (self.tail + found)[-tarfile.BLOCKSIZE :]
        return found

    def ends_well(self) -> bool:
        """Whether what was read ends with a block of zeros."""
        return self.tail == bytes(tarfile.BLOCKSIZE)


class _PutBack:
    """A stream of which the first bytes were read already."""

    def __init__(self, head: bytes, file: Any):
        self.head, self.file = head, file

    def read(self, size: int = -1) -> bytes:
        """What the stream reads: at first no more than what was put back."""
        if not self.head:
            return bytes(self.file.read(size))
        cut = len(self.head) if size < 0 else size
        found, self.head = self.head[:cut], self.head[cut:]
        return found


def _unpacked(file: Any) -> Any:
    """The stream without its packing. Python's own unpackers notice an early end, which tarfile's do not."""
    head = b""
    while len(head) < LONGEST_MARK and (more := file.read(LONGEST_MARK - len(head))):
        head += more
    whole = _PutBack(head, file)
    return next((unpack(whole) for mark, unpack in PACKINGS.items() if head.startswith(mark)), whole)


def _opened(shard: str) -> Any:
    scheme = shard.partition(":")[0]
    if shard.startswith("pipe:") or "://" in shard or scheme == "file":
        return webdataset_package().gopen(shard)
    return Path(shard).open("rb")


def list_shards(shards: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """The shards by name, globs and braces expanded.

    >>> list_shards("pipe:cat photos-{00..02}.tar")
    ('pipe:cat photos-00.tar', 'pipe:cat photos-01.tar', 'pipe:cat photos-02.tar')

    Raises:
        InputError: a glob matches nothing.
    """
    if isinstance(shards, str | Path):
        found = sorted(glob.glob(str(Path(shards).expanduser()))) if "pipe:" not in str(shards) else []
        names = found or webdataset_package().shardlists.expand_urls(str(shards))
    else:
        names = [str(shard) for shard in shards]
    if not names or any(set(name) & set("*?") and "pipe:" not in name and "://" not in name for name in names):
        raise InputError(f"no shards are there: '{shards}' matches nothing")
    return tuple(names)


def webdataset_package() -> Any:
    """The package, imported where it is used.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import webdataset
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError as error:
        raise MissingDependencyError(
            'streaming shards needs webdataset: python -m pip install "flowkit[train]" brings it'
        ) from error
    return webdataset
