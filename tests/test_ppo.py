"""PPO: advantages and losses against numpy, groups of parameters, a problem it must solve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lapo_small import SIDE, TRAINING

from lawm_jax import runner
from lawm_jax.lapo import decode, imitation
from lawm_jax.lapo.decode import Decoder, DecoderConfig
from lawm_jax.online import ppo, reward_scale
from lawm_jax.online.actor_critic import ActorCritic, from_latent_policy
from lawm_jax.online.ppo import PPOConfig, Rollout, Samples
from lawm_jax.returns import generalised_advantages
from lawm_jax.vision import EncoderConfig, FrameNetwork

ENCODER = EncoderConfig(channels=(8,), multiplier=1, blocks=(1,), patch=4, features=16)
SHAPE = (SIDE, SIDE, 3)
ALWAYS = ((0.0, 1.0),)
DECODER = DecoderConfig(units=(6,), steps=1, epochs=1, rows=8, learning_rate=1e-3,
                        weight_decay=0.0, label_smoothing=0.0)
N, T = 8, 16


def make_config(**changes):
    settings = {
        "frames": N * T * 30, "envs": N, "horizon": T, "minibatches": 4, "epochs": 3,
        "discount": 0.9, "lambda_": 0.95, "clip": 0.2, "entropy": 0.0025, "value": 0.5,
        "gradient_clip": 0.5, "reward_clip": 10.0, "learning_rate": 1e-2,
        "groups": tuple((name, ALWAYS) for name in ("trunk", "fc", "policy", "value")),
    }
    return PPOConfig(**(settings | changes))


def make_rollout(seed=0, envs=N, horizon=T, actions=3):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return Rollout(
        inputs=rng.integers(0, 256, (envs, horizon, *SHAPE)).astype(np.uint8),
        action=rng.integers(0, actions, (envs, horizon)).astype(np.int32),
        log_prob=np.full((envs, horizon), -np.log(actions), np.float32),
        value=normal(envs, horizon), reward=normal(envs, horizon),
        done=rng.random((envs, horizon)) < 0.2,
        weight=np.ones((envs, horizon), np.float32), last_value=normal(envs),
    )


def make_update(network, config, devices=1):
    """One whole update: (state, rollout) -> (state, metrics [epochs * minibatches])."""
    mesh = runner.make_mesh(jax.devices()[:devices])
    prepare = runner.map_rows(ppo.make_prepare(config), mesh)
    step = runner.data_parallel(ppo.make_step(network, config, devices), mesh)

    def update(state, rollout):
        state, samples = prepare(state, rollout)
        return step(state, None, samples, steps=config.update_steps)

    return update


def mapped(function):
    """Calls a function that has collectives as the only device."""
    devices = jax.jit(jax.vmap(function, axis_name=runner.AXIS))

    def call(*args):
        out = devices(*jax.tree.map(lambda x: jnp.array(x)[None], args))
        return jax.tree.map(lambda x: x[0], out)

    return call


def test_advantages_against_numpy():
    rng = np.random.default_rng(0)
    r, v = rng.standard_normal((2, 6, 3))
    last, done = rng.standard_normal(3), rng.random((6, 3)) < 0.3
    expected = np.zeros((6, 3))
    for env in range(3):
        for t in range(6):  # the definition: a sum of discounted errors up to the episode's end
            weight = 1.0
            for k in range(t, 6):
                after = last[env] if k == 5 else v[k + 1, env]
                delta = r[k, env] + 0.9 * (not done[k, env]) * after - v[k, env]
                expected[t, env] += weight * delta
                weight *= 0.9 * 0.8 * (not done[k, env])
    found = generalised_advantages(*map(jnp.array, (r, v, last, 1.0 - done)), 0.9, 0.8)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rewards_are_scaled_by_the_deviation_of_running_returns():
    rng = np.random.default_rng(0)
    parts = [(5 * rng.standard_normal((2, 50)).astype(np.float32), rng.random((2, 50)) < 0.1)
             for _ in range(2)]
    resets = np.zeros((2, 50), bool)
    resets[:, 1:] = parts[1][1][:, :-1]  # of the second rollout: they count as nothing
    parts = [(*parts[0], np.ones((2, 50), np.float32)),
             (parts[1][0] * ~resets, parts[1][1] & ~resets, (~resets).astype(np.float32))]
    values, running = [], np.zeros(2)
    state = reward_scale.init(2)
    for reward, done, weight in parts:
        scale = functools.partial(reward_scale.normalise, discount=0.9, clip=1.0)
        state, scaled = mapped(scale)(state, reward, done, weight)
        for t in range(50):
            running = 0.9 * running + reward[:, t]
            values.extend(running[weight[:, t] > 0])
            running[done[:, t]] = 0
        deviation = np.std(values)
        np.testing.assert_allclose(jnp.sqrt(state.variance), deviation, rtol=1e-4)
        np.testing.assert_allclose(scaled, np.clip(reward / deviation, -1, 1), rtol=1e-3)
        np.testing.assert_allclose(state.running, running, rtol=1e-3, atol=1e-4)


def test_loss_against_numpy():
    network, config = ActorCritic(ENCODER, 3), make_config()
    state = ppo.init(network, config, SHAPE, 0)
    rng = np.random.default_rng(1)
    params = state.params | {"policy": {
        "kernel": rng.standard_normal((16, 3)).astype(np.float32), "bias": np.zeros(3, np.float32),
    }}
    rollout = make_rollout(envs=1)
    weight = (rng.random(T) < 0.7).astype(np.float32)
    advantage = rng.standard_normal(T).astype(np.float32)
    batch = Samples(rollout.inputs[0], rollout.action[0], rollout.log_prob[0],
                    0.1 * rollout.value[0], advantage, weight)
    loss = lambda batch: ppo.ppo_loss(network, config, params, batch)
    found, metrics = mapped(loss)(batch)

    logits, value = map(np.asarray, network.apply({"params": params}, batch.inputs))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ratio = probability[np.arange(T), batch.action] / np.exp(batch.log_prob)
    mean = lambda x: (weight * x).sum() / weight.sum()
    a = (advantage - mean(advantage)) / np.sqrt(mean((advantage - mean(advantage)) ** 2))
    policy = -mean(np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a))
    target = batch.value + advantage
    near = np.clip(value, batch.value - 0.2, batch.value + 0.2)
    error = 0.5 * mean(np.maximum((value - target) ** 2, (near - target) ** 2))
    entropy = mean(-(probability * np.log(probability)).sum(-1))
    np.testing.assert_allclose(metrics["policy_loss"], policy, rtol=1e-3)
    np.testing.assert_allclose(metrics["value_loss"], error, rtol=1e-3)
    np.testing.assert_allclose(found, policy + 0.5 * error - 0.0025 * entropy, rtol=1e-3)
    assert 0 < metrics["clipped"] < 1


def test_steps_without_a_transition_change_nothing():
    """A reset's frame, action and stale reward may be anything."""
    network, config = ActorCritic(ENCODER, 3), make_config(envs=2)
    update = make_update(network, config)
    rollout = make_rollout(envs=2)
    weight, done = rollout.weight.copy(), rollout.done.copy()
    done[:, 5], weight[:, 6] = True, 0.0
    rollout = rollout._replace(weight=weight, done=done)
    observation, action, reward = (np.array(x) for x in (
        rollout.inputs, rollout.action, rollout.reward))
    observation[:, 6] = 7
    action[:, 6] = 1 - np.minimum(action[:, 6], 1)
    reward[:, 6] = 1e3
    other = rollout._replace(inputs=observation, action=action, reward=reward)
    states = [
        jax.device_get(update(ppo.init(network, config, SHAPE, 0), x)[0])
        for x in (rollout, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0].step == config.epochs * config.minibatches


def test_a_minibatch_step_against_its_definition():
    """One minibatch of a whole rollout: Adam's first step on the clipped gradient."""
    network = ActorCritic(ENCODER, 3)
    half = (("policy", ALWAYS), ("value", ((0.0, 0.5),)))
    config = make_config(envs=2, epochs=1, minibatches=1, gradient_clip=0.05, groups=half)
    rollout, state = make_rollout(envs=2), ppo.init(network, config, SHAPE, 0)
    before = jax.device_get(state.params)
    _, reward = mapped(functools.partial(
        reward_scale.normalise, discount=config.discount, clip=config.reward_clip,
    ))(reward_scale.init(2), rollout.reward, rollout.done, rollout.weight)
    advantage = generalised_advantages(
        reward.T, rollout.value.T, rollout.last_value, 1.0 - rollout.done.T, config.discount,
        config.lambda_).T
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), Samples(
        rollout.inputs, rollout.action, rollout.log_prob, rollout.value, advantage,
        rollout.weight))
    trained = {name: before[name] for name, _ in half}
    gradient = mapped(jax.grad(
        lambda trained, batch: ppo.ppo_loss(network, config, before | trained, batch)[0]
    ))(trained, flat)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    assert norm > 0.05
    after, metrics = make_update(network, config)(state, rollout)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-3)
    for name, rate in (("policy", 1e-2), ("value", 5e-3)):
        expected = jax.tree.map(
            lambda p, g, rate=rate: p - rate * (g := g * 0.05 / norm) / (abs(g) + 1e-5),
            before[name], gradient[name])
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), after.params[name], expected)


def test_an_epoch_sees_every_step_once():
    config = make_config()
    state = ppo.init(ActorCritic(ENCODER, 3), config, SHAPE, 0)
    order = jax.jit(lambda step: jax.vmap(
        lambda _: ppo._order(config, state.replace(step=step), N), axis_name=runner.AXIS,
    )(jnp.zeros(1))[0])
    minibatches = np.stack([order(jnp.int32(i)) for i in range(config.update_steps + 4)])
    epochs = minibatches.reshape(4, 4, N, -1).swapaxes(1, 2).reshape(4, N, T)
    assert (np.sort(epochs) == np.arange(T)).all()
    assert len({epoch.tobytes() for epoch in epochs}) == 4  # the last is of the next update
    assert len({row.tobytes() for row in epochs[0]}) == N


def test_groups_learn_at_their_own_rates():
    points = ((100.0, 0.0), (200.0, 0.25), (1000.0, 0.0))
    config = make_config(envs=2, groups=(("policy", points), ("value", ALWAYS)))
    at = lambda step: float(ppo.learning_rates(config, jnp.int32(step))["policy"])
    np.testing.assert_allclose(
        [at(0), at(3), at(5), at(19), at(40)],  # 0, 96, 160, 608, 1280 frames
        [0, 0, 1e-2 * 0.15, 1e-2 * 0.25 * 392 / 800, 0], rtol=1e-4,
    )
    assert float(ppo.learning_rates(config, jnp.int32(7))["value"]) == np.float32(1e-2)

    network = ActorCritic(ENCODER, 3, latent_size=4, decoder_units=(6,))
    state = ppo.init(network, config, SHAPE, 0)
    before = jax.device_get(state.params)
    after, _ = make_update(network, config)(state, make_rollout(envs=2))
    moved = {
        name: any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), group,
                                               jax.device_get(after.params[name]))))
        for name, group in before.items()
    }
    assert moved == {name: name == "value" for name in moved}  # the policy's rate is still 0
    assert set(moved) == {"trunk", "fc", "policy", "value", "latent_fc", "latent", "decoder"}
    with pytest.raises(ValueError, match="no such group of parameters: decoders"):
        ppo.init(network, make_config(groups=(("decoders", ALWAYS),)), SHAPE, 0)


def test_a_latent_policy_and_its_decoder_are_one_of_two_heads():
    """Logits are the mean of PPO's and those of the policy decoded offline."""
    policy, decoder = FrameNetwork(ENCODER, 4), Decoder((6,), 3)
    network = ActorCritic(ENCODER, 3, latent_size=4, decoder_units=(6,))
    rng = np.random.default_rng(0)
    noise = lambda tree: jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), tree)
    latent_policy = noise(imitation.init(policy, TRAINING, SHAPE, 0).params)
    given = {
        **from_latent_policy(latent_policy),
        "decoder": noise(decode.init(decoder, DECODER, 4, 0).params),
    }
    state = ppo.init(network, make_config(), SHAPE, 0, **given)
    observation = make_rollout().inputs[0]
    offline = decode.decoded_logits(
        policy, decoder, {"policy": latent_policy, "decoder": given["decoder"]}, observation)
    apply = jax.jit(lambda params: network.apply({"params": params}, observation))
    logits, _ = apply(state.params)
    np.testing.assert_allclose(logits, offline / 2, rtol=1e-3, atol=1e-3)  # PPO's start at zero
    bias = np.array([1.0, -2.0, 0.5], np.float32)
    moved = state.params["policy"] | {"bias": bias}
    logits, _ = apply(state.params | {"policy": moved})
    np.testing.assert_allclose(logits, (offline + bias) / 2, rtol=1e-3, atol=1e-3)


def test_features_computed_once_give_the_update_of_frames():
    """A frozen trunk runs only where the policy acts; the numbers are those of running it again."""
    network = ActorCritic(ENCODER, 3)
    groups = (("fc", ALWAYS), ("policy", ALWAYS), ("value", ALWAYS))
    free = {"envs": 2, "gradient_clip": 1e9}  # the trunk's gradient would join the clipped norm
    config = make_config(groups=groups, **free)
    still = make_config(groups=(("trunk", ((0.0, 0.0),)), *groups), **free)
    rollout = make_rollout(envs=2)
    mesh, state = runner.make_mesh(jax.devices()[:1]), ppo.init(network, config, SHAPE, 0)
    act = runner.map_rows(ppo.make_act(network, config, 1), mesh)
    features = [act((state, t), rollout.inputs[:, t])[1].inputs for t in range(T)]
    assert features[0].ndim == 2
    fast, slow = (
        jax.device_get(make_update(network, c)(ppo.init(network, c, SHAPE, 0), given)[0].params)
        for c, given in (
            (config, rollout._replace(inputs=np.stack(features, 1))), (still, rollout),
        )
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), fast, slow)
    jax.tree.map(np.testing.assert_array_equal, fast["trunk"], slow["trunk"])


class Corridor:
    """A lit column that moves left or right; the right end pays 1 and ends the episode."""

    def __init__(self, envs, seed):
        self.rng, self.envs = np.random.default_rng(seed), envs
        self.place, self.age = np.zeros(envs, int), np.zeros(envs, int)

    def observe(self):
        frames = np.zeros((self.envs, *SHAPE), np.uint8)
        frames[np.arange(self.envs), :, self.place] = 255
        return frames

    def step(self, action):
        self.place = np.clip(self.place + 2 * action - 1, 0, 4)
        self.age += 1
        reward = (self.place == 4).astype(np.float32)
        done = (reward > 0) | (self.age == 20)
        self.place[done], self.age[done] = 0, 0
        return reward, done


def test_ppo_learns_to_walk_a_corridor():
    network = ActorCritic(ENCODER, 2)
    config = make_config(learning_rate=5e-3)
    update = make_update(network, config)
    act = runner.map_rows(ppo.make_act(network, config, 1), runner.make_mesh(jax.devices()[:1]))
    state, env = ppo.init(network, config, SHAPE, 0), Corridor(N, 0)
    earned = []
    for _ in range(config.updates):
        rows = []
        for t in range(T):
            frames = env.observe()
            action, log_prob, value, _ = map(np.asarray, act((state, t), frames)[1])
            result = env.step(action)
            rows.append((frames, action, log_prob, value, *result, np.ones(N, np.float32)))
        last = np.asarray(act((state, T), env.observe())[1].value)
        rollout = Rollout(*(np.stack(x, 1) for x in zip(*rows, strict=True)), last)
        earned.append(rollout.reward.sum() / N)
        state, metrics = update(state, rollout)
    assert np.isfinite([float(x[0]) for x in metrics.values()]).all()
    assert np.mean(earned[:2]) < 2.0
    assert np.mean(earned[-3:]) > 3.5  # 4 is the most that 16 steps can earn
