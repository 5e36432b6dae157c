"""Internal: which channels of a network belong together, which are constant, which are needed."""

import dataclasses

import numpy as np

UNKNOWN = np.nan


@dataclasses.dataclass
class Flow:
    """What flows through one tensor.

    Args:
        shape: Its shape, with the samples' axis.
        axis: The axis of its channels, counted from 0.
        groups: The group of each channel: channels of one group go or stay together.
        constants: The value that a channel has for every sample and place; NaN if it varies.
    """

    shape: tuple
    axis: int
    groups: np.ndarray
    constants: np.ndarray

    @property
    def is_last(self):
        return self.axis == len(self.shape) - 1


@dataclasses.dataclass
class _Reading:
    """A layer with a kernel: what it reads, and the groups of what it gives."""

    mixer: object
    inputs: Flow
    outputs: np.ndarray

    def varying(self):
        """Inputs that no constant can stand for."""
        constants = self.inputs.constants
        varies = np.isnan(constants)
        if self.mixer.padded and not self.mixer.carries:
            varies |= constants != 0
        return varies


class Channels:
    """The groups of channels of a network.

    Attributes:
        joined: By group, the names of the layers that join channels of several others to it.
        why: By group that is needed, the reason in words.
    """

    def __init__(self):
        self._parents, self.readings = [], []
        self._asked, self._joins = [], []

    def new(self, count):
        """Groups of one channel each."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def roots(self, groups):
        """The number that all channels of one group share."""
        parents = np.array(self._parents)
        while (parents[parents] != parents).any():
            parents = parents[parents]
        self._parents = parents.tolist()
        return parents[groups]

    def join(self, first, second, name):
        """Make the groups one by one the same, as a sum does."""
        for a, b in zip(self.roots(first), self.roots(second), strict=True):
            while self._parents[a] != a:
                a = self._parents[a]
            while self._parents[b] != b:
                b = self._parents[b]
            self._parents[max(a, b)] = min(a, b)
        self._joins.append((first, name))

    def keep(self, groups, why, first=False):
        """Say that groups have to stay; of several reasons the first one is told."""
        self._asked.insert(0 if first else len(self._asked), (groups, why))

    def read(self, mixer, inputs, outputs):
        """Say that a layer with a kernel reads a flow."""
        self.readings.append(_Reading(mixer, inputs, outputs))

    def needed(self):
        """Which groups have to stay, by their numbers: the fewest that what is given needs."""
        self.why = {}
        need = np.zeros(len(self._parents), bool)

        def mark(groups, why):
            for group in np.unique(self.roots(groups)):
                if not need[group]:
                    need[group] = True
                    self.why[int(group)] = why

        for groups, why in self._asked:
            mark(groups, why)
        while True:
            before = need.sum()
            for reading in reversed(self.readings):
                out = need[self.roots(reading.outputs)]
                if not out.any():  # a layer without outputs is none
                    cheapest = np.argmin(reading.mixer.uses.sum(axis=0))
                    mark(reading.outputs[[cheapest]], "a layer keeps one")
                    continue
                used = reading.mixer.uses[:, out].any(axis=1) & reading.varying()
                mark(
                    reading.inputs.groups[used],
                    f"{reading.mixer.layer.name!r} reads it, where it is no constant",
                )
            if need.sum() > before:
                continue
            for reading in self.readings:
                self._carry(reading, need, mark)
            if need.sum() == before:
                break
        self.joined = {}
        for groups, name in self._joins:
            for group in np.unique(self.roots(groups)):
                self.joined.setdefault(int(group), []).append(name)
        return need

    def _carry(self, reading, need, mark):
        """Behind padding a constant is none: one channel that stays stands for all that go."""
        if not reading.mixer.padded or not reading.mixer.carries:
            return
        constants = np.nan_to_num(reading.inputs.constants)
        stays = need[self.roots(reading.inputs.groups)]
        out = need[self.roots(reading.outputs)]
        used = reading.mixer.uses[:, out].any(axis=1)
        gone = (constants != 0) & ~stays & used
        if gone.any() and not ((constants != 0) & stays).any():
            largest = np.argmax(np.abs(np.where(gone, constants, 0)))
            mark(
                reading.inputs.groups[[largest]],
                f"it stands for constants that {reading.mixer.layer.name!r} reads and pads",
            )
