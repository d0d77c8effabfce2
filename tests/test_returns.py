"""Returns by hand, and against a loop."""

import jax
import numpy as np

from lawm_jax.returns import discounted_return, lambda_returns


def test_lambda_returns_by_hand():
    """Two trajectories of three steps, discount 0.5, lambda 0.5.

    G_2 = r_3 + 0.5 v_3; G_1 = r_2 + 0.5 (0.5 v_2 + 0.5 G_2); G_0 = r_1 + 0.5 (0.5 v_1 + 0.5 G_1).
    """
    r_t = np.array([[1.0, 2.0, 3.0], [0.0, -4.0, 8.0]]).T
    v_t = np.array([[10.0, 20.0, 40.0], [8.0, 4.0, -2.0]]).T
    expected = np.array([
        [6.6875, 12.75, 23.0],  # 1 + 2.5 + 3.1875, 2 + 5 + 5.75, 3 + 20
        [1.6875, -1.25, 7.0],  # 0 + 2 - 0.3125, -4 + 1 + 1.75, 8 - 1
    ]).T
    np.testing.assert_array_equal(lambda_returns(r_t, v_t, 0.5, 0.5), expected)


def test_lambda_returns_equal_a_loop_over_their_definition():
    """The mixture of n-step returns, (1 - lambda) sum_n lambda^(n-1) G^(n), cut at the horizon."""
    rng = np.random.default_rng(0)
    horizon, discount, lambda_ = 7, 0.9, 0.8
    r_t, v_t = rng.normal(size=(2, horizon, 4))

    def n_step(t, n):
        rewards = sum(discount**k * r_t[t + k] for k in range(n))
        return rewards + discount**n * v_t[t + n - 1]

    for t in range(horizon):
        last = horizon - t
        expected = lambda_ ** (last - 1) * n_step(t, last) + (1 - lambda_) * sum(
            lambda_ ** (n - 1) * n_step(t, n) for n in range(1, last)
        )
        found = lambda_returns(r_t, v_t, discount, lambda_)[t]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_returns_do_not_see_the_past():
    grad = jax.grad(lambda r: lambda_returns(r, np.ones(4), 0.9, 0.8)[2])(np.ones(4))
    assert not grad[:2].any()
    assert grad[2:].all()


def test_discounted_return_by_hand():
    reward = np.array([[1.0, 2.0, 4.0], [8.0, 0.0, -4.0]], np.float32).T
    np.testing.assert_array_equal(discounted_return(reward, 0.5), [3.0, 7.0])
