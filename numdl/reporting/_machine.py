"""Where a run was made: versions, numdl's own source, device, settings."""

import datetime
import functools
import hashlib
import os
import pathlib
import platform
import subprocess

import jax
import numpy as np

import numdl
from numdl.typing import StrPath


def environment(source: StrPath | None = None) -> dict:
    """Versions, device and settings that a result may depend on.

    Parameters
    ----------
    source : path or None   a file of the repository whose revision is recorded; None: numdl's own
    Returns
    -------
    dict                    what `versions` gives, and the device, the number of CPUs, XLA's flags, git's revision (None
                            outside a repository), and when the run was finished (UTC)
    """
    return versions() | {
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "revision": _revision(pathlib.Path(source or __file__).resolve().parent),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict:
    """What a repeated run must have in common with the first: versions, numdl's own source, x64. Starts no device.

    Returns
    -------
    dict                    versions of numdl, jax, jaxlib, numpy and python; "library", the first 12 hexadecimal digits
                            of the SHA-256 of numdl's source; "x64"
    """
    import jaxlib

    return {
        "numdl": numdl.__version__,
        "library": _library(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "x64": bool(jax.config.jax_enable_x64),
    }


@functools.cache
def _library():
    """The first 12 hexadecimal digits of the SHA-256 of numdl's source, file by file."""
    root, total = pathlib.Path(numdl.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def _revision(folder):
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
