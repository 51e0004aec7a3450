"""Sharded arrays give the numbers of one device, and stay where they are: eight devices, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

SCRIPT = pathlib.Path(__file__).with_name("on_devices.py")
QUICK = ("draws", "eigenvalues", "helpers")
LONG = ("warm_starts", "moments", "planned", "probe", "training")


def compute(names):
    """{check: numbers} of the script."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    told = subprocess.run([sys.executable, str(SCRIPT), *names], capture_output=True, text=True, env=environment,
                          timeout=600, check=False)  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    return json.loads(told.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def quick():
    return compute(QUICK)


@pytest.fixture(scope="module")
def long():
    return compute(LONG)


def holds(found):
    assert found.pop("placed", True)
    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("name", QUICK)
def test_eight_devices_give_the_numbers_of_one(quick, name):
    holds(quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_eight_devices_give_the_numbers_of_one_in_the_rest(long, name):
    holds(long[name])
