"""Seeds that follow from others."""

import numpy as np


def derive(*numbers: int) -> int:
    """A seed below 2^31 for each tuple of numbers >= 0: a run's seed, a step, what it is for."""
    # how many come first: SeedSequence takes no notice of zeros at the end
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0] >> 1)
