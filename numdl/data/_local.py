"""Where data sets lie on this machine: the folder that `NUMDL_DATA` names, then the cache that `fetch` fills."""

import os
import pathlib
import sys

from numdl import checks

VARIABLE = "NUMDL_DATA"


def folders(folder=None):
    """The folders to look in: `folder` alone if given, else the one that NUMDL_DATA names (if set), then the cache."""
    if folder is not None:
        return [checks.path("folder", folder).expanduser()]
    named = os.environ.get(VARIABLE)
    return [*([pathlib.Path(named).expanduser()] if named else []), cache()]


def cache():
    """The user's cache folder for numdl, by the custom of the operating system; it need not exist."""
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = pathlib.Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "numdl" / "data"


def find(name, choices, folder=None):
    """(index of the choice, its paths) for the first choice whose files, plain or .gz, all exist in one of the folders.

    Parameters
    ----------
    name : str                  of the data set, for `fetch`
    choices : list of tuples    alternatives, each the relative paths of files that belong together
    Raises
    ------
    FileNotFoundError           none is complete; the message lists where it looked and says how to get the files
    """
    places = folders(folder)
    for place in places:
        for index, choice in enumerate(choices):
            paths = [_plain_or_gzip(place / part) for part in choice]
            if all(paths):
                return index, paths
    wanted = " or ".join(", ".join(choice) for choice in choices)
    looked = ", ".join(map(str, places))
    hint = f"data.fetch({name!r})" if folder is None else f"data.fetch({name!r}, folder={str(folder)!r})"
    where = "" if folder is not None else f" Files that you have: set {VARIABLE} to the folder that holds them."
    raise FileNotFoundError(f"{name}: no {wanted} (plain or .gz) in {looked}. To download: {hint}.{where}")


def _plain_or_gzip(path):
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None
