"""numdl beside its peers and the best kernels written by hand, all sides in turn within every round; `make bench`.

    python -m benchmarks [FAMILY ...] [--only WORD] [--rounds 5] [--tiny] [--growth] [--json FILE]
    python -m benchmarks scaling | accuracies | gpu | diagnosis [OPTION ...]     programs of their own

Families are the files of this folder; every side runs in a process of its own, peers that need another environment in
its Python (`make bench-peers` builds both). One core: taskset -c 0 python -m benchmarks.
"""

import argparse
import importlib
import pathlib
import runpy
import sys

from benchmarks import runner, table

FOLDER = pathlib.Path(__file__).resolve().parent
FAMILIES = ("initialization", "gradients", "training", "curvature", "kernels", "adjoints", "jacobian", "imports",
            "phase_diagram", "landscape", "probe", "audit")  # fmt: skip
PROGRAMS = ("scaling", "accuracies", "gpu", "diagnosis")


def main(wanted):
    """Run the families asked for; a wrong name lists the right ones."""
    if wanted and wanted[0] in PROGRAMS:
        return program(*wanted)
    options = parser().parse_args(wanted)
    unknown = [name for name in options.families if name not in FAMILIES]
    if unknown:
        print(
            f"error: unknown benchmark {unknown[0]!r}: there are {', '.join((*FAMILIES, *PROGRAMS))}", file=sys.stderr
        )
        return 2
    settings = runner.Settings(options.rounds, options.seconds, options.limit, options.tiny, options.growth,
                               tuple(options.sides), pythons(options))  # fmt: skip
    content = runner.machine() | {"rounds": options.rounds, "tiny": options.tiny, "workloads": []}
    for found in measured(options, settings):
        print("\n".join(table.text(found)), flush=True)
        content["workloads"].append(found)
        if options.json:
            runner.save(options.json, content)
    print("\n".join(table.summary(content["workloads"])))
    return 0


def measured(options, settings):
    """The workloads asked for, one after the other."""
    for family in options.families or FAMILIES:
        module = f"benchmarks.{family}"
        for workload in importlib.import_module(module).WORKLOADS:
            if options.only in f"{family}: {workload.name}":
                yield runner.measure(module, workload, settings)


def parser():
    """The options."""
    made = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    made.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    made.add_argument("--only", default="", metavar="WORD", help="workloads with it in 'family: name'")
    made.add_argument("--sides", nargs="+", default=[], metavar="WORD", help="sides with one of them in the name")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--seconds", type=float, default=120.0, help="no new round of a workload after so long")
    made.add_argument("--limit", type=float, default=300.0, help="seconds to wait for one call")
    made.add_argument("--tiny", action="store_true", help="sizes that take no time: does everything run?")
    made.add_argument("--growth", action="store_true", help="numdl at 1, 2 and 4 times each size: slopes")
    made.add_argument("--json", metavar="FILE", help="rows as they come, the file whole at any time")
    for name in ("torch", "tangents"):
        made.add_argument(
            f"--{name}", metavar="PYTHON", help=f"Python of that environment; .venv-bench-{name} if it is there"
        )
    return made


def pythons(options):
    """The Python of each environment; None where there is none."""
    found = {"here": sys.executable}
    for name in ("torch", "tangents"):
        built = runner.ROOT / f".venv-bench-{name}" / "bin" / "python"
        found[name] = getattr(options, name) or (str(built) if built.exists() else None)
    return found


def program(name, *arguments):
    """A benchmark that is no table of sides."""
    if name == "diagnosis":
        from benchmarks.diagnosis import __main__ as diagnosis

        return diagnosis.main(list(arguments))
    sys.argv = [name, *arguments]
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
