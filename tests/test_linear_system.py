"""LAWM recovers the actions of unlabelled trajectories of a small linear system."""

import jax
import numpy as np
import pytest
from small import make_elbo, make_model

from lawm_jax import runner
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import stack
from lawm_jax.lawm import evaluate, learner
from lawm_jax.lawm.learner import LearnerConfig, TrainingData

B = np.array([[0.6, 0.3], [-0.3, 0.6]])
CONFIG = LearnerConfig(
    steps=300, labelled_rows=8, unlabelled_rows=16, window=8, learning_rate=1e-2,
    learning_rate_end=0.0, warmup_steps=0, weight_decay=0.0, gradient_clip=100.0,
)


def make_trajectory(seed, length=40):
    """o' = 0.8 o + B a with random actions; the reward is the first coordinate."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    observation = [rng.normal(size=2)]
    for a in action:
        observation.append(0.8 * observation[-1] + B @ a)
    observation = np.array(observation, np.float32)
    return Trajectory(observation, action, observation[1:, 0])


@pytest.fixture(scope="module")
def train():
    """train() -> (state, errors on held-out trajectories); 8 of 64 trajectories are labelled."""
    model = make_model(
        observation_size=2, latent_action_size=2, units=32, layers=1, deterministic=16, stochastic=4
    )
    elbo = make_elbo(
        observation_std=0.15, reward_std=0.3, action_std=0.2, latent_kl_weight=0.3,
        inverse_on_labelled=1.0,
    )
    trajectories = [make_trajectory(seed) for seed in range(64)]
    data = TrainingData(
        stack(trajectories[:8], actions=True), stack(trajectories[8:], actions=False)
    )
    heldout = stack([make_trajectory(seed) for seed in range(100, 116)], actions=True)
    optimiser = learner.make_optimiser(CONFIG)
    step = learner.make_step(model, elbo, CONFIG, optimiser, 1)
    run = runner.data_parallel(step, runner.make_mesh(jax.devices()[:1]))

    def train():
        state = learner.init(model, optimiser, learner.fit_normaliser(data), seed=0)
        state, _ = run(state, None, data, steps=CONFIG.steps)
        return state, evaluate.prediction_errors(model, state, heldout, decode=True)

    return train


def test_actions_and_dynamics_of_unlabelled_trajectories_are_recovered(train):
    state, errors = train()
    assert errors["action_variance"] == pytest.approx(1 / 3, rel=0.1)  # uniform actions
    assert errors["decoded_action_error"] < 0.2 * errors["action_variance"]
    # Actions tell nothing of the state, nor the state of them: the prior stands for all of them.
    assert errors["prior_action_variance"] == pytest.approx(1 / 3, rel=0.3)
    assert errors["open_loop_error_1"] < 0.3  # of 1, the variance of an observation
    again, same = train()
    jax.tree.map(np.testing.assert_array_equal, again, state)  # the same seed, the same numbers
    assert same == errors
