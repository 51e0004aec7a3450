"""Timings of numdl beside its peers, in one process: python -m benchmarks [NAME ...]; without a name all of them.

Ratios count, not seconds: each benchmark runs both sides in turn within every round. One is no timing, takes options
and judges the audit on hundreds of networks: python -m benchmarks diagnosis [OPTION ...]; see benchmarks/diagnosis.
"""

import pathlib
import runpy
import sys

FOLDER = pathlib.Path(__file__).resolve().parent


def main(wanted):
    """Run the benchmarks asked for; a wrong name lists the right ones."""
    if wanted[:1] == ["diagnosis"]:
        from benchmarks.diagnosis import __main__ as diagnosis

        return diagnosis.main(wanted[1:])
    known = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"error: unknown benchmark {unknown[0]!r}: there are {', '.join([*known, 'diagnosis'])}", file=sys.stderr)
        return 2
    for name in wanted or known:
        print(f"== {name}", flush=True)
        sys.argv = [name]
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
