"""Latent-action world models and policies in JAX."""
