"""What a world model predicts of held-out trajectories; what a policy earns in the simulator."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.data.normaliser import Normaliser
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import ControlSuite
from lawm_jax.envs.evaluation import Evaluation, play
from lawm_jax.lawm.actor_critic import AgentConfig, AgentState, critic, make_policy
from lawm_jax.lawm.imagination import to_support
from lawm_jax.lawm.learner import WorldModelState
from lawm_jax.lawm.world_model import (
    InferenceNoise,
    Params,
    State,
    WorldModel,
    infer,
    initial_state,
)

OPEN_LOOP_CONTEXT = 10  # observations filtered before a prediction
OPEN_LOOP_STEPS = (1, 5, 10, 25)  # how far ahead predictions are scored
PIECE = OPEN_LOOP_CONTEXT + max(OPEN_LOOP_STEPS)  # steps of a held-out trajectory scored at once
CHUNK = 100  # trajectories filtered at once: bounds memory
PRIOR_DRAWS = 32  # latent actions of the prior that are decoded in a state


def _noise(model: WorldModel, steps: int, rows: int, unlabelled: int, key: jax.Array | None
           ) -> InferenceNoise:
    """Noise for an inference over `steps` observations; all zero (the means) without a key."""
    shapes = (
        (steps, rows, model.stochastic),
        (steps - 1, unlabelled, model.latent_action_size),
        (steps - 1, unlabelled, model.action_size),
    )
    if key is None:
        return InferenceNoise(*(jnp.zeros(shape) for shape in shapes))
    keys = jax.random.split(key, 3)
    return InferenceNoise(*(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)))


@functools.partial(jax.jit, static_argnums=0)
def _filter(
    model: WorldModel, params: Params, observation: jax.Array, action: jax.Array, key: jax.Array
) -> State:
    """Posterior states [T+1, N] of whole trajectories, the first of which are labelled."""
    steps, rows, _ = observation.shape
    noise = _noise(model, steps, rows, rows - action.shape[1], key)
    return infer(model, params, observation, action, noise).state


def start_states(
    model: WorldModel, state: WorldModelState, data: Sequence[TrajectoryArrays], multiple_of: int
) -> State:
    """Every posterior state of the training trajectories, where imagination may start.

    Each trajectory is filtered from its first step, as the policy will do when it is evaluated.

    Args:
      data: labelled and unlabelled trajectories.
      multiple_of: the number of devices; a remainder of states is dropped.

    Returns:
      States [M] on the host.
    """
    kept = []
    key = jax.random.fold_in(jax.random.key(int(state.seed)), 0x57A7)
    for arrays in data:
        for first in range(0, len(arrays.length), CHUNK):
            part = jax.tree.map(lambda x, i=first: x[i : i + CHUNK], arrays)
            observation = np.moveaxis(part.observation, 0, 1)
            action = np.zeros((observation.shape[0] - 1, 0, model.action_size), np.float32)
            if part.action is not None:
                action = np.moveaxis(part.action, 0, 1)
            key, chunk_key = jax.random.split(key)
            states = _filter(
                model, state.params, state.normaliser(observation), action, chunk_key
            )
            real = np.arange(observation.shape[0])[:, None] <= part.length  # not padding
            kept.append(jax.tree.map(lambda x, real=real: np.asarray(x)[real], states))
    merged = jax.tree.map(lambda *x: np.concatenate(x), *kept)
    count = len(merged.h) - len(merged.h) % multiple_of
    return jax.tree.map(lambda x: x[:count], merged)


def prediction_errors(
    model: WorldModel, state: WorldModelState, heldout: TrajectoryArrays, decode: bool
) -> dict[str, jax.Array]:
    """Errors on held-out trajectories, whose actions serve as the reference only.

    Trajectories are cut into pieces of context plus horizon. `open_loop_error_K` is the mean
    squared error, of one dimension in units of its variance, of an observation predicted K steps
    ahead of the context with the true actions. `decoded_action_error` is that of the actions that
    the inverse-dynamics path decodes from the observations alone, reported where `decode` says that
    the model has learned one; `action_variance` is what always guessing the mean would score.
    `prior_action_variance` is the variance, within a state, of the actions that the latent-action
    prior decodes to: how wide that prior is, before a policy's support is cut from it. Nothing is
    returned where no trajectory is as long as a piece, PIECE steps.
    """
    pieces = heldout.length // PIECE  # of each trajectory
    places = [(i, n) for i in range(pieces.max()) for n in np.flatnonzero(pieces > i)]
    if not places:
        return {}

    def cut(x: np.ndarray, size: int) -> np.ndarray:
        return np.stack([x[n, i * PIECE : i * PIECE + size] for i, n in places], axis=1)

    observation, action = cut(heldout.observation, PIECE + 1), cut(heldout.action, PIECE)
    return _prediction_errors(
        model, decode, state.params, state.normaliser, observation, action
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prediction_errors(
    model: WorldModel,
    decode: bool,
    params: Params,
    normaliser: Normaliser,
    raw: jax.Array,
    action: jax.Array,
) -> dict[str, jax.Array]:
    observation = normaliser(raw)
    steps, rows, _ = observation.shape
    context = OPEN_LOOP_CONTEXT
    filtered = infer(
        model, params, observation[:context], action[: context - 1],
        _noise(model, context, rows, 0, None),
    )
    start = jax.tree.map(lambda x: x[-1], filtered.state)

    def step(state: State, action: jax.Array) -> tuple[State, State]:
        h = model.apply({"params": params}, state, action, method="transition")
        state = State(h, model.apply({"params": params}, h, method="prior").mean)
        return state, state

    _, states = jax.lax.scan(step, start, action[context - 1 : -1])
    predicted = model.apply({"params": params}, states, method="decode_observation")
    error = jnp.mean((predicted - observation[context:-1]) ** 2, (1, 2))
    metrics = {f"open_loop_error_{k}": error[k - 1] for k in OPEN_LOOP_STEPS}
    if model.latent_action:
        metrics["prior_action_variance"] = _prior_action_variance(model, params, filtered.state)
    if decode:
        nothing = jnp.zeros((steps - 1, 0, model.action_size))
        means = _noise(model, steps, rows, rows, None)
        inferred = infer(model, params, observation, nothing, means)
        metrics["decoded_action_error"] = jnp.mean((inferred.action - action) ** 2)
        metrics["action_variance"] = jnp.mean(jnp.var(action, (0, 1)))
    return metrics


def _prior_action_variance(model: WorldModel, params: Params, state: State) -> jax.Array:
    apply = lambda method, *args: model.apply({"params": params}, *args, method=method)
    prior = apply("latent_prior", state)
    keys = jax.random.split(jax.random.key(0), PRIOR_DRAWS)
    decode = lambda key: apply(
        "decode_action", state, prior.sample(jax.random.normal(key, prior.mean.shape))
    )
    return jnp.mean(jnp.var(jax.vmap(decode)(keys), 0))


class PolicyParams(NamedTuple):
    """What acting needs."""

    world: Params
    normaliser: Normaliser
    policy: Params
    value: Params


class Filter(NamedTuple):
    """The acting agent's memory, its action [N, A], and the discounted return it expects [N]."""

    state: State
    action: jax.Array
    value: jax.Array


Actor = Callable[..., Filter]  # as make_actor says


def make_actor(model: WorldModel, config: AgentConfig) -> Actor:
    """The policy that acts, jitted once: filters an observation and takes the policy's mode.

    Returns actor(params, filter, observation [N, O]) -> Filter, whose action is to be executed; the
    filter is None at an episode's first step. With a fourth argument, standard-normal noise
    [N, policy_size], it takes a sample of the policy instead.
    """

    @jax.jit
    def step(
        params: PolicyParams,
        last: Filter | None,
        observation: jax.Array,
        noise: jax.Array | None = None,
    ) -> Filter:
        apply = functools.partial(model.apply, {"params": params.world})
        projected = apply(params.normaliser(observation), method="embed").posterior
        rows = observation.shape[0]
        if last is None:
            zeros = jnp.zeros((rows, model.stochastic))
            state, _ = initial_state(model, params.world, projected, zeros)
        else:
            h = apply(last.state, last.action, method="transition")
            state = State(h, apply(h, projected, method="posterior").mean)
        if noise is None:
            noise = jnp.zeros((rows, config.policy_size))
        v, _ = make_policy(config).apply({"params": params.policy}, state, noise)
        action = to_support(model, params.world, state, v, config.epsilon)
        value = critic(config, params.value, state).min(0) / (1.0 - config.discount)
        return Filter(state, action, value)

    return step


def acting(actor: Actor, params: PolicyParams) -> Callable[..., tuple[np.ndarray, Filter]]:
    """The policy as `rollout` calls it: act(filter, observation, t) -> (action, filter)."""

    def act(last: Filter | None, observation: np.ndarray, t: int) -> tuple[np.ndarray, Filter]:
        last = actor(params, last if t else None, observation)
        return np.asarray(last.action), last

    return act


def policy_params(world: WorldModelState, agent: AgentState) -> PolicyParams:
    """What acting needs of the train states."""
    return PolicyParams(world.params, world.normaliser, agent.policy, agent.value)


def evaluate_policy(
    env: ControlSuite, actor: Actor, params: PolicyParams, discount: float
) -> Evaluation:
    """Plays one episode in every environment with the policy's mode, filtering as it goes."""
    expect = lambda first: actor(params, None, first).value
    return play(env, acting(actor, params), expect, discount)
