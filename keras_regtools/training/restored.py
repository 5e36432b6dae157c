"""Whatever is done to a model in a block, afterwards it is what it was."""

import contextlib
import random

import keras
import numpy as np
from keras import ops

from keras_regtools import backend
from keras_regtools.forward import all_layers
from keras_regtools.keras_internals import members, rate_of_steps, set_train_step, train_step_of
from keras_regtools.training.optimizer_hooks import base_optimizers, held_optimizers


@contextlib.contextmanager
def restored(model):
    """Give a compiled model back as it was, however the block ends.

    Weights, moving statistics, seeds, metrics, the optimizer with its slots, iteration and rate,
    and the generators of Python, numpy and the backend. An optimizer that has no slots yet gets
    them.

    Yields:
        A function that puts variables back within the block, to begin again without a new trace.
    """
    optimizers = [o for held in held_optimizers(model) for o in base_optimizers(held)]
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    schedules = [(o, rate_of_steps(o)) for o in optimizers]
    kept = [(v, np.array(ops.convert_to_numpy(v))) for v in _variables(model)]
    execution, stops = model.steps_per_execution, model.stop_training
    step = train_step_of(model)
    states = random.getstate(), np.random.get_state()

    def reset():
        for variable, value in kept:
            variable.assign(value)

    set_train_step(model, None)
    model.steps_per_execution = 1
    try:
        with backend.frozen_draws():
            yield reset
    finally:
        for optimizer, schedule in schedules:
            if schedule is not None:
                optimizer.learning_rate = schedule
        reset()
        model.steps_per_execution, model.stop_training = execution, stops
        set_train_step(model, step)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _variables(model):
    """All that a training step may write to, each once."""
    found = {id(v): v for v in (*model.variables, *model.metrics_variables)}
    for optimizer in held_optimizers(model):
        found |= {id(v): v for v in optimizer.variables}
    for layer in all_layers(model):
        for value in members(layer):
            if isinstance(value, keras.Variable):
                found[id(value)] = value
    return list(found.values())
