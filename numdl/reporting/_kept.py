"""The files of a run's folder, read within bounds and believed only where their digests agree.

`environment.json` holds the digests of the other files and, last, its own: the SHA-256 of its text without that entry.
"""

import hashlib
import json
import os
import pathlib
import warnings

from numdl import _stored, checks
from numdl.reporting._claims import Claim
from numdl.reporting._encoding import jsonable, strict_json

FORMAT = "numdl run 2"
NEEDED = ("config.json", "claims.json", "record.npz")
MOST = 2**31  # bytes of one file, and of all arrays
MOST_TEXT = 2**26


def sealed(about):
    """What environment.json holds, with its own digest."""
    about = {"format": FORMAT} | jsonable(about, "environment")
    return strict_json(about | {"digest": _sum(strict_json(about))})


def read(place, most_bytes):
    """(environment, config, claims, arrays) of a folder; ValueError names the file that is not as it was written."""
    about = _environment(place / "environment.json")
    files = {file: _verified(place / file, total, most_bytes) for file, total in about["files"].items()}
    parse = {"config.json": _config, "claims.json": _claims, "record.npz": lambda raw: _arrays(raw, most_bytes)}
    values = []
    for name in NEEDED:
        try:
            values.append(parse[name](files[name]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise checks.BadValue(f"{place / name} must be what a run wrote: {error}") from error
    return about, *values


def _environment(path):
    raw = _bounded(path, MOST_TEXT)
    try:
        about = _json(raw)
        _check_environment(about)
        _check_seal(path, about, raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise checks.BadValue(
            f"{path} must be the file that the run wrote; it was changed, cut or removed since: {error}"
        ) from error
    return about


def _check_environment(about):
    if not isinstance(about, dict):
        raise ValueError(f"it holds a {type(about).__name__}")
    if about.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"its format must be {FORMAT!r}; got {about['format']!r:.100}, perhaps of another version of numdl"
        )
    files = about.get("files")
    if not isinstance(about.get("name"), str) or not isinstance(files, dict):
        raise ValueError("it has no name, or no files")
    if isinstance(about.get("seconds"), bool) or not isinstance(about.get("seconds"), int | float):
        raise ValueError("it has no seconds")
    for file, total in files.items():
        if file != pathlib.PurePath(file).name or file.startswith(".") or not isinstance(total, str):
            raise ValueError(f"environment.json must name files of its own folder; got {file!r}")
    missing = [name for name in NEEDED if name not in files]
    if missing:
        raise ValueError(f"it has no digest of {missing[0]}")


def _check_seal(path, about, raw):
    """Every byte is as it was; what was kept before there was a seal is read with a warning."""
    if "format" not in about and "digest" not in about:
        warnings.warn(
            f"{path} was kept by an earlier version, without a digest of its own: nothing vouches for its versions "
            "and seconds",
            stacklevel=5,
        )
        return
    unsealed = {name: value for name, value in about.items() if name != "digest"}
    if about.get("digest") != _sum(strict_json(unsealed)) or strict_json(about) != raw:
        raise ValueError("it has not the digest that it was written with")


def _verified(path, total, most_bytes):
    content = _bounded(path, most_bytes) if path.is_file() else b""
    if _sum(content) != total:
        raise checks.BadValue(f"{path} must be the file that the run wrote; it was changed, cut or removed since")
    return content


def _bounded(path, most_bytes):
    """A file's bytes, never more than allowed."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size  # Python would make room for as many bytes as are asked for
        content = file.read(min(size, most_bytes) + 1)
    if len(content) > most_bytes:
        raise checks.BadValue(f"{path} must be at most {most_bytes} bytes; got more")
    return content


def _config(raw):
    return checks.instance("config", _json(raw), dict)


def _claims(raw):
    return [Claim.from_dict(claim) for claim in checks.instance("claims", _json(raw), list)]


def _arrays(raw, most_bytes):
    return _stored.arrays(raw, most_bytes=most_bytes)


def _json(raw):
    return json.loads(raw, parse_constant=_no_number)


def _no_number(token):
    raise ValueError(f"{token} is no number of strict JSON")


def _sum(content):
    return hashlib.sha256(content).hexdigest()
