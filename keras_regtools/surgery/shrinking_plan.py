"""Internal: which channels of a network go, and what each of its layers becomes without them."""

import keras
import numpy as np
from keras import tree

from keras_regtools.keras_internals import connections
from keras_regtools.surgery.channel_rules import rule_of
from keras_regtools.surgery.channels import Channels, Flow
from keras_regtools.surgery.mixers import multiplications


class ShrinkingPlan:
    """What becomes of one Sequential or functional model.

    Args:
        model: A built model. Models inside it keep what they get and give.

    Attributes:
        readings, rebuilt: By the id of a layer: what it reads, if it has a kernel, or else the
            function that says what it becomes.
        flows: By use, a pair of a name and the number of its call: the `Flow` that it gives.
    """

    def __init__(self, model):
        self.model, self.channels = model, Channels()
        self.readings, self.rebuilt, self.flows = {}, {}, {}
        self._gone = {}
        outputs = self._walk()
        for use in outputs:
            flow = self.flows.get(use)
            if flow is not None:
                self.channels.keep(flow.groups, f"the output {use[0]!r}")
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
        sources = {}
        for source, target in edges:
            sources.setdefault(target, []).append(source)
        operations = {operation.name: operation for operation in self.model.operations}
        waiting = [(name, 0) for name in operations] + outputs + list(sources)
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
        flows = [self.flows[source] for source in sources]
        shape = _shape_of(operation, flows)
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
        """By layer, outputs that are zero and stay, and why: `[(layer, number, reason)]`."""
        found = []
        for reading in self.channels.readings:
            zero = ~reading.mixer.uses.any(axis=0) & self.stays(reading.outputs)
            reasons = {}
            for group in self.channels.roots(reading.outputs[zero]):
                joins = self.channels.joined.get(int(group))
                why = self.channels.why[int(group)]
                if joins and not why.startswith("it stands"):
                    names = ", ".join(map(repr, dict.fromkeys(joins)))
                    why = f"{names} joins it with others"
                reasons[why] = reasons.get(why, 0) + 1
            found += [(reading.mixer.layer, number, why) for why, number in reasons.items()]
        return found


def _shape_of(operation, flows):
    """The shape of what an operation gives, or `None` if it gives several tensors."""
    try:
        given = operation.output
    except (AttributeError, ValueError):  # used several times
        try:
            shapes = [flow.shape for flow in flows]
            shape = operation.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes)
            return tuple(shape) if all(x is None or isinstance(x, int) for x in shape) else None
        except Exception:  # an operation, or a layer that cannot tell
            return None
    given = tree.flatten(given)
    return tuple(given[0].shape) if len(given) == 1 else None


def layer_sizes(model):
    """By layer with a kernel: its outputs, parameters and multiplications for one sample."""
    sizes = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            for name, size in layer_sizes(layer).items():
                sizes[f"{layer.name}/{name}"] = size
        elif layer.weights:
            shape = layer.output.shape
            first = getattr(layer, "data_format", None) == "channels_first"
            width = shape[1 if first else -1]
            sizes[layer.name] = (width, layer.count_params(), multiplications(layer, shape))
    return sizes
