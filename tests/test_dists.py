"""Gaussians against scipy, and the gradients of the balanced divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from lawm_jax.dists import (
    Normal,
    balanced_kl,
    kl,
    log_prob,
    standard_normal_like,
    tanh_normal_log_prob,
)


@pytest.fixture(scope="module")
def q():
    rng = np.random.default_rng(0)
    return Normal(rng.normal(size=(2, 3)), rng.uniform(0.2, 2.0, (2, 3)))


@pytest.fixture(scope="module")
def p():
    rng = np.random.default_rng(1)
    return Normal(rng.normal(size=(2, 3)), rng.uniform(0.2, 2.0, (2, 3)))


def test_log_prob_equals_scipy(p):
    x = np.random.default_rng(2).normal(size=(2, 3))
    expected = stats.norm.logpdf(x, p.mean, p.std).sum(-1)
    np.testing.assert_allclose(log_prob(p, x), expected, rtol=1e-5)


def test_kl_equals_its_integral(q, p):
    def divergence(mean_q, std_q, mean_p, std_p):
        a, b = stats.norm(mean_q, std_q), stats.norm(mean_p, std_p)
        integrand = lambda x: a.pdf(x) * (a.logpdf(x) - b.logpdf(x))
        return integrate.quad(integrand, mean_q - 12 * std_q, mean_q + 12 * std_q)[0]

    expected = np.vectorize(divergence)(*q, *p).sum(-1)
    np.testing.assert_allclose(kl(q, p), expected, rtol=1e-5)


def test_kl_by_hand():
    """KL[N(1, 2) || N(0, 1)] = (4 + 1 - 1) / 2 - log 2, once for each of two dimensions."""
    q = Normal(jnp.ones(2), jnp.full(2, 2.0))
    assert kl(q, standard_normal_like(q.mean)) == pytest.approx(2 * (2.0 - np.log(2.0)))
    assert kl(q, q) == 0.0


def test_the_balanced_kl_weighs_gradients_and_keeps_the_value(q, p):
    grad = jax.grad(lambda q, p: kl(q, p).sum(), argnums=(0, 1))(q, p)
    balanced = lambda q, p: balanced_kl(q, p, 0.8).sum()
    value, (to_q, to_p) = jax.value_and_grad(balanced, argnums=(0, 1))(q, p)
    np.testing.assert_allclose(value, kl(q, p).sum(), rtol=1e-6)
    for found, plain, weight in ((to_q, grad[0], 0.2), (to_p, grad[1], 0.8)):
        np.testing.assert_allclose(found.mean, weight * plain.mean, rtol=1e-5)
        np.testing.assert_allclose(found.std, weight * plain.std, rtol=1e-5)


def test_a_sample_is_reparameterised(p):
    noise = np.array([[0.0, 1.0, -2.0]] * 2)
    np.testing.assert_allclose(p.sample(noise), p.mean + noise * p.std)


def test_tanh_normal_log_prob_equals_the_change_of_variables(p):
    x = np.random.default_rng(3).normal(size=(2, 3))
    expected = (stats.norm.logpdf(x, p.mean, p.std) - np.log(1.0 - np.tanh(x) ** 2)).sum(-1)
    np.testing.assert_allclose(tanh_normal_log_prob(p, x), expected, rtol=1e-5)


def test_tanh_normal_density_integrates_to_one():
    p = Normal(jnp.array([0.4]), jnp.array([0.8]))
    y = np.linspace(-1.0, 1.0, 20_001)[1:-1, None]
    density = np.exp(tanh_normal_log_prob(p, np.arctanh(y)))
    assert integrate.trapezoid(density, y[:, 0]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("x", [30.0, -30.0])
def test_tanh_normal_log_prob_does_not_underflow_where_tanh_is_flat(x):
    """log(1 - tanh(x)^2) -> 2 log 2 - 2 |x|, where float32 has tanh(x) = 1."""
    value, grad = jax.value_and_grad(
        lambda x: tanh_normal_log_prob(Normal(jnp.zeros(1), jnp.ones(1)), x)
    )(jnp.array([x]))
    expected = stats.norm.logpdf(x) - (2 * np.log(2) - 2 * abs(x))
    assert value == pytest.approx(expected, rel=1e-5)
    assert grad[0] == pytest.approx(-x + 2 * np.sign(x), rel=1e-5)
