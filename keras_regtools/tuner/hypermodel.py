"""A KerasTuner hypermodel: whatever regularizes a network, as hyperparameters."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import keras_tuner

from keras_regtools.surgery import LayerGroup
from keras_regtools.surgery.regularize import regularize_groups
from keras_regtools.tuner.optimizers import Optimizers
from keras_regtools.tuner.own_hyperparameters import Asked, checked_model_fn
from keras_regtools.tuner.pasted import code_of
from keras_regtools.tuner.raced import raced, save_best
from keras_regtools.tuner.racing import checked_seeds
from keras_regtools.tuner.search_checks import check_directory, check_labels, check_objective
from keras_regtools.tuner.search_data import SearchData, classes_of
from keras_regtools.tuner.soft_targets import soft_loss
from keras_regtools.tuner.space import Chosen, Plan, Space
from keras_regtools.tuner.trial_model import compile_trial
from keras_regtools.tuner.trial_results import LOSSES, checked_results
from keras_regtools.tuner.trial_run import Diverged, Workshop, factor
from keras_regtools.validation import flag, keras_model, optional, positive_integer


class RegularizationHyperModel(keras_tuner.HyperModel):
    """Search how to regularize a network: each group of layers apart, the rate tied to the batch.

    A value is fixed; `(low, high)` is searched, strengths and rates on a logarithmic axis where
    `low` is above zero, `(low, high, step)` in steps; a list is a choice; `tuner.optional(…)` of
    any of these has a switch. The hyperparameters have the names of their group and ingredient:
    `conv/l2`, `conv/l2/on` for its switch, `dense/dropout`, `batch_norm`, `batch_size`,
    `learning_rate`, `weight_decay`.

    A trial keeps the weights of its epoch with the least validation loss without penalties, and
    returns what is measured on them: `results`, every metric of yours as `val_…`, and what it took,
    `epochs`, `seconds`, `measuring_seconds`. A trial that diverges is failed with the reason.

    Args:
        model_fn: What is regularized: a function without arguments or of `hp`, or a
            `keras_tuner.HyperModel`, that gives a new Sequential or functional model. A compiled
            one keeps its optimizer, loss and metrics. Its own hyperparameters are searched along;
            one named `learning_rate` or `batch_size` takes the place of ours.
        conv, dense: Dict from ingredients to values, for convolutional and dense layers: `"l2"`,
            `"l1"`, `"group_lasso"`, `"orthogonal"`, `"dropout"`, `"spatial_dropout"`. By default
            L2 from 1e-6 to 1e-1 with a switch and dropout from 0 to .7; `{}` for nothing.
        groups: Dict from names of your own to `(layers, ingredients)`, where `layers` is a function
            of a layer or a list of names; `conv` and `dense` are for the others.
        batch_norm: `None` searches whether there is any; `True`, `False` or the name of a group
            fixes it; a list of them is a choice.
        tied: Whether dense layers have the values of the convolutions; `"search"` for a choice.
        optimizer: `None` for that of the model, or SGD with momentum .9; a name, an optimizer, a
            list of names, or a dict from names to ranges of rates.
        learning_rates: The base rate: by default a factor of 10 around that of a compiled model, or
            1e-3 to 1e-1 for SGD and 1e-4 to 1e-2 for others.
        batch_sizes: List of sizes, or one.
        base_batch_size: To which `learning_rate` refers.
        rule: `"linear"` or `"sqrt"` scales the rate of a trial with its batch, `"free"` does not;
            a list is a choice.
        warmup_epochs: From the base rate to the scaled one.
        decay: `None`, `"cosine"`, or the share of the rate that is left at the end of an
            exponential decay.
        weight_decay: Decoupled, on kernels only.
        sam: ρ of `callbacks.SharpnessAwareMinimization`.
        label_smoothing: From 0 to 1, in the loss that is trained, not in what is measured.
        mixup, cutmix, rand_augment: Strengths of Keras' layers of these names, for images.
        loss: The loss for a model that is not compiled, which gets accuracy as its metric.
        results: Names out of `val_loss`, `loss`, `generalization_gap` (val_loss − loss),
            `generalization_ratio`, `parameters`, `sharpness` (Keskar's, 40 gradients of `samples`)
            and the short names of other measures; or a dict from names to functions of a
            `LossSurface`.
        samples: Training samples that the loss and measures are taken on.
        precise_batch_norm: Whether trials with batch normalization have a
            `callbacks.PreciseBatchNorm`: in trainings as short as those of a search, moving
            statistics lag behind, and batch normalization would look worse than it is.
        seeds: How many seeds a trial gets at most, or a list. With more than one it *races*: it
            gets the next only while its interval of the objective overlaps that of the best trial;
            the results are means, `<objective>/sd` and `seeds` say the spread and the number.
            `None` leaves the seeds alone.
        name, tunable: Those of `keras_tuner.HyperModel`.

    Raises:
        TypeError, ValueError: when it is made, for values that are none, and by the tuner, before
            it trains, for models, groups and data that do not fit.

    Reference:
        Convolutional and dense layers tuned apart: Pathak and Chang, 2020. Switches:
        [Kadra et al., 2021](https://arxiv.org/abs/2106.11189).

    Example:

    >>> import keras_tuner
    >>> from keras_regtools.applications import lenet5
    >>> from keras_regtools.tuner import optional
    >>> hypermodel = RegularizationHyperModel(
    ...     lenet5, conv={"l2": optional((1e-6, 1e-2))}, dense={"dropout": (0, 0.5)})
    >>> hp = keras_tuner.HyperParameters()
    >>> model = hypermodel.build(hp)
    >>> sorted(hp.values)
    ['batch_norm', 'batch_size', 'conv/l2', 'conv/l2/on', 'dense/dropout', 'learning_rate']
    """

    def __init__(
        self,
        model_fn: Any,
        *,
        conv: Any = None,
        dense: Any = None,
        groups: Any = None,
        batch_norm: Any = None,
        tied: Any = False,
        optimizer: Any = None,
        learning_rates: Any = None,
        batch_sizes: Any = (32, 64, 128, 256),
        base_batch_size: int = 32,
        rule: Any = "linear",
        warmup_epochs: Any = 1,
        decay: Any = None,
        weight_decay: Any = None,
        sam: Any = None,
        label_smoothing: Any = None,
        mixup: Any = None,
        cutmix: Any = None,
        rand_augment: Any = None,
        loss: Any = "sparse_categorical_crossentropy",
        results: Any = (*LOSSES, "sharpness"),
        samples: int | None = 1024,
        precise_batch_norm: bool = True,
        seeds: Any = None,
        name: str | None = None,
        tunable: Any = True,
    ) -> None:
        super().__init__(name=name, tunable=tunable)
        self.model_fn, self._make = model_fn, checked_model_fn(model_fn)
        several = list(batch_sizes) if isinstance(batch_sizes, (list, tuple)) else batch_sizes
        training = {
            "warmup_epochs": warmup_epochs, "weight_decay": weight_decay, "sam": sam,
            "label_smoothing": label_smoothing, "mixup": mixup, "cutmix": cutmix,
            "rand_augment": rand_augment,
        }  # fmt: skip
        self.space = Space(conv, dense, groups, batch_norm, tied, several, rule, decay, training)
        self.optimizers = Optimizers(optimizer, learning_rates)
        self.loss = loss
        self.base_batch_size = positive_integer("base_batch_size", base_batch_size)
        self.measures, self.results = checked_results(results)
        self.samples = optional(positive_integer)("samples", samples)
        self.precise_batch_norm = flag("precise_batch_norm", precise_batch_norm)
        self.seeds = checked_seeds(seeds)
        self.searched: dict[str, Any] = {}  # the arguments of `search`
        self._workshop: Any = None
        self._before: Any = None  # a weak reference to the model that was made last
        self._plans: Any = weakref.WeakKeyDictionary()

    def build(self, hp: Any) -> keras.Model:
        """A network that is regularized and compiled as these hyperparameters say."""
        return self._built(hp)

    def build_plain(self, hp: Any) -> keras.Model:
        """The same network with the same batch size, rate and optimizer, and nothing else of what
        is searched."""
        return self._built(hp, plain=True)

    def _built(self, hp, plain=False):
        asked = Asked(hp)
        model = self._model(asked)
        names = self.space.groups_of(model)
        ours = Asked(hp)
        chosen = self.space.choose(ours, names, asked.names)
        if plain:
            kept = {n: chosen.training.get(n) for n in ("rule", "warmup_epochs", "decay")}
            chosen = Chosen({}, kept, chosen.batch_size)
        groups = {"conv": LayerGroup(()), "dense": LayerGroup(()), **chosen.groups}
        new = regularize_groups(model, groups)
        optimizer, rate = self.optimizers.choose(ours, model, asked.names)
        compile_trial(new, model, optimizer, chosen, self.space, self.loss)
        own = {name: hp.values.get(name) for name in asked.names}
        names = asked.names | ours.names
        self._plans[new] = Plan(chosen, rate, own, names, model.compiled, self._loss(model))
        return new

    def plan(self, hp: Any, model: keras.Model) -> Plan:
        """What a model that was built is to be trained with.

        Args:
            hp: The hyperparameters that it was built with.
            model: The model.
        """
        if model not in self._plans:
            self._plans[model] = self._plans[self.build(hp)]
        return self._plans[model]

    def _model(self, hp):
        model, again = keras_model(self._make(hp)), self._before() if self._before else None
        if self._before is None:
            again = self._make(hp)
        if again is model:
            raise keras_tuner.errors.FatalValueError(
                "Expected `model_fn` to give a new model each time. Received: the same one twice"
            )
        self._before = weakref.ref(model)
        return model

    def _loss(self, model):
        return model.loss if model.compiled else self.loss

    def fit(
        self,
        hp: Any,
        model: keras.Model,
        x: Any = None,
        y: Any = None,
        *args: Any,
        callbacks: Any = (),
        **kwargs: Any,
    ) -> Any:
        """Train a trial, with one seed or several, and give its results as a dict of floats.

        Epochs are told with `verbose=2` only: by `verbose=1` the tuner tells of each trial and of
        the best so far.
        """
        tuner = next((c.tuner for c in callbacks if hasattr(c, "tuner")), None)
        objective = next((c.objective for c in callbacks if hasattr(c, "objective")), None)
        try:
            workshop = self.workshop(model, x, y, *args, **kwargs)
            check_labels(model, model.loss, workshop.data)
            check_directory(tuner, self.told(), self.plan(hp, model).names, hp)
            check_objective(objective, self.results, lambda: workshop.metrics_of(model))
        except (TypeError, ValueError) as error:  # which end the search
            raise keras_tuner.errors.FatalValueError(str(error)) from error
        settings = {"validation_batch_size": 256, **kwargs}
        settings = {k: v for k, v in settings.items() if k not in _OF_DATA}
        if settings.get("verbose") in (1, "auto", None):  # the tuner tells of whole trials
            settings["verbose"] = 0
        left_out = ("verbose", "initial_epoch", "epochs")
        self.searched |= {k: v for k, v in settings.items() if k not in left_out}
        try:
            found = raced(self, workshop, hp, model, settings, callbacks, tuner, objective)
        except Diverged as error:
            values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in hp.values.items()}
            told = ", ".join(f"{k}={v}" for k, v in values.items())
            raise keras_tuner.errors.FailedTrialError(f"Diverged: {error}. {told}") from error
        save_best(callbacks, model, found)
        return found

    def workshop(self, model: keras.Model, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        """Where trials on these data are trained, see `fit`."""
        if args:
            raise ValueError(
                "Expected `x` and `y` by their places and all else by name. "
                f"Received: {2 + len(args)} arguments by their places"
            )
        if kwargs.get("batch_size") is not None:
            raise ValueError(
                "Expected no `batch_size` in `search`, as each trial has its own: pass "
                "`batch_sizes=` to the hypermodel, one number to fix it. "
                f"Received: {kwargs['batch_size']}"
            )
        given = {"x": x, "y": y, **{name: kwargs.get(name) for name in _OF_DATA[3:]}}
        known = self.searched
        if self._workshop is None or any(given[n] is not known.get(n) for n in given):
            soft = self.space.needs_soft_targets
            data = SearchData(model, **given, classes=classes_of(model) if soft else None)
            # What is measured knows no smoothed labels.
            loss = soft_loss(self._loss(model)) if soft else None
            arguments = self.samples, loss, self.measures, self.results
            sizes = self.base_batch_size, self.precise_batch_norm
            self._workshop = Workshop(data, *arguments, *sizes)
        self.searched = {**given, "epochs": kwargs.get("epochs", 1)}
        return self._workshop

    def code(self, hp: Any) -> str:
        """The settings of a trial as Python code to paste, which trains `network()` as it was.

        Args:
            hp: The hyperparameters of the trial, or a dict of their values.
        """
        if isinstance(hp, dict):
            values, hp = hp, keras_tuner.HyperParameters()
            hp.values = dict(values)
        hp = hp.copy()
        model = self.build(hp)
        plan = self.plan(hp, model)
        k = factor(plan.chosen, self.base_batch_size)
        kept = self.optimizers.given is None and plan.compiled
        return code_of(plan, k, model, kept, self.precise_batch_norm)

    def told(self) -> dict[str, Any]:
        """What is searched, for JSON, by name."""
        return {**self.space.told(), **self.optimizers.told()}


_OF_DATA = (
    "x", "y", "batch_size", "sample_weight", "validation_data", "validation_split"
)  # fmt: skip
