"""Files that are there whole or not at all, in folders that can be written; a killed writer leaves nothing for long."""

import contextlib
import os
import pathlib
import secrets
import tempfile

from numdl import checks
from numdl.typing import StrPath


def writable(folder: StrPath) -> pathlib.Path:
    """The folder, made if needed and tried by writing into it: call this before anything is computed.

    Parameters
    ----------
    folder : path           where results are to go
    Returns
    -------
    Path                    the same
    Raises
    ------
    OSError                 one line that names the folder and why it cannot be written
    """
    folder = checks.path("folder", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # without a name: nothing stays, however the process ends
            probe.write(b"x")
            probe.flush()
    except OSError as error:
        raise type(error)(f"results folder {folder} cannot be written: {error.strerror or error}") from error
    return folder


def put(path, content):
    """Bytes as a file, whole or not at all."""
    writable(path.parent)
    with _fresh(path) as (fresh, file):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.replace(fresh, path)
    _sweep(path)
    return path


def write(path, content):
    """Bytes as a new file, on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _fresh(path):
    """A file beside `path` that this process alone holds, removed unless it took that place."""
    with contextlib.ExitStack() as stack:
        while True:
            # Machines that share a folder have processes of equal numbers.
            fresh = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}.new")
            stack.callback(fresh.unlink, missing_ok=True)
            file = stack.enter_context(open(fresh, "wb"))
            if _held(file) is not False and fresh.exists():  # else another writer took it for one that is left over
                break
        yield fresh, file


def _sweep(path):
    """Remove what writers of `path` left when they were killed: nobody holds it."""
    for left in path.parent.glob(f".{_escaped(path.name)}-*-????????.new"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            if _held(file):
                left.unlink(missing_ok=True)


def _held(file):
    """Whether this process now holds the file, until it is closed; None where the system or the disk knows no locks."""
    if os.name != "posix":
        return None
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _escaped(name):
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
