"""Run the studies on this Python and write the page: python -m tests.verification [--seed N] [STUDY ...]

Without names everything is run, docs/verification/<stack>.json is written and docs/verification.md made anew from the
figures of all stacks. With names those are run and printed, and their figures take the place of the old ones.
"""

import argparse
import os
import sys
import time
import warnings

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as in the tests: much is compiled, little computed

from experiments import runner

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {runner.EMITTERS}".strip()

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
warnings.simplefilter("error")

from tests import verification  # noqa: E402
from tests.verification import moments, page  # noqa: E402


def main(arguments):
    """Run, print and write; the exit code says whether every figure holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.verification", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the Monte Carlo draws")
    parser.add_argument("--page", action="store_true", help="only make the page anew from the figures that are there")
    parser.add_argument("--missing", action="store_true", help="only the studies that this stack has no figures of")
    known = verification.studies()
    parser.add_argument("studies", nargs="*", choices=[[], *known])
    chosen = parser.parse_args(arguments)
    moments.SEED = chosen.seed
    failed = 0
    there = page.kept() if chosen.missing else ()
    for name in () if chosen.page else [name for name in chosen.studies or known if name not in there]:
        title, function = known[name]
        start, figures = time.perf_counter(), []
        for figure in function(True):
            figures.append(figure)
            failed += not figure.holds
            print(
                f"{'' if figure.holds else 'FAILS '}{title}: {figure.what}: {figure.measured:.4g} ({figure.threshold})"
            )
            sys.stdout.flush()
        jax.clear_caches()
        page.keep(name, title, function.__doc__, figures, time.perf_counter() - start)
    page.write()
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
