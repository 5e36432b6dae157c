"""Take the filters and units out of a model that are zero."""

from __future__ import annotations

import keras
import numpy as np

from keras_regtools.keras_internals import connections
from keras_regtools.surgery.graph import is_graph_model, named
from keras_regtools.surgery.rewrite import copy_of, rewrite
from keras_regtools.surgery.shrinking_plan import ShrinkingPlan, layer_sizes
from keras_regtools.validation import flag, keras_model


def shrink(model: keras.Model, *, verbose: bool = True) -> keras.Model:
    """A smaller model that computes the same, without the filters and units that are zero.

    A filter or unit goes if all its own weights are zero, so that it gives a constant, or if
    nothing that stays reads it; then whatever becomes constant or unread by that goes too. What a
    removed constant added to the layers that read it is added to their bias; before padding, one
    constant channel stays and stands for all. Batch normalization is that of inference, in which
    the outputs are equal but for rounding (1e-6 of their size in float32).

    Channels are followed through Dense, convolutional (transposed, separable and depthwise ones
    too), batch normalization, activations, pooling, flatten, reshape, dropout, sums, products and
    concatenation. In a sum a channel goes where it can go from all branches. What other layers get
    and give stays, as do the outputs of models inside the model; behind `ZeroPadding2D` constants
    other than zero stay.

    Exact zeros come from `regularizers.GroupLasso(…, proximal=True)`, or from L1 with it.

    Args:
        model: A built Sequential or functional model.
        verbose: Whether to print a table: outputs, parameters and multiplications (for one sample,
            of Dense and convolutional kernels) of each layer, before → after, and which zero
            outputs stay and why.

    Returns:
        A new model: compile configuration kept, optimizer state not.

    Raises:
        TypeError: not a Keras model.
        ValueError: a model that is not built, a subclassed model, a layer with weights that is used
            more than once.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_regtools import shrink
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> kernel, *others = model.get_weights()
    >>> kernel[:, 3:] = 0  # five of eight units
    >>> model.set_weights([kernel, *others])
    >>> small = shrink(model, verbose=False)
    >>> small.layers[0].units, small.count_params()
    (3, 23)
    """
    verbose = flag("verbose", verbose)
    keras_model(model)
    models = _models_in(model)
    _check_used_once(models)
    plans = [ShrinkingPlan(x, path) for x, path in models]
    changed, values = {}, {}
    for plan in plans:
        for layer in plan.model.layers:
            changes, arrays = plan.becomes(layer)
            changed[id(layer)] = changes
            if arrays:
                values[id(layer)] = arrays
    small = rewrite(
        model, lambda layer, graph: [copy_of(layer, **changed[id(layer)])], values=values
    )
    if verbose:
        left = [row for plan in plans for row in plan.left()]
        print(_table(layer_sizes(model), layer_sizes(small), left))
    return small


def _models_in(model, path=""):
    """The model and those inside it, each once, with the names of those around it."""
    if not is_graph_model(model):
        raise ValueError(
            "`shrink` expected a Sequential or functional model, whose layers are known. Received: "
            f"the model {model.name!r} of the subclassed type {type(model).__name__}. Build it "
            "smaller and copy the weights that are not zero."
        )
    found = [(model, path)]
    for layer in model.layers:
        if isinstance(layer, keras.Model) and all(layer is not x for x, _ in found):
            found += _models_in(layer, f"{path}{layer.name}/")
    return found


def _check_used_once(models):
    """Refuse a layer with weights that stands in several places: each wants other channels."""
    met, uses = {}, []
    for model, _ in models:
        if isinstance(model, keras.Sequential):
            uses += model.layers
            continue
        edges, outputs = connections(model)
        by_name = {layer.name: layer for layer in model.layers}
        names = {use for edge in edges for use in edge} | set(outputs)
        uses += [by_name[name] for name, _ in names if name in by_name]
    for layer in uses:
        inner = layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
        if inner.weights:
            met.setdefault(id(inner), []).append(inner)
    shared = [layers[0] for layers in met.values() if len(layers) > 1]
    if shared:
        raise ValueError(
            "`shrink` expected a model that uses each layer with weights once. Received: the model "
            f"{models[0][0].name!r}, which uses these several times: {named(shared)}"
        )


def _table(before, after, left):
    rows, uncounted = [("layer", "outputs", "parameters", "multiplications")], []
    totals = np.zeros((2, 2), int)  # (parameters, multiplications), (before, after)
    for name, old in before.items():
        new = after[name]
        rows.append((name, *(_change(a, b) for a, b in zip(old, new, strict=True))))
        if old[2] is None or new[2] is None:
            uncounted.append(name)
            old, new = (*old[:2], 0), (*new[:2], 0)
        totals += np.transpose([old[1:], new[1:]])
    rows.append(("total", "", *(f"{_change(*t)}{_share(*t)}" for t in totals)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in rows]
    if uncounted:
        lines.append(f"Multiplications are not counted of {', '.join(uncounted)}.")
    for name, number, why in left:
        outputs = "1 zero output stays" if number == 1 else f"{number} zero outputs stay"
        lines.append(f"{name}: {outputs}: {why}.")
    return "\n".join(line.rstrip() for line in lines)


def _change(before, after):
    if before is None or after is None:
        return "?"
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _share(before, after):
    return f" ({after / before:.0%})" if before else ""
