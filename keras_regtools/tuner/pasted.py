"""The settings of a trial as code to paste."""

from __future__ import annotations

import keras

from keras_regtools.surgery.layer_groups import KINDS
from keras_regtools.tuner.augmented import AUGMENTATIONS
from keras_regtools.tuner.soft_targets import is_sparse
from keras_regtools.tuner.space import Plan
from keras_regtools.tuner.trial_results import normalizes


def code_of(plan: Plan, factor: float, model: keras.Model, kept: bool, precise: bool) -> str:
    """Python code that trains a network as a trial did, with `network`, `x`, `y`, `x_val`, `y_val`
    and `epochs` to be filled in.

    Args:
        plan: The `Plan` of the trial.
        factor: The multiple of the base rate that its batch size has.
        model: Its model.
        kept: Whether `network()` keeps its optimizer.
        precise: Whether moving statistics are re-estimated.
    """
    training, rate = plan.chosen.training, plan.rate
    lines, made = ["import keras", "import keras_regtools as rt", ""], "network()"
    if plan.own:
        lines[1:1] = ["import keras_tuner"]
        lines += ["hp = keras_tuner.HyperParameters()", f"hp.values = {plan.own!r}"]
        made = "network(hp)"
    told = [made, *_of_groups(plan.chosen.groups)]
    lines.append("model = rt.regularize(")
    lines += [f"    {line}" if line.endswith("{") else f"    {line}," for line in told]
    lines.append(")")
    smoothing = training.get("label_smoothing")
    soft = smoothing or any(training.get(n) for n in ("mixup", "cutmix"))
    if not kept or soft or training.get("weight_decay"):
        lines.append(_compile(model, rate, "" if plan.compiled else ', metrics=["accuracy"]'))
    lines += _weight_decay(training.get("weight_decay"))
    callbacks = []
    if rate is not None:
        warmup = training.get("warmup_epochs") or 0.0
        told = [f"{rate:.6g}", f"factor={factor:.6g}"]
        told += [f"warmup_epochs={warmup:g}"] if warmup else []
        told += [f"decay={training['decay']!r}"] if training.get("decay") else []
        callbacks.append(f"rt.tuner.TrialRate({', '.join(told)})")
    if training.get("sam"):
        callbacks.append(f"rt.callbacks.SharpnessAwareMinimization({training['sam']:.6g})")
    if precise and normalizes(model):
        callbacks.append("rt.callbacks.PreciseBatchNorm(x)")
    y, y_val = "y", "y_val"
    if soft and is_sparse(plan.loss):
        y, y_val = (f"keras.utils.to_categorical({name})" for name in (y, y_val))
    callbacks.append(_best_epoch(model, y_val) if smoothing else "rt.tuner.BestEpoch()")
    changes = {n: training[n] for n in AUGMENTATIONS if training.get(n)}
    if changes:
        data = f"rt.tuner.AugmentedBatches(x, {y}, {plan.chosen.batch_size}, {changes!r})"
    else:
        data = f"x, {y}, batch_size={plan.chosen.batch_size}"
    lines += ["model.fit(", f"    {data},", "    epochs=epochs,"]
    lines += [f"    validation_data=(x_val, {y_val}),", "    callbacks=["]
    lines += [f"        {one}," for one in callbacks]
    return "\n".join([*lines, "    ],", ")", ""])


def _of_groups(groups):
    lines = []
    norms = {name for name, one in groups.items() if one.batch_norm}
    for name in KINDS:
        if name not in groups:
            continue
        one = groups[name]
        if _acts(one.penalty):
            lines.append(f"{name}={_penalty(one.penalty)}")
        if one.dropout is not None:
            lines.append(f"{name}_dropout={one.dropout:.6g}")
    if any(groups[name].spatial_dropout for name in KINDS if name in groups):
        lines.append("spatial_dropout=True")
    kinds = [name for name in KINDS if name in groups]
    if kinds and norms >= set(kinds):
        lines.append("batch_norm=True")
    elif norms & set(kinds):
        lines.append(f"batch_norm={next(iter(norms & set(kinds)))!r}")
    own = [name for name in groups if name not in KINDS]
    if own:
        lines.append("groups={")
        for name in own:
            one = groups[name]
            told = [f"layers_of_{name}"]  # a function of the user's
            told += [f"penalty={_penalty(one.penalty)}"] if _acts(one.penalty) else []
            told += [] if one.dropout is None else [f"dropout={one.dropout:.6g}"]
            told += ["spatial_dropout=True"] if one.spatial_dropout else []
            told += ["batch_norm=True"] if one.batch_norm else []
            lines.append(f"    {name!r}: rt.LayerGroup({', '.join(told)})")
        lines.append("}")
    return lines


def _acts(penalty):
    """Whether a penalty is there and not switched off."""
    if penalty is None:
        return False
    members = getattr(penalty, "penalties", [penalty])
    return any(getattr(one, name) for one in members for name in one.strengths)


def _penalty(penalty):
    members = getattr(penalty, "penalties", None)
    if members:
        return f"rt.regularizers.Sum({', '.join(map(_penalty, members))})"
    strengths = ", ".join(f"{k}={getattr(penalty, k):.6g}" for k in penalty.strengths)
    return f"rt.regularizers.{type(penalty).__name__}({strengths})"


def _best_epoch(model, y_val):
    logits = "from_logits=True" if model.loss.get_config()["from_logits"] else ""
    return f"rt.tuner.BestEpoch((x_val, {y_val}), keras.losses.CategoricalCrossentropy({logits}))"


def _compile(model, rate, metrics):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    given = _other_settings(optimizer, ("name", "learning_rate", "weight_decay"))
    told = [f"{0.01 if rate is None else rate:.6g}", *given]
    kind = f"keras.optimizers.{type(optimizer).__name__}({', '.join(told)})"
    loss = model.loss
    if isinstance(loss, str):
        loss = f'"{loss}"'
    elif isinstance(loss, keras.losses.Loss):
        given = _other_settings(loss, ("name", "reduction", "dtype", "fn", "axis"))
        loss = f"keras.losses.{type(loss).__name__}({', '.join(given)})"
    else:
        loss = "loss"  # a function of the user's
    return f"model.compile({kind}, {loss}{metrics})"


def _other_settings(one, known):
    """Arguments that are not the defaults."""
    usual = type(one)().get_config()
    config = {k: v for k, v in one.get_config().items() if k not in known and v != usual.get(k)}
    return [f"{k}={v!r}" for k, v in config.items()]


def _weight_decay(decay):
    if not decay:
        return []
    return [
        f"model.optimizer.weight_decay = {decay:.6g}",
        "thin = [v for v in model.trainable_variables if len(v.shape) < 2]  # biases, γ and β",
        "model.optimizer.exclude_from_weight_decay(var_list=thin)",
    ]
