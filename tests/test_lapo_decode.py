"""LAPO's decoder: what it learns from labels, how certain it may be, and what is drawn from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lapo_small import DECODER, MOVES, run

from lawm_jax.lapo import decode
from lawm_jax.lapo.decode import Decoder, Latents

OPTIMISED = True  # as test_lapo_stages, whose compiled programs are used where it ran before
ACTIONS = len(MOVES)


def labelled(count, capacity, seed=0):
    """z whose largest number is the action; rows past the count are wrong on purpose."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((capacity, ACTIONS)).astype(np.float32)
    action = z.argmax(-1).astype(np.int32)
    action[count:] = (action[count:] + 1) % ACTIONS
    return Latents(z, action, np.int32(count))


def test_a_decoder_learns_a_known_mapping():
    decoder = Decoder(DECODER.units, ACTIONS)
    state = decode.init(decoder, DECODER, ACTIONS, 0)
    step = decode.make_step(decoder, DECODER, 1)
    state, _ = run(step, state, labelled(256, 512), None, 150)
    fitted, _ = decode.fit(decoder, DECODER, labelled(256, 512), jnp.int32(0))
    z = np.random.default_rng(9).standard_normal((500, ACTIONS)).astype(np.float32)
    untrained = decode.init(decoder, DECODER, ACTIONS, 0).params
    for params, low, high in ((state.params, 0.85, 1), (fitted, 0.85, 1), (untrained, 0, 0.5)):
        logits = decoder.apply({"params": params}, z)
        actions = decode.choose(logits, jax.random.key(0), temperature=0.0)
        assert low < np.mean(actions == z.argmax(-1)) <= high
    nothing, _ = decode.fit(decoder, DECODER, labelled(0, 512), jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, nothing, untrained)


@pytest.mark.parametrize("units", [(), (6,)])
def test_calibration_finds_how_certain_a_decoder_may_be(units):
    """Labels are drawn at a temperature of 4; what a decoder prefers stays as it is."""
    decoder = Decoder(units, ACTIONS)
    params = jax.device_get(decoder.init(jax.random.key(0), jnp.zeros((1, 2)))["params"])
    rng = np.random.default_rng(0)
    last = params[f"Dense_{len(units)}"]
    last["kernel"] = 5.0 * rng.standard_normal(last["kernel"].shape).astype(np.float32)
    last["bias"] = rng.standard_normal(ACTIONS).astype(np.float32)
    z = rng.standard_normal((4000, 2)).astype(np.float32)
    logits = decoder.apply({"params": params}, z)
    action = decode.choose(logits, jax.random.key(1), temperature=4.0)
    found, temperature = decode.calibrate(decoder, params, z, action)
    assert 3.5 < temperature < 4.6
    cooled = decoder.apply({"params": found}, z)
    np.testing.assert_allclose(cooled, logits / temperature, rtol=1e-4, atol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_smoothed_labels_by_hand():
    decoder = Decoder((), 2)
    params = {"Dense_0": {"kernel": np.array([[1.0, -1.0]], np.float32),
                          "bias": np.zeros(2, np.float32)}}
    loss, _ = decode.decoder_loss(decoder, params, jnp.array([[1.0]]), jnp.array([0]), 0.2)
    log_p = np.log(np.exp([1.0, -1.0]) / np.exp([1.0, -1.0]).sum())
    np.testing.assert_allclose(loss, -(0.9 * log_p[0] + 0.1 * log_p[1]), rtol=1e-5)


def test_choosing_follows_the_logits():
    logits = jnp.log(jnp.array([[0.2, 0.8]])).repeat(4000, 0)
    share = np.mean(decode.choose(logits, jax.random.key(0), temperature=1.0))
    np.testing.assert_allclose(share, 0.8, atol=0.03)
    sharp = np.mean(decode.choose(logits, jax.random.key(0), temperature=0.5))
    np.testing.assert_allclose(sharp, 16 / 17, atol=0.03)
    assert decode.choose(logits[:1], jax.random.key(0), temperature=0.0)[0] == 1
