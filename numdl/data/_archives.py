"""Named files out of a tar archive, written under our own names: nothing in the archive chooses a path."""

import os
import pathlib
import shutil
import tarfile
import tempfile

from numdl.data import _files

MOST_MEMBERS = 10_000


def extract(archive, wanted, folder, *, most_bytes=_files.MOST):
    """Write the wanted members of a tar archive (plain or gzip) as files of `folder`: all, or none if one is bad.

    Parameters
    ----------
    wanted : dict               {member's full name: its exact size in bytes}; written under the name's last part
    folder : path               its files of these names are replaced, once all is extracted and right
    most_bytes : int            of the whole archive after decompression
    Raises
    ------
    ValueError                  damaged or too large; a wanted member is missing, twice there, no regular file (a link,
                                a device), or of another size. Other members, whatever they are, are passed over.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".extracting-") as temporary:
        try:
            _extract(archive, wanted, pathlib.Path(temporary), most_bytes)
        except (tarfile.TarError, OverflowError, UnicodeError) as error:
            raise ValueError(f"{archive}: damaged tar archive: {error}") from error
        for path in pathlib.Path(temporary).iterdir():
            os.replace(path, folder / path.name)


def _extract(archive, wanted, target, most_bytes):
    seen = set()
    with _files.opened(archive, most_bytes=most_bytes) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for number, member in enumerate(tar):
            if number == MOST_MEMBERS:
                raise ValueError(f"{archive}: more than {MOST_MEMBERS} members")
            if member.name not in wanted:
                continue
            if member.name in seen:
                raise ValueError(f"{archive}: member {member.name!r} is there twice")
            if not member.isreg() or member.size != wanted[member.name]:
                kind = f"{member.size} bytes" if member.isreg() else "no regular file"
                raise ValueError(f"{archive}: member {member.name!r} is {kind}; expected {wanted[member.name]} bytes")
            seen.add(member.name)
            _write(archive, member, tar.extractfile(member), target / pathlib.PurePosixPath(member.name).name)
    missing = sorted(set(wanted) - seen)
    if missing:
        raise ValueError(f"{archive}: no member {missing[0]!r}")


def _write(archive, member, source, path):
    with open(path, "xb") as out:
        shutil.copyfileobj(source, out, _files.CHUNK)
        if out.tell() != member.size:
            raise ValueError(f"{archive}: truncated inside member {member.name!r}")
