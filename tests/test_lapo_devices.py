"""LAPO's steps on four devices and on one."""

import lapo_devices
import pytest
from processes import output, start


@pytest.fixture(scope="module")
def found(shared_compilation):
    """What tests/lapo_devices.py finds: name -> largest relative difference."""
    return output(start(lapo_devices, devices=4))


def test_stage_one_is_that_of_one_device(found):
    """Batch normalisation, codebook sums and restarts are of the global batch."""
    assert found["batch_stats"] < 1e-4
    assert found["codebook"] < 1e-4
    assert found["copy_error"] < 1e-5
    assert found["metrics"] < 1e-3
    assert found["opt_state"] < 1e-3  # gradients: parameters have their sign, rounding or not


def test_ppo_is_that_of_one_device(found):
    """Environments without real steps on one device only do not shift the means."""
    assert found["ppo actions"] < 1e-4
    assert found["ppo rewards"] < 1e-4
    assert found["ppo metrics"] < 1e-2
    assert found["ppo params"] < 1e-2
