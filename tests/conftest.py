"""Strict settings for every test: float64, no silent broadcasting between ranks, warnings are errors.

`NUMDL_TEST_X64=0` runs the tests marked `float32` under jax's default precision (the second pass of `make test`).
"""

import os
import pathlib
from importlib import metadata

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the tests compile more than they compute

import jax
import pytest

from experiments import runner

KNOWN = metadata.version("jaxlib").startswith(("0.10.", "0.11.", "0.12."))  # others may refuse the flag
# Half the time of compiling; one worker for each core has nobody to share a program's functions with: an eighth less.
FLAGS = runner.EMITTERS, "--xla_cpu_parallel_codegen_split_count=1" if KNOWN else ""
os.environ["XLA_FLAGS"] = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), *FLAGS)))
X64 = os.environ.get("NUMDL_TEST_X64", "1") == "1"
CACHE = pathlib.Path(
    os.environ.get("NUMDL_TEST_CACHE", pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax")
)

jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small ones, too: each file begins without any
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


LONG = set((pathlib.Path(__file__).parent / "long_suite.txt").read_text(encoding="utf-8").splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.nodeid in LONG:
            item.add_marker(pytest.mark.slow)
    if not X64:
        chosen = [item for item in items if item.get_closest_marker("float32")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of compiled programs in one process exhaust its memory maps; each file begins without them."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)
