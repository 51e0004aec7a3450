"""Reports made by hand: nothing is computed, so that what is shown of them is known."""

import dataclasses

import numpy as np

from numdl.audit import _proof
from numdl.audit import evidence as e
from numdl.audit.report import Report

HOSTILE = "<script>alert(1)</script>"


def signal(layers=12, gain=0.3, **known):
    """States that shrink by `gain` a layer, and gradients that do the same on their way back."""
    depth = np.arange(layers, dtype=float)
    base = {
        "names": tuple(f"layers/{i}/w" for i in range(layers)), "kinds": ("dense",) * layers,
        "nonlinearities": ("relu",) * layers, "first_nonfinite": -1, "recurrent": (False,) * layers,
        "state_rms": gain**depth * np.exp(0.05 * np.sin(depth)), "state_max": 4 * gain**depth,
        "gradient_rms": 1e-2 * gain ** depth[::-1] * np.exp(0.04 * np.cos(depth)),
        "saturated": np.zeros(layers), "dead": np.linspace(0.02, 0.1, layers), "rank": np.full(layers, 20.0),
        "cosine": np.linspace(0.3, 0.9, layers), "fan_in": np.full(layers, 64.0),
        "weight_variance": np.full(layers, 2 * gain**2), "identical": np.zeros(layers), "largest": 3.4e38,
    }  # fmt: skip
    return e.empty(e.Signal, **base | known)


def trial(decay=0.99, rates=(0.01, 0.1, 1.0, 10.0), steps=30, seeds=3, **known):
    """Losses that fall by `decay` a step at the user's rate, and faster in proportion at others."""
    factors, t = np.array(rates), np.arange(steps)
    curves = 2.3 * decay ** (t * factors[:, None, None]) * (1 + 0.02 * np.arange(seeds)[:, None] * np.sin(t))
    base = {
        "rates": factors * 1e-3, "factors": factors, "losses": curves, "start": 2.3, "first": curves[:, :, 1],
        "end": curves[:, :, -1], "unseen_start": 2.31, "unseen_end": curves[:, :, -1] * 1.1,
        "repeated": 2.3 * decay ** (1.5 * t), "spread_first": np.ones((factors.size, seeds)),
        "spread": np.ones((factors.size, seeds)), "evaluate_end": np.full((factors.size, seeds), np.nan),
        "noise_scale": 41.0, "seconds": 2.2,
    }  # fmt: skip
    return e.empty(e.Trial, **base | known)


def predicted(layers=12, gain=0.3, **known):
    """What theory says of `signal`."""
    depth = np.arange(layers, dtype=float)
    base = {
        "applies": True, "activation": "relu", "names": tuple(f"layers/{i}/w" for i in range(layers)),
        "state_rms": gain**depth, "log_gradient": 2 * np.log(gain) * depth[::-1],
        "chi": gain**2, "depth_scale": 0.4, "spread": 0.6, "critical_weight_variance": 2.0, "start_variance": 2.0,
        "weight_variance": 2 * gain**2, "bias_variance": 0.0, "sharpness": 12.0, "sharpness_limit": 2000.0,
        "entropy": 2.3, "initial": 2.303,
    }  # fmt: skip
    return e.empty(e.Predicted, **base | known)


def kernel(ratio=0.99, **known):
    """A forecast that ends at this share of the loss."""
    steps = np.array([0, 10, 30, 100, 300, 1000])
    base = {
        "examples": 128, "alignment": 9.1, "alignment_raw": 3.2, "forecast": 2.3 * ratio ** (steps / 1000),
        "forecast_steps": steps, "start": 2.3, "linear": True,
    }  # fmt: skip
    return e.empty(e.Kernel, **base | known)


def finding(name="signal_vanishes", **known):
    """A certain finding with all of its fields."""
    base = {
        "name": name, "severity": "likely", "where": "layers/0/w to layers/11/w", "measured": 0.298,
        "uncertainty": 0.004, "predicted": 0.3, "threshold": 0.8,
        "sentence": "States shrink by a factor of 0.298 a layer: the outputs hardly depend on the input.",
        "theory": "q_{l+1} = weight_variance E[f(sqrt(q_l) z)^2] + bias_variance", "source": "Poole et al. 2016",
        "remedy": "Draw weights with fan_in * Var(W) = 2 (now 0.18).", "weight": 1.0, "consequences": (),
    }  # fmt: skip
    return e.empty(e.Finding, **base | known)


def evidence(**known):
    """Evidence of a 12-layer network whose weights are too small."""
    base = {
        "facts": e.empty(e.Facts, examples=128, parameters=54210, rate=1e-3, steps=1000, optimizer="adam"),
        "signal": signal(), "chain": None, "function": e.empty(e.Function, shape=(128, 10), rms=1e-6, spread=1e-4),
        "loss": e.empty(e.Loss, kind="classes", value=2.3026, floor=0.0, floor_head=0.0, finite_value=True),
        "data": e.empty(e.Data, examples=1797, kind="float", rms=1.0, spread=1.0),
        "optimizer": e.empty(
            e.Optimizer, reach=3.0, travel=0.4, late=0.5, early=0.1, first=1.0, memory=9.9, decayed=1.0, horizon=1000
        ),
        "kernel": kernel(), "trial": trial(), "predicted": predicted(),
        "seconds": {"signal": 3.1, "trial": 2.2, "kernel": 1.4, "optimizer": 0.4}, "notes": (),
    }  # fmt: skip
    return e.Evidence(**base | known)


def report(**known):
    """The sick network's report."""
    symptom = finding("gradient_vanishes", sentence="Gradients shrink by 0.3 a layer on their way back.")
    base = {
        "verdict": "will not train", "probability": 0.03,
        "findings": (finding(consequences=("gradient_vanishes",)), symptom, finding("rate_too_low", severity="hint")),
        "unseen": (("evaluate", ("train_differs_from_evaluate",)), ("data", ("data_order", "labels_imbalanced"))),
        "evidence": evidence(), "features": {"forecast": 0.99, "trial": 0.98}, "case": None,
    }  # fmt: skip
    return Report(**base | known)


def healthy():
    """Nothing found."""
    seen = evidence(
        signal=signal(gain=1.0), predicted=predicted(gain=1.0, chi=1.0), kernel=kernel(0.02), trial=trial(0.93)
    )
    return report(verdict="will train", probability=0.987, findings=(), evidence=seen)


def lost():
    """Nan in every number."""
    nothing = {name: e.empty(getattr(e, name.capitalize())) for name in (
        "facts", "function", "loss", "data", "optimizer", "kernel", "trial", "predicted")}  # fmt: skip
    layers = 5
    bad = signal(layers, **{name: np.full(layers, np.nan) for name in (
        "state_rms", "state_max", "gradient_rms", "saturated", "dead", "rank", "cosine", "fan_in", "weight_variance",
    )}, first_nonfinite=0)  # fmt: skip
    seen = e.Evidence(**nothing, signal=bad, chain=None, seconds={}, notes=("the loss is nan: no trial was run",))
    numbers = dict.fromkeys(("measured", "uncertainty", "predicted", "threshold"), np.nan)
    return report(probability=np.nan, findings=(finding("not_finite", **numbers),), evidence=seen, features={})


def unseen_at_all():
    """No signal, no number, no text."""
    nothing = {name: e.empty(getattr(e, name.capitalize())) for name in (
        "facts", "function", "loss", "data", "optimizer", "kernel", "trial", "predicted")}  # fmt: skip
    blank = e.Evidence(**nothing, signal=None, chain=None, seconds={}, notes=())
    return report(findings=(e.empty(e.Finding),), evidence=blank, features={}, unseen=())


def deep(layers=120):
    """Many layers."""
    return report(evidence=evidence(signal=signal(layers, 0.97), predicted=predicted(layers, 0.97)))


def hostile():
    """Names and texts that try to be more than text."""
    names = (*(f"{HOSTILE}{i}" for i in range(11)), "\x1b[31mred\x1b[0m\u202eabc" + "x" * 300)
    texts = dict.fromkeys(("where", "sentence", "theory", "source", "remedy", "severity"), HOSTILE)
    texts["where"] = "\x1b[2J" + HOSTILE
    seen = evidence(signal=signal(names=names), notes=(HOSTILE,), seconds={HOSTILE: 1.0})
    seen = e.Evidence(**{**vars(seen), "facts": e.empty(e.Facts, optimizer=HOSTILE, rate=1e-3)})
    found = (finding(HOSTILE, **texts, consequences=(HOSTILE, "gradient_vanishes")),)
    return report(verdict=HOSTILE, findings=found, evidence=seen, unseen=((HOSTILE, (HOSTILE,)),))


ALL = {"sick": report, "healthy": healthy, "lost": lost, "blank": unseen_at_all, "deep": deep, "hostile": hostile}


def proof(steps=200, **known):
    """A network that stays where it is beside its cure."""
    t, seeds = np.arange(steps), 1 + 0.03 * np.arange(3)[:, None]
    base = {
        "steps": steps, "sick": 2.3026 * np.ones(steps) * seeds**0.1,
        "repaired": (2.3 * np.exp(-t / 40) + 0.05) * seeds,
        "forecast": 2.3 * np.exp(-np.arange(0, steps, 10) / 30), "forecast_steps": np.arange(0, steps, 10),
        "unseen_sick": np.full(3, 2.31), "unseen_repaired": np.array([0.21, 0.2, 0.23]), "same_loss": True,
        "helped": True,
    }  # fmt: skip
    return e.empty(_proof.Proof, **base | known)


def events(**known):
    """A watched run whose sharpness passes the limit, as `audit.watching.read` returns it."""
    steps = np.arange(200)
    loss = 2.3 * np.exp(-steps / 80.0)
    loss[150] = 9.0
    looks = {
        "sharpness": [
            {"step": s, "sharpness": None if s == 60 else 5.0 + s, "limit": 150.0} for s in (0, 60, 120, 180)
        ],
        "noise": [{"step": 100, "noise_scale": 640.0, "batch": 64}],
        "change": [
            {"step": s, "gap": g, "names": ["w", "b"], "ratio": [1e-3, 0.0]} for s, g in ((9, 9), (10, 1), (90, 1))
        ],
        "layers": [{"step": s, "dead": [0.0, s / 400], "saturated": [0.0, 0.1], "notes": ()} for s in (0, 100, 199)],
    }
    base = {
        "start": {"method": "adam"}, "loss_steps": steps, "loss": loss, "looks": looks,
        "findings": ((150, finding("rate_too_high", sentence="the loss jumped to 9")), (180, finding("batch_noise"))),
        "cost": {"step": 199, "share": 0.034},
    }  # fmt: skip
    return dataclasses.make_dataclass("Events", base)(**base | known)
