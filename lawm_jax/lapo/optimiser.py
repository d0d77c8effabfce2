"""The optimiser and schedule that LAPO's training stages share."""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Batch and schedule of a stage.

    Attributes:
      steps: of training.
      rows: of a batch, over all devices.
      shift: random translation of a window, pixels; 0 is none (published).
      learning_rate: after the warm-up; it decays linearly to the last step.
      learning_rate_start: share of it that the warm-up starts from.
      learning_rate_end: share of it at the last step.
      warmup_steps: linear, fewer than steps.
      weight_decay: AdamW's.
      gradient_clip: largest global norm; 0 is none (published, of the latent policy).
    """

    steps: int
    rows: int
    shift: int
    learning_rate: float
    learning_rate_start: float
    learning_rate_end: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float


def schedule(config: TrainingConfig) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up, then a linear decay."""
    rate = config.learning_rate
    decay = max(config.steps - config.warmup_steps, 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(config.learning_rate_start * rate, rate, config.warmup_steps),
            optax.linear_schedule(rate, config.learning_rate_end * rate, decay),
        ],
        [config.warmup_steps],
    )


def make_optimiser(config: TrainingConfig) -> optax.GradientTransformation:
    """AdamW on gradients that are clipped, if they are to be."""
    clip = config.gradient_clip
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(schedule(config), weight_decay=config.weight_decay),
    )
