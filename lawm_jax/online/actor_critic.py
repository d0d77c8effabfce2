"""The network that PPO trains: policy and value of a frame, and LAPO's supervised branch.

Letters of shapes: B batch, A actions, F flattened features.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.lapo.decode import Decoder
from lawm_jax.vision import EncoderConfig, Trunk, scale

Params = dict[str, Any]


class ActorCritic(nn.Module):
    """Action logits and value of frames; every top-level name is a group of parameters.

    trunk -> fc -> policy, value; and, where latent_size > 0, the supervised branch
    trunk -> latent_fc -> latent -> decoder, whose logits are averaged with the policy's.
    """

    encoder: EncoderConfig
    actions: int
    latent_size: int = 0
    decoder_units: tuple[int, ...] = ()

    def setup(self) -> None:
        """Declares the groups; the policy starts uniform."""
        dense = functools.partial(nn.Dense, dtype=jnp.dtype(self.encoder.dtype))
        self.trunk = Trunk(self.encoder)
        self.fc = dense(self.encoder.features)
        self.policy = nn.Dense(self.actions, kernel_init=nn.initializers.zeros)
        self.value = nn.Dense(1)
        if self.latent_size:
            self.latent_fc = dense(self.encoder.features)
            self.latent = nn.Dense(self.latent_size)
            self.decoder = Decoder(self.decoder_units, self.actions)

    def features(self, observation: jax.Array) -> jax.Array:
        """Frames [B, H, W, 3] uint8 -> the trunk's features [B, F]."""
        return self.trunk(scale(observation))

    def heads(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, F] -> logits [B, A], values [B], float32."""
        x = nn.relu(self.fc(features)).astype(jnp.float32)
        logits, value = self.policy(x), self.value(x)[:, 0]
        if self.latent_size:
            z = self.latent(nn.relu(self.latent_fc(features)).astype(jnp.float32))
            logits = (logits + self.decoder(z)) / 2.0
        return logits, value

    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Frames [B, H, W, 3] uint8 -> logits [B, A], values [B]."""
        return self.heads(self.features(observation))


def from_latent_policy(latent_policy: Params) -> Params:
    """Groups for `ppo.init` from stage 2's policy: its layers frozen, and a copy of fc that learns.

    Without the supervised branch (LAPO's "RL, no-SL") only trunk and fc are to be given.
    """
    return {
        "trunk": latent_policy["trunk"],
        "fc": latent_policy["fc"],
        "latent_fc": latent_policy["fc"],
        "latent": latent_policy["head"],
    }
