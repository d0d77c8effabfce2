"""The inverse dynamics model: which latent action explains a window (LAPO section 4.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.data.frames import FrameWindows
from lawm_jax.lapo.vq import VQConfig
from lawm_jax.vision import EncoderConfig, FrameNetwork, scale


def stack_frames(windows: FrameWindows, differences: bool) -> jax.Array:
    """The three frames, scaled, on the channel axis: [B, H, W, 9] float32.

    differences: the outer frames as their differences from the middle one, in which what moved
      stands out; nothing is lost.
    """
    previous, current, following = (scale(x) for x in windows[:3])
    if differences:
        previous, following = current - previous, following - current
    return jnp.concatenate([previous, current, following], -1)


class InverseDynamics(nn.Module):
    """z_t = f(o_{t-1}, o_t, o_{t+1}): windows -> continuous latent actions [B, Z] float32.

    differences: see `stack_frames`.
    normalise: every code of z is scaled to a mean square of 1 (its length to sqrt(D)). Published:
      neither.
    """

    encoder: EncoderConfig
    vq: VQConfig
    differences: bool = False
    normalise: bool = False

    @nn.compact
    def __call__(self, windows: FrameWindows) -> jax.Array:
        """Applies the model; the windows' actions are not read."""
        frames = stack_frames(windows, self.differences)
        z = FrameNetwork(self.encoder, self.vq.latent_size, name="network")(frames)
        if not self.normalise:
            return z
        codes = z.reshape(z.shape[0], -1, self.vq.size)
        codes *= jax.lax.rsqrt(jnp.mean(codes**2, -1, keepdims=True) + 1e-6)
        return codes.reshape(z.shape)
