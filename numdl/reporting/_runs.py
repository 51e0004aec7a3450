"""A run's folder: everything needed to believe a result and to repeat it.

    results/<name>/<digest of the config>/
        config.json        what was asked, strict JSON (numbers that are not finite are strings)
        claims.json        what is claimed and whether it holds
        record.npz         the arrays, by field path; read back without pickle
        figure.svg, .png   equal runs give equal bytes
        source.py          the experiment's own file as it ran
        environment.json   versions, device, seconds, the SHA-256 of every file above and of itself

A folder is there whole or not at all: it is written beside its place, flushed to the disk, then renamed. An earlier run
of the same config is set aside for the two renames and put back if the writer is killed between them.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numdl import checks
from numdl.reporting._boards import Score
from numdl.reporting._claims import Claim, checked_claims
from numdl.reporting._encoding import arrays, image, jsonable, npz, strict_json
from numdl.reporting._files import put, writable, write
from numdl.reporting._kept import MOST, read, sealed
from numdl.reporting._machine import environment
from numdl.typing import StrPath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
_DIGEST = re.compile(r"[0-9a-f]{12}")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as its folder holds it."""

    name: str
    folder: pathlib.Path
    config: dict
    claims: list
    arrays: dict  # by field path: "lengths.mean"
    environment: dict

    @property
    def seconds(self):
        """How long the run took."""
        return self.environment["seconds"]

    @property
    def held(self):
        """How many claims hold."""
        return sum(claim.holds for claim in self.claims)

    @property
    def score(self):
        """The run's line of a scoreboard."""
        about = self.environment
        return Score(self.name, self.claims, self.seconds, about.get("peak_maps"), about.get("peak_memory"))

    def summary(self):
        """Name, config, seconds, maps, memory and claims as strict JSON writes them."""
        score, claims = self.score, [claim.as_dict() for claim in self.claims]
        about = {"name": self.name, "config": self.config, "seconds": self.seconds}
        about |= {"peak_maps": score.maps, "peak_memory": score.memory, "margin": score.margin}
        return jsonable(about | {"claims": claims}, "run")

    def __repr__(self):
        return f"Run {self.name}: {self.held} of {len(self.claims)} claims hold, {self.seconds:.1f} s, {self.folder}"


def save(
    results: StrPath,
    *,
    name: str,
    config: Any,
    record: Any,
    claims: Sequence[Claim],
    seconds: float,
    figure: "Figure | None" = None,
    source: StrPath | None = None,
    used: dict | None = None,
) -> Run:
    """Write a run's folder, whole or not at all, and return it as a `Run`.

    Parameters
    ----------
    results : path          the folder over all runs; made if it is not there
    name : str              the experiment: small letters, digits, underscores
    config : dataclass      (or dict) of frozen values; their digest names the folder: an equal config replaces its run
    record : dataclass      arrays; nested records and tuples are stored under their field path
    claims : list of Claim  what is claimed of the record
    seconds : float         how long the run took, >= 0
    figure : Figure         a matplotlib figure, or None
    source : path           the experiment's file, copied as it is, or None
    used : dict             more facts for environment.json: "peak_memory" in bytes, "peak_maps"
    Returns
    -------
    Run                     as `load` reads it
    Raises
    ------
    ValueError, TypeError   a name that could leave the folder, a field that is not an array
    OSError                 the folder cannot be written
    """
    _checked(name)
    _checked_config(config)
    results = checks.path("results", results)
    claims = checked_claims(claims)
    seconds = checks.finite("seconds", seconds, least=0.0, shape=())
    if figure is not None and not hasattr(figure, "savefig"):
        raise checks.BadType(f"figure must be a figure of matplotlib or None; got {figure!r:.60}")
    files = {
        "config.json": strict_json(jsonable(config, "config")),
        "claims.json": strict_json(jsonable([claim.as_dict() for claim in claims], "claims")),
        "record.npz": npz(arrays(record)),
    }
    if figure is not None:
        files |= {"figure.svg": image(figure, "svg"), "figure.png": image(figure, "png")}
    if source is not None:
        files["source.py"] = checks.path("source", source).read_bytes()
    about = {"name": name, "seconds": round(float(seconds), 3), **environment(source), **(used or {})}
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    files["environment.json"] = sealed(about | {"files": sums})
    folder = writable(results / name) / digest(config)
    with _lock(folder):
        _publish(folder, files)
    size = sum(np.asarray(value).nbytes for value in arrays(record).values())
    return load(folder, most_bytes=max(MOST, 2 * size))


def load(folder: StrPath, *, most_bytes: int = MOST) -> Run:
    """Read a run's folder; no code is run, and every file must still have the digest it was written with.

    Parameters
    ----------
    folder : path           results/<name>/<digest of the config>; it may be one that cannot be written
    most_bytes : int        refuse a run whose files, or arrays after decompression, are larger
    Returns
    -------
    Run                     name, config, claims, arrays by field path, environment
    Raises
    ------
    FileNotFoundError       there is no run
    ValueError              a file was changed, cut or removed, is of another run or of a later version of numdl; the
                            message names it
    """
    most_bytes = checks.whole("most_bytes", most_bytes, most=checks.BYTES)
    folder = checks.path("folder", folder)
    with _lock(folder, shared=True):
        place = folder if folder.is_dir() else _aside(folder)
        if not (place / "environment.json").is_file():
            raise FileNotFoundError(f"folder must be a run's folder; there is no {folder / 'environment.json'}")
        about, config, claims, values = read(place, most_bytes)
    _check_place(folder, about["name"], config)
    return Run(about["name"], folder, config, claims, values, about)


def publish(path: StrPath, text: str | bytes) -> pathlib.Path:
    """Write a file, whole or not at all: beside its place, flushed to the disk, then renamed.

    Parameters
    ----------
    path : path             the file; its folder is made if needed
    text : str or bytes     its content; text is written as UTF-8
    Returns
    -------
    Path                    the same
    Raises
    ------
    TypeError, ValueError   a path or a text that is neither
    OSError                 the file cannot be written; what was there stays
    """
    path, text = checks.path("path", path), checks.instance("text", text, (str, bytes))
    return put(path, text.encode("utf-8", "replace") if isinstance(text, str) else text)


def digest(config: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the config's strict JSON: the name of its run's folder.

    Parameters
    ----------
    config : dataclass or dict      frozen values
    Returns
    -------
    str                     equal for equal configs
    Raises
    ------
    TypeError               neither of them, or a value that JSON cannot hold
    """
    _checked_config(config)
    return hashlib.sha256(strict_json(jsonable(config, "config"))).hexdigest()[:12]


def _checked(name):
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise checks.BadValue(f"name must be small letters, digits and underscores, a letter first; got {name!r}")
    return name


def _checked_config(config):
    if not isinstance(config, dict) and (not dataclasses.is_dataclass(config) or isinstance(config, type)):
        raise checks.BadType(f"config must be a dataclass or a dict of plain values; got {config!r:.60}")


def _check_place(folder, name, config):
    """A folder named by a digest must be its config's, below its experiment's name: folders can be mixed up."""
    if not _DIGEST.fullmatch(folder.name):
        return
    asked = hashlib.sha256(strict_json(config)).hexdigest()[:12]
    path = folder.absolute()
    if (path.parent.name, path.name) != (name, asked):
        raise checks.BadValue(
            f"folder must be where its run was kept, {name}/{asked}; got {folder}: another run's place"
        )


def _aside(folder):
    return folder.with_name(f".{folder.name}.old")


def _publish(folder, files):
    fresh, aside = folder.with_name(f".{folder.name}.new"), _aside(folder)
    _settle(folder, aside)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        for name, content in files.items():
            write(fresh / name, content)
        _flush(fresh)
        if folder.exists():
            os.rename(folder, aside)
        os.rename(fresh, folder)
        _flush(folder.parent)
    finally:
        _settle(folder, aside)
        shutil.rmtree(fresh, ignore_errors=True)


def _settle(folder, aside):
    """Finish or undo an exchange: an earlier run is put back if nothing took its place, dropped if something did."""
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _flush(folder):
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _lock(folder, *, shared=False):
    """One writer or many readers of a run at a time; the lock ends with its process, whatever happens to it."""
    path = folder.with_name(f".{folder.name}.lock")
    if os.name != "posix" or (shared and not path.exists()):
        yield
        return
    import fcntl

    with open(path, "rb" if shared else "ab") as file:
        # A disk may know no locks; what was computed for an hour is kept all the same.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
