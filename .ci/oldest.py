"""Every lower bound of pyproject.toml as a constraint that holds it there, for `make test-oldest`.

    python .ci/oldest.py > constraints-oldest.txt

What these packages need in turn is left to pip: a bound is a promise about what is asked for, not about the rest.
"""

import pathlib
import re
import tomllib

EXTRAS = ("data", "test", "interop")
BOUND = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)")


def bounds(project, extras=EXTRAS):
    """(name, lowest version) of every requirement, the higher one where two ask for the same package."""
    asked = project["dependencies"] + [row for extra in extras for row in project["optional-dependencies"][extra]]
    pairs = [BOUND.fullmatch(row).group("name", "version") for row in asked]
    return dict(sorted(pairs, key=lambda pair: tuple(map(int, re.findall(r"\d+", pair[1])))))


if __name__ == "__main__":
    project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    print("\n".join(f"{name}=={version}" for name, version in sorted(bounds(project).items())))
