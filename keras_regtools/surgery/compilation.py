"""Compile a copy of a model as the model is: the user's own objects where no copy is needed."""

import keras
from keras import ops, tree

from keras_regtools.keras_internals import (
    NOT_DECAYED,
    OF_VARIABLES,
    compile_arguments,
    is_schedule,
    rate_of_steps,
    variable_key,
)
from keras_regtools.training import base_optimizers, hand_on


def copy_compilation(model, new, variables=(), **changes):
    """Compile `new` as `model` is, but for the changes to the configuration.

    Losses, schedules, metrics and functions of the user's own are shared; the optimizer has state,
    so that it is copied, with what was set on it since it was made.

    Args:
        model, new: A compiled model and its copy.
        variables: Pairs of a variable of `model` and the one of `new` that took its place.
        changes: Arguments of `compile` to exchange.
    """
    if not model.compiled:
        return
    given = compile_arguments(model)
    metrics = {
        name: tree.map_structure(_fresh, given[name]) for name in ("metrics", "weighted_metrics")
    }
    if "optimizer" not in changes:
        changes["optimizer"] = copy_of_optimizer(model.optimizer, variables)
    new.compile(**{**given, **metrics, **changes})
    new.optimizer.build(new.trainable_variables)
    for old, copy in zip(*map(base_optimizers, (model.optimizer, new.optimizer)), strict=False):
        hand_on(old, copy)


def copy_of_optimizer(optimizer, variables=()):
    """An optimizer that has made no step yet, with all that was set on the old one.

    Args:
        optimizer: A `keras.optimizers.Optimizer`.
        variables: Pairs of an old and a new variable, for what is set for single ones.
    """
    try:
        new = _made_anew(optimizer, variables)
    except Exception as error:
        raise ValueError(
            "Expected an optimizer that can be copied, as each model needs its own. Received: "
            f"{type(optimizer).__name__}, which gave: {error}. Change the model first and compile "
            "it afterwards."
        ) from error
    _copy_settings(optimizer, new, variables)
    return new


def _made_anew(optimizer, variables):
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = copy_of_optimizer(optimizer.inner_optimizer, variables)
        config = optimizer.get_config()
        del config["inner_optimizer"]
        return type(optimizer)(inner, **config)
    # A schedule is shared: it may be the user's own, and holds no state.
    rate = rate_of_steps(optimizer)
    config = settings_of(optimizer)
    if rate is not None:
        config["learning_rate"] = rate
    return type(optimizer).from_config(config)


def settings_of(optimizer):
    """The configuration of an optimizer; its schedule, which may have none, counts as a rate."""
    seen = object.__new__(type(optimizer))
    schedules = {n: 0.0 for n, value in vars(optimizer).items() if is_schedule(n, value)}
    object.__setattr__(seen, "__dict__", {**vars(optimizer), **schedules})
    return seen.get_config()


def _copy_settings(optimizer, new, variables):
    """What was set on an optimizer after it was made is in no configuration."""
    keys = {variable_key(optimizer, old): variable_key(new, copy) for old, copy in variables}
    for name, value in vars(optimizer).items():
        if name in OF_VARIABLES or _holds_variables(value) or is_schedule(name, value):
            continue
        if name == NOT_DECAYED:
            value = {keys[key] for key in value if key in keys}
        if name not in vars(new) or (_is_plain(value) and vars(new)[name] != value):
            object.__setattr__(new, name, value)


def _holds_variables(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds_variables(v) for v in value)
    kinds = (keras.Variable, keras.optimizers.Optimizer)
    return isinstance(value, kinds) or ops.is_tensor(value)


def _is_plain(value):
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str)) or hasattr(value, "pattern")


def _fresh(metric):
    """One of Keras' metrics that has seen nothing; the user's own stays."""
    if isinstance(metric, keras.metrics.Metric) and type(metric).__module__.startswith("keras."):
        try:
            return type(metric).from_config(metric.get_config())
        except Exception:  # around a function of the user's
            return metric
    return metric
