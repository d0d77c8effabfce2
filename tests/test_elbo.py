"""The ELBOs: against the explicit reference, and what each term may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_elbo, make_model, make_params, make_windows

from benchmarks import plain
from lawm_jax.dists import kl
from lawm_jax.lawm.elbo import draw_noise, elbo_loss
from lawm_jax.lawm.world_model import infer

LENGTH, LABELLED, UNLABELLED = 3, 2, 3
PURE = {"latent_kl_weight": 1.0, "free_nats": 2.0}
AUXILIARY = {"inverse_on_labelled": 0.5}
TERMS = ("action_error", "kl_u", "inverse_action_error", "inverse_kl_u")  # of labelled windows


def make_batch(model, unlabelled=True):
    """(labelled, unlabelled, noise)."""
    rows = LABELLED + (UNLABELLED if unlabelled else 0)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(7)))(jnp.arange(rows))
    noise = draw_noise(model, keys, LENGTH, LABELLED)
    without = make_windows(UNLABELLED, LENGTH, actions=False, seed=1) if unlabelled else None
    return make_windows(LABELLED, LENGTH), without, noise


def gradient(loss, model, config):
    """value_and_grad in the parameters, compiled."""
    return jax.jit(jax.value_and_grad(functools.partial(loss, model, config)))


def assert_close(a, b):
    """Equal but for float32 rounding, each leaf against its largest entry."""

    def compare(path, a, b):
        scale = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(
            a / scale, b / scale, atol=3e-5, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, a, b)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lawm", PURE),
        ("lawm", AUXILIARY | {"driving_noise": 0.2}),
        ("c_lap", {}),
        ("dreamer", {"free_nats": 3.0}),
    ],
)
def test_loss_and_every_gradient_equal_the_reference(method, changes):
    model, config = make_model(method), make_elbo(**changes)
    params, batch = make_params(model), make_batch(model, unlabelled=method == "lawm")
    optimised = lambda *args: elbo_loss(*args)[0]
    value, grads = gradient(optimised, model, config)(params, *batch)
    expected, expected_grads = gradient(plain.loss, model, config)(params, *batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(grads, expected_grads)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    zero = {path[0].key for path, g in leaves if not np.any(g)}
    unused = set() if method != "c_lap" else {"inverse_head", "inverse_projection"}
    assert zero == unused  # of these nothing was compared


def test_free_nats_hold_some_steps_and_not_others():
    """Else the reference comparison above would not see them."""
    model = make_model()
    params, (labelled, unlabelled, noise) = make_params(model), make_batch(model)
    merged = jnp.concatenate([labelled.observation, unlabelled.observation], 1)
    found = jax.jit(infer, static_argnums=0)(
        model, params, merged, labelled.action, noise.inference
    )
    prior = model.apply({"params": params}, found.state.h, method="prior")
    divergence = kl(found.posterior, prior)
    for free_nats in (2.0, 3.0):
        assert divergence.min() < free_nats < divergence.max()


# ---- masks


@pytest.fixture(scope="module")
def lawm():
    """(params, labelled, unlabelled, losses): losses gives the loss and its parts."""
    model, config = make_model(), make_elbo(**AUXILIARY)
    labelled, unlabelled, noise = make_batch(model)

    def losses(params, labelled, unlabelled):
        loss, metrics = elbo_loss(model, config, params, labelled, unlabelled, noise)
        return metrics | {"loss": loss}

    return make_params(model), labelled, unlabelled, losses


@pytest.fixture(scope="module")
def jacobian(lawm):
    """{metric: its gradient in (params, labelled, unlabelled)}."""
    params, labelled, unlabelled, losses = lawm
    chosen = lambda *args: {name: losses(*args)[name] for name in (*TERMS, "kl_u_unlabelled")}
    return jax.jit(jax.jacrev(chosen, (0, 1, 2)))(params, labelled, unlabelled)


@pytest.mark.parametrize("metric", TERMS)
def test_action_terms_of_labelled_windows_do_not_see_unlabelled_ones(jacobian, metric):
    _, labelled, unlabelled = jacobian[metric]
    assert not np.any(unlabelled.observation)
    assert not np.any(unlabelled.reward)
    # Every labelled step counts, save that no inferred u comes after the last action.
    counted = labelled.action[:-1] if metric == "inverse_kl_u" else labelled.action
    assert np.all(np.any(counted, 2))


def test_latent_actions_of_unlabelled_windows_do_not_see_labelled_ones(jacobian):
    params, labelled, unlabelled = jacobian["kl_u_unlabelled"]
    assert not any(np.any(x) for x in labelled)
    assert not any(np.any(x) for x in jax.tree.leaves(params["latent_posterior_head"]))
    assert np.all(np.any(unlabelled.observation, 2))


def test_unlabelled_windows_train_the_shared_decoder_but_not_the_labelled_posterior(lawm):
    params, labelled, unlabelled, losses = lawm
    grad = jax.jit(jax.grad(lambda *args: losses(*args)["loss"]))
    other = make_windows(UNLABELLED, LENGTH, actions=False, seed=2)
    one, two = grad(params, labelled, unlabelled), grad(params, labelled, other)
    for head, same in (("latent_posterior_head", True), ("action_head", False)):
        a, b = jax.tree.leaves(one[head]), jax.tree.leaves(two[head])
        assert any(np.any(x) for x in a), f"{head} is not trained at all"
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) == same, head


def test_without_the_auxiliary_term_labelled_windows_do_not_train_the_inverse_dynamics():
    model = make_model()
    labelled, _, _ = make_batch(model)
    _, _, noise = make_batch(model, unlabelled=False)
    params = make_params(model)
    for weight in (0.0, 1.0):
        config = make_elbo(inverse_on_labelled=weight)
        grads, metrics = jax.jit(jax.grad(
            functools.partial(elbo_loss, model, config), has_aux=True
        ))(params, labelled, None, noise)
        trained = any(np.any(x) for x in jax.tree.leaves(grads["inverse_head"]))
        assert trained == bool(weight)
        assert ("inverse_action_error" in metrics) == bool(weight)
    assert "kl_u_unlabelled" not in metrics


def test_noise_follows_the_row_not_the_batch():
    """Rows of a batch keep their noise when another device holds the rows before them."""
    model = make_model()
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(6))
    whole = draw_noise(model, keys, LENGTH, 2)
    part = draw_noise(model, keys[jnp.array([1, 4, 5])], LENGTH, 1)
    np.testing.assert_array_equal(part.inference.z, whole.inference.z[:, [1, 4, 5]])
    np.testing.assert_array_equal(part.inference.u, whole.inference.u[:, 2:])
    np.testing.assert_array_equal(part.inference.a, whole.inference.a[:, 2:])
    np.testing.assert_array_equal(part.labelled_u, whole.labelled_u[:, :, 1:])
    everything = np.concatenate([np.ravel(x) for x in jax.tree.leaves(whole)])
    assert len(np.unique(everything)) == everything.size  # no two numbers are the same draw


def test_bfloat16_changes_the_loss_by_less_than_a_hundredth():
    """Products are rounded to 8 bits, statistics are not; gradients keep their direction."""
    config = make_elbo(**AUXILIARY)
    params, batch = make_params(make_model()), make_batch(make_model())
    answers = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = make_model(dtype=dtype)
        loss = gradient(lambda *args: elbo_loss(*args)[0], model, config)
        value, grads = loss(params, *batch)
        answers.append((float(value), np.concatenate([x.ravel() for x in jax.tree.leaves(grads)])))
    (full, full_grad), (half, half_grad) = answers
    assert 0 < abs(half - full) < 0.01 * abs(full)
    cosine = full_grad @ half_grad / np.linalg.norm(full_grad) / np.linalg.norm(half_grad)
    assert cosine > 0.99


def test_compiled_equals_eager():
    model, config = make_model(), make_elbo()
    params, batch = make_params(model), make_batch(model)
    loss = lambda params: elbo_loss(model, config, params, *batch)
    assert_close(loss(params), jax.jit(loss)(params))
