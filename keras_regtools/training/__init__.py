"""Internal: what happens inside a training step: hooks around `optimizer.apply`, scaled rates."""

from keras_regtools.training.adascale import (
    AdaScale,
    adascale_gain,
    refuse_adascale,
    refuse_one_part,
)
from keras_regtools.training.fit import (
    alternate_steps,
    bind,
    end,
    release,
    remake_step,
    watch_updates,
)
from keras_regtools.training.gradient_noise import NoiseHook, parts_of
from keras_regtools.training.gradients import ROWS, GradientHook
from keras_regtools.training.momentum import correct_momentum, velocities
from keras_regtools.training.optimizer_hooks import (
    add_hook,
    base_optimizers,
    exchange_gradients,
    held_optimizers,
    remove_hook,
    training_optimizer,
)
from keras_regtools.training.rate_rules import (
    RULES,
    AdamRule,
    checked_noise_scale,
    rate_factor,
    refuse_base_rate,
    refuse_rivals,
    told,
)
from keras_regtools.training.restored import restored
from keras_regtools.training.scaling import (
    SCALED,
    ScaledSchedule,
    hand_on,
    put_in,
    warmup_factor,
    warmup_length,
    warn_of_long_warmup,
    where_it_began,
)
from keras_regtools.training.sharpness_aware import SharpnessAwareHook, perturbation
from keras_regtools.training.step_hooks import add_step_hook, remove_step_hook

__all__ = [
    "RULES",
    "AdamRule",
    "checked_noise_scale",
    "rate_factor",
    "refuse_rivals",
    "warmup_length",
    "where_it_began",
    "alternate_steps",
    "ROWS",
    "GradientHook",
    "SCALED",
    "SharpnessAwareHook",
    "ScaledSchedule",
    "put_in",
    "restored",
    "told",
    "warn_of_long_warmup",
    "add_hook",
    "add_step_hook",
    "base_optimizers",
    "bind",
    "correct_momentum",
    "end",
    "exchange_gradients",
    "hand_on",
    "held_optimizers",
    "perturbation",
    "release",
    "remake_step",
    "remove_hook",
    "remove_step_hook",
    "training_optimizer",
    "velocities",
    "warmup_factor",
    "watch_updates",
    "AdaScale",
    "NoiseHook",
    "adascale_gain",
    "parts_of",
    "refuse_adascale",
    "refuse_base_rate",
    "refuse_one_part",
]
