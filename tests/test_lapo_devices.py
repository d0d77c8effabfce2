"""LAPO's steps on eight devices and on one, on one global batch."""

import lapo_devices
import pytest
from processes import output, start


@pytest.fixture(scope="module")
def found(shared_compilation):
    """What tests/lapo_devices.py finds: step -> part -> largest relative difference of any leaf."""
    return output(start(lapo_devices, devices=lapo_devices.DEVICES))


@pytest.mark.parametrize(
    "step", ["stage_one", "cloning", "supervised_idm", "distillation", "decoder", "ppo"]
)
def test_eight_devices_learn_the_same_as_one(found, step):
    """Gradients, updates, metrics; stage 1's batch normalisation, codebook sums and restarts.

    For PPO: environments without real steps on one device only do not shift the means.
    """
    assert {part: x for part, x in found[step].items() if not x < 5e-5} == {}


def test_the_mapped_step_equals_pmap(found):
    assert {part: x for part, x in found["pmap"].items() if not x < 5e-5} == {}
