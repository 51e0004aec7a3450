"""Damages of a folder as data: what may happen to any file of it, and to the file that vouches for the others."""

import hashlib
import json
import os
import shutil


def _edit(change):
    def damage(path, other):
        path.write_bytes(change(bytearray(path.read_bytes())))

    return damage


def _flipped(where):
    def change(raw):
        raw[int(where * (len(raw) - 1))] ^= 1 << int(7 * where)
        return raw

    return change


def _swapped(path, other):
    """The file of the same name in another folder takes this one's place."""
    path.write_bytes((other / path.name).read_bytes())


def _removed(path, other):
    path.unlink()


def _as_folder(path, other):
    path.unlink()
    path.mkdir()


def _dangling(path, other):
    path.unlink()
    path.symlink_to(path.parent / "gone")


# What may happen to any file; `other` is a folder of another run with files of the same names.
OF_A_FILE = {
    "removed": _removed,
    "emptied": _edit(lambda raw: b""),
    "cut by a byte": _edit(lambda raw: raw[:-1]),
    "cut in half": _edit(lambda raw: raw[: len(raw) // 2]),
    "without its first byte": _edit(lambda raw: raw[1:]),
    "a byte longer": _edit(lambda raw: raw + b"\n"),
    "first bit flipped": _edit(_flipped(0)),
    "a bit flipped": _edit(_flipped(0.37)),
    "another bit flipped": _edit(_flipped(0.71)),
    "last bit flipped": _edit(_flipped(1)),
    "zeros": _edit(lambda raw: bytes(len(raw))),
    "doubled": _edit(lambda raw: raw + raw),
    "of another run": _swapped,
    "a folder": _as_folder,
    "a link to nothing": _dangling,
}


def _entry(name, value):
    return lambda about: {**about, name: value}


def _without(name):
    return lambda about: {key: value for key, value in about.items() if key != name}


def _files(change):
    return lambda about: {**about, "files": change(about["files"])}


# Entries of environment.json that say something else.
ENTRIES = {
    "another name": _entry("name", "coin"),
    "a name that is no text": _entry("name", 3),
    "no name": _without("name"),
    "other seconds": _entry("seconds", 0.5),
    "no seconds": _without("seconds"),
    "seconds that are a text": _entry("seconds", "1.5"),
    "another jax": _entry("jax", "0.1.0"),
    "another library": _entry("library", "0" * 12),
    "other precision": lambda about: {**about, "x64": not about["x64"]},
    "other CPUs": lambda about: {**about, "cpus": about["cpus"] + 1},
    "one entry more": _entry("note", "mine"),
    "no digest": _without("digest"),
    "another digest": _entry("digest", "0" * 64),
    "a digest that is no text": _entry("digest", None),
    "no format": _without("format"),
    "a later format": _entry("format", "numdl run 99"),
    "a format that is no text": _entry("format", 2),
    "no files": _without("files"),
    "files that are a list": _files(list),
    "no arrays": _files(_without("record.npz")),
    "no claims": _files(_without("claims.json")),
    "no config": _files(_without("config.json")),
    "no source": _files(_without("source.py")),
    "a file outside": _files(_entry("../secret", "0")),
    "a hidden file": _files(_entry(".secret", "0")),
    "a file that is not there": _files(_entry("more.txt", "0" * 64)),
    "a digest of a file that is a number": _files(_entry("claims.json", 0)),
    "entries in another order": lambda about: dict(sorted(about.items())),
    "a list": lambda about: list(about.items()),
    "nothing": lambda about: None,
}
# Texts that no writer makes, though some reader would take them.
TEXTS = {
    "indented otherwise": lambda raw: json.dumps(json.loads(raw)).encode(),
    "not a number": lambda raw: raw.replace(b'"seconds": 1.5', b'"seconds": NaN'),
    "a number beyond all": lambda raw: raw.replace(b'"seconds": 1.5', b'"seconds": 1e999'),
    "an entry twice": lambda raw: raw.replace(b'"seconds": 1.5', b'"seconds": 9.5, "seconds": 1.5'),
    "nested without end": lambda raw: b"[" * 100_000,
    "a number without end": lambda raw: b'{"seconds": ' + b"9" * 100_000 + b"}",
    "another encoding": lambda raw: raw.decode().encode("utf-16"),
    "a byte that is no UTF-8": lambda raw: raw.replace(b"1.5", b"1\xff5"),
    "a terminal's escape": lambda raw: raw.replace(b"numdl", b"num\x1bdl"),
}
SEALABLE = {  # what a forger can write, who makes the digests anew
    name: ENTRIES[name]
    for name in (
        "a name that is no text", "no name", "no seconds", "seconds that are a text", "a later format", "no files",
        "files that are a list", "no arrays", "no claims", "no config", "a file outside", "a hidden file",
        "a file that is not there", "a digest of a file that is a number", "a format that is no text",
    )
}  # fmt: skip
CONTENTS = {  # files of the wrong content whose digests are right
    "config.json": {"a list": b"[]", "no JSON": b"{", "not a number": b'{"width": NaN}', "nested": b"[" * 100_000},
    "claims.json": {
        "an object": b"{}", "no JSON": b"[", "a claim that is a text": b'["x"]', "a claim without fields": b"[{}]",
        "a claim of nothing": b"[null]", "not a number": b"[NaN]", "nested": b"[" * 100_000,
    },
    "record.npz": {"empty": b"", "no archive": b"PK\x03\x04" + bytes(40), "a text": b"numbers"},
}  # fmt: skip


def seal(folder, about):
    """Write environment.json with these entries and a digest that agrees."""
    text = _text({name: value for name, value in about.items() if name != "digest"})
    about = {**about, "digest": hashlib.sha256(text).hexdigest()}
    (folder / "environment.json").write_bytes(_text(about))


def forge(folder, name, content):
    """Another content of a file, and the digests made anew."""
    (folder / name).write_bytes(content)
    about = json.loads((folder / "environment.json").read_bytes())
    about["files"][name] = hashlib.sha256(content).hexdigest()
    seal(folder, about)


def of_a_run(files):
    """name -> damage(folder, another run's folder), for a folder that `reporting.save` wrote with these files."""
    found = {
        f"{file}: {name}": lambda folder, other, file=file, damage=damage: damage(folder / file, other)
        for file in files
        for name, damage in OF_A_FILE.items()
    }
    for name, change in ENTRIES.items():
        found[f"environment.json: {name}"] = lambda folder, other, change=change: _about(folder, change)
    for name, change in TEXTS.items():
        found[f"environment.json: {name}"] = lambda folder, other, change=change: _raw(folder, change)
    for name, change in SEALABLE.items():
        found[f"environment.json sealed: {name}"] = lambda folder, other, change=change: seal(
            folder, change(json.loads((folder / "environment.json").read_bytes()))
        )
    for file, contents in CONTENTS.items():
        for name, content in contents.items():
            found[f"{file} sealed: {name}"] = lambda folder, other, file=file, content=content: forge(
                folder, file, content
            )
    return found | {"the folder of another run": _exchanged, "two files of one run exchanged": _crossed}


def _about(folder, change):
    path = folder / "environment.json"
    path.write_bytes(_text(change(json.loads(path.read_bytes()))))


def _raw(folder, change):
    path = folder / "environment.json"
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    assert path.read_bytes() != raw, "the damage must change the file"


def _exchanged(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _crossed(folder, other):
    os.replace(folder / "config.json", folder / "held")
    os.replace(folder / "claims.json", folder / "config.json")
    os.replace(folder / "held", folder / "claims.json")


def _text(value):
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
