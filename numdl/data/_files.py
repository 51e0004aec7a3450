"""Bounded reading: regular files, plain or gzip, never more bytes than allowed; every error names the file.

Memory follows the bytes that a file really holds, not the number that its header claims.
"""

import contextlib
import gzip
import io
import zlib

from numdl import checks

MOST = 2**28  # bytes after decompression, the readers' default limit
CHUNK = 2**18
GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def opened(path, *, most_bytes=MOST):
    """A buffered binary stream of the file's bytes, decompressed if they are gzip, whatever the file is called.

    Reading raises ValueError as soon as more than `most_bytes` have come out, or if the gzip data is damaged.

    Raises
    ------
    FileNotFoundError           there is no such file
    ValueError                  `path` is not a regular file, or a plain file is longer than `most_bytes`
    """
    most_bytes = checks.whole("most_bytes", most_bytes, most=checks.BYTES)
    path = checks.path("path", path)
    try:
        status = path.stat()
    except OSError as error:
        raise type(error)(f"path must be a file that can be read; got {str(path)!r}: {error.strerror}") from error
    if not path.is_file():  # a pipe would block, a device never end
        raise checks.BadValue(f"path must be a file that can be read; got {str(path)!r}: not a regular file")
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        if not packed and status.st_size > most_bytes:
            raise ValueError(f"{path}: too large: {status.st_size} bytes; most_bytes={most_bytes} are allowed")
        source = gzip.GzipFile(fileobj=file, mode="rb") if packed else file
        with io.BufferedReader(_Bounded(path, source, most_bytes), CHUNK) as stream:
            yield stream


def exactly(stream, count):
    """The stream's next `count` bytes, fewer only if it ends; memory grows with what arrives."""
    found = bytearray()
    while len(found) < count:
        chunk = stream.read(min(CHUNK, count - len(found)))
        if not chunk:
            break
        found += chunk
    return found


def contents(path, *, most_bytes=MOST):
    """All bytes of a file; see `opened` for what is refused."""
    with opened(path, most_bytes=most_bytes) as stream:
        return exactly(stream, most_bytes + 1)


class _Bounded(io.RawIOBase):
    """A source whose bytes are counted and whose decompression errors name the file."""

    def __init__(self, path, source, most):
        self.path, self.source, self.most, self.count = path, source, most, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        try:
            chunk = self.source.read(min(len(buffer), CHUNK))
        except EOFError as error:
            raise ValueError(f"{self.path}: truncated: the gzip data ends too early") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{self.path}: damaged gzip data: {error}") from error
        self.count += len(chunk)
        if self.count > self.most:
            raise ValueError(f"{self.path}: too large: more than most_bytes={self.most} bytes come out of it")
        buffer[: len(chunk)] = chunk
        return len(chunk)
