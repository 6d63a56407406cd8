"""Downloads that break off, from a server on this machine: a sentence, and a second try that makes up for it."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from flowkit.cli._examples.mnist.digits import DigitsError, open_digits

from flowkit_cinn.translation.sources import DataError, open_source

datasets = pytest.importorskip("torchvision.datasets")


class Server(ThreadingHTTPServer):
    """Serves `files` by name; of those in `broken` it sends a part, and hangs up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.broken, self.sent = {}, {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.headers.get("Method") == "HEAD":  # torchvision looks where the address leads first
            return
        part = content[: self.server.broken.get(name, len(content))]
        self.wfile.write(part)
        self.server.sent.append((name, len(part)))

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def mnist(server, monkeypatch):
    """MNIST's four files, small."""
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(10, dtype=np.uint8))):
            content = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape) + array.tobytes()
            server.files[f"{part}-{name}-ubyte.gz"] = gzip.compress(content)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server.address])
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, md5(data)) for name, data in server.files.items()])
    return server


def test_mnist(mnist, tmp_path):
    mnist.broken = {"t10k-images-idx3-ubyte.gz": 700}
    sentence = r"^MNIST could not be downloaded to '.*' \(.*corrupted\.\): try again, what is whole is kept$"
    with pytest.raises(DigitsError, match=sentence):
        open_digits(str(tmp_path), download=True)
    assert (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz").stat().st_size == 700
    with pytest.raises(DigitsError, match="cut short"):
        open_digits(str(tmp_path))
    mnist.broken, mnist.sent = {}, []
    assert len(open_digits(str(tmp_path), download=True).train) == 10
    assert [name for name, _ in mnist.sent] == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert len(open_digits(str(tmp_path)).held_out) == 10


def test_mnist_that_was_interrupted_while_it_was_unpacked(mnist, tmp_path):
    open_digits(str(tmp_path), download=True)
    cut = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(DigitsError, match="is cut short"):
        open_digits(str(tmp_path))
    mnist.sent = []
    assert len(open_digits(str(tmp_path), download=True).train) == 10
    assert not mnist.sent  # what was fetched is whole
    aside = cut.with_name(f"{cut.name}.damaged")
    assert aside.stat().st_size == 500  # it may be somebody's own


def test_mnist_without_a_network(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(DigitsError, match="could not be downloaded") as caught:
        open_digits(str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_download_at_once(mnist, tmp_path):
    """As under torchrun: the second waits for the first, and finds what it left."""
    both = ThreadPoolExecutor(2)
    found = list(both.map(lambda _: open_digits(str(tmp_path), download=True), range(2)))
    both.shutdown()
    assert [len(each.train) for each in found] == [10, 10]
    assert len(mnist.sent) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST"]


@pytest.fixture
def cifar10(server, monkeypatch):
    """CIFAR-10's archive, small."""
    random = np.random.default_rng(0)
    entries = {
        "batches.meta": {"label_names": ["a", "b"]},
        **{name: {"data": random.integers(0, 256, (6, 3072), np.uint8), "labels": [0] * 6} for name in ("one", "test")},
    }
    packed = {name: pickle.dumps(entry) for name, entry in entries.items()}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in packed.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    server.files["cifar.tar.gz"] = file.getvalue()
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "url", f"{server.address}cifar.tar.gz")
    monkeypatch.setattr(kind, "filename", "cifar.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", md5(file.getvalue()))
    monkeypatch.setattr(kind, "train_list", [("one", md5(packed["one"]))])
    monkeypatch.setattr(kind, "test_list", [("test", md5(packed["test"]))])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(packed["batches.meta"])})
    return server


def test_cifar10(cifar10, tmp_path):
    cifar10.broken = {"cifar.tar.gz": 5000}
    with pytest.raises(DataError, match=r"the download failed, or broke off; try again, what is there is checked"):
        open_source("cifar10", root=tmp_path, download=True)
    with pytest.raises(DataError, match=r"is not in '.*': allow the download") as caught:
        open_source("cifar10", root=tmp_path)
    assert "\n" not in str(caught.value)
    cifar10.broken = {}
    source = open_source("cifar10", root=tmp_path, download=True)
    assert (len(source.train), len(source.held_out)) == (6, 6)


def test_cifar10_that_was_interrupted_while_it_was_unpacked(cifar10, tmp_path):
    open_source("cifar10", root=tmp_path, download=True)
    cut = tmp_path / "cifar-10-batches-py/one"
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(DataError, match="allow the download"):
        open_source("cifar10", root=tmp_path)
    cifar10.sent = []
    assert len(open_source("cifar10", root=tmp_path, download=True).train) == 6
    assert not cifar10.sent
