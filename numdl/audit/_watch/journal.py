"""The file of a watched run: one JSON object a line, complete and flushed, numbers that are not finite as null.

Readable while it grows. A line that a crash cut short is dropped when the run goes on. A run that goes on from an
earlier step takes the place of what stood there: those lines move to `superseded-<n>.jsonl`, nothing is deleted.
"""

import json
import math
import os
import pathlib

import numpy as np

NAME = "events.jsonl"
FORMAT = 1


class Log:
    """Appends to `folder/events.jsonl`; without a folder it does nothing."""

    def __init__(self, folder):
        self.path = None if folder is None else pathlib.Path(folder) / NAME
        self._file = None

    def begin(self, step, about):
        """Open the file for a run whose first step this is; the events before it, of which the run goes on."""
        if self.path is None:
            return []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole, events = lines(self.path)
        kept = [cut for cut in (before(step, event) for event in events) if cut]
        if not whole or kept != events:
            _rewrite(self.path, kept, [event for event in events if before(step, event) != event])
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.write("start", step, {"format": FORMAT, **about})
        return kept

    def write(self, kind, step, values):
        """One line."""
        if self._file is not None:
            self._file.write(text({"kind": kind, "step": step, **values}))
            self._file.flush()

    def close(self):
        """Close the file; what is written afterwards goes nowhere."""
        if self._file is not None:
            self._file.close()
            self._file = None


def lines(path):
    """(whether every line is whole, the events of those that are); ([] if there is no file)."""
    if not path.exists():
        return True, []
    raw = path.read_bytes()
    *complete, rest = raw.split(b"\n")
    events = [event for event in map(_parsed, complete) if event is not None]
    return not rest and len(events) == len(complete), events


def before(step, event):
    """The event if it happened before this step, what of it did, or None."""
    if event["kind"] == "loss":
        kept = [pair for pair in zip(event["steps"], event["values"]) if pair[0] < step]
        if len(kept) == len(event["steps"]):
            return event
        return {**event, "steps": [s for s, _ in kept], "values": [v for _, v in kept]} if kept else None
    return event if event["step"] < step else None  # a start is one of its step


def text(event):
    """The line of an event."""
    return json.dumps(plain(event), allow_nan=False) + "\n"


def plain(value):
    """As JSON has it: arrays as lists, floats to six digits, null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim:
        return [plain(each) for each in array.tolist()]
    number = array.item()
    if isinstance(number, float):
        return float(f"{number:.6g}") if math.isfinite(number) else None
    return number


def _parsed(line):
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"kind", "step"} <= event.keys() else None


def _rewrite(path, kept, superseded):
    """The kept events in place of the file, at once; the others beside it."""
    if superseded:
        names = (path.with_name(f"superseded-{index}.jsonl") for index in range(1, 10**6))
        next(name for name in names if not name.exists()).write_text("".join(map(text, superseded)), encoding="utf-8")
    new = path.with_name(NAME + ".new")
    new.write_text("".join(map(text, kept)), encoding="utf-8")
    os.replace(new, path)
