"""Run by test_lapo_devices.py with four forced host devices; prints largest differences as JSON."""

import dataclasses
import json

import jax
from eight_devices import difference
from lapo_small import SIDE, TRAINING, VQ, make_model, noise_frames
from test_ppo import ENCODER, make_config, make_rollout, make_update

from lawm_jax import runner
from lawm_jax.data.frames import window_steps, windows_at
from lawm_jax.lapo import learner
from lawm_jax.online import ppo
from lawm_jax.online.ppo import ActorCritic

DEVICES, ROWS, STEPS = 4, 8, 2
SHAPE = (SIDE, SIDE, 3)
MODEL = make_model(  # with batch normalisation, and codes that restart
    published=True, vq=dataclasses.replace(VQ, initial_count=0.5, restart_below=0.503),
)


def stage_one(devices):
    """Two steps on one global batch of different windows, shared out among the devices."""
    frames = noise_frames(lengths=(5, 3, 6))
    windows = windows_at(frames, window_steps(frames.episode)[:ROWS])
    learner.draw = lambda state, shard, rows, shift: (shard, shard)
    return run(
        learner.make_step(MODEL, TRAINING, devices),
        learner.init(MODEL, TRAINING, SHAPE, 0), windows, devices, STEPS,
    )


def online(devices):
    """Two updates on one rollout of eight environments, shared out among the devices."""
    network, config = ActorCritic(ENCODER, 3), make_config()
    rollout = make_rollout()
    weight = rollout.weight.copy()
    weight[0] = 0  # devices with different numbers of real steps
    mesh = runner.make_mesh(jax.devices()[:devices])
    state = runner.replicate(ppo.init(network, config, SHAPE, 0), mesh)
    rollout = runner.shard(rollout._replace(weight=weight), mesh)
    act = runner.map_rows(ppo.make_act(network, config, devices), mesh)
    acted = jax.device_get(act((state, 0), rollout.inputs[:, 0])[1])
    update = make_update(network, config, devices)
    for _ in range(STEPS):
        state, metrics = update(state, rollout)
    return *jax.device_get((state, metrics)), acted


def run(step, state, batch, devices, steps):
    mesh = runner.make_mesh(jax.devices()[:devices])
    mapped = runner.data_parallel(step, mesh)
    out = mapped(runner.replicate(state, mesh), None, runner.shard(batch, mesh), steps=steps)
    return jax.device_get(out)


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    (many, many_metrics), (one, one_metrics) = stage_one(DEVICES), stage_one(1)
    found = {
        name: difference(getattr(many, name), getattr(one, name))
        for name in ("opt_state", "batch_stats", "codebook", "copy_error")
    }
    found["metrics"] = difference(many_metrics, one_metrics)
    (many, many_metrics, many_acted), (one, one_metrics, one_acted) = online(DEVICES), online(1)
    found["ppo params"] = difference(many.params, one.params)
    found["ppo rewards"] = difference(many.rewards, one.rewards)
    found["ppo actions"] = difference(many_acted, one_acted)
    found["ppo metrics"] = difference(many_metrics, one_metrics)
    print(json.dumps(found))
