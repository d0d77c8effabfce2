"""Run by test_td3_bc.py with forced host devices: largest differences to one device, as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from eight_devices import difference

from lawm_jax import runner
from lawm_jax.data.normaliser import Normaliser
from lawm_jax.data.transitions import Transitions
from lawm_jax.offline import inverse_dynamics, td3_bc
from lawm_jax.offline.inverse_dynamics import Examples, InverseDynamicsConfig, LabelledData
from lawm_jax.offline.td3_bc import TD3BCConfig

DEVICES, OBS, A = 4, 3, 2
POLICY = TD3BCConfig(
    steps=10, batch_rows=8, units=8, layers=2, learning_rate=1e-2, discount=0.9, target_rate=0.1,
    policy_delay=2, policy_noise=0.4, noise_clip=0.3, alpha=2.5, critic_layer_norm=False,
    action_size=A, critics=True,
)
LABELLER = InverseDynamicsConfig(
    steps=10, batch_rows=8, context=0, units=8, layers=1, dropout=0.5, learning_rate=1e-2,
    weight_decay=1e-3, validate_every=2, validation_fraction=0.1, validation_piece=5, action_size=A,
)
NORMALISER = Normaliser(jnp.zeros(OBS), jnp.ones(OBS))


def rows(*sizes):
    """Rows that are all the same, so that every device draws the same from its share."""
    rng = np.random.default_rng(0)
    one = lambda size: rng.uniform(-0.9, 0.9, (1, *size)).astype(np.float32)
    return [np.repeat(one(size), DEVICES, axis=0) for size in sizes]


def train(module, config, data, devices):
    """Four steps; (state, metrics)."""
    mesh = runner.make_mesh(jax.devices()[:devices])
    run = runner.data_parallel(module.make_step(config, devices), mesh)
    state = runner.replicate(module.init(config, NORMALISER, 0), mesh)
    return jax.device_get(run(state, None, runner.shard(data, mesh), steps=4))


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    transitions = Transitions(*rows((OBS,), (A,), (), (OBS,)))
    examples = LabelledData(*(Examples(*rows((2 * OBS,), (A,))) for _ in range(2)))
    found = {}
    for module, config, data in (
        (td3_bc, POLICY, transitions), (inverse_dynamics, LABELLER, examples)
    ):
        one, several = (train(module, config, data, devices) for devices in (1, DEVICES))
        found[module.__name__.rpartition(".")[2]] = difference(several, one)
    print(json.dumps(found))
