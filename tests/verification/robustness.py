"""Files that break, processes that are killed, sessions that last: what was tried and what was lost."""

import contextlib
import pathlib
import shutil
import tempfile
import zlib

from tests import sessions
from tests.files import damages, fuzz, interruptions, readers
from tests.verification import below, near, study

SESSION_MAPS = 100  # a call


@study("Damaged results")
def damaged(full):
    """Folders of runs with one damage each: how many `reporting.load` did not refuse with an error that names them."""
    from numdl import reporting
    from tests.files import test_damaged_results as results

    table = damages.of_a_run(results.FILES)
    chosen = list(table) if full else list(table)[:: len(table) // 20]
    with tempfile.TemporaryDirectory() as held:
        whole = pathlib.Path(held) / "whole"
        pair = results.save(whole), results.save(whole, 11, 1.0, source=damages.__file__)
        taken = 0
        for name in chosen:
            copy = pathlib.Path(held) / "copy"
            shutil.copytree(whole, copy)
            folder, other = (copy / each.relative_to(whole) for each in pair)
            table[name](folder, other)
            try:
                reporting.load(folder)
                taken += 1
            except (ValueError, OSError) as error:
                taken += str(folder) not in str(error)
            shutil.rmtree(copy)
    yield near("damaged folders of a run that were not refused by name", taken, 0, 0, f"{len(chosen)} damages")


@study("Mutated files")
def mutated(full):
    """Faults of each reader: errors not documented, more than 5 s or 256 MB, anything executed, imported or written."""
    for name, reader in readers.readers().items():
        count = (10_000 if reader.heavy else 100_000) if full else 20
        # Away from the tree: what a reader writes beside the file or where it is called is seen.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            report = fuzz.fuzz(reader, count, zlib.crc32(name.encode()), folder)
        yield of_mutations(name, vars(report) | {"faults": fuzz.faults(report)})


def of_mutations(name, report):
    """The figure of one reader."""
    tried = f"{report['calls']} files: {report['refused']} refused, {report['read']} read or passed over"
    return near(f"{name}: faults", len(report["faults"]), 0, 0, tried)


@study("Interrupted processes")
def interrupted(full):
    """Results and steps lost, or bits that differ at the end, of processes that were killed at random moments."""
    for kind in interruptions.KINDS if full else ("training",):
        yield of_kills(interruptions.apart(kind, 300 if full else 1))


def of_kills(report):
    """The figure of one kind of work."""
    more = {"training": f"{report.get('while writing')} while a checkpoint was written"}
    beside = more.get(report["kind"], f"{report.get('finished before')} finished results looked at")
    tried = f"{report['moments']} kills, {beside}, {report['runs']} times to the end"
    tried += "".join(f"; {each[:200]}" for each in report["lost"][:3])
    return near(f"{report['kind']}: lost, corrupt or other bits", len(report["lost"]), 0, 0, tried)


@study("Long sessions")
def lasting(full):
    """What calls of different public functions, with other shapes each time round, leave in one process."""
    if not sessions.TOLD:
        return (yield near("left out: needs /proc", 0, 0, 0, ""))
    found = sessions.session(500, 0) if full else sessions.session(10, 0, parts=("statistics", "quadrature"))
    yield from list(of_session(found))[: None if full else 3]  # few calls: memory is that of the compiler


def of_session(found):
    """The figures of a session."""
    tried = f"{found['calls']} calls of {found['functions']} functions"
    yield below("memory maps a call", found["maps a call"], SESSION_MAPS, tried)
    yield below("memory maps at most, of 65530", found["most maps"], sessions.LIMIT, tried)
    yield below("files left open", found["files"], 2, tried)
    yield below("resident memory a call, MB", found["memory a call"] / 2**20, 10, tried)
