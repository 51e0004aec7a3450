"""Downloads from a server on this machine: resumed, verified, bounded, and never unasked."""

import gzip
import hashlib
import http.server
import io
import socket
import sys
import tarfile
import threading
import types

import pytest

from numdl import data
from numdl.data import _fetching, _local

RAW = bytes(range(256)) * 4000  # 1 MB
NAMES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`, breaks off after `server.budget` bytes of a file, and records what was asked for."""

    def do_GET(self):
        server, raw = self.server, self.server.files.get(self.path)
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if raw is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if wanted and server.ranges and start >= len(raw):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        if server.announced:
            self.send_header("Content-Length", str(len(raw) - start))
        self.end_headers()
        self.wfile.write(raw[start : start + server.budget])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files = {f"/sets/{name}": RAW[i:] for i, name in enumerate(NAMES)}
        server.asked, server.budget, server.ranges, server.announced = [], 10**9, True, True
        server.address = f"http://127.0.0.1:{server.server_port}/sets"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        digests = {name: hashlib.md5(RAW[i:]).hexdigest() for i, name in enumerate(NAMES)}
        monkeypatch.setitem(_fetching.MD5, "mnist", digests)
        yield server
        server.shutdown()


def fetch(server, folder, name="mnist"):
    return data.fetch(name, folder, address=server.address)


def test_fetched_once_and_verified(server, tmp_path):
    assert fetch(server, tmp_path) == tmp_path / "mnist"
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(NAMES)
    assert (tmp_path / "mnist" / NAMES[1]).read_bytes() == RAW[1:]
    assert server.asked == [(f"/sets/{name}", None) for name in NAMES]
    fetch(server, tmp_path)
    assert len(server.asked) == 2, "what is there is not downloaded again"
    (tmp_path / "mnist" / NAMES[0]).write_bytes(b"damaged")
    fetch(server, tmp_path)
    assert (tmp_path / "mnist" / NAMES[0]).read_bytes() == RAW


def test_the_cache_is_the_default(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_local, "cache", lambda: tmp_path / "cache")
    assert data.fetch("mnist", address=server.address) == tmp_path / "cache" / "mnist"


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.budget = 300_000
    for have in (300_000, 600_000, 900_000):
        with pytest.raises(ConnectionError, match=f"{NAMES[0]}.*call fetch again to go on"):
            fetch(server, tmp_path)
        assert (tmp_path / "mnist" / f"{NAMES[0]}.part").stat().st_size == have
        assert not (tmp_path / "mnist" / NAMES[0]).exists()
    server.budget = 10**9
    fetch(server, tmp_path)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-", None]
    assert (tmp_path / "mnist" / NAMES[0]).read_bytes() == RAW
    assert not list((tmp_path / "mnist").glob("*.part"))


def test_an_answer_shorter_than_announced_is_no_whole_file():
    """Older libraries for HTTP end such an answer without an error."""
    answer = types.SimpleNamespace(headers={"Content-Length": "10"}, raw=types.SimpleNamespace())
    arriving = iter([b"abc", b""])
    answer.raw.read = lambda size, decode_content: next(arriving)
    with pytest.raises(ConnectionError, match="an-address: 7 of 14 bytes arrived; call fetch again"):
        _fetching._Resumable(None).receive("an-address", answer, io.BytesIO(), 4)


def test_a_server_without_ranges_or_lengths(server, tmp_path):
    server.ranges = server.announced = False
    part = tmp_path / "mnist" / f"{NAMES[0]}.part"
    part.parent.mkdir()
    part.write_bytes(RAW[:1000])
    fetch(server, tmp_path)
    assert (tmp_path / "mnist" / NAMES[0]).read_bytes() == RAW


@pytest.mark.parametrize("left", [RAW, RAW + b"more", b"x" * 1000], ids=["whole", "longer", "wrong"])
def test_what_an_earlier_download_left_is_verified_too(server, tmp_path, left):
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / f"{NAMES[0]}.part").write_bytes(left)
    if left != RAW:
        with pytest.raises(ValueError, match=f"{NAMES[0]}"):
            fetch(server, tmp_path)
        assert list(folder.iterdir()) == [], "the next call begins anew"
    fetch(server, tmp_path)
    assert (folder / NAMES[0]).read_bytes() == RAW


def test_another_file_than_the_published_one_is_removed(server, tmp_path):
    server.files[f"/sets/{NAMES[0]}"] = RAW[:-1] + b"x"
    with pytest.raises(ValueError, match=rf"hash of downloaded file \({NAMES[0]}\) does not match"):
        fetch(server, tmp_path)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_a_file_without_end_is_refused(server, tmp_path, monkeypatch):
    server.announced = False
    monkeypatch.setattr(_fetching._Resumable.__init__, "__defaults__", (10**5,))
    with pytest.raises(ValueError, match=f"{NAMES[0]}: too large: more than 100000 bytes"):
        fetch(server, tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "mnist").iterdir()) == 0


def test_what_the_server_does_not_have(server, tmp_path):
    server.files.clear()
    with pytest.raises(ConnectionError, match=f"{NAMES[0]}: 404"):
        fetch(server, tmp_path)


def test_no_connection(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"{address}/train-images"):
        data.fetch("mnist", tmp_path, address=address)


def test_two_processes_do_not_write_one_file(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "mnist").mkdir()
    with open(tmp_path / "mnist" / f"{NAMES[0]}.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=f"{NAMES[0]}.part: another process"):
            fetch(server, tmp_path)
    fetch(server, tmp_path)


def archive(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1000
            tar.addfile(info, io.BytesIO(RAW[:1000]))
    return gzip.compress(buffer.getvalue())


def test_an_archive_is_unpacked(server, tmp_path, monkeypatch):
    raw = archive(
        "../escaped", "cifar-100-binary/train.bin", "cifar-100-binary/readme.html", "cifar-100-binary/test.bin"
    )
    server.files["/sets/cifar-100-binary.tar.gz"] = raw
    monkeypatch.setitem(_fetching.MD5, "cifar-100", {"cifar-100-binary.tar.gz": hashlib.md5(raw).hexdigest()})
    monkeypatch.setitem(_fetching.CONTENTS, "cifar-100", ("cifar-100-binary", {"train.bin": 1000, "test.bin": 1000}))
    root = tmp_path / "root"
    for _ in range(2):
        assert fetch(server, root, "cifar-100") == root / "cifar-100-binary"
    assert len(server.asked) == 1
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    inside = ["root/cifar-100-binary/test.bin", "root/cifar-100-binary/train.bin"]
    assert found == ["root", "root/cifar-100-binary", *inside]
    (root / "cifar-100-binary" / "test.bin").write_bytes(b"cut")
    fetch(server, root, "cifar-100")
    assert (root / "cifar-100-binary" / "test.bin").read_bytes() == RAW[:1000]


def test_the_registry_is_complete():
    """Every set that can be fetched has an address, an MD5 for each file, and readable sizes."""
    assert set(_fetching.MD5) == set(_fetching.ADDRESSES) == {"mnist", "fashion-mnist", "cifar-10", "cifar-100"}
    assert all(len(md5) == 32 and int(md5, 16) for files in _fetching.MD5.values() for md5 in files.values())
    records = {"cifar-10": 3073, "cifar-100": 3074}
    for name, (_, sizes) in _fetching.CONTENTS.items():
        assert sum(sizes.values()) == 60_000 * records[name]


def test_an_unknown_name():
    with pytest.raises(
        ValueError, match="name must be one of mnist, fashion-mnist, cifar-10, cifar-100; got 'imagenet'"
    ):
        data.fetch("imagenet")


def test_without_pooch_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'numdl\[data\]'"):
        data.fetch("mnist", tmp_path)
