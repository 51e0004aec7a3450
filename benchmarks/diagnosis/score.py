"""How good a diagnosis is, against the measured truth: rows in, numbers and a table out.

A row is what one case gave: {"name", "verdict", "probability", "findings": [[name, severity], ...], "seconds",
"features"} or {"name", "crash": text}; with repairs also {"repair": {"progress": [...]}}.

    auc            of 1 - probability, "will not train" against "will train"; all: also "trains badly", as sick
    detection      share of "will not train" that was not called "will train"
    false alarms   share of "will train" that was called otherwise
    calibration    expected error of the probability over ten bins of equal count
    rescued        share of sick cases that train after repair(); a repair that raises has not
                    planted: of causes that are no line of the user's own code (`IN_THE_CODE`: there, the share of
                    those that the repair tells by name, or cures); able: of networks that train when started as usual
    first, three   share of sick cases of known cause whose first finding, or one of the first three, names it
"""

import numpy as np

from benchmarks.diagnosis.truth import VERDICTS, verdict

SICK, BADLY, TRAINS = VERDICTS
# Faults that only another line of the network or the loss, or other data, can cure.
IN_THE_CODE = {
    "mask", "wrong_axis", "norm_degenerate", "outputs_constant", "loss_ignores_outputs", "no_nonlinearity",
    "cannot_see", "labels_constant", "labels_unrelated", "labels_imbalanced", "inputs_constant", "dropout_too_high",
    "too_narrow", "train_differs_from_evaluate", "not_finite",
}  # fmt: skip
# What a fault of one name also is, to any measurement: a fair answer is any of these.
ALSO = {
    "symmetry": ("signal_vanishes", "outputs_constant"),
    "signal_vanishes": ("gradient_vanishes",),
    "signal_explodes": ("gradient_explodes", "residual_scale"),
    "gradient_vanishes": ("signal_vanishes", "correlation_collapses", "saturated"),
    "gradient_explodes": ("chaotic", "signal_explodes"),
    "chaotic": ("gradient_explodes", "saturated"),
    "saturated": ("chaotic", "signal_explodes"),
    "dead_units": ("signal_vanishes", "outputs_constant"),
    "correlation_collapses": ("gradient_vanishes", "saturated", "outputs_constant"),
    "residual_scale": ("signal_explodes", "gradient_explodes"),
    "too_narrow": ("dead_units", "gradient_vanishes"),
    "recurrent_explodes": ("signal_explodes", "gradient_explodes"),
    "recurrent_vanishes": ("gradient_vanishes",),
    "norm_degenerate": ("outputs_constant", "inputs_constant"),
    "outputs_constant": ("head_against_loss", "norm_degenerate"),
    "head_against_loss": ("outputs_constant", "saturated"),
    "loss_scale": ("rate_too_high", "rate_too_low"),
    "not_finite": ("float_range",),
    "float_range": ("not_finite", "optimizer_epsilon"),
    "inputs_unscaled": ("rate_too_high", "saturated", "signal_explodes"),
    "inputs_too_small": ("signal_vanishes", "rate_too_low"),
    "targets_unscaled": ("rate_too_low", "rate_too_high", "head_against_loss"),
    "optimizer_epsilon": ("rate_too_low",),
    "clipped_to_nothing": ("rate_too_low",),
    "schedule": ("rate_too_low",),
    "batch_noise": ("rate_too_high",),
    "needs_warmup": ("rate_too_high",),
    "labels_out_of_range": ("not_finite",),
    "mask": ("not_finite", "cannot_see"),
    "cannot_see": ("labels_unrelated", "mask"),
    "labels_unrelated": ("cannot_see",),
    "data_order": ("labels_constant",),
    "loss_ignores_outputs": ("frozen", "outputs_constant"),
    "frozen": ("schedule",),
}


def area(sick, healthy):
    """Area under the ROC curve of a score that is larger for the sick; ties count one half. nan if a side is empty."""
    sick, healthy = np.asarray(sick, float), np.asarray(healthy, float)
    if not (len(sick) and len(healthy)):
        return np.nan
    above = (sick[:, None] > healthy).sum() + 0.5 * (sick[:, None] == healthy).sum()
    return float(above / (len(sick) * len(healthy)))


def calibration_error(probabilities, outcomes, bins=10):
    """Sum over bins of equal count of share * |mean probability - share of outcomes|; nan without cases."""
    p, y = np.asarray(probabilities, float), np.asarray(outcomes, float)
    if not len(p):
        return np.nan
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return float(sum(len(part) / len(p) * abs(p[part].mean() - y[part].mean()) for part in parts))


def share(flags):
    flags = list(flags)
    return float(np.mean(flags)) if flags else np.nan


def named(row, cause, first=1, strict=False):
    """Whether one of the first findings is the cause, or another name of it."""
    fair = {cause} if strict else {cause, *ALSO.get(cause, ())}
    return any(finding[0] in fair for finding in row["findings"][:first])


def certain_right(row, known):
    """For each finding marked certain, whether it is right: the fault that was planted; else the case is sick."""
    cause = known["cause"]
    for name, severity, *_ in row["findings"]:
        if severity == "certain":
            yield name in {cause, *ALSO.get(cause, ())} if cause else known["verdict"] != TRAINS


def told(row, cause):
    """Whether a line to change by hand names the cause."""
    names = {cause, *ALSO.get(cause, ())}
    return any(line.partition(":")[0] in names for line in row["repair"].get("by_hand", ()))


def paired(rows, truth):
    """(row, known) of the rows that have a verdict and a truth."""
    return [(row, truth[row["name"]]) for row in rows if row["name"] in truth and "verdict" in row]


def figures(rows, truth):
    """All numbers for these rows; truth: {name: row of truth.json}."""
    pairs = paired(rows, truth)
    by = {word: [row for row, known in pairs if known["verdict"] == word] for word in VERDICTS}
    chance = lambda some: [1 - row["probability"] for row in some]  # noqa: E731
    sick = [(row, known) for row, known in pairs if known["cause"] and known["verdict"] != TRAINS]
    list_ = [row for row, known in pairs if known["group"] == "healthy" and known["verdict"] == TRAINS]
    alarmed = lambda row: row["verdict"] != TRAINS  # noqa: E731
    repaired = [(row, known) for row, known in pairs if known["verdict"] != TRAINS and "repair" in row]
    cured = lambda row: "progress" in row["repair"] and verdict(row["repair"]["progress"]) == TRAINS  # noqa: E731
    planted = [pair for pair in repaired if pair[1]["cause"]]
    drawn = [pair for pair in repaired if not pair[1]["cause"]]
    return {
        "cases": len(pairs),
        "crashes": sum("crash" in row for row in rows),
        "auc": area(chance(by[SICK]), chance(by[TRAINS])),
        "auc, all": area(chance(by[SICK] + by[BADLY]), chance(by[TRAINS])),
        "detection": share(map(alarmed, by[SICK])),
        "detection, badly": share(map(alarmed, by[BADLY])),
        "false alarms": share(map(alarmed, by[TRAINS])),
        "false alarms, list": share(map(alarmed, list_)),
        "calibration": calibration_error(
            [r["probability"] for r, _ in pairs], [k["verdict"] == TRAINS for _, k in pairs]
        ),
        "first": share(named(row, known["cause"]) for row, known in sick),
        "three": share(named(row, known["cause"], 3) for row, known in sick),
        "first, strict": share(named(row, known["cause"], strict=True) for row, known in sick),
        "three, strict": share(named(row, known["cause"], 3, strict=True) for row, known in sick),
        "certain right": share(flag for row, known in pairs for flag in certain_right(row, known)),
        "crashes, repair": sum("crash" in row.get("repair", {}) for row in rows),
        "rescued": share(cured(row) for row, _ in repaired),
        "rescued, planted": share(cured(row) for row, known in planted if known["cause"] not in IN_THE_CODE),
        "line told": share(
            told(row, known["cause"]) or cured(row) for row, known in planted if known["cause"] in IN_THE_CODE
        ),
        "rescued, random": share(cured(row) for row, _ in drawn),
        "rescued, random, able": share(cured(row) for row, known in drawn if not known.get("architecture")),
        "seconds": float(np.median([row["seconds"] for row, _ in pairs])) if pairs else np.nan,
    }


def baseline_figures(rows, truth, alarms):
    """{baseline: {"auc", "detection", "false alarms", "seconds"}}; alarms: {baseline: threshold}."""
    found = {}
    rows = [(row, truth[row["name"]]["verdict"]) for row in rows if "baselines" in row and row["name"] in truth]
    for name, threshold in alarms.items():
        sick, healthy = ([row["baselines"][name] for row, word in rows if word == kind] for kind in (SICK, TRAINS))
        seconds = [row["baseline_seconds"][name] for row, _ in rows]
        found[name] = {"auc": area(sick, healthy), "detection": share(s > threshold for s in sick),
                       "false alarms": share(s > threshold for s in healthy),
                       "seconds": float(np.median(seconds)) if seconds else np.nan}  # fmt: skip
    return found


def by(rows, truth, field):
    """{value of the truth's field: figures}"""
    kinds = sorted({str(truth[row["name"]][field]) for row in rows if row["name"] in truth})
    return {
        kind: figures([r for r in rows if str(truth.get(r["name"], {}).get(field)) == kind], truth) for kind in kinds
    }


def mistakes(rows, truth):
    """(name, truth, verdict, probability, findings) of wrong verdicts and causes, the worst kind of mistake first."""
    found = []
    for row, known in paired(rows, truth):
        wrong = _kind(row, known)
        if wrong is not None:
            names = [f"{name} ({severity})" for name, severity, *_ in row["findings"][:3]]
            found.append((wrong, row["name"], known["verdict"], row["verdict"], row["probability"], names))
    return [line[1:] for line in sorted(found, key=lambda line: (line[0], line[1]))]


def _kind(row, known):
    alarmed = row["verdict"] != TRAINS
    if known["verdict"] == TRAINS and alarmed:
        return 0 if known["group"] == "healthy" else 1
    if not all(certain_right(row, known)):
        return 2
    if known["verdict"] == SICK and not alarmed:
        return 3
    if known["cause"] and known["verdict"] != TRAINS and not named(row, known["cause"], 3):
        return 4
    return None


def table(columns):
    """Text of {column title: {line title: number}}."""
    lines = list(dict.fromkeys(line for column in columns.values() for line in column))
    width = max(map(len, lines))
    text = [" " * width + "".join(f"{title[:14]:>15}" for title in columns)]
    for line in lines:
        cells = (column.get(line, np.nan) for column in columns.values())
        text.append(f"{line:{width}}" + "".join(f"{_short(cell):>15}" for cell in cells))
    return "\n".join(text)


def _short(value):
    return "-" if np.isnan(value) else f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
