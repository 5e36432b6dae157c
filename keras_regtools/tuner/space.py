"""What a search over regularization chooses from: the ingredients, their names and their ranges."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_regtools.regularizers import L1, L1L2, L2, GroupLasso, Orthogonal, Sum
from keras_regtools.surgery import LayerGroup
from keras_regtools.surgery.layer_groups import KINDS, group_of, predicate
from keras_regtools.tuner.trial_rate import DECAY
from keras_regtools.tuner.values import Kind, Optional, Value, among_kinds, optional
from keras_regtools.validation import (
    Constraint,
    flag,
    non_negative,
    one_of,
    positive,
    positive_integer,
    rate,
)

_one = Constraint("a number from 0 to 1", lambda v: 0 <= float(v) <= 1, float)
_strength, _rate = Kind(non_negative, is_log=True), Kind(rate)
OF_GROUPS = {
    "l2": _strength,
    "l1": _strength,
    "group_lasso": _strength,
    "orthogonal": _strength,
    "dropout": _rate,
    "spatial_dropout": _rate,
}
# Around the usual values, 5e-4 for L2 (VGG) and .5 for dropout (Srivastava et al., 2014): from what
# changes little to where a network no longer fits.
USUAL = {"l2": optional((1e-6, 1e-1)), "dropout": (0.0, 0.7, 0.1)}
_OF_TRAINING = {
    "sam": Kind(non_negative, is_log=True),
    "label_smoothing": Kind(rate),
    "weight_decay": _strength,
    "mixup": Kind(positive, is_log=True),
    "cutmix": Kind(positive, is_log=True),
    "rand_augment": Kind(_one),
    "warmup_epochs": Kind(non_negative),
}
OURS = (*_OF_TRAINING, "decay", "batch_norm", "tied", "rule")  # of the whole training
RULES = ("linear", "sqrt", "free")
SOFT = ("label_smoothing", "mixup", "cutmix")  # what needs targets for each class


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a trial has.

    Attributes:
        groups: Dict from names of groups to `LayerGroup`s, `"conv"` and `"dense"` among them.
        training: Dict from the names of the other ingredients to their values or `None`.
        batch_size: Samples of a batch.
    """

    groups: dict[str, LayerGroup]
    training: dict[str, Any]
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the model of a trial is to be trained with.

    Attributes:
        chosen: What the trial has.
        rate: The base rate, or `None` for a schedule of the user's.
        own: Dict from the user's own hyperparameters to their values, on which the network depends.
        names: Of all hyperparameters that were asked for.
        compiled: Whether the user's model came compiled.
        loss: The loss before it was smoothed.
    """

    chosen: Chosen
    rate: float | None
    own: dict[str, Any]
    names: set[str]
    compiled: bool
    loss: Any


class Space:
    """The hyperparameters of a `RegularizationHyperModel`, from its arguments.

    Args:
        conv, dense, groups, batch_norm, tied, batch_sizes, rule, decay: As there.
        training: Dict from the names of the other ingredients to what was given.
    """

    def __init__(self, conv, dense, groups, batch_norm, tied, batch_sizes, rule, decay, training):
        given = {
            "conv": USUAL if conv is None else conv,
            "dense": USUAL if dense is None else dense,
        }
        self.predicates = {}
        if not isinstance(groups, (dict, type(None))):
            raise TypeError(
                "Expected `groups` to be a dict from names to (layers, ingredients). "
                f"Received: groups={groups!r}"
            )
        for name, one in (groups or {}).items():
            if name in KINDS or not isinstance(one, tuple) or len(one) != 2:
                raise ValueError(
                    "Expected `groups` to be a dict from names, other than 'conv' and 'dense', to "
                    f"(layers, ingredients). Received: {name!r}: {one!r}"
                )
            self.predicates[name], given[name] = predicate(one[0]), one[1]
        self.groups = {name: among_kinds(OF_GROUPS, name, one) for name, one in given.items()}
        self._asked = {n for n, one in (("conv", conv), ("dense", dense)) if one is not None}
        for name, one in self.groups.items():
            if {"dropout", "spatial_dropout"} <= set(one):
                raise ValueError(
                    f"Expected one kind of dropout for {name!r}. Received: dropout and "
                    "spatial_dropout"
                )
        self.tied = _tied(tied)
        self.batch_norm = _where("batch_norm", batch_norm, list(self.groups))
        self.batch_size = Value("batch_size", batch_sizes, Kind(positive_integer, is_integer=True))
        self.rule = _among("rule", rule, RULES)
        self.training = {
            n: Value(n, v, _OF_TRAINING[n]) for n, v in training.items() if v is not None
        }
        if decay is not None:
            self.training["decay"] = Value("decay", decay, Kind(DECAY, is_log=True))

    @property
    def needs_soft_targets(self):
        """Whether a trial may need a target for each class."""
        return any(name in self.training for name in SOFT)

    def groups_of(self, model):
        """The names of the groups that a model has; says it if one of the user's has none."""
        found = {group_of(layer, self.predicates) for layer in _layers(model)} - {None}
        for name in [*self.predicates, *sorted(self._asked)]:
            if name not in found:
                raise ValueError(
                    f"Expected a model with layers of the group {name!r}. Received: one whose "
                    f"groups are {sorted(found)}"
                )
        return [name for name in self.groups if name in found]

    def choose(self, hp, names, taken=()):
        """What is chosen in these hyperparameters, which learn of all that there is.

        Args:
            hp: `keras_tuner.HyperParameters`.
            names: Of the groups that the model has.
            taken: Names that the user's own hyperparameters have.
        """
        tied = self._tied(hp, names)
        values = {}
        for name in names:
            if name == "dense" and "conv" in names and tied is not None:
                values[name] = self._of_dense(hp, values["conv"], tied)
            else:
                values[name] = {key: one(hp) for key, one in self.groups[name].items()}
        where = self.batch_norm(hp) if isinstance(self.batch_norm, Value) else self.batch_norm
        if where == "search":
            where = "all" if hp.Boolean("batch_norm") else "none"
        chosen = {
            n: _layer_group(n, self.predicates.get(n, ()), v, where) for n, v in values.items()
        }
        training = {name: one(hp) for name, one in self.training.items()}
        training["rule"] = self.rule(hp)
        size = hp.get("batch_size") if "batch_size" in taken else self.batch_size(hp)
        return Chosen(chosen, training, size)

    def _tied(self, hp, names):
        if self.tied is False or not {"conv", "dense"} <= set(names):
            return None
        return hp.Boolean("tied") if isinstance(self.tied, Optional) else True

    def _of_dense(self, hp, conv, tied):
        if self.tied is True:
            return dict(conv)
        with hp.conditional_scope("tied", [False]):
            own = {key: one(hp) for key, one in self.groups["dense"].items()}
        return dict(conv) if tied else own

    def told(self):
        """What is searched, for JSON, by name."""
        found = {one.name: one.told() for group in self.groups.values() for one in group.values()}
        found |= {name: one.told() for name, one in self.training.items()}
        found |= {"batch_size": self.batch_size.told(), "rule": self.rule.told()}
        norm = self.batch_norm
        found["batch_norm"] = norm.told() if isinstance(norm, Value) else norm
        found["tied"] = "search" if isinstance(self.tied, Optional) else self.tied
        return found


def _layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _among(name, given, options):
    return Value(name, given, Kind(lambda name, value: one_of(name, value, options)))


def _tied(given):
    return optional(True) if isinstance(given, str) and given == "search" else flag("tied", given)


def _where(name, given, groups):
    """Which groups get batch normalization: a fixed answer, a choice, or `"search"`, yes or no."""
    if given is None:
        return "search"
    words = {True: "all", False: "none"}
    if isinstance(given, bool):
        return words[given]
    if isinstance(given, list) and given:
        given = [one if isinstance(one, (bool, str)) else repr(one) for one in given]
        return _among(name, [words.get(v, v) for v in given], ("none", "all", *groups))
    given = given if isinstance(given, str) else repr(given)
    return _among(name, given, ("none", "all", *groups)).fixed


def _layer_group(name, layers, values, where):
    spatial = "spatial_dropout" in values
    dropout = values.get("spatial_dropout" if spatial else "dropout")
    return LayerGroup(layers, penalty(values), dropout, spatial, batch_norm=where in ("all", name))


def penalty(values):
    """The penalty of a group, or `None` if it has none.

    Args:
        values: Dict from ingredients to strengths; one that is switched off is `None` and counts
            as zero, so that the network is the same.
    """
    held = {key: values[key] or 0.0 for key in values if not key.endswith("dropout")}
    found = []
    if "l1" in held and "l2" in held:
        found.append(L1L2(held["l1"], held["l2"]))
    elif "l1" in held:
        found.append(L1(held["l1"]))
    elif "l2" in held:
        found.append(L2(held["l2"]))
    if "group_lasso" in held:
        found.append(GroupLasso(held["group_lasso"]))
    if "orthogonal" in held:
        found.append(Orthogonal(held["orthogonal"]))
    if len(found) > 1:
        return Sum(*found)
    return found[0] if found else None
