"""Download published data sets: only when asked, resumable, checked against the published digest, through pooch."""

import contextlib
import os
import pathlib

from numdl import checks
from numdl.data import _archives, _files, _local
from numdl.typing import StrPath

MD5 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    "cifar-10": {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    "cifar-100": {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
}
ADDRESSES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "cifar-10": "https://www.cs.toronto.edu/~kriz/",
    "cifar-100": "https://www.cs.toronto.edu/~kriz/",
}
# What is taken out of an archive: folder, {file: bytes}.
CONTENTS = {
    "cifar-10": (
        "cifar-10-batches-bin",
        {"test_batch.bin": 30_730_000} | {f"data_batch_{i}.bin": 30_730_000 for i in range(1, 6)},
    ),
    "cifar-100": ("cifar-100-binary", {"train.bin": 153_700_000, "test.bin": 30_740_000}),
}
TIMEOUT = 30  # seconds without an answer or a byte


def fetch(name: str, folder: StrPath | None = None, *, address: str | None = None) -> pathlib.Path:
    """Download a data set, unless it is there already, and return the folder that the reading function finds it in.

    A download that broke off goes on where it stopped at the next call. A file counts only when its MD5 is the
    published one; archives are unpacked file by file.

    Parameters
    ----------
    name : str                  "mnist", "fashion-mnist", "cifar-10" or "cifar-100"
    folder : path or None       where to put it; None is the cache
    address : str or None       a mirror: the address that the files' names are appended to
    Returns
    -------
    Path                        the folder with the data set's files
    Raises
    ------
    ValueError, TypeError       an unknown name; a file that is too large or not the published one (it is removed)
    OSError                     the connection failed (call again to go on), or another process is downloading
    ImportError                 pooch is not installed; the message says how to get it
    """
    checks.one_of("name", name, tuple(MD5))
    root = _local.cache() if folder is None else checks.path("folder", folder).expanduser()
    if address is not None and not checks.instance("address", address, str, hint="such as https://..."):
        raise checks.BadValue(f"address must be the address of a mirror; got {address!r}")
    if name not in CONTENTS:
        return _verified(name, root / name, address)[0].parent
    inside, sizes = CONTENTS[name]
    if not all(_holds(root / inside / part, size) for part, size in sizes.items()):
        (archive,) = _verified(name, root, address)
        _archives.extract(archive, {f"{inside}/{part}": size for part, size in sizes.items()}, root / inside)
        archive.unlink()  # what was taken out of it has been written completely
    return root / inside


def _holds(path, size):
    return path.is_file() and path.stat().st_size == size


def _verified(name, folder, address):
    """The data set's files, downloaded and verified."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError("downloads need pooch: pip install 'numdl[data]'") from error
    base = (ADDRESSES[name] if address is None else address).rstrip("/") + "/"
    return [
        pathlib.Path(
            pooch.retrieve(base + file, f"md5:{md5}", file, folder, downloader=_Resumable(folder / f"{file}.part"))
        )
        for file, md5 in MD5[name].items()
    ]


class _Resumable:
    """A downloader for pooch that keeps what has arrived in NAME.part and asks only for the rest."""

    def __init__(self, part, most_bytes=_files.MOST):
        self.part, self.most = part, most_bytes

    def __call__(self, url, output_file, pooch):
        """Complete NAME.part and move it to `output_file`, where pooch checks its digest."""
        import requests
        from urllib3.exceptions import HTTPError

        with open(self.part, "ab") as out, _alone(out, self.part):
            try:
                self.complete(requests, url, out)
            except (requests.RequestException, HTTPError) as error:
                raise ConnectionError(f"{url}: {error}; call fetch again to go on after {out.tell()} bytes") from error
        os.replace(self.part, output_file)

    def complete(self, requests, url, out):
        have = out.seek(0, os.SEEK_END)
        # Without this header a server may compress, and a range would count compressed bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing is left to ask for: the digest will tell
                return
            answer.raise_for_status()
            if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                out.truncate(0)  # the server sends the file from its beginning
                have = 0
            self.receive(url, answer, out, have)

    def receive(self, url, answer, out, have):
        announced = answer.headers.get("Content-Length", "")
        total = have + int(announced) if announced.isdigit() else None
        while chunk := answer.raw.read(_files.CHUNK, decode_content=False):
            have += len(chunk)
            if have > self.most:
                out.truncate(0)
                raise ValueError(f"{url}: too large: more than {self.most} bytes")
            out.write(chunk)
        out.flush()
        if total is not None and have < total:
            raise ConnectionError(f"{url}: {have} of {total} bytes arrived; call fetch again to go on")


@contextlib.contextmanager
def _alone(file, path):
    """One process at a time appends to a file; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: the digest notices what two writers do
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(f"{path}: another process is downloading this file") from error
    yield
