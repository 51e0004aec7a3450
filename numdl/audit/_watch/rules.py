"""What a watched run's numbers mean: a table of rules; imports neither theory nor analysis.

A row says which condition, above which number, the sentence for people, why, whose result, what to do. To add a rule is
to add a row.
"""

from collections.abc import Callable
from typing import NamedTuple

from numdl.audit._watch import conditions as when
from numdl.audit._watch.conditions import Hit, Seen
from numdl.audit.evidence import Finding

RANK = {"hint": 0, "likely": 1, "certain": 2}


class Rule(NamedTuple):
    """A row of the table; `sentence` is formatted with the hit's fields, the threshold and what was seen."""

    name: str
    find: Callable[[Seen], Hit | None]
    threshold: float
    sentence: str
    theory: str
    source: str
    remedy: str
    weight: float


def judge(seen: Seen) -> list[Finding]:
    """The findings of all rules at this moment, those that explain most first."""
    hits = [(rule, hit) for rule in RULES if (hit := rule.find(seen)) is not None]
    return sorted((_finding(rule, hit, seen) for rule, hit in hits), key=lambda found: -found.weight)


def _finding(rule, hit, seen):
    sentence = rule.sentence.format(**hit._asdict(), threshold=rule.threshold, seen=seen)
    return Finding(
        name=rule.name,
        severity=hit.severity,
        where=hit.where,
        measured=float(hit.measured),
        uncertainty=float(hit.uncertainty),
        predicted=float(hit.predicted),
        threshold=rule.threshold,
        sentence=sentence,
        theory=rule.theory,
        source=rule.source,
        remedy=rule.remedy,
        weight=rule.weight * (1 + RANK[hit.severity]) / 3,
    )


EDGE = "arXiv:2103.00065 (Cohen et al. 2021)"
RULES = (
    Rule(
        "not_finite",
        when.not_finite,
        0,
        "the loss or a state is not finite from step {measured:.0f} on; first: {where}",
        "a number that is not finite stays so",
        "IEEE 754",
        "go back to a checkpoint; lower the rate, clip, guard the divisor",
        3.0,
    ),
    Rule(
        "rate_too_high",
        when.edge,
        1.5,
        "sharpness {measured:.3g} is beyond the method's limit {predicted:.3g}: steps overshoot along that direction",
        "stable while eigenvalue <= limit: 2 / eta for descent",
        EDGE,
        "lower the rate below limit / sharpness times itself",
        2.5,
    ),
    Rule(
        "rate_too_high",
        when.spike,
        8,
        "the loss jumped to {seen.spike_loss:.4g} at step {seen.spike_step}, {measured:.3g} times its scatter; "
        "first moved: {where} ({seen.moved_by:.3g} times its usual step)",
        "beyond the stability limit a step raises the loss",
        EDGE,
        "clip the gradient, lower the rate or warm up; look at that batch",
        2.4,
    ),
    Rule(
        "rate_too_high",
        when.large_updates,
        0.1,
        "one step changes {where} by {measured:.2g} of its size",
        "steps of 1e-4 to 1e-2 of a leaf are usual",
        "Ben Braiek & Khomh 2023 (TheDeepChecker)",
        "lower the rate",
        1.5,
    ),
    Rule(
        "rate_too_low",
        when.small_updates,
        1e-6,
        "no leaf moves by more than {measured:.2g} of its size a step, and the loss stays",
        "steps of 1e-4 to 1e-2 of a leaf are usual",
        "Ben Braiek & Khomh 2023 (TheDeepChecker)",
        "raise the rate",
        1.0,
    ),
    Rule(
        "frozen",
        when.frozen,
        0,
        "parameters do not move although their gradient is not zero: {where}",
        "an update of 0",
        "the definition",
        "is the leaf masked, the rate 0, or the step below the dtype's rounding? keep float32 parameters",
        2.0,
    ),
    Rule(
        "dead_units",
        when.dead,
        0.5,
        "{measured:.0%} of the units of {where} are never active on the batch, {predicted:.0%} at first",
        "no gradient passes a unit that is never active",
        "Lu et al. 2019, arXiv:1903.06733",
        "lower the rate, start biases at 0, or take an activation with a slope on the left",
        2.2,
    ),
    Rule(
        "saturated",
        when.saturated,
        0.5,
        "{measured:.0%} of the numbers of {where} are at their bounds, {predicted:.0%} at first",
        "the slope there is under 5 % of its maximum",
        "Glorot & Bengio 2010",
        "lower the rate or normalise the states",
        2.0,
    ),
    Rule(
        "saturated",
        when.logits,
        50,
        "the logits of {where} have grown to {measured:.3g}: its softmax takes one key",
        "the slope of a softmax vanishes as its entropy does",
        "Zhai et al. 2023, arXiv:2303.06296; Dehghani et al. 2023, arXiv:2302.05442",
        "normalise queries and keys, scale by 1 / sqrt(d), lower the rate",
        2.1,
    ),
    Rule(
        "attention_logits",
        when.growing,
        50,
        "the largest logit of {where} has grown to {measured:.3g}",
        "logits are products of queries and keys, which grow together; past 1e4 runs were seen to diverge",
        "Wortsman et al. 2023, arXiv:2309.14322",
        "normalise queries and keys, or lower the rate",
        2.15,
    ),
    Rule(
        "entropy_collapse",
        when.entropy,
        0.1,
        "the entropy of the rows of {where} has fallen to {measured:.2g} of that of even rows, from {predicted:.2g}",
        "the slope of a softmax vanishes with its entropy",
        "Zhai et al. 2023, arXiv:2303.06296",
        "bound or normalise queries and keys; warm up; lower the rate",
        2.05,
    ),
    Rule(
        "mask",
        when.shut,
        0,
        "in {measured:.1%} of the rows of {where} the mask leaves no key",
        "softmax over nothing",
        "the definition",
        "let each row see itself, or leave those rows out of the loss",
        1.2,
    ),
    Rule(
        "correlation_collapses",
        when.collapse,
        1.05,
        "all inputs look alike in {where}: effective rank {measured:.3g}, {predicted:.3g} at first",
        "what is equal in one layer is equal in all that follow",
        "Dong, Cordonnier & Loukas 2021, arXiv:2103.03404",
        "lower the rate or the decay; skip connections; centre the states",
        2.1,
    ),
    Rule(
        "signal_explodes",
        when.weights,
        10,
        "{where} has grown to {measured:.3g} times its first size",
        "states grow with the product of the layers' sizes",
        "Wortsman et al. 2023, arXiv:2309.14322",
        "weight decay, a lower rate; is the sign of the loss right?",
        1.6,
    ),
    Rule(
        "signal_explodes",
        when.states,
        100,
        "the states of {where} have grown to {measured:.3g} times their first size",
        "states grow with the product of the layers' sizes",
        "Wortsman et al. 2023, arXiv:2309.14322",
        "weight decay, normalisation, a lower rate",
        1.5,
    ),
    Rule(
        "gradient_vanishes",
        when.vanishing,
        1e-3,
        "the gradient at {where} is {measured:.2g} of that at the last layer",
        "chi_1 below 1 from layer to layer",
        "Schoenholz et al. 2017, arXiv:1611.01232",
        "start at criticality; skip connections",
        1.4,
    ),
    Rule(
        "gradient_explodes",
        when.exploding,
        1e3,
        "the gradient at {where} is {measured:.2g} times that at the last layer",
        "chi_1 above 1 from layer to layer",
        "Schoenholz et al. 2017, arXiv:1611.01232",
        "start at criticality; clip; normalise",
        1.4,
    ),
    Rule(
        "batch_noise",
        when.noise,
        100,
        "the gradient noise scale is {measured:.3g} examples, the batch has {predicted:.0f}",
        "a batch below the noise scale spends its steps on noise",
        "McCandlish et al. 2018, arXiv:1812.06162",
        "larger batches or a lower rate",
        1.0,
    ),
)
