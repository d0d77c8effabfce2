"""Stage 3 online: PPO in the game, beside a decoder of what it meets there (LAPO section 4.3).

Decoding a latent policy and PPO from scratch are the same `Training`; without `Supervision` nothing
is gathered and no decoder trained. Simulators cannot be saved: they are built anew at every
`rebuild_every`-th update, from a seed that follows from the run's and the update, so that training
continued from there meets what uninterrupted training does.

Letters of shapes: N environments, T steps a rollout.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lawm_jax import runner, seeds
from lawm_jax.data.frames import FrameArrays, window_steps
from lawm_jax.envs.procgen import Procgen
from lawm_jax.lapo import decode
from lawm_jax.lapo.decode import Decoder, DecoderConfig, Latents
from lawm_jax.online import ppo
from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.online.ppo import PPOConfig, PPOState, Rollout

ENVIRONMENTS, DECODER = range(2)  # tags of an update's seeds
Infer = Callable[[FrameArrays, np.ndarray], np.ndarray]
Metrics = dict[str, jax.Array | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Supervision:
    """When and how the supervised head is trained, always from scratch.

    Attributes:
      decoder: its settings; `epochs` count.
      capacity: transitions that are kept; later ones are left out.
      first, last: frames from which and until which it is trained; none is gathered after.
      always_until: frames until which it is trained at every update.
      every: updates between two trainings from there.
    """

    decoder: DecoderConfig
    capacity: int
    first: int
    last: int
    always_until: int
    every: int

    def due(self, update: int, frames: int) -> bool:
        """Whether to train it after an update (counted from 1), at so many frames."""
        if not self.first <= frames <= self.last:
            return False
        return frames <= self.always_until or update % self.every == 0


class Online(NamedTuple):
    """A network that PPO trains, its settings, and those of its supervised head if it has one."""

    network: ActorCritic
    ppo: PPOConfig
    supervision: Supervision | None


@flax.struct.dataclass
class OnlineState:
    """Everything that training changes or counts, but for the environments."""

    learner: PPOState
    latents: Latents | None  # the transitions gathered so far; None without supervision
    step: jax.Array  # updates


def init(online: Online, frame_shape: tuple[int, int, int], seed: int) -> OnlineState:
    """A fresh train state for frames [H, W, 3]."""
    latents = None
    if online.supervision:
        latents = decode.empty_latents(online.supervision.capacity, online.network.latent_size)
    learner = ppo.init(online.network, online.ppo, frame_shape, seed)
    return OnlineState(learner, latents, jnp.zeros((), jnp.int32))


def give(state: OnlineState, groups: ppo.Params) -> OnlineState:
    """The state with groups of parameters in place of its own, of those that it has."""
    # Copies: the state is donated, and no buffer may be another state's.
    own = {name: jax.tree.map(jnp.copy, x) for name, x in groups.items()
           if name in state.learner.params}
    return state.replace(learner=state.learner.replace(params=state.learner.params | own))


class Played(NamedTuple):
    """A rollout as the devices have it, its frames, and the returns of the episodes it ended."""

    rollout: Rollout
    frames: FrameArrays
    returns: list[float]


class Training:
    """PPO in environments, as `data_parallel` calls a train step; `close` frees the environments.

    Args:
      online: what is trained.
      mesh: devices, which divide the environments.
      make_env: (N, seed) -> environments like `Procgen`.
      rebuild_every: updates between two makings of the environments; only there may a state that
        is to be continued be saved.
      infer: (frames, steps [M]) -> z [M, Z] of their windows, by the frozen inverse dynamics;
        None without supervision.
    """

    def __init__(
        self,
        online: Online,
        mesh: Mesh,
        make_env: Callable[[int, int], Procgen],
        rebuild_every: int,
        infer: Infer | None = None,
    ) -> None:
        network, config = online.network, online.ppo
        self._online, self._mesh, self._infer = online, mesh, infer
        self._make_env, self._rebuild_every = make_env, rebuild_every
        self._act = runner.map_rows(ppo.make_act(network, config, mesh.size), mesh)
        self._prepare = runner.map_rows(ppo.make_prepare(config), mesh)
        self._step = runner.data_parallel(
            ppo.make_step(network, config, mesh.size), mesh, convolves=not config.frozen_trunk
        )
        self._mean = jax.jit(functools.partial(jax.tree.map, jnp.mean))
        self._along_time = jax.jit(
            lambda *acted: jax.tree.map(lambda *x: jnp.stack(x, 1), *acted)
        )
        self._env: Procgen | None = None
        self._observation = np.empty(0)

    def __call__(
        self, state: OnlineState, shared: None, sharded: None, steps: int
    ) -> tuple[OnlineState, Metrics]:
        """So many updates, from rollout to decoder; metrics as a `data_parallel` step's.

        `episode_return` and `ended_episodes` are of the episodes that ended meanwhile,
        `decoder_accuracy` and `labels` of the last decoder that was trained: each is one number,
        absent where there is none.
        """
        del shared, sharded
        measured, once, returns = [], {}, []
        for _ in range(steps):
            update = int(state.step)
            if update % self._rebuild_every == 0:
                state = self.rebuild(state, update)
            played = self.play(state.learner)
            returns += played.returns
            learner, samples = self._prepare(state.learner, played.rollout)
            learner, metrics = self._step(
                learner, None, samples, steps=self._online.ppo.update_steps
            )
            measured.append(self._mean(metrics))
            state = OnlineState(learner, state.latents, state.step + 1)
            if self._online.supervision:
                state, trained = self._supervise(state, update + 1, played.frames)
                once |= trained
        metrics = jax.tree.map(lambda *x: jnp.stack(x), *measured)
        if returns:
            once |= {"episode_return": np.mean(returns), "ended_episodes": len(returns)}
        return state, metrics | {name: jnp.atleast_1d(x) for name, x in once.items()}

    def close(self) -> None:
        """Frees the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def rebuild(self, state: OnlineState, update: int) -> OnlineState:
        """Fresh environments; the running returns of the old ones end."""
        envs, learner = self._online.ppo.envs, state.learner
        self.close()
        self._env = self._make_env(envs, seeds.derive(int(learner.seed), update, ENVIRONMENTS))
        self._observation = self._env.reset()
        nothing = runner.replicate(np.zeros(envs, np.float32), self._mesh)
        rewards = learner.rewards.replace(running=nothing)
        return state.replace(learner=learner.replace(rewards=rewards))

    def play(self, learner: PPOState) -> Played:
        """Steps the environments T times."""
        config = self._online.ppo
        shape, frame = (config.envs, config.horizon), self._observation.shape[1:]
        observation = np.empty((config.envs, config.horizon + 1, *frame), np.uint8)
        reward, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        done, acted, returns = np.zeros(shape, bool), [], []
        for t in range(config.horizon + 1):
            observation[:, t] = self._observation
            now = runner.shard(np.ascontiguousarray(observation[:, t]), self._mesh)
            acted.append(self._act((learner, np.int32(t)), now)[1])
            if t == config.horizon:
                break  # of the last frame only the value is wanted
            step = self._env.step(np.asarray(acted[t].action))
            self._observation = step.observation
            reward[:, t], done[:, t], weight[:, t] = step.reward, step.done, step.valid
            returns += step.episode_return[step.done].tolist()
        path = self._along_time(*acted[:-1])
        rollout = Rollout(
            path.inputs, path.action, path.log_prob, path.value,
            *runner.shard((reward, done, weight), self._mesh), acted[-1].value,
        )
        frames = decode.episodes_of(observation, np.asarray(path.action), reward, weight)
        return Played(rollout, frames, returns)

    def _supervise(
        self, state: OnlineState, update: int, frames: FrameArrays
    ) -> tuple[OnlineState, Metrics]:
        """Gathers the rollout's transitions; trains the decoder anew where it is due."""
        supervision, network = self._online.supervision, self._online.network
        seen = update * self._online.ppo.rollout_frames
        if seen > supervision.last:
            return state, {}
        latents = self._gather(state.latents, frames)
        if not supervision.due(update, seen):
            return state.replace(latents=latents), {}
        decoder = Decoder(network.decoder_units, network.actions)
        seed = seeds.derive(int(state.learner.seed), update, DECODER)
        params, metrics = decode.fit(decoder, supervision.decoder, latents, seed)
        params = runner.replicate(params, self._mesh)
        state = give(state.replace(latents=latents), {"decoder": params})
        return state, {"decoder_accuracy": metrics["accuracy"], "labels": latents.count}

    def _gather(self, latents: Latents, frames: FrameArrays) -> Latents:
        """The latents with those of a rollout's transitions within an episode, as room is left."""
        room = len(latents.action) - int(latents.count)
        steps = window_steps(frames.episode)[:room]
        if not len(steps):
            return latents
        fill = (0, len(frames.action) - len(steps))  # one shape to compile
        z = np.pad(self._infer(frames, steps), (fill, (0, 0)))
        action = np.pad(frames.action[steps], fill)
        new = runner.replicate((z, action, np.int32(len(steps))), self._mesh)
        return decode.append(latents, *new)
