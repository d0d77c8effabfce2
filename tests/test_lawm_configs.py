"""Every config of the main job: each traces, and says what it stands for."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs.dmc import DATASETS, PRESETS, get_config
from lawm_jax import runner
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.learner import Normaliser, TrainingData
from lawm_jax.lawm.methods import METHODS, resolve
from lawm_jax.lawm.world_model import State

OBSERVATION, ACTION = 24, 6  # of walker_walk


@functools.cache
def trace(program):
    """One step of both phases, traced: shapes of all metrics. Configs share what is the same."""
    mesh = runner.make_mesh(jax.devices()[:1])
    model = program.model
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    trajectories = lambda action: TrajectoryArrays(
        array(4, 101, OBSERVATION), array(4, 100, ACTION) if action else None, array(4, 100),
        array(4, dtype=jnp.int32),
    )
    unlabelled = trajectories(False) if program.learner.unlabelled_rows else None
    optimiser = learner.make_optimiser(program.learner)
    normaliser = Normaliser(array(OBSERVATION), array(OBSERVATION))
    world = jax.eval_shape(lambda n: learner.init(model, optimiser, n, 0), normaliser)
    step = learner.make_step(model, program.elbo, program.learner, optimiser, 1)
    run = functools.partial(runner.data_parallel(step, mesh), steps=1)
    data = TrainingData(trajectories(True), unlabelled)
    after, metrics = jax.eval_shape(run, world, None, data)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), world
    )
    agent = jax.eval_shape(lambda: actor_critic.init(model, program.agent, 0))
    starts = State(array(64, model.deterministic), array(64, model.stochastic))
    run = runner.data_parallel(actor_critic.make_step(model, program.agent, 1), mesh)
    _, more = jax.eval_shape(functools.partial(run, steps=1), agent, world.params, starts)
    return metrics | more


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_config(method, preset):
    for dataset in DATASETS:
        config = get_config(f"walker_walk,{dataset},{preset}")
        config.method = method
        metrics = trace(resolve(config, OBSERVATION, ACTION))
        assert {"loss", "observation_error", "imagined_return", "value_error"} <= set(metrics)
        assert ("kl_u_unlabelled" in metrics) == (method == "lawm")
        assert ("action_error" in metrics) == (method != "dreamer")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_large_preset_is_the_papers_objective(dataset):
    elbo = resolve(get_config(f"walker_walk,{dataset},large"), OBSERVATION, ACTION).elbo
    assert (elbo.latent_kl_weight, elbo.inverse_on_labelled) == (1.0, 0.0)
    assert elbo.driving_noise == elbo.action_std  # unlabelled dynamics see samples of p(a | s, u)
    assert elbo.free_nats == (1.0 if dataset in ("medium_replay", "plan2explore") else 0.0)


def test_methods_draw_the_same_number_of_windows():
    programs = {}
    for method in METHODS:
        config = get_config("walker_walk")
        config.method = method
        programs[method] = resolve(config, OBSERVATION, ACTION).learner
    total = programs["lawm"].labelled_rows + programs["lawm"].unlabelled_rows
    assert programs["lawm"].unlabelled_rows > 0
    for method in ("c_lap", "dreamer"):
        assert programs[method].labelled_rows == total
        assert programs[method].unlabelled_rows == 0


def test_values_that_may_disagree_are_at_least_two():
    config = get_config("walker_walk,tiny")
    config.agent.disagreement = 0.5
    assert resolve(config, OBSERVATION, ACTION).agent.disagreement == 0.5
    config.agent.value_networks = 1
    with pytest.raises(InputError, match="agent.disagreement needs agent.value_networks"):
        resolve(config, OBSERVATION, ACTION)
