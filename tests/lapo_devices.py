"""Run by test_lapo_devices.py with eight forced host devices; prints largest differences as JSON.

Adam's first updates are the gradients' signs, which rounding decides where a gradient is nearly
zero. Its epsilon is 1 here, so that updates are in proportion and can be compared closely; with
learning rates of 1 they are not lost in the rounding of the parameters that they are added to.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from eight_devices import difference
from lapo_small import SIDE, TRAINING, VQ, make_model, noise_frames
from test_ppo import DECODER, ENCODER, make_config, make_rollout, make_update

from lawm_jax import runner
from lawm_jax.data.frames import window_steps, windows_at
from lawm_jax.lapo import decode, imitation, learner
from lawm_jax.lapo.decode import Decoder, Latents
from lawm_jax.online import ppo
from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.vision import FrameNetwork

DEVICES, ROWS, STEPS = 8, 8, 2
SHAPE, ACTIONS = (SIDE, SIDE, 3), 15
LAPO = dataclasses.replace(TRAINING, rows=ROWS, learning_rate=1.0, learning_rate_start=1.0)
MODEL = make_model(  # with batch normalisation, and codes that restart
    published=True, vq=dataclasses.replace(VQ, initial_count=0.5, restart_below=0.503),
)


def windows():
    """One global batch of different windows."""
    frames = noise_frames(lengths=(5, 3, 6))
    return windows_at(frames, window_steps(frames.episode)[:ROWS])


# Each is (step for so many devices, fresh state, shared input, batch of all devices).


def stage_one():
    make = functools.partial(learner.make_step, MODEL, LAPO)
    return make, learner.init(MODEL, LAPO, SHAPE, 0), None, windows()


def cloning():
    """A network that sees windows around places that it chooses."""
    network = FrameNetwork(dataclasses.replace(ENCODER, glimpses=2, glimpse=8), ACTIONS)
    make = functools.partial(imitation.make_step, imitation.cloning_loss(network), LAPO)
    return make, imitation.init(network, LAPO, SHAPE, 0), None, windows()


def supervised_idm():
    network = FrameNetwork(ENCODER, ACTIONS)
    loss = imitation.supervised_idm_loss(network, differences=True)
    make = functools.partial(imitation.make_step, loss, LAPO)
    return make, imitation.init(network, LAPO, (SIDE, SIDE, 9), 0), None, windows()


def distillation():
    """Two decoders' policies, each with a trunk of its own."""
    model = make_model(published=False)
    z, decoders = model.idm.vq.latent_size, 2
    policy, network = FrameNetwork(ENCODER, z), FrameNetwork(ENCODER, ACTIONS)
    decoder = Decoder((6,), ACTIONS)
    parts = [imitation.init(n, LAPO, SHAPE, 0).params for n in (policy, network)]
    of_labels = [decode.init(decoder, DECODER, z, seed).params for seed in range(decoders)]
    frozen = {
        "idm": learner.init(model, LAPO, SHAPE, 0).params["idm"],
        "decoders": jax.tree.map(lambda *x: np.stack(x), *of_labels),
    }
    fresh = imitation.distillation_start(
        parts[0], parts[1]["head"], decoders, LAPO, 0, trunk=True
    )
    loss = imitation.distillation_loss(network, model, decoder)
    make = functools.partial(imitation.make_step, loss, LAPO, many=True)
    return make, fresh, frozen, windows()


def decoder():
    """Every device holds all labels, and draws its rows of the global batch."""
    network, config = Decoder((6,), 3), dataclasses.replace(DECODER, learning_rate=1.0)
    z = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    latents = Latents(z, np.arange(12, dtype=np.int32) % 3, np.int32(11))
    make = functools.partial(decode.make_step, network, config)
    return make, decode.init(network, config, 4, 0), latents, None


def mapped(devices, make, fresh, shared, batch):
    """(state, metrics) after STEPS on the batch, shared out among so many devices."""
    mesh = runner.make_mesh(jax.devices()[:devices])
    run = runner.data_parallel(make(devices), mesh)
    state, shared = runner.replicate((fresh, shared), mesh)
    return jax.device_get(run(state, shared, runner.shard(batch, mesh), steps=STEPS))


def by_pmap(make, fresh, shared, batch):
    """The same by jax.pmap; every device's answer, on a leading axis."""
    step = jax.pmap(make(DEVICES), runner.AXIS, in_axes=(0, None, 0))
    state = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), fresh)
    local = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
    metrics = []
    for _ in range(STEPS):
        state, part = step(state, shared, local)
        metrics.append(part)
    return jax.device_get((state, jax.tree.map(lambda *x: jnp.stack(x, 1), *metrics)))


def online(devices, network, config, fresh):
    """An update on one rollout of eight environments: (state, metrics, what the policy does)."""
    rollout = make_rollout()
    weight = rollout.weight.copy()
    weight[0] = 0  # one device has no real step
    mesh = runner.make_mesh(jax.devices()[:devices])
    state = runner.replicate(fresh, mesh)
    rollout = runner.shard(rollout._replace(weight=weight), mesh)
    act = runner.map_rows(ppo.make_act(network, config, devices), mesh)
    acted = jax.device_get(act((state, 0), rollout.inputs[:, 0])[1])
    return *jax.device_get(make_update(network, config, devices)(state, rollout)), acted


def compare(found, expected, fresh):
    """Largest difference of any leaf: of parameters by what changed, of gradients by Adam's means.

    A bias before a batch normalisation has no gradient but rounding, which `difference` passes.
    """
    def parts(state, *others):
        mu, nu = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
        return {
            "parameters": jax.tree.map(np.subtract, state.params, fresh.params),
            "gradients": jax.tree.map(lambda x: x / 0.1, mu),
            "squares": jax.tree.map(lambda x: np.sqrt(x / 0.001), nu),
            "rest": state.replace(params=None, opt_state=None),
            "metrics": others,
        }

    found, expected = parts(*found), parts(*expected)
    return {name: difference(found[name], expected[name]) for name in expected}


def main():
    assert jax.device_count() == DEVICES
    learner.draw = lambda state, shard, rows, shift: (shard, shard)
    adam = optax.scale_by_adam
    optax.adamw = functools.partial(optax.adamw, eps=1.0)
    optax.scale_by_adam = lambda eps: adam(eps=1.0)
    found = {}
    for case in (stage_one, cloning, supervised_idm, distillation, decoder):
        make, fresh, shared, batch = case()
        fresh = jax.device_get(fresh)  # a copy: train states are donated
        many, one = (mapped(n, make, fresh, shared, batch) for n in (DEVICES, 1))
        found[case.__name__] = compare(many, one, fresh)
        if case is stage_one:
            each = by_pmap(make, fresh, shared, batch)
            of = lambda i, each=each: jax.tree.map(lambda x: x[i], each)
            every = [compare(of(i), many, fresh) for i in range(DEVICES)]
            found["pmap"] = {name: max(one[name] for one in every) for name in every[0]}
    network, config = ActorCritic(ENCODER, 3), make_config(learning_rate=1.0)
    fresh = jax.device_get(ppo.init(network, config, SHAPE, 0))
    many, one = (online(n, network, config, fresh) for n in (DEVICES, 1))
    found["ppo"] = compare(many, one, fresh)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
