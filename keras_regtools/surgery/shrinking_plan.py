"""Internal: which channels of a network go, and what each of its layers becomes without them."""

import keras
import numpy as np
from keras import tree

from keras_regtools.keras_internals import connections, number_arguments
from keras_regtools.surgery.channel_rules import rule_of
from keras_regtools.surgery.channels import Channels, Flow
from keras_regtools.surgery.graph import channel_axis, output_shape
from keras_regtools.surgery.mixers import multiplications, numbers


class ShrinkingPlan:
    """What becomes of one Sequential or functional model.

    Args:
        model: A built model. Models inside it keep what they get and give.
        path: The names of the models around it, each with a slash.

    Attributes:
        readings, rebuilt: By the id of a layer: what it reads, if it has a kernel, or else the
            function that says what it becomes.
        flows: By use, a pair of a name and the number of its call: the `Flow` that it gives.
        use: The use that is looked at.
        numbers: By use, the arguments of operations on a tensor and numbers.
    """

    def __init__(self, model, path=""):
        self.model, self.path, self.channels = model, path, Channels()
        self.readings, self.rebuilt, self.flows = {}, {}, {}
        self.use, self.numbers, self._several = None, {}, set()
        whose = f" of {model.name!r}" if path else ""
        for use in self._walk():
            flow = self.flows.get(use)
            if flow is not None:
                self.channels.keep(flow.groups, f"it is the output {use[0]!r}{whose}", first=True)
        self.need = self.channels.needed()

    def _walk(self):
        if isinstance(self.model, keras.Sequential):
            first = self.model.inputs[0]
            self.flows["", 0] = self._fresh(first.shape, "an input")
            before = ("", 0)
            for layer in self.model.layers:
                self._visit(layer, (layer.name, 0), [before])
                before = (layer.name, 0)
            return [before]
        edges, outputs = connections(self.model)
        self.numbers = number_arguments(self.model)
        sources = {}
        for source, target in edges:
            sources.setdefault(target, []).append(source)
        operations = {operation.name: operation for operation in self.model.operations}
        waiting = [(name, 0) for name in operations] + outputs + list(sources)
        self._several = {name for name, number in waiting if number > 0}
        waiting.reverse()
        while waiting:  # what feeds a use comes before it
            use = waiting[-1]
            missing = [x for x in sources.get(use, []) if x not in self.flows]
            if use in self.flows or not missing:
                waiting.pop()
                if use not in self.flows:
                    self._visit(operations[use[0]], use, sources.get(use, []))
            else:
                waiting += missing
        return outputs

    def _visit(self, operation, use, sources):
        flows, self.use = [self.flows[source] for source in sources], use
        if None in flows and operation.name not in self._several:
            given = tree.flatten(operation.input)
            if len(given) == len(flows):
                flows = [
                    self._fresh(tensor.shape, "") if flow is None else flow
                    for flow, tensor in zip(flows, given, strict=True)
                ]
        shape = _shape_of(operation, flows, operation.name in self._several)
        rule, found = rule_of(operation), None
        if rule is not None and shape is not None and flows and None not in flows:
            found = rule(self, operation, flows, shape)
        if found is None:
            kind = type(operation).__name__
            for flow in flows:
                if flow is not None:
                    self.channels.keep(flow.groups, f"{operation.name!r} ({kind}) takes it whole")
            if shape is not None:
                found = self._fresh(shape, f"{operation.name!r} ({kind}) gives it whole")
        self.flows[use] = found

    def _fresh(self, shape, why):
        """A flow of which nothing is known and everything stays."""
        axis = max(len(shape) - 1, 0)
        width = shape[axis] if len(shape) > 1 else None
        if width is None:
            return None
        groups = self.channels.new(width)
        self.channels.keep(groups, why)
        return Flow(tuple(shape), axis, groups, np.full(width, np.nan))

    def stays(self, groups):
        """Which channels stay, from their groups."""
        return self.need[self.channels.roots(groups)]

    def becomes(self, layer):
        """What a layer becomes: `(changes, values)` of its configuration and weights."""
        if id(layer) in self.rebuilt:
            return self.rebuilt[id(layer)](self.stays)
        reading = self.readings.get(id(layer))
        if reading is None:
            return {}, {}
        mixer, constants = reading.mixer, reading.inputs.constants
        stays = self.stays(reading.inputs.groups)
        known = np.nan_to_num(constants)
        gone = (~stays & (known != 0)).nonzero()[0]
        added, carrier = np.zeros(mixer.uses.shape[1]), None
        if gone.size and mixer.padded:
            standing = np.where(stays, np.abs(known), 0)
            if standing.any():
                index = int(np.argmax(standing))
                shares = np.zeros(len(known))
                shares[gone] = known[gone] / known[index]
                carrier = (index, shares)
        elif gone.size:
            added = mixer.total(gone, known[gone])
        outputs = self.stays(reading.outputs).nonzero()[0]
        return mixer.smaller(stays.nonzero()[0], outputs, added, carrier)

    def left(self):
        """Outputs that are zero and stay, and why: `[(name of the layer, number, reason)]`."""
        found = []
        for reading in self.channels.readings:
            layer, zero = reading.mixer.layer, ~reading.mixer.uses.any(axis=0)
            reasons = {}
            for group in self.channels.roots(reading.outputs[zero & self.stays(reading.outputs)]):
                why = self._reason(int(group))
                reasons[why] = reasons.get(why, 0) + 1
            found += [(self.path + layer.name, number, why) for why, number in reasons.items()]
        for layer in self.model.layers:
            known = id(layer) in self.readings or id(layer) in self.rebuilt
            if isinstance(layer, keras.Model) or known:
                continue
            for weight in layer.weights:
                if len(weight.shape) > 1:
                    value = numbers(weight)
                    number = int((value == 0).all(axis=tuple(range(value.ndim - 1))).sum())
                    why = f"`shrink` does not take such a {type(layer).__name__} apart"
                    found += [(self.path + layer.name, number, why)] if number else []
        return found

    def _reason(self, group):
        why, joins = self.channels.why[group], self.channels.joined.get(group)
        if joins and not why.startswith("it "):
            names = ", ".join(map(repr, dict.fromkeys(joins)))
            why = f"{names} joins it with others"
        return why


def _shape_of(operation, flows, several):
    """The shape of what an operation gives, or `None` if it gives several tensors."""
    if several:  # whose `output` is one of them
        try:
            shapes = [flow.shape for flow in flows]
            shape = operation.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes)
            return tuple(shape) if all(x is None or isinstance(x, int) for x in shape) else None
        except Exception:  # an operation, or a layer that cannot tell
            return None
    given = tree.flatten(operation.output)
    return tuple(given[0].shape) if len(given) == 1 else None


def layer_sizes(model, path=""):
    """By layer with weights: its outputs, parameters and multiplications for one sample."""
    sizes = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            sizes |= layer_sizes(layer, f"{path}{layer.name}/")
        elif layer.weights:
            sizes[path + layer.name] = (_width(layer), layer.count_params(), multiplications(layer))
    return sizes


def _width(layer):
    """The channels of what a layer gives, or `None` for several tensors."""
    shape = output_shape(layer)
    if not isinstance(shape, tuple):
        return None
    axis = channel_axis(layer)
    return shape[axis] if -len(shape) <= axis < len(shape) else shape[-1]
