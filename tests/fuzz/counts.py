"""How many examples a fuzzing test tries: few as a rule, E2NET_FUZZ=5000 in all on request."""

import os

from hypothesis import HealthCheck, Phase, settings

FEW = 300
asked = os.environ.get("E2NET_FUZZ")


def fuzz(share):
    """Settings of a test that takes a share of all examples; each time the same ones unless a number was asked for."""
    count = max(20, round(share * int(asked or FEW)))
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=asked is None,
        database=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate),  # every message has the seed, and to shrink would take minutes
        suppress_health_check=list(HealthCheck),
    )
