"""What happened in training: a record that is one file, and a plot."""

import io
import os
import tempfile

import numpy as np

from numdl import _stored, checks
from numdl.records import record, static


@record
class History:
    """The losses, the observations, and how training ended."""

    loss: np.ndarray  # [steps]: of each step's batch, before the step
    observed: dict  # name -> (steps [M] completed when it was observed, values [M, ...])
    stopped: str = static(default="finished")  # "finished", "stopped early", "batches ended" or "diverged"
    detail: str = static(default="")  # why it stopped, for people: the step, the first layer that was not finite
    notes: tuple = static(default=())  # for people: checkpoints that were passed over

    @property
    def steps(self):
        """How many steps were taken."""
        return len(self.loss)

    def save(self, path):
        """Write one .npz file, whole or not at all: another process sees the old one or the new one."""
        path = checks.path("path", path)
        arrays = {"loss": _plain(self.loss), "stopped": np.array(self.stopped), "detail": np.array(self.detail)}
        arrays["notes"] = np.array(self.notes, dtype=str)
        for name, (steps, values) in self.observed.items():
            arrays |= {f"steps:{name}": np.asarray(steps), f"values:{name}": _plain(values)}
        held = io.BytesIO()
        np.savez_compressed(held, **arrays)
        _replace(path, held.getvalue())

    @staticmethod
    def load(path):
        """Read what `save` wrote; nothing is unpickled. A file that is none of those is a ValueError."""
        arrays = _loaded(path)
        names = [name.removeprefix("steps:") for name in arrays if name.startswith("steps:")]
        observed = {name: (arrays[f"steps:{name}"], arrays[f"values:{name}"]) for name in names}
        notes = tuple(arrays["notes"].tolist()) if "notes" in arrays else ()
        return History(arrays["loss"], observed, str(arrays["stopped"]), str(arrays["detail"]), notes)

    def plot(self, ax=None):
        """The loss by step, and what was observed as single numbers on a second axis; returns the Axes."""
        return plot(self, ax)

    def __repr__(self):
        lines = [f"History: {self.steps} steps, {self.stopped}" + (f" ({self.detail})" if self.detail else "")]
        if self.steps:
            lines.append(f"  loss  {self.loss[0]:.6g} -> {self.loss[-1]:.6g}")
        for name, (steps, values) in self.observed.items():
            ends = f"{float(values[0]):.6g} -> {float(values[-1]):.6g}" if _single(values) else f"{values.shape[1:]}"
            lines.append(f"  {name}  {ends}, {len(steps)} times")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def plot(history, ax=None):
    """The loss by step, thin, with its running mean; single numbers that were observed as dots on a second axis."""
    if ax is None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
    loss = np.asarray(history.loss, float)
    window = max(1, len(loss) // 50)
    ax.plot(np.arange(len(loss)), loss, lw=0.6, alpha=0.4, color="#0072b2", label="loss")
    if window > 1:
        mean = np.convolve(loss, np.ones(window) / window, mode="valid")
        ax.plot(np.arange(len(mean)) + (window - 1) / 2, mean, color="#0072b2", label=f"loss, mean of {window} steps")
    ax.set(xlabel="step", ylabel="loss", title="" if history.stopped == "finished" else history.stopped)
    if loss.size and np.all(loss > 0):
        ax.set_yscale("log")
    _second(history, ax)
    return ax


def _second(history, ax):
    single = {name: pair for name, pair in history.observed.items() if _single(pair[1])}
    handles, labels = ax.get_legend_handles_labels()
    if single:
        other = ax.twinx()
        colors = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
        for index, (name, (steps, values)) in enumerate(single.items()):
            other.plot(steps, values, "o-", ms=3, lw=0.8, color=colors[index % len(colors)], label=name)
        other.set_ylabel(", ".join(single))
        more = other.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    # Below the axes: two curves leave no corner free.
    ax.legend(handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _single(values):
    """Whether each observation was one real number."""
    return np.ndim(values) == 1 and len(values) > 0 and not np.iscomplexobj(values)


def _plain(values):
    """bfloat16 and its like have no npz form; float32 holds them exactly."""
    values = np.asarray(values)
    return values.astype(np.float32) if values.dtype.kind == "V" else values


def _loaded(path):
    """{name: array} of a file that `save` wrote."""
    content = checks.path("path", path).read_bytes()
    try:
        arrays = _stored.arrays(content)
    except ValueError as error:
        raise checks.BadValue(f"path must be a file that History.save wrote; got {path}: {error}") from error
    pairs = {f"values:{name.removeprefix('steps:')}" for name in arrays if name.startswith("steps:")}
    missing = ({"loss", "stopped", "detail"} | pairs) - set(arrays)
    if missing:
        raise checks.BadValue(f"path must be a file that History.save wrote; got {path}: it has no {min(missing)!r}")
    for name, array in arrays.items():
        wanted = 0 if name in ("stopped", "detail") else 1
        if array.ndim < wanted or (array.ndim > wanted and not name.startswith("values:")):
            raise checks.BadValue(
                f"path must be a file that History.save wrote; got {path}: its {name!r} has the shape {array.shape}"
            )
    return arrays


def _replace(path, content):
    try:
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise type(error)(f"path must be in a folder that can be written; got {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
