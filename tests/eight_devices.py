"""Run by test_runner.py with eight forced host devices; prints largest differences as JSON."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from small import U, make_elbo, make_model, make_params, make_trajectory, make_windows

from lawm_jax import runner
from lawm_jax.data.windows import Windows, stack
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.elbo import draw_noise, elbo_loss
from lawm_jax.lawm.learner import LearnerConfig, TrainingData
from lawm_jax.lawm.world_model import State

WINDOW, ROWS, DEVICES = 3, 8, 8
CONFIG = LearnerConfig(
    steps=10, labelled_rows=ROWS, unlabelled_rows=ROWS, window=WINDOW, learning_rate=1e-2,
    learning_rate_end=0.0, warmup_steps=0, weight_decay=1e-3, gradient_clip=100.0,
)
AGENT = actor_critic.AgentConfig(
    steps=10, start_rows=ROWS, horizon=3, epsilon=2.0, discount=0.9, lambda_=0.9, entropy=0.1,
    prior=0.2, disagreement=0.0, target_rate=0.1, units=4, layers=1, value_networks=2,
    policy_size=U, learning_rate=1e-2, gradient_clip=100.0,
)
MODEL, ELBO = make_model(units=4, layers=1), make_elbo()


def difference(a, b):
    """Largest difference of any leaf, relative to the leaf's largest entry."""
    def one(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert np.isfinite(a).all() and np.isfinite(b).all()
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-3))

    return max(jax.tree.leaves(jax.tree.map(one, a, b)))


def gradients(devices, rows_of):
    """Gradients of one global batch of windows, over `devices` devices."""
    rows = ROWS // devices
    params = make_params(MODEL)

    def step(params, shared, batch):
        labelled, unlabelled = (
            Windows(*(None if x is None else jnp.moveaxis(x, 0, 1) for x in w)) for w in batch
        )
        keys = jnp.concatenate([
            jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(tag)))(rows_of(rows))
            for tag in (0, 1)
        ])
        noise = draw_noise(MODEL, keys, WINDOW, rows)
        loss = lambda params: elbo_loss(MODEL, ELBO, params, labelled, unlabelled, noise)
        grads, metrics = jax.grad(loss, has_aux=True)(params)
        return params, jax.lax.pmean((grads, metrics), runner.AXIS)

    mesh = runner.make_mesh(jax.devices()[:devices])
    batch = [make_windows(ROWS, WINDOW), make_windows(ROWS, WINDOW, actions=False, seed=1)]
    batch = runner.shard(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), batch), mesh)
    run = runner.data_parallel(step, mesh)
    return jax.device_get(run(runner.replicate(params, mesh), None, batch, steps=1)[1])


def make_training(devices):
    """(step, state, data): trajectories of one and the same window, whichever device draws it."""
    trajectories = [make_trajectory(WINDOW - 1)] * DEVICES
    data = TrainingData(stack(trajectories, actions=True), stack(trajectories, actions=False))
    optimiser = learner.make_optimiser(CONFIG)
    state = learner.init(MODEL, optimiser, learner.fit_normaliser(data), seed=0)
    return learner.make_step(MODEL, ELBO, CONFIG, optimiser, devices), state, data


def train(devices):
    mesh = runner.make_mesh(jax.devices()[:devices])
    step, state, data = make_training(devices)
    run = runner.data_parallel(step, mesh)
    out = run(runner.replicate(state, mesh), None, runner.shard(data, mesh), steps=2)
    return jax.device_get(out)


def train_agent(devices):
    """Two agent steps from starts that are all one state, whichever device draws it."""
    mesh = runner.make_mesh(jax.devices()[:devices])
    run = runner.data_parallel(actor_critic.make_step(MODEL, AGENT, devices), mesh)
    state = runner.replicate(actor_critic.init(MODEL, AGENT, 0), mesh)
    ramp = lambda size: np.tile(np.linspace(-1, 1, size, dtype=np.float32), (DEVICES, 1))
    starts = runner.shard(State(ramp(MODEL.deterministic), ramp(MODEL.stochastic)), mesh)
    return jax.device_get(run(state, runner.replicate(make_params(MODEL), mesh), starts, steps=2))


def pmap():
    """The same two steps by jax.pmap; every device's answer is compared."""
    step, state, data = make_training(DEVICES)
    mapped = jax.pmap(lambda state, data: step(state, None, data), runner.AXIS)
    local = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), data)
    state = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), state)
    metrics = []
    for _ in range(2):
        state, part = mapped(state, local)
        metrics.append(part)
    return jax.device_get((state, jax.tree.map(lambda *x: jnp.stack(x, 1), *metrics)))


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    one, eight = gradients(1, runner.global_rows), gradients(DEVICES, runner.global_rows)
    trained, mapped = train(DEVICES), pmap()
    print(json.dumps({
        "gradient": difference(eight, one),
        "gradient, noise by device": difference(gradients(DEVICES, jnp.arange), one),
        "train step": difference(trained, train(1)),
        "agent step": difference(train_agent(DEVICES), train_agent(1)),
        "pmap": max(
            difference(jax.tree.map(lambda x, i=i: x[i], mapped), trained) for i in range(DEVICES)
        ),
    }))
