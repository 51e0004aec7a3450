"""Merge the installed versions of two environments into constraints.txt: names and versions, nothing else.

    python .ci/constraints.py .venv-3.11/bin/python .venv-3.13/bin/python > constraints.txt

The first is Python 3.11 (jax 0.10 is the last for it), the second the newest Python; what differs gets a marker.
"""

import json
import subprocess
import sys

SKIP = {"numdl", "pip", "setuptools", "wheel"}


def installed(python):
    listing = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    return {row["name"].lower(): row["version"] for row in json.loads(listing) if row["name"].lower() not in SKIP}


def lines(old, new):
    for name in sorted(old | new):
        if old.get(name) == new.get(name):
            yield f"{name}=={old[name]}"
            continue
        if name in old:
            yield f'{name}=={old[name]} ; python_version < "3.12"'
        if name in new:
            yield f'{name}=={new[name]} ; python_version >= "3.12"'


if __name__ == "__main__":
    print("\n".join(lines(*map(installed, sys.argv[1:3]))))
