"""Processes that are killed at random moments: python -m tests.files.interruptions [--count 300] [KIND ...]

After every kill the folder is looked at: what was finished is there, byte for byte, nothing is half written, and the
same command goes on. At the end the result is, bit for bit, that of a process that nobody disturbed. Prints a line
of JSON for each kind of work: moments, what they hit, what was lost.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGTERM, signal.SIGINT)
STEPS, EVERY = 400, 2
EXPERIMENTS = ("a1", "a2", "a3")
LIMIT = 900  # seconds that undisturbed work may take


# ---- training ----


def train(folder):
    """A run that mostly writes checkpoints; (the step it went on from, digest of its result)."""
    import jax
    import numpy as np
    import optax

    from numdl.optimize import train as training

    def loss(params, batch, key):
        noise = jax.random.normal(key, batch.shape, batch.dtype)
        return ((params["w"] - batch - 0.1 * noise) ** 2).mean() + (params["v"] ** 2).mean()

    params = {"w": np.cos(np.arange(256, dtype=np.float32)), "v": np.ones((3, 3), np.float32)}
    batches = training.resident(np.eye(256, dtype=np.float32)[:32], size=4, key=jax.random.key(1))
    begun = 0
    if folder is not None and any(path.name.isdigit() for path in pathlib.Path(folder).iterdir()):
        begun = training.read(folder, params).step
    print(json.dumps({"begun": begun}), flush=True)
    params, history = training.fit(
        loss, params, optax.adam(1e-2), batches, steps=STEPS, key=jax.random.key(0), folder=folder, checkpoint=EVERY,
        observe={"w": (training.every(50), lambda params: params["w"][:3])},
    )  # fmt: skip
    total = hashlib.sha256()
    for array in (*params.values(), history.loss, *history.observed["w"]):
        total.update(np.asarray(array).tobytes())
    print(json.dumps({"digest": total.hexdigest()}), flush=True)


def _forked(folder):
    """A child that trains: forked before jax has started a device, so that it need not import anything anew."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading)
    code = 1
    try:
        os.dup2(writing, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        warnings.simplefilter("error")
        train(folder)
        code = 0
    except BaseException as error:
        # Ctrl-C inside of a comparison that jax's C++ asks for comes out as a ValueError that quotes it.
        pressed = "KeyboardInterrupt" in "".join(traceback.format_exception(error))
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500], "Ctrl-C": pressed}), flush=True)
    finally:
        os._exit(code)


def _newest(folder):
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def training(count, seed, limit=10**6):
    """Kill training `count` times, beginning anew whenever a run is finished."""
    import jax  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    from numdl.optimize import train as _

    moments = random.Random(seed)
    report = {"kind": "training", "moments": 0, "while writing": 0, "runs": 0, "lost": []}
    begun = time.monotonic()
    child, said = _forked(None)
    expected = json.loads(said.read().splitlines()[-1])["digest"]
    os.waitpid(child, 0)
    with tempfile.TemporaryDirectory() as held:
        folder, longest = _anew(held, report), 3.0
        while report["moments"] < count and time.monotonic() < begun + limit:
            before = _newest(folder)
            child, said = _forked(folder)
            first = json.loads(said.readline() or "{}")
            if first.get("begun", -1) < before:
                report["lost"].append(f"went on from {first} where step {before} was finished")
            start = time.monotonic()
            time.sleep(moments.uniform(0, longest))
            number = moments.choice(SIGNALS)
            os.kill(child, number)
            _, status = os.waitpid(child, 0)
            rest = [json.loads(line) for line in said.read().splitlines()]
            report["while writing"] += any("tmp" in path.name for path in folder.iterdir())
            report["moments"] += os.WIFSIGNALED(status) or bool(rest and rest[-1].get("Ctrl-C"))
            faults = [each for each in rest if "error" in each and not each["Ctrl-C"]]
            report["lost"] += [str(each) for each in faults]
            if rest and "digest" in rest[-1]:
                report["runs"] += 1
                report["lost"] += [] if rest[-1]["digest"] == expected else ["other bits at the end"]
                longest = max(1.0, min(longest, time.monotonic() - start))
                folder = _anew(held, report)
        report["lost"] += _ended(folder, expected)
    return report


def _anew(held, report):
    folder = pathlib.Path(held) / str(report["runs"])
    folder.mkdir(exist_ok=True)
    return folder


def _ended(folder, expected):
    """What is wrong with the end of the last run, left alone."""
    child, said = _forked(folder)
    last = json.loads(said.read().splitlines()[-1])
    os.waitpid(child, 0)
    return [] if last.get("digest") == expected else [f"at the end {last}"]


# ---- reproduce ----


def reproduce(count, seed, limit=10**6):
    """Kill `experiments reproduce` and its workers `count` times, beginning anew whenever all is finished."""
    from numdl import reporting

    moments = random.Random(seed)
    report = {"kind": "reproduce", "moments": 0, "finished before": 0, "runs": 0, "lost": []}
    with tempfile.TemporaryDirectory() as held:
        start = begun = time.monotonic()
        code = _started(pathlib.Path(held) / "alone").wait(timeout=LIMIT)
        longest = time.monotonic() - start
        expected = _results(reporting, pathlib.Path(held) / "alone", report)
        report["lost"] += [] if code == 0 and len(expected) == len(EXPERIMENTS) else [f"undisturbed: exit code {code}"]
        results, known = pathlib.Path(held) / "results", {}
        while report["moments"] < count and time.monotonic() < begun + limit:
            process = _started(results)
            start = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0, longest))
                longest = time.monotonic() - start  # it ended before: the next moments are earlier
            victims = _family(process.pid)
            whom = moments.choice(("all", "the one that was called", "a worker"))
            chosen = {"all": victims, "the one that was called": victims[:1], "a worker": victims[1:] or victims}[whom]
            alive = process.poll() is None
            for pid in chosen if alive else ():
                _kill(pid, signal.SIGKILL)
            process.wait(timeout=LIMIT)
            _gone(victims)
            report["moments"] += alive
            there = _results(reporting, results, report)
            for path, content in known.items():
                if path not in there or there[path][0] != content[0]:
                    report["lost"].append(f"{path} was finished, then changed or gone")
            known = there
            report["finished before"] += len(there)
            if len(there) == len(EXPERIMENTS):
                report["lost"] += _differing(reporting, there, expected)
                report["runs"] += 1
                shutil.rmtree(results)
                known = {}
        code = _started(results).wait(timeout=LIMIT)
        there = _results(reporting, results, report)
        report["lost"] += [] if code == 0 and not _differing(reporting, there, expected) else [f"at the end: {code}"]
    return report


def _started(results):
    command = [sys.executable, "-m", "experiments", "reproduce", "--tiny", "--only", *EXPERIMENTS, "--results", results]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _family(pid):
    """The process and its children, as they are now."""
    return [pid, *children(pid)]


def children(pid):
    """The processes that this one started, as they are now: of /proc, or of pgrep where there is none."""
    try:
        told = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        told = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(number) for number in told.split()]


def _kill(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _gone(pids):
    """Wait until those that were left have ended by themselves: a worker does not outlive who started it."""
    limit = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)


def _alive(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _results(reporting, results, report):
    """path -> (arrays, claims) of every finished run; one that cannot be read is lost."""
    found = {}
    for folder in sorted(results.glob("*/*")) if results.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                run = reporting.load(folder)
                found[str(folder.relative_to(results))] = (folder / "environment.json").read_bytes(), run
            except (OSError, ValueError) as error:
                report["lost"].append(str(error))
    return found


def _differing(reporting, there, expected):
    import numpy as np

    wrong = [f"{path} is missing" for path in expected if path not in there]
    for path, (_, run) in there.items():
        other = expected[path][1]
        same = run.arrays.keys() == other.arrays.keys() and all(
            np.array_equal(run.arrays[name], other.arrays[name], equal_nan=run.arrays[name].dtype.kind in "fc")
            for name in run.arrays
        )
        wrong += [] if same else [f"{path} has other bits"]
    return wrong


def apart(kind, count):
    """The report on one kind of work, from a process of its own: nothing can be forked once jax has started."""
    command = [sys.executable, "-m", "tests.files.interruptions", "--count", str(count), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {"kind": kind, "moments": 0, "runs": 0, "lost": [done.stderr[-500:]]}


KINDS = {"training": training, "reproduce": reproduce}


def main(arguments):
    """Interrupt, print what came of it, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.files.interruptions", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10**6, help="begin no more after so many seconds")
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS])
    chosen, lost = parser.parse_args(arguments), False
    cache = tempfile.mkdtemp()  # what is killed begins again: it need not compile again
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name in chosen.kinds or KINDS:
        start = time.monotonic()
        report = KINDS[name](chosen.count, chosen.seed, chosen.limit)
        lost |= bool(report["lost"])
        print(json.dumps({**report, "seconds": round(time.monotonic() - start)}), flush=True)
    shutil.rmtree(cache, ignore_errors=True)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
