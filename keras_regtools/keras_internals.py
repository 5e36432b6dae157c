"""Internal: what leans on what Keras does not promise, each with a test and a clear error."""

import sys

import keras


def _missing(what, owner):
    return RuntimeError(
        f"keras_regtools needs {what} of Keras, which Keras {keras.__version__} does not have: "
        f"{type(owner).__name__}. Please report this, and use the Keras of the last release."
    )


def shadow(owner, name, function):
    """Put a function in place of a method, on this instance alone and unseen by Keras' tracking.

    Returns:
        What stood on the instance before, or `None`: what `unshadow` wants back.
    """
    if not callable(getattr(type(owner), name, None)):
        raise _missing(f"the method `{name}`", owner)
    before = vars(owner).get(name)
    object.__setattr__(owner, name, function)
    return before


def shadowed(owner, name):
    """What stands in place of a method on this instance, or `None`."""
    return vars(owner).get(name)


def unshadow(owner, name, before=None):
    """Undo `shadow`: the method again, or what stood in its place before."""
    if before is None:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, before)


def make_step(model):
    """Compile the training step of a model anew, and give it."""
    model.make_train_function(force=True)
    return train_step_of(model)


def train_step_of(model):
    """The compiled training step that `fit` calls."""
    if "train_function" not in vars(model):
        raise _missing("the attribute `train_function`", model)
    return model.train_function


def set_train_step(model, step):
    """Have `fit` call another training step; with `None` it makes its own at the next fit."""
    train_step_of(model)
    model.train_function = step


def known_variables(optimizer):
    """The variables that an optimizer was built for, in its own order."""
    try:
        return vars(optimizer)["_trainable_variables"]
    except KeyError:
        raise _missing("the list `_trainable_variables`", optimizer) from None


def iteration(optimizer):
    """The variable that counts the steps, those that only accumulate gradients included.

    `optimizer.iterations` counts the updates.
    """
    counted = [v for v in optimizer.variables if v.name == "iteration"]
    if not counted:
        raise _missing("a variable named `iteration`", optimizer)
    return counted[0]


def schedule_of(optimizer):
    """The learning-rate schedule an optimizer was built with, or `None` if its rate is a number."""
    kinds = keras.optimizers.schedules.LearningRateSchedule
    return next((value for value in vars(optimizer).values() if isinstance(value, kinds)), None)


def is_schedule(name, value):
    """Whether an attribute of an optimizer is its schedule, or a function that serves as one."""
    if name == "_learning_rate" and callable(value) and not isinstance(value, keras.Variable):
        return True
    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)


def rate_of_steps(optimizer):
    """The schedule or function that an optimizer takes its rate from, or `None` for a number."""
    return next(
        (value for name, value in vars(optimizer).items() if is_schedule(name, value)), None
    )


def variable_key(optimizer, variable):
    """The name under which an optimizer keeps what is set for one variable."""
    if not hasattr(optimizer, "_var_key"):
        raise _missing("the method `_var_key`", optimizer)
    return optimizer._var_key(variable)


# The attribute of an optimizer that holds the keys of the variables that are not to decay.
NOT_DECAYED = "_exclude_from_weight_decay"

# What an optimizer keeps of the variables that it was built for, and what is ours.
OF_VARIABLES = frozenset(
    {
        "_built",
        "_exclude_from_weight_decay_cache",
        "_lock",
        "_trainable_variables_indices",
        "apply",
        "built",
    }
)


def compile_arguments(model):
    """The arguments of `compile` as they were given: the user's own functions need no names."""
    kept = (v.config for v in vars(model).values() if type(v).__name__ == "SerializableDict")
    for arguments in kept:
        if "weighted_metrics" in arguments:
            return arguments
    raise _missing("the arguments that `compile` got", model)


def members(owner):
    """What hangs on an object as an attribute, in lists and dicts too, one after another."""
    for value in vars(owner).values():
        if isinstance(value, dict):
            value = list(value.values())
        yield from value if isinstance(value, (list, tuple, set)) else [value]


def connections(model):
    """How the layers of a functional model are connected, read from its configuration.

    Returns:
        `(edges, outputs)`: pairs of uses, and the uses that are outputs. A use is the name of a
        layer and the number of its call.
    """
    config = model.get_config()
    try:
        edges = [
            (source, (layer["name"], number))
            for layer in config["layers"]
            for number, node in enumerate(layer["inbound_nodes"])
            for source in _sources(node)
        ]
        return edges, list(_uses(config["output_layers"]))
    except KeyError as error:
        raise _missing(f"the entry {error} of a functional model's configuration", model) from None


def number_arguments(model):
    """What a functional model's operations get beside one tensor, where that is numbers alone.

    Returns:
        Dict from uses, as in `connections`, to lists of positional arguments, `None` for the
        tensor: `[1.0, None]` of `1.0 - x`.
    """
    found = {}
    for layer in model.get_config()["layers"]:
        for number, node in enumerate(layer["inbound_nodes"]):
            given = [None if isinstance(x, dict) else x for x in node["args"]]
            numbers = all(x is None or isinstance(x, (int, float)) for x in given)
            if numbers and given.count(None) == 1 and not node["kwargs"]:
                found[layer["name"], number] = given
    return found


def _sources(nodes):
    if isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            yield tuple(nodes["config"]["keras_history"][:2])
        else:
            for key, value in nodes.items():
                if key != "mask":  # which comes from far above
                    yield from _sources(value)
    elif isinstance(nodes, (list, tuple)):
        for value in nodes:
            yield from _sources(value)


def _uses(outputs):
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if len(outputs) == 3 and isinstance(outputs[0], str):
        yield tuple(outputs[:2])
    else:
        for value in outputs:
            yield from _uses(value)


def updating_optimizer():
    """The optimizer whose `apply` runs now and calls a constraint, or `None`.

    A constraint is told the variable alone.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "apply":
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.optimizers.Optimizer):
                return owner
        frame = frame.f_back
    return None


def callbacks_of_fit():
    """All callbacks of the fit in whose hook this is called; empty outside of one."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return list(owner.callbacks)
        frame = frame.f_back
    return []


def epoch_of_fit():
    """The epoch of the fit that calls this, from 0 on; `None` outside of one."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("evaluate", "predict"):
            return None
        if frame.f_code.co_name == "fit" and isinstance(frame.f_locals.get("self"), keras.Model):
            return frame.f_locals.get("epoch")
        frame = frame.f_back
    return None


def renew_length(dataset):
    """Have the iteration that calls `dataset.on_epoch_begin` ask for the number of batches again.

    Keras asks once for all epochs, and tells the callbacks once.
    """
    frame, iteration = sys._getframe(1), None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if iteration is None and hasattr(owner, "data_adapter") and hasattr(owner, "_num_batches"):
            iteration = owner
        told = frame.f_locals.get("callbacks")
        if frame.f_code.co_name == "fit" and isinstance(told, keras.callbacks.CallbackList):
            told.params["steps"] = len(dataset)
            break
        frame = frame.f_back
    if iteration is None:
        raise _missing("an iteration with `_num_batches`", dataset)
    iteration._num_batches = len(dataset)
