"""Functions of a config that other processes find."""

import dataclasses
import os
import pathlib
import time

import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    folder: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    values: np.ndarray
    share: float


def measured(config):
    """A record; leaves a mark that says how often it ran."""
    if config.folder:
        pathlib.Path(config.folder, f"ran-{config.width}-{time.time_ns()}").touch()
    if config.width == 3:
        raise ValueError("width 3 is not for me")
    return {"found": Found(np.arange(config.width), float("nan")), "bits": precision(config), "pair": (1, "one")}


def dying(config):
    """Ends its process at one config."""
    if config["x"] == 2:
        os._exit(7)
    return config["x"]


def scaled(config, rate):
    return config["x"] * rate


class Scaled:
    """A function that has a state."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, config):
        return config["x"] * self.rate


def precision(config):
    import jax.numpy as jnp

    return str(jnp.asarray(0.5).dtype)


def other(config):
    return 1


def given(config):
    return config
