"""Remedies: from findings to a network, a loss, an optimizer and scales that do not have the fault, and a proof.

Each remedy is a change of the Case; what cannot be built (an axis, a mask, a pairing of rows) is a line that says what
to change. Weights are drawn anew where the start is at fault (`_fresh`); the rate is the best of a short trial.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit import _affine, _fresh, trial
from numdl.audit._measured import cases, heads, labels
from numdl.audit.evidence import Evidence
from numdl.records import record, static

GRID = {"adam": (1e-4, 1e-3, 3e-3, 1e-2), "sgd": (1e-3, 1e-2, 1e-1, 5e-1)}
USUAL = {True: 1e-3, False: 1e-1}  # of Adam and its like, of descent
TRIED = 60  # steps for each rate
# Findings whose cure is a new start, another method, another rate.
START = {
    "symmetry", "signal_vanishes", "signal_explodes", "gradient_vanishes", "gradient_explodes", "saturated", "chaotic",
    "dead_units", "residual_scale", "recurrent_explodes", "recurrent_vanishes", "correlation_collapses", "too_narrow",
}  # fmt: skip
REPLACED = {"clipped_to_nothing", "optimizer_epsilon", "schedule", "decay_too_strong", "frozen"}
SHARP = {"attention_logits", "entropy_collapse"}  # a lower rate is tried; the norm of queries and keys is by hand
METHOD = {*REPLACED, *SHARP, "rate_too_high", "rate_too_low", "needs_warmup", "batch_noise", "loss_scale"}
BY_HAND = {
    "attention_logits": "normalise queries and keys (qk-norm), scores over sqrt(k)",
    "entropy_collapse": "normalise queries and keys (qk-norm), scores over sqrt(k)",
    "parametrization_does_not_transfer": "optimize.scaling.rescale and multipliers",
    "mask": "let every row of the mask see at least one position that carries information",
    "wrong_axis": "find the operation that runs over axis 0, which holds the examples",
    "norm_degenerate": "normalise over an axis with several numbers, or take a larger batch",
    "labels_constant": "check how the labels are read",
    "labels_unrelated": "check that inputs and labels are paired",
    "labels_imbalanced": "weigh the classes by 1 / frequency, or sample them evenly",
    "data_order": "shuffle the examples before they are cut into batches",
    "inputs_constant": "check how the inputs are read",
    "loss_ignores_outputs": "let the loss depend on the outputs through differentiable operations",
    "no_nonlinearity": "put an activation between the layers",
    "cannot_see": "give the network what the labels depend on: positions, features, the other tokens",
    "dropout_too_high": "a smaller dropout rate",
    "train_differs_from_evaluate": "update the running statistics during training",
    "outputs_constant": "find what makes the outputs one number: a softmax over one unit, a factor of 0, a clip",
}


@record
class Repair:
    """What to change. What is None stays as it was."""

    changes: tuple = static()  # lines, the most important first
    by_hand: tuple = static()  # lines for what cannot be built here
    params: Any
    optimizer: str | None = static()  # a named method in the place of the user's
    learning_rate: float
    input_shift: Any  # like one example: x -> (x - shift) * scale
    input_scale: Any
    target_shift: Any
    target_scale: Any
    apply: Any = static()  # a network without its last function; None: as it was
    loss: Any = static()  # None: as it was
    case: Any = static()  # the repaired Case


def repair(case: Any, evidence: Evidence, findings: tuple) -> Repair:
    """The Repair for these findings.

    Parameters
    ----------
    case : Case                 what was examined
    evidence : Evidence
    findings : tuple of Finding causes and their consequences; hints change nothing
    Returns
    -------
    Repair                      its `case` is the setting to train
    """
    strong = [f for f in findings if f.severity != "hint"] or list(findings[:1])
    names = list(dict.fromkeys(name for f in strong for name in (f.name, *f.consequences)))
    work, lines = _Work(case, evidence), []
    for name, act in _ACTS.items():
        if name in names:
            lines += act(work)
    if START & set(names):
        lines += work.start_again(names)
    if METHOD & set(names) or work.changed or not names:
        lines += work.choose_rate(names)
    # What only follows from a cause goes with it.
    causes = [f.name for f in strong if f.name in BY_HAND and f.name not in work.done]
    by_hand = [f"{name}: {BY_HAND[name]}" for name in causes]
    if not lines and not by_hand:
        by_hand = [f"{f.name}: {f.remedy}" for f in strong]
    return work.repair(lines, by_hand)


class _Work:
    """A Case under repair."""

    def __init__(self, case, evidence):
        self.before, self.case, self.e = case, case, evidence
        self.changed, self.done = False, set()
        self.parts = dict.fromkeys(
            ("params", "optimizer", "input_shift", "input_scale", "target_shift", "target_scale", "apply", "loss")
        )

    def put(self, fault, /, **changes):
        self.case = dataclasses.replace(self.case, **changes)
        self.changed = True
        self.done.add(fault)

    # ---- the data ----

    def inputs(self):
        shift, scale = _affine.columns(self._known(0))
        self.parts |= {"input_shift": shift, "input_scale": scale}
        self.put("inputs_unscaled", **self._moved(0, shift, scale))
        return ["inputs: subtract the mean of each column and divide by its deviation"]

    def targets(self):
        self._targets("targets_unscaled", *_affine.whole(self._known(1), labels.told(self.e.loss).target))
        return ["targets: subtract their mean and divide by their deviation; undo it on the outputs"]

    def labels(self):
        d = self.e.data
        if d.spare_labels:  # the first class is none that the loss asks for
            return []
        low = int(d.label_low)
        width = d.label_high - low if self.e.loss.kind == "binary" and d.label_high != low else 1
        self._targets(
            "labels_out_of_range", *_affine.labels(self._known(1), low, width, labels.told(self.e.loss).target)
        )
        return [f"targets: subtract {low}, so that the first class is 0"]

    def _known(self, part):
        """All inputs (0) or targets (1) there are."""
        return self.case.data[part] if self.case.data is not None else (self.case.x, self.case.y)[part]

    def _targets(self, fault, shift, scale):
        self.parts |= {"target_shift": shift, "target_scale": scale}
        self.put(fault, **self._moved(1, shift, scale))

    def _moved(self, part, shift, scale):
        """The batch and the data with their inputs (0) or targets (1) changed."""
        found = {"xy"[part]: _affine.moved((self.case.x, self.case.y)[part], shift, scale)}
        if self.case.data is not None:
            data = list(self.case.data)
            data[part] = _affine.moved(data[part], shift, scale)
            found["data"] = tuple(data)
        return found

    def wider(self):
        """Parameters of half precision in single precision, where their range is what was left."""
        narrow = lambda leaf: jnp.finfo(leaf.dtype).max < np.finfo(np.float32).max / 2  # noqa: E731
        if not any(map(narrow, jax.tree.leaves(self.case.moving))):
            return []
        wide = lambda leaf: leaf.astype(jnp.float32) if narrow(leaf) else leaf  # noqa: E731
        self.parts["params"] = jax.tree.map(wide, self.case.moving)
        self.put("float_range", moving=self.parts["params"])
        return ["parameters: in float32"]

    def rows(self):
        if not self.e.data.broken_count or self.case.data is None:
            return []
        x, y = self.case.data
        good = np.setdiff1d(np.arange(cases.count(x)), np.asarray(self.e.data.broken))
        kept = [
            i
            for i in good
            if all(
                np.isfinite(np.asarray(leaf[i], np.float64)).all()
                for leaf in jax.tree.leaves((x, y))
                if jnp.issubdtype(leaf.dtype, jnp.inexact)
            )
        ]
        index = np.asarray(kept)
        size = min(self.case.examples, len(index))
        x, y = cases.take(x, index), cases.take(y, index)
        self.put("not_finite", data=(x, y), x=cases.take(x, slice(0, size)), y=cases.take(y, slice(0, size)))
        return [f"data: leave out the {cases.count(self.before.data[0]) - len(index)} rows that are not finite"]

    def shuffle(self):
        if self.case.data is None:
            return []
        order = np.random.default_rng(6).permutation(cases.count(self.case.data[0]))
        data = cases.take(self.case.data[0], order), cases.take(self.case.data[1], order)
        size = slice(0, self.case.examples)
        self.put("data_order", data=data, x=cases.take(data[0], size), y=cases.take(data[1], size), in_order=False)
        return ["data: shuffle the examples before they are cut into batches"]

    def larger_batch(self):
        if self.case.data is None:
            return []
        size = slice(0, min(32, cases.count(self.case.data[0])))
        self.put("norm_degenerate", x=cases.take(self.case.data[0], size), y=cases.take(self.case.data[1], size))
        return ["batch: 32 examples"]

    # ---- loss and head ----

    def sign(self):
        loss = self.case.loss
        if self.e.optimizer.ascent < 0:
            return self.replace_method("wrong_sign")
        self.parts["loss"] = lambda outputs, targets: -loss(outputs, targets)
        self.put("wrong_sign", loss=self.parts["loss"])
        return ["loss: minus"]

    def shapes(self):
        loss = self.case.loss
        self.parts["loss"] = lambda outputs, targets: loss(outputs.reshape(targets.shape), targets)
        self.put("loss_couples_examples", loss=self.parts["loss"])
        return ["loss: outputs and targets in the same shape: loss(outputs.reshape(targets.shape), targets)"]

    def mean(self):
        loss, size = self.case.loss, self.case.examples
        self.parts["loss"] = lambda outputs, targets: loss(outputs, targets) / size
        self.put("loss_scale", loss=self.parts["loss"])
        return ["loss: the mean over the examples, not the sum"]

    def head(self):
        """The last layer's output, raw or through the function that the loss expects."""
        bare = _bare(self.case)
        if bare is None:
            return []
        # Of heads whose gradient reaches most outputs the one with the least loss.
        tried = [(*_reachable(self.case, _through(bare, function)), i) for i, (_, function) in enumerate(_HEADS)]
        deaf, floor, i = min(tried)
        if deaf or not math.isfinite(floor):
            return []
        words, function = _HEADS[i]
        self.parts["apply"] = _through(bare, function)
        self.put("head_against_loss", apply=self.parts["apply"], evaluate=None)
        self.done.add("outputs_constant")
        return [f"network: {words}"]

    # ---- the start ----

    def start_again(self, names):
        moving, text = _fresh.fresh(self.case, self.e, depth_scaled="residual_scale" in names)
        if moving is None:
            return []
        self.parts["params"] = moving
        self.put("start", moving=moving)
        return [text]

    # ---- the method ----

    def replace_method(self, why):
        self.parts["optimizer"] = "adam"
        self.put(why, make=cases.named("adam"), transformation=cases.named("adam")(1e-3), name="adam", rate=1e-3)
        return ["optimizer: plain Adam in its place"]

    def choose_rate(self, names):
        lines = []
        if (self.case.make is None or REPLACED & set(names)) and self.parts["optimizer"] is None:
            lines += self.replace_method("method")
        chosen = self._rate()
        hard = START & set(names) or "needs_warmup" in names
        if self.ends is not None and hard and self.case.name not in ("adam", "adamw") and not self.learned > 0.3:
            lines, chosen = [*lines, *self.replace_method("method")], self._rate()
        return lines + chosen

    def _rate(self):
        adaptive = self.case.name in ("adam", "adamw") or self.e.optimizer.degree_up < 0.5
        rates = sorted(
            {*GRID["adam" if adaptive else "sgd"], *([self.case.rate] if math.isfinite(self.case.rate) else [])}
        )
        base = self.case.rate if math.isfinite(self.case.rate) else rates[0]
        steps = min(TRIED, self.case.steps or TRIED)
        self.ends, self.learned = None, math.nan
        found = trial.run(
            dataclasses.replace(self.case, rate=base), factors=tuple(r / base for r in rates), steps=steps, seeds=1
        )
        end = np.where(np.isfinite(found.unseen_end), found.unseen_end, found.end)[:, 0]
        end = np.where(np.isfinite(end), end, np.inf)
        if not np.isfinite(end).any():
            return []
        self.ends = end
        # Of rates within two per cent of the way the largest: a budget is longer than a trial.
        gap = found.start - end.min()
        good = [r for r, value in zip(rates, end) if value <= end.min() + 0.02 * abs(gap)]
        rate = good[0] if adaptive else good[len(good) // 2]
        if not gap > 0.02 * abs(found.start):  # nothing was learned yet: the usual rate, not the smallest
            rate = min(good, key=lambda r: abs(math.log(r / USUAL[adaptive])))
        self.learned = float((found.start - end.min()) / max(abs(found.start), 1e-30))
        self.case = dataclasses.replace(self.case, rate=rate, transformation=self.case.make(rate))
        return [f"learning rate: {rate:.3g}"]

    def repair(self, lines, by_hand):
        return Repair(
            changes=tuple(lines),
            by_hand=tuple(by_hand),
            learning_rate=self.case.rate,
            case=self.case,
            **self.parts,
        )


_ACTS = {
    "float_range": _Work.wider,
    "not_finite": _Work.rows,
    "labels_out_of_range": _Work.labels,
    "data_order": _Work.shuffle,
    "norm_degenerate": _Work.larger_batch,
    "inputs_unscaled": _Work.inputs,
    "inputs_too_small": _Work.inputs,
    "targets_unscaled": _Work.targets,
    "wrong_sign": _Work.sign,
    "loss_couples_examples": _Work.shapes,
    "loss_scale": _Work.mean,
    "head_against_loss": _Work.head,
    "outputs_constant": _Work.head,
}

_HEADS = (
    ("end in the last layer: no function behind it", lambda z: z),
    ("a sigmoid behind the last layer", jax.nn.sigmoid),
    ("a softmax behind the last layer", lambda z: jax.nn.softmax(z, -1)),
)


def _bare(case):
    """The network up to its last layer, as apply(params, x); None where it has no head that can be cut."""
    if heads.split(case, case.x)[1] is None:
        return None

    def apply(params, x, *key):
        form, moving = dataclasses.replace(case.form, **({"key": key[0]} if key else {})), case.moving_of(params)
        traced, parts = heads.cut(form, moving, x)
        return parts[1](moving, x, traced.constants)

    return apply


def _through(apply, function):
    return lambda params, x, *key: function(apply(params, x, *key))


def _reachable(case, apply):
    """(whether the loss is deaf to many outputs of this network, least loss over any state of its last layer)."""
    changed = dataclasses.replace(case, apply=apply)
    try:
        found, _ = heads.measure(changed)
        silent = heads.silent(changed)
    except (ValueError, TypeError):
        return True, math.inf
    return silent > 0.3 or not found.pull > 0, round(found.floor_head, 2)
