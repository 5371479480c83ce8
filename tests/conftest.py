"""Hypothesis profiles: `dev` by default, `ci` (the same examples every time) where CI is set, `thorough` by request.

HYPOTHESIS_PROFILE=thorough pytest draws fifty times as many examples; `soak`, which soak.py sets, as many as it says.

The processes that run tests share the cores, where PyTorch's threads, which dynk would take, wait busily for those that
others keep from running: so tests run on TBB or the work queue. Processes that tests start choose for themselves.
"""

import os

import numba
from hypothesis import HealthCheck, settings

if "NUMBA_THREADING_LAYER" not in os.environ:
    numba.config.THREADING_LAYER = "forksafe"

# The first example of a test may compile a kernel: neither it nor its drawing is on the clock.
settings.register_profile(
    "dev", deadline=None, print_blob=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None)
settings.register_profile("thorough", settings.get_profile("dev"), max_examples=2000)
settings.register_profile(
    "soak", settings.get_profile("dev"), max_examples=int(os.environ.get("DYNK_SOAK_EXAMPLES", 500)), database=None
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))
