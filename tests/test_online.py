"""PPO beside a decoder, in a corridor that resets as EnvPool's environments do."""

import jax
import numpy as np
import pytest
from test_ppo import ALWAYS, ENCODER, SHAPE, make_config

from lawm_jax import runner
from lawm_jax.checkpoint import state_digest
from lawm_jax.envs.procgen import Step
from lawm_jax.lapo import online
from lawm_jax.lapo.decode import DecoderConfig
from lawm_jax.lapo.online import Online, Supervision, Training
from lawm_jax.online.actor_critic import ActorCritic

N, T, EVERY, CAPACITY, LATENT = 4, 16, 2, 100, 2
GROUPS = tuple((name, ALWAYS) for name in ("fc", "policy", "value"))
CONFIG = make_config(envs=N, horizon=T, frames=N * T * 4, groups=GROUPS)
DECODER = DecoderConfig(units=(8,), steps=1, epochs=60, rows=32, learning_rate=1e-2,
                        weight_decay=0.0, label_smoothing=0.0)
SUPERVISION = Supervision(DECODER, CAPACITY, first=N * T, last=10**6, always_until=10**6, every=1)
DECODING = Online(
    ActorCritic(ENCODER, 2, latent_size=LATENT, decoder_units=DECODER.units), CONFIG, SUPERVISION)
RESET = 99  # the blue of a frame whose action is ignored


class Corridor:
    """A lit column that moves left or right; the right end pays 1 and ends the episode."""

    def __init__(self, envs, seed):
        self.rng, self.envs, self.seed, self.closed = np.random.default_rng(seed), envs, seed, False

    def reset(self):
        self.place = self.rng.integers(0, 3, self.envs)
        self.ended, self.total = np.zeros(self.envs, bool), np.zeros(self.envs)
        return self.observe()

    def observe(self):
        frames = np.zeros((self.envs, *SHAPE), np.uint8)
        frames[np.arange(self.envs), :, self.place] = 255
        frames[self.ended, ..., 2] = RESET
        return frames

    def step(self, action):
        valid, moved = ~self.ended, np.clip(self.place + 2 * action - 1, 0, 4)
        self.place = np.where(valid, moved, self.rng.integers(0, 3, self.envs))
        self.ended = valid & (self.place == 4)
        self.total = np.where(valid, self.total + self.ended, 0.0)
        reward = np.where(valid, self.ended, 1e3).astype(np.float32)  # a stale one at resets
        return Step(self.observe(), reward, self.ended.copy(), valid, self.total.copy(), None)

    def close(self):
        self.closed = True


def infer(frames, steps):
    """The latent action is the way that the column went."""
    place = frames.observation[:, 0, :, 0].argmax(-1)
    way = np.sign(place[steps + 1] - place[steps]).astype(np.float32)
    return np.stack([way, -way], 1)


def make_training(settings, made=None):
    def make_env(envs, seed):
        env = Corridor(envs, seed)
        if made is not None:
            made.append(env)
        return env

    mesh = runner.make_mesh(jax.devices()[:1])
    return Training(settings, mesh, make_env, EVERY, infer if settings.supervision else None)


def test_resets_are_no_transitions():
    training = make_training(DECODING)
    state = training.rebuild(online.init(DECODING, SHAPE, 0), 0)
    played = training.play(state.learner)
    weight, done = (np.asarray(x) for x in (played.rollout.weight, played.rollout.done))
    assert (weight == 0).any() and len(played.returns) == done.sum() > 0
    assert set(played.returns) == {1.0}
    np.testing.assert_array_equal(weight[:, 1:] == 0, done[:, :-1])
    frames = played.frames.observation.reshape(N, T + 1, *SHAPE)
    np.testing.assert_array_equal((frames[:, :-1, ..., 2] == RESET).all((2, 3)), weight == 0)
    # Features of the frozen trunk, not frames.
    assert played.rollout.inputs.shape[:2] == (N, T) and played.rollout.inputs.ndim == 3


@pytest.fixture(scope="module")
def trained():
    """(state, metrics) of four updates, the training and the environments that it made."""
    made = []
    training = make_training(DECODING, made)
    out = training(online.init(DECODING, SHAPE, 0), None, None, steps=4)
    return *out, training, list(made)


def test_training_continues_from_a_checkpoint_to_the_same_numbers(trained):
    """Environments are made anew at every second update, interrupted or not."""
    whole, _, training, made = trained
    assert len(made) == 2 and made[0].seed != made[1].seed
    assert made[0].closed and not made[1].closed
    saved, _ = training(online.init(DECODING, SHAPE, 0), None, None, steps=2)
    saved = jax.device_get(saved)  # a process ends, another one starts
    state, _ = make_training(DECODING)(saved, None, None, steps=2)
    assert state_digest(state) == state_digest(whole)
    assert int(whole.step) == 4


def test_transitions_are_gathered_up_to_the_capacity(trained):
    latents = trained[0].latents
    assert int(latents.count) == CAPACITY == len(latents.z)
    way = np.asarray(latents.z)[:, 0]
    assert (np.asarray(latents.action)[way != 0] == (way[way != 0] > 0)).all()  # none of a reset
    assert trained[1]["labels"].tolist() == [CAPACITY]


def test_the_decoder_is_trained_beside_ppo(trained):
    state, metrics = trained[:2]
    assert metrics["decoder_accuracy"][0] > 0.8
    assert metrics["loss"].shape == (4,) and metrics["ended_episodes"][0] > 0
    assert metrics["episode_return"].tolist() == [1.0]
    fresh = online.init(DECODING, SHAPE, 0).learner.params
    moved = {
        name for name, group in state.learner.params.items()
        if any(bool((x != y).any()) for x, y in zip(
            jax.tree.leaves(group), jax.tree.leaves(fresh[name]), strict=True))
    }
    assert moved == {"fc", "policy", "value", "decoder"}


def test_the_schedule_of_the_decoder():
    published = Supervision(DECODER, 1, first=10_000, last=400_000, always_until=50_000, every=20)
    due = [u for u in range(1, 200) if published.due(u, u * 4096)]
    assert due == [*range(3, 13), 20, 40, 60, 80]


def test_ppo_from_scratch_gathers_nothing():
    groups = tuple((name, ALWAYS) for name in ("trunk", "fc", "policy", "value"))
    scratch = Online(ActorCritic(ENCODER, 2), make_config(
        envs=N, horizon=T, frames=N * T, groups=groups), None)
    training = make_training(scratch)
    state, metrics = training(online.init(scratch, SHAPE, 0), None, None, steps=1)
    assert state.latents is None and "decoder_accuracy" not in metrics
    assert training.play(state.learner).rollout.inputs.dtype == np.uint8
