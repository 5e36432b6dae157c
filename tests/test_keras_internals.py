"""What the package leans on inside of Keras: if Keras changes it, the test that fails says what."""

import keras
import numpy as np
import pytest

from keras_regtools import keras_internals as internals

pytestmark = pytest.mark.backends
X, Y = np.linspace(-1.0, 1.0, 8, dtype="float32").reshape(8, 1), np.zeros((8, 1), "float32")


def compiled(optimizer="sgd", **settings):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="d")])
    model.compile(optimizer, "mse", **settings)
    return model


def test_fit_makes_its_step_before_any_callback_and_calls_what_is_on_the_instance():
    model, calls = compiled(), []

    class Seen(keras.callbacks.Callback):
        def set_model(self, model):
            calls.append("callback")
            super().set_model(model)

    def make(force=False):
        calls.append("make")
        return type(model).make_train_function(model, force=force)

    assert internals.shadow(model, "make_train_function", make) is None
    assert internals.shadowed(model, "make_train_function") is make
    model.fit(X, Y, verbose=0, callbacks=[Seen()])
    assert calls.index("make") < calls.index("callback") or calls == ["callback", "make"]
    internals.unshadow(model, "make_train_function")
    assert internals.shadowed(model, "make_train_function") is None


@pytest.mark.parametrize("name", ["call", "apply", "train_step"])
def test_a_method_in_another_ones_place_is_called_by_keras_and_not_tracked(name):
    model, called = compiled(run_eagerly=True), []
    owner = {"call": model.layers[0], "apply": model.optimizer, "train_step": model}[name]
    own, names = getattr(owner, name), {v.path for v in model.variables}

    def other(*args, **kwargs):
        called.append(name)
        return own(*args, **kwargs)

    internals.shadow(owner, name, other)
    model.fit(X, Y, verbose=0)
    assert called
    assert {v.path for v in model.variables} == names
    internals.unshadow(owner, name)
    internals.set_train_step(model, None)  # the compiled one may hold what it called
    del called[:]
    model.fit(X, Y, verbose=0)
    assert not called


def test_an_unknown_method_is_told():
    with pytest.raises(RuntimeError, match=r"the method `made_up` of Keras, which Keras \d"):
        internals.shadow(compiled(), "made_up", print)


def test_shadows_lie_one_upon_the_other():
    layer = compiled().layers[0]
    first, second = (lambda x: x), (lambda x: x)
    internals.shadow(layer, "call", first)
    before = internals.shadow(layer, "call", second)
    internals.unshadow(layer, "call", before)
    assert layer.call is first


def test_fit_calls_the_step_that_was_set_and_makes_its_own_after_none():
    model, called = compiled(), []
    made = internals.make_step(model)
    assert internals.train_step_of(model) is made

    def step(*args):
        called.append(len(args))
        return made(*args)

    internals.set_train_step(model, step)
    model.fit(X, Y, batch_size=4, verbose=0)
    assert len(called) == 2
    internals.set_train_step(model, None)
    model.fit(X, Y, batch_size=4, verbose=0)
    assert len(called) == 2
    assert internals.train_step_of(model) not in (None, step, made)


def test_a_step_that_is_not_where_it_was_is_told():
    with pytest.raises(RuntimeError, match="`train_function` of Keras"):
        internals.set_train_step(keras.layers.Dense(1), None)


@pytest.mark.parametrize("steps", [None, 3])
def test_the_variable_that_counts_steps_counts_those_that_only_accumulate(steps):
    model = compiled(keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps))
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0)
    assert int(internals.iteration(model.optimizer).numpy()) == 8


def test_an_optimizer_knows_the_variables_that_it_was_built_for():
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    known = internals.known_variables(model.optimizer)
    assert [id(v) for v in known] == [id(v) for v in model.trainable_variables]


@pytest.mark.parametrize("what", [internals.known_variables, internals.iteration])
def test_what_an_optimizer_does_not_have_is_told(what):
    class Other:
        variables = []

    with pytest.raises(RuntimeError, match="of Keras, which Keras .* does not have: Other"):
        what(Other())


def test_the_schedule_of_an_optimizer_is_found():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert internals.schedule_of(keras.optimizers.Adam(schedule)) is schedule
    assert internals.schedule_of(keras.optimizers.Adam(0.1)) is None

    def rate():
        return 0.1

    found = [n for n, v in vars(keras.optimizers.SGD(rate)).items() if internals.is_schedule(n, v)]
    assert found == ["_learning_rate"]


def test_a_variable_that_is_not_to_decay_is_held_under_its_key():
    model = compiled(keras.optimizers.AdamW())
    layer = model.layers[0]
    model.optimizer.exclude_from_weight_decay(var_list=[layer.bias])
    held = vars(model.optimizer)[internals.NOT_DECAYED]
    assert set(held) == {internals.variable_key(model.optimizer, layer.bias)}
    with pytest.raises(RuntimeError, match="`_var_key`"):
        internals.variable_key(layer, layer.bias)


def test_what_an_optimizer_keeps_of_its_variables_is_named():
    model = compiled("adam")
    fresh = set(vars(keras.optimizers.Adam()))
    model.fit(X, Y, verbose=0)
    new = set(vars(model.optimizer)) - fresh
    holding = {
        n
        for n in new
        if any(
            v is value
            for v in model.optimizer.variables
            for value in _flat(vars(model.optimizer)[n])
        )
    }
    assert new - holding <= internals.OF_VARIABLES
    assert {"_trainable_variables_indices", "built"} <= set(vars(model.optimizer))


def _flat(value):
    return value if isinstance(value, list) else [value]


def test_compile_arguments_are_the_objects_that_were_given():
    def loss(y, p):
        return keras.ops.mean((y - p) ** 2)

    model = compiled()
    metric = keras.metrics.MeanAbsoluteError()
    model.compile("sgd", loss, metrics=[metric], loss_weights=[2.0])
    given = internals.compile_arguments(model)
    assert given["loss"] is loss
    assert (given["metrics"], given["loss_weights"]) == ([metric], [2.0])
    with pytest.raises(RuntimeError, match="the arguments that `compile` got"):
        internals.compile_arguments(keras.Sequential([keras.layers.Dense(1)]))


def test_members_are_what_hangs_on_a_layer_in_lists_and_dicts_too():
    class Tower(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.one = keras.layers.Dense(1, name="one")
            self.many = [keras.layers.Dense(1, name="two")]
            self.named = {"a": keras.layers.Dense(1, name="three")}

    found = [m.name for m in internals.members(Tower()) if isinstance(m, keras.layers.Dense)]
    assert set(found) == {"one", "two", "three"}


def test_connections_are_those_of_the_graph():
    a = keras.Input((2,), name="a")
    shared = keras.layers.Dense(2, name="d")
    x = shared(shared(a))
    b = keras.layers.Add(name="add")([x, a])
    model = keras.Model(a, {"out": b, "inner": x})
    edges, outputs = internals.connections(model)
    assert sorted(edges) == [
        (("a", 0), ("add", 0)),
        (("a", 0), ("d", 0)),
        (("d", 0), ("d", 1)),
        (("d", 1), ("add", 0)),
    ]
    assert sorted(outputs) == [("add", 0), ("d", 1)]


def test_the_numbers_that_operations_get_beside_a_tensor():
    keras.utils.clear_session()
    inputs = keras.Input((2,))
    y = keras.ops.maximum(1.0 - inputs * 2, 0.5)
    z = keras.ops.power(inputs, np.array([1.0, 2.0])) + inputs
    found = internals.number_arguments(keras.Model(inputs, [y, z]))
    found = {name: given for (name, number), given in found.items() if number == 0}
    assert found["multiply"] == [None, 2]
    assert found["subtract"] == [1.0, None]
    assert found["maximum"] == [None, 0.5]
    assert not {"power", "add"} & set(found)


def test_a_configuration_of_another_form_is_told(monkeypatch):
    model = keras.Model(a := keras.Input((2,)), keras.layers.Dense(2)(a))
    monkeypatch.setattr(model, "get_config", lambda: {"layers": []}, raising=False)
    with pytest.raises(RuntimeError, match="the entry 'output_layers' of a functional"):
        internals.connections(model)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_constraint_is_called_by_the_apply_of_the_optimizer_that_updates(scaled):
    found, base = [], keras.optimizers.Adam(gradient_accumulation_steps=2)
    optimizer = keras.optimizers.LossScaleOptimizer(base) if scaled else base
    model = compiled(optimizer)

    def constraint(variable):
        found.append(internals.updating_optimizer())
        return variable

    model.layers[0].kernel.constraint = constraint
    model.fit(X, Y, batch_size=4, verbose=0)
    assert found
    assert all(one is base for one in found)
    assert internals.updating_optimizer() is None


def test_a_regularizer_gets_the_variable_before_the_first_step():
    seen = []

    class Seeing(keras.regularizers.Regularizer):
        def __call__(self, x):
            seen.append(x)
            return 0.0 * keras.ops.sum(x)

    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_regularizer=Seeing())]
    )
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    assert seen[0] is model.layers[0].kernel


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("Adam", "velocity"),
        ("Nadam", "velocity"),
        ("RMSprop", "velocity"),
        ("Adagrad", "accumulator"),
    ],
)
def test_what_an_optimizer_divides_by_is_named_so(kind, ending):
    model = compiled(getattr(keras.optimizers, kind)())
    model.optimizer.build(model.trainable_variables)
    held = [v for v in model.optimizer.variables if v.name.endswith(f"_{ending}")]
    assert [tuple(v.shape) for v in held] == [tuple(v.shape) for v in model.trainable_variables]


def test_the_callbacks_of_a_fit_are_found_from_a_hook():
    found = []

    class Seeing(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            found.extend(internals.callbacks_of_fit())

    own, other = Seeing(), keras.callbacks.LambdaCallback()
    compiled().fit(X, Y, verbose=0, callbacks=[own, other])
    assert own in found
    assert other in found
    assert internals.callbacks_of_fit() == []


def test_a_dataset_may_change_its_length_from_epoch_to_epoch():
    epochs, steps = [], []

    class Changing(keras.utils.PyDataset):
        length = 4

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            return X[:2], Y[:2]

        def on_epoch_begin(self):
            epoch = internals.epoch_of_fit()
            if epoch is None:  # Keras looks at the data before the first one on JAX
                return
            epochs.append(epoch)
            self.length = (4, 2, 3)[epoch]
            internals.renew_length(self)

    class Counting(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            steps.append(0)

        def on_train_batch_end(self, batch, logs=None):
            steps[-1] += 1

    compiled().fit(Changing(), epochs=3, verbose=0, shuffle=False, callbacks=[Counting()])
    assert epochs == [0, 1, 2]
    assert steps == [4, 2, 3]
    assert internals.epoch_of_fit() is None
    with pytest.raises(RuntimeError, match="an iteration with `_num_batches`"):
        internals.renew_length(Changing())
