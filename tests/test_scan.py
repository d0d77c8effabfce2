"""The scan with late weight gradients equals lax.scan: outputs and all gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.nets import MLP, Dense, GRUCell
from lawm_jax.scan import scan

STEPS, ROWS, D, H = 5, 3, 2, 4


class Recurrent(nn.Module):
    """Layers with and without bias, a norm, a carry of two parts, and a layer the step skips."""

    def setup(self):
        self.input = MLP(6, 1, out=3)
        self.gru = GRUCell(H)
        self.output = Dense(2)
        self.unused = Dense(7)

    def step(self, carry, x):
        h, count = carry
        h = self.gru(h, self.input(jnp.concatenate([x["a"], x["b"]], -1)))
        return (h, count + x["b"].mean()), {"y": self.output(h), "h": h}

    def __call__(self, carry, x):
        self.unused(x["a"])
        return self.step(carry, x)


model = Recurrent()
cell = functools.partial(model.apply, method="step")


def plain(params, carry, xs):
    return jax.lax.scan(lambda carry, x: cell({"params": params}, carry, x), carry, xs)


@functools.cache
def make_inputs():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    carry = (normal(ROWS, H), jnp.float32(0.5))
    xs = {"a": normal(STEPS, ROWS, D), "b": normal(STEPS, ROWS, 1)}
    first = jax.tree.map(lambda x: x[0], xs)
    return jax.jit(model.init)(jax.random.key(0), carry, first)["params"], carry, xs


def test_outputs_and_gradients_equal_lax_scan():
    inputs = make_inputs()

    def differentiated(run):
        def loss(*inputs):
            (h, count), ys = run(*inputs)
            total = jnp.sum(jnp.sin(ys["y"])) + jnp.sum(ys["h"] ** 3) + jnp.sum(h * count)
            return total, ((h, count), ys)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)

    grads, outputs = differentiated(functools.partial(scan, cell))
    expected_grads, expected = differentiated(plain)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
                 outputs, expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
                 grads, expected_grads)
    params = grads[0]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, inputs[0])
    for name, layer in params.items():
        for x in jax.tree.leaves(layer):
            assert np.any(x) == (name != "unused"), name


def test_without_differentiation_it_is_a_plain_scan():
    inputs = make_inputs()
    jax.tree.map(np.testing.assert_array_equal,
                 jax.jit(functools.partial(scan, cell))(*inputs), jax.jit(plain)(*inputs))


def test_weight_gradients_leave_the_backward_loop():
    """What the module promises: the loop carries no gradient of a kernel."""

    def carried(run):
        loss = lambda params, carry, xs: jnp.sum(run(params, carry, xs)[1]["y"] ** 2)
        jaxpr = jax.make_jaxpr(jax.grad(loss))(*make_inputs())
        loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        backward = loops[-1]
        first, count = backward.params["num_consts"], backward.params["num_carry"]
        return {x.aval.shape for x in backward.invars[first : first + count]}

    kernel = make_inputs()[0]["gru"]["Dense_0"]["kernel"].shape
    assert kernel in carried(plain)
    assert kernel not in carried(functools.partial(scan, cell))
