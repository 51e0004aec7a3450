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


def environment(source=None):
    """Versions, device and settings that a result may depend on."""
    return versions() | {
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "revision": _revision(pathlib.Path(source or __file__).resolve().parent),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions():
    """What a repeated run must have in common with the first: versions, numdl's own source, x64. Starts no device."""
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
