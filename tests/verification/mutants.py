"""Plant each fault of mutants.toml in a copy of the package, one at a time, and run the quick tests that must notice.

    python -m tests.verification.mutants              all of them; figures go to docs/verification/ and the page
    python -m tests.verification.mutants krylov ode   those whose file begins so
    python -m tests.verification.mutants --open       those that were not caught last time, or never tried

The test that noticed a fault last time is asked first, then all that the list names. In the end every test that noticed
runs without any fault and must pass: a fault "caught" by a test that fails anyway is not caught.
"""

import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from contextlib import contextmanager

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIST = pathlib.Path(__file__).with_name("mutants.toml")
FIGURES = ROOT / "docs" / "verification" / "mutants.json"
SHARED = (
    "jax",
    "jax.scipy.linalg",
    "scipy.integrate",
    "scipy.linalg",
    "scipy.special",
    "mpmath",
    "optax",
    "hypothesis",
)
LONGEST = 300  # seconds a neighbour may take; a fault that makes it run on is noticed too


def read():
    """The faults: dicts with file, old, new, kind, tests."""
    return tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]


def occurrences(mutant, root=ROOT):
    """How often the fault's old text stands in its file: must be 1."""
    return (root / "numdl" / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"])


@contextmanager
def copy():
    """A folder with the package, its tests and what these import."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = pathlib.Path(folder)
        for name in ("numdl", "tests", "experiments"):  # the tests' settings read what workers compile with
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        yield root


@contextmanager
def planted(mutant, root):
    """The fault in the copy, and the copy whole again afterwards."""
    path = root / "numdl" / mutant["file"]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def run(root, tests):
    """(verdict, the first test that failed) of these tests in the copy: survived, caught, broken or endless."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()  # before jax has started anything: what the tests import of others is imported once
        if not child:
            _become(root, tests, output)
        code = _waited(child)
        output.seek(0)
        text = output.read()
    if code is None:
        return "endless", ""
    failed = re.search(r"^FAILED (.+?)(?: - |$)", text, re.MULTILINE)
    if code == 0:
        return "survived", ""
    return ("caught", failed[1]) if code == 1 and failed else ("broken", text[-2000:])


def _become(root, tests, output):
    """Pytest in the copy instead of what was forked; does not return."""
    code = pytest.ExitCode.INTERNAL_ERROR
    try:
        code = _test(root, tests, output)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def _test(root, tests, output):
    os.setsid()
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    cache = os.environ.get("NUMDL_TEST_CACHE", str(ROOT / ".cache" / "jax"))
    os.environ |= {"PYTHONPATH": str(root), "NUMDL_TEST_CACHE": cache}
    # Bytecode is keyed by whole seconds and sizes: a fault planted and taken back within one would leave its code.
    sys.dont_write_bytecode = True
    sys.path[:] = [str(root), *(place for place in sys.path if pathlib.Path(place or ".").resolve() != ROOT)]
    os.chdir(root)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "numdl")]:
        del sys.modules[name]
    imported_before = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *imported_before, *tests])


def _waited(child):
    """The exit code of the child, None if it had to be ended after LONGEST seconds."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def tried(root, mutant, before):
    """The verdict on one fault, the test that noticed it before asked first."""
    with planted(mutant, root):
        if before:
            found = run(root, [before])
            if found[0] == "caught":
                return found
        chosen = ["-k", mutant["only"]] if "only" in mutant else []
        return run(root, [*chosen, *(f"tests/{name}" for name in mutant["tests"])])


def main(wanted):
    """Run the chosen faults; the exit code is 1 if one is not caught, 2 if none was chosen."""
    if {"-h", "--help"} & set(wanted):
        print(__doc__)
        return 0
    for name in SHARED:
        importlib.import_module(name)
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    still_open = "--open" in wanted
    wanted = tuple(name for name in wanted if name != "--open")
    chosen = {_name(m): m for m in read() if m["file"].startswith(wanted or "")}
    if not chosen:
        print(f"error: no fault's file begins with {' or '.join(wanted)}", file=sys.stderr)
        return 2
    if still_open:
        chosen = {name: m for name, m in chosen.items() if known.get(name, {}).get("verdict") != "caught"}
    with copy() as root:
        for name, mutant in chosen.items():
            start = time.perf_counter()
            verdict, by = tried(root, mutant, known.get(name, {}).get("by"))
            seconds = round(time.perf_counter() - start, 1)
            known[name] = {"kind": mutant["kind"], "verdict": verdict, "by": by, "date": time.strftime("%F")}
            print(f"{verdict:9} {seconds:6.1f} s  {name}  {by}", flush=True)
            _write(known)
        _control(root, [known[name] for name in chosen if known[name]["verdict"] == "caught"])
    _write(known)
    from tests.verification import page

    page.write()
    return any(known[name]["verdict"] not in ("caught", "endless") for name in chosen)


def _control(root, rows):
    """Without a fault every test that noticed one must pass; what does not caught nothing."""
    wrong = set()
    while (found := run(root, sorted({row["by"] for row in rows} - wrong) or ["--version"]))[0] == "caught":
        wrong.add(found[1])
        print(f"fails without any fault: {found[1]}", flush=True)
    for row in rows:
        if row["by"] in wrong or found[0] != "survived":
            row["verdict"] = "fails anyway"


def _name(mutant):
    return f"{mutant['file']}: {mutant['old']} -> {mutant['new']}"


def _write(known):
    FIGURES.parent.mkdir(exist_ok=True)
    listed = {_name(mutant) for mutant in read()}
    rows = {name: row for name, row in sorted(known.items()) if name in listed}
    FIGURES.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
