"""Compile the network of a trial: its optimizer, weight decay, and targets for each class."""

from keras import tree

from keras_regtools.keras_internals import compile_arguments
from keras_regtools.surgery.compilation import copy_compilation
from keras_regtools.training import base_optimizers
from keras_regtools.tuner.soft_targets import soft_loss, soft_metric


def compile_trial(new, model, optimizer, chosen, space, loss):
    """Compile a regularized copy of a model as a trial wants it.

    Args:
        new, model: The copy and the model of the user's.
        optimizer: That of the copy.
        chosen: The `Chosen` of the trial.
        space: The `Space` of the search.
        loss: For a model that is not compiled.
    """
    if "weight_decay" in space.training:
        thin = [v for v in new.trainable_variables if len(v.shape) < 2]  # γ, β and biases
        for one in base_optimizers(optimizer):
            one.weight_decay = chosen.training.get("weight_decay")
            if one.weight_decay and thin:
                one.exclude_from_weight_decay(var_list=thin)
    changes = {}
    if space.needs_soft_targets:
        own = model.loss if model.compiled else loss
        changes["loss"] = soft_loss(own, chosen.training.get("label_smoothing"))
    if not model.compiled:
        new.compile(optimizer, **{"loss": loss, **changes}, metrics=["accuracy"])
        optimizer.build(new.trainable_variables)  # so that the tuner can load its state
        return
    if changes:
        given = compile_arguments(model)
        for key in ("metrics", "weighted_metrics"):
            changes[key] = tree.map_structure(soft_metric, given[key])
    copy_compilation(model, new, optimizer=optimizer, **changes)
