"""Only the wanted members leave an archive, under our names; hostile archives write nothing anywhere."""

import gzip
import io
import random
import tarfile
import tracemalloc

import pytest

from numdl.data import _archives

WANTED = {"set/a.bin": 5, "set/b.bin": 3}


def member(name, raw=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, raw


GOOD = (member("set/a.bin", b"aaaaa"), member("set/readme.html", b"<p>"), member("set/b.bin", b"bbb"))


def archive(folder, *members, pack=gzip.compress):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, raw in members:
            tar.addfile(info, io.BytesIO(raw))
    path = folder / "archive.tar.gz"
    path.write_bytes(pack(buffer.getvalue()))
    return path


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def outcome(path, target):
    """The message, None if the archive was accepted."""
    try:
        _archives.extract(path, WANTED, target)
    except ValueError as error:
        return str(error)


def refused(path, target, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        _archives.extract(path, WANTED, target, **options)
    assert str(path) in str(caught.value)
    assert listing(target) == []


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_wanted_members_only(tmp_path, pack):
    target = tmp_path / "out" / "set"
    _archives.extract(archive(tmp_path, *GOOD, pack=pack), WANTED, target)
    assert listing(target) == ["a.bin", "b.bin"]
    assert (target / "a.bin").read_bytes() == b"aaaaa" and (target / "b.bin").read_bytes() == b"bbb"


def test_files_of_the_folder_stay_and_old_ones_are_replaced(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "a.bin").write_bytes(b"old")
    (target / "notes").write_bytes(b"mine")
    _archives.extract(archive(tmp_path, *GOOD), WANTED, target)
    assert (target / "a.bin").read_bytes() == b"aaaaa" and (target / "notes").read_bytes() == b"mine"


def test_members_that_would_escape_are_passed_over(tmp_path):
    hostile = [
        member("../../escaped.txt", b"x"),
        member(str(tmp_path / "absolute.txt"), b"x"),
        member("set/../../../escaped.txt", b"x"),
        member("link", type=tarfile.SYMTYPE, linkname=str(tmp_path)),
        member("link/through.txt", b"x"),
        member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("pipe", type=tarfile.FIFOTYPE),
    ]
    target = tmp_path / "deep" / "deeper" / "out"
    path = archive(tmp_path, *hostile, *GOOD)
    before = listing(tmp_path)
    _archives.extract(path, WANTED, target)
    new = set(listing(tmp_path)) - set(before)
    assert new == {"deep", "deep/deeper", "deep/deeper/out", "deep/deeper/out/a.bin", "deep/deeper/out/b.bin"}


@pytest.mark.parametrize(
    "first, match",
    [
        (member("set/a.bin", b"aaaaa", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'set/a.bin' is no regular file"),
        (member("set/a.bin", type=tarfile.LNKTYPE, linkname="set/b.bin"), "'set/a.bin' is no regular file"),
        (member("set/a.bin", type=tarfile.DIRTYPE), "'set/a.bin' is no regular file"),
        (member("set/a.bin", b"aaaa"), "'set/a.bin' is 4 bytes; expected 5 bytes"),
        (member("set/b.bin", b"bbb"), "'set/b.bin' is there twice"),
        (member("other", b"x"), "no member 'set/a.bin'"),
    ],
)
def test_wrong_members(tmp_path, first, match):
    refused(archive(tmp_path, first, GOOD[2]), tmp_path / "set", match)


def test_cut_anywhere_nothing_is_written(tmp_path):
    path = archive(tmp_path, *GOOD, pack=bytes)
    raw = path.read_bytes()
    last = raw.index(b"bbb") + 3
    for length in [*range(0, last, 61), last - 1]:
        path.write_bytes(raw[:length])
        refused(path, tmp_path / "set", "archive.tar.gz")
    packed = gzip.compress(raw)
    path.write_bytes(packed[:-30])
    refused(path, tmp_path / "set", "truncated")


def test_bombs(tmp_path, monkeypatch):
    big = archive(tmp_path, member("other", bytes(10**7)), *GOOD)
    tracemalloc.start()
    refused(big, tmp_path / "set", "too large: more than most_bytes=1000000", most_bytes=10**6)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    monkeypatch.setattr(_archives, "MOST_MEMBERS", 100)
    refused(archive(tmp_path, *[member(f"m{i}") for i in range(200)], *GOOD), tmp_path / "set", "more than 100 members")


def test_random_damage_never_raises_anything_else(tmp_path):
    random.seed(0)
    path = archive(tmp_path, *GOOD, pack=bytes)
    raw, target, refusals = path.read_bytes()[:5120], tmp_path / "set", 0
    for _ in range(100):
        changed = bytearray(raw)
        for _ in range(3):
            changed[random.randrange(3) * 1024 + random.randrange(512)] = random.randrange(256)  # in the headers
        path.write_bytes(changed)
        message = outcome(path, target)
        assert message is None or str(path) in message
        refusals += message is not None
    assert refusals > 30
    assert set(listing(tmp_path)) <= {"archive.tar.gz", "set", "set/a.bin", "set/b.bin"}
