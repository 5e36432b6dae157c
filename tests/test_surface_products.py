"""Products of a `LossSurface`: of some layers, of several vectors, over any data, of any model."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from problems import numbers, rows

import keras_regtools as rt
from keras_regtools import data as data_module

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 4)).astype("float32")
LABELS = RNG.integers(0, 3, 22)
WEIGHTS = RNG.uniform(0.5, 2, 22).astype("float32")
LOSS = "sparse_categorical_crossentropy"
PRODUCTS = ("hvp", "gnvp")


def flat(tensors):
    return np.concatenate([t.ravel().astype("float64") for t in numbers(tensors)])


def classifier():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "tanh", name="hidden"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(3, "softmax", name="output"),
        ],
        name="classifier",
    )
    model.compile("sgd", LOSS)
    return model


def surface_of(model=None, **arguments):
    return rt.LossSurface(model or classifier(), X, LABELS, **arguments)


def random_vectors(surface, count, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [tuple(p.shape) for p in surface.params]
    return [[rng.standard_normal(shape) for shape in shapes] for _ in range(count)]


def whole(surface):
    """The whole matrix of the Hessian, three columns at a time."""
    shapes = [tuple(p.shape) for p in surface.params]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def vector(unit):
        parts = np.split(unit, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    units = [vector(unit) for unit in np.eye(sum(sizes))]
    assert len(units) % 3 == 0
    threes = [surface.hvp(None, units[i : i + 3]) for i in range(0, len(units), 3)]
    return np.stack([flat(p) for three in threes for p in three], 1)


# --- some layers ----------------------------------------------------------------------------------

LAYERS = {
    "a name": (lambda model: "output", [2, 3]),
    "a layer": (lambda model: model.layers[0], [0, 1]),
    "a variable": (lambda model: model.layers[2].kernel, [2]),
    "a path": (lambda model: "classifier/hidden/bias", [1]),
    "a list": (lambda model: ["output", model.layers[0].kernel], [0, 2, 3]),
    "the same twice": (lambda model: ("output", model.layers[2].bias), [2, 3]),
    "the model": (lambda model: model, [0, 1, 2, 3]),
    "nothing": (lambda model: None, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_chosen_in_many_ways(name):
    choose, expected = LAYERS[name]
    model = classifier()
    surface = surface_of(model, layers=choose(model))
    variables = model.trainable_variables
    assert [v.path for v in surface.variables] == [variables[i].path for i in expected]
    for a, i in zip(numbers(surface.params), expected, strict=True):
        np.testing.assert_array_equal(a, ops.convert_to_numpy(variables[i]))
    again = surface_of(model).restricted(choose(model))
    assert [v.path for v in again.variables] == [v.path for v in surface.variables]


def test_a_layer_inside_a_layer_is_found_by_its_name():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(3, "softmax")])
    for name, count in (("deep", 2), ("inner", 2)):
        surface = rt.LossSurface(model, X, LABELS, loss=LOSS, layers=name)
        assert len(surface.variables) == count


def test_a_restricted_surface_is_a_block_of_the_whole_one():
    surface = surface_of()
    hessian = whole(surface)
    value, gradient = surface.value_and_gradient()
    for name, block in (("hidden", slice(0, 15)), ("output", slice(15, 27))):
        part = surface.restricted(name)
        again = surface.restricted([surface.model.get_layer(name)])
        assert part.batch is again.batch  # which holds what was traced
        np.testing.assert_allclose(whole(part), hessian[block, block], atol=1e-6)
        part_value, part_gradient = part.value_and_gradient()
        assert part_value == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(flat(part_gradient), flat(gradient)[block], atol=1e-6)
    assert surface.restricted("hidden").batch is not surface.restricted("output").batch


def test_a_restricted_gauss_newton_matrix_is_a_block_of_the_whole_one():
    surface = surface_of()
    (v,) = random_vectors(surface, 1)
    v = [v[0], v[1], 0 * v[2], 0 * v[3]]
    expected = surface.gnvp(None, v)[:2]
    found = surface.restricted("hidden").gnvp(None, v[:2])
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-5, atol=1e-7)


def test_a_restricted_surface_has_all_that_the_whole_one_has():
    weighted = rt.LossSurface(
        classifier(),
        X,
        np.eye(3)[LABELS],
        WEIGHTS,
        loss="mse",
        batch_size=5,
        mode="training",
        penalties=False,
    )
    part = weighted.restricted("output")
    assert (part.mode, part.penalties, part.batch_size) == ("training", False, 5)
    assert part.value() == pytest.approx(weighted.value(), rel=1e-6)


def test_the_other_layers_are_held_where_the_model_is():
    model = classifier()
    surface, part = surface_of(model), surface_of(model, layers="output")
    params = part.params
    model.layers[0].kernel.assign(2 * model.layers[0].kernel)
    value = part.value(params)
    assert value == pytest.approx(surface.value(), rel=1e-6)
    (v,) = random_vectors(part, 1)
    expected = surface.hvp(None, [*(0 * p for p in surface.params[:2]), *v])[2:]
    np.testing.assert_allclose(flat(part.hvp(params, v)), flat(expected), rtol=1e-4, atol=1e-6)


HAVING = "Expected `layers` to name layers or trainable variables of the model, such as "
WRONG_LAYERS = {
    "name": (lambda model: "conv", "'conv'"),
    "one of two": (lambda model: ["hidden", "hiden"], "'hiden'"),
    "nothing to train": (lambda model: "dropout", "'dropout'"),
    "of another model": (lambda model: layers.Dense(3, name="other"), "'other'"),
    "number": (lambda model: 0, "0"),
    "none at all": (lambda model: [], "[]"),
}


@pytest.mark.parametrize("restricted", [False, True], ids=["constructor", "restricted"])
@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_layers_that_are_not_the_models_are_refused(name, restricted):
    choose, received = WRONG_LAYERS[name]
    model = classifier()
    surface = surface_of(model)
    make = surface.restricted if restricted else lambda chosen: surface_of(model, layers=chosen)
    with pytest.raises(ValueError) as caught:
        make(choose(model))
    assert str(caught.value) == f"{HAVING}['hidden', 'output']. Received: {received}"


# --- several vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("product", rows(PRODUCTS, "hvp"))
def test_several_vectors_give_what_each_gives(product):
    surface = surface_of(batch_size=11)
    vectors = random_vectors(surface, 3)
    products = getattr(surface, product)
    together = products(None, vectors)
    assert len(together) == 3
    (one,) = products(None, vectors[:1])
    np.testing.assert_allclose(flat(one), flat(together[0]), rtol=1e-5, atol=1e-7)
    for vector, found in zip(vectors, together, strict=True):
        alone = products(surface.params, vector)
        assert [tuple(t.shape) for t in found] == [tuple(p.shape) for p in surface.params]
        np.testing.assert_allclose(flat(found), flat(alone), rtol=1e-5, atol=1e-7)
        assert np.linalg.norm(flat(alone)) > 0.01


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_are_linear_and_symmetric(product):
    surface = surface_of()
    u, v = random_vectors(surface, 2)
    products = getattr(surface, product)
    both = [2 * a - 3 * b for a, b in zip(u, v, strict=True)]
    of_u, of_v, of_both = (flat(p) for p in products(None, [u, v, both]))
    np.testing.assert_allclose(of_both, 2 * of_u - 3 * of_v, rtol=1e-4, atol=1e-5)
    assert flat(v) @ of_u == pytest.approx(flat(u) @ of_v, rel=1e-4)


SHAPES = "[(4, 3), (3,), (3, 3), (3,)]"
V = [np.zeros((4, 3)), np.zeros(3), np.zeros((3, 3)), np.zeros(3)]
WRONG_VECTORS = {
    "too few": (lambda: V[:3], "shapes [(4, 3), (3,), (3, 3)]"),
    "none": (lambda: [], "shapes []"),
    "wrong shape": (
        lambda: [V[0].T, *V[1:]],
        "shapes [(3, 4), (3,), (3, 3), (3,)]",
    ),
    "one of several": (lambda: [V, V[:1]], "shapes [(4, 3)]"),
    "a tensor": (lambda: V[0], "shapes [(3,), (3,), (3,), (3,)]"),
    "a Keras tensor": (lambda: ops.zeros((3,)), "shapes [(), (), ()]"),
    "a number": (lambda: 3.0, "<class 'float'>"),
    "nothing": (lambda: None, "<class 'NoneType'>"),
    "words": (lambda: ["a", "b"], "shapes [(), ()]"),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", WRONG_VECTORS)
def test_a_vector_of_another_structure_is_refused(name, product):
    make, received = WRONG_VECTORS[name]
    surface = surface_of()
    with pytest.raises(ValueError) as caught:
        getattr(surface, product)(None, make())
    assert str(caught.value) == (
        "Expected `v` to be a list of tensors shaped like the model's trainable variables, "
        f"{SHAPES}. Received: {received}"
    )


def test_a_vector_is_compared_with_the_layers_that_were_chosen():
    surface = surface_of(layers="hidden")
    with pytest.raises(ValueError) as caught:
        surface.hvp(None, V)
    assert str(caught.value) == (
        "Expected `v` to be a list of tensors shaped like the model's trainable variables, "
        f"[(4, 3), (3,)]. Received: shapes {SHAPES}"
    )


# --- any data -------------------------------------------------------------------------------------


def as_batches(*arrays, size=8):
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(X), size)]


class Listed(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


class Again:
    """What can be read again but has no length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def of_unknown_length():
    """In double precision too."""
    dataset = tf.data.Dataset.from_tensor_slices((X.astype("float64"), LABELS, WEIGHTS))
    return dataset.filter(lambda x, y, w: True).batch(8)


DATA = {  # the last of the batches of 8 has 6 samples
    "arrays": lambda: (X, LABELS, WEIGHTS),
    "double precision": lambda: (X.astype("float64"), LABELS, WEIGHTS.astype("float64")),
    "a tf.data.Dataset": lambda: (
        tf.data.Dataset.from_tensor_slices((X, LABELS, WEIGHTS)).batch(8),
    ),
    "a tf.data.Dataset of unknown length": lambda: (of_unknown_length(),),
    "a PyDataset": lambda: (Listed(as_batches(X.astype("float64"), LABELS, WEIGHTS)),),
    "what can be read again": lambda: (Again(as_batches(X, LABELS, WEIGHTS)),),
    "more than stays on the device": lambda: (X, LABELS, WEIGHTS),
}


def derivatives(surface):
    (v,) = random_vectors(surface, 1)
    value, gradient = surface.value_and_gradient()
    return value, flat(gradient), flat(surface.hvp(None, v))


@functools.cache
def of_all_at_once():
    keras.utils.set_random_seed(0)
    model = classifier()
    return model, derivatives(rt.LossSurface(model, X, LABELS, WEIGHTS, batch_size=22))


@pytest.mark.parametrize("name", rows(DATA, "a tf.data.Dataset", "more than stays on the device"))
def test_all_data_give_the_same_value_gradient_and_products(name, monkeypatch):
    model, expected = of_all_at_once()
    if name == "more than stays on the device":
        monkeypatch.setattr(data_module, "_RESIDENT_BYTES", 100)
    surface = rt.LossSurface(model, *DATA[name](), batch_size=8)
    assert (surface.data.resident is None) == (name not in ("arrays", "double precision"))
    for a, b in zip(derivatives(surface), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def named_inputs():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((1,), name="b")}
    both = layers.Concatenate()([layers.Dense(2, "tanh")(inputs["a"]), inputs["b"]])
    model = keras.Model(inputs, layers.Dense(3, "softmax")(both))
    model.compile("sgd", LOSS)
    return model


NAMED = {"b": X[:, 3:], "a": X[:, :3]}


@pytest.mark.parametrize("kind", rows(["arrays", "dataset", "batches"], "dataset"))
def test_inputs_by_name(kind):
    model = named_inputs()
    given = {
        "arrays": lambda: (NAMED, LABELS),
        "dataset": lambda: (tf.data.Dataset.from_tensor_slices((NAMED, LABELS)).batch(8),),
        "batches": lambda: (
            Again(
                [
                    ({k: v[i : i + 8] for k, v in NAMED.items()}, LABELS[i : i + 8])
                    for i in range(0, 22, 8)
                ]
            ),
        ),
    }[kind]()
    surface = rt.LossSurface(model, *given, batch_size=8)
    assert surface.value_and_gradient()[0] == pytest.approx(
        model.evaluate(NAMED, LABELS, batch_size=22, verbose=0), rel=1e-5
    )
    w, b, v, c = (np.asarray(p, "float64") for p in numbers(surface.params))
    hidden = np.concatenate([np.tanh(X[:, :3] @ w + b), X[:, 3:], np.ones((22, 1))], 1)
    z = hidden @ np.vstack([v, c])
    p = np.exp(z) / np.sum(np.exp(z), 1, keepdims=True)
    direction = random_vectors(surface, 1)[0]
    direction = [0 * direction[0], 0 * direction[1], *direction[2:]]
    dz = hidden @ np.vstack(direction[2:])
    curved = p * dz - p * np.sum(p * dz, 1, keepdims=True)
    for product in PRODUCTS:  # of the last layer both have a closed form
        found = numbers(getattr(surface, product)(None, direction))
        np.testing.assert_allclose(
            np.vstack(found[2:]), hidden.T @ curved / 22, rtol=1e-4, atol=1e-6
        )


NOTHING = (
    "Expected at least one batch of data. Received: a dataset that gave none. "
    "If it was read before, pass one that can be read again."
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.data.Dataset.from_tensor_slices((X, LABELS)).take(0).batch(8),
        lambda: Again([]),
    ],
    ids=["tf.data.Dataset", "iterable"],
)
def test_a_dataset_that_gives_nothing_is_refused(make):
    with pytest.raises(ValueError) as caught:
        rt.LossSurface(classifier(), make())
    assert str(caught.value) == NOTHING


def test_a_dataset_that_gives_nothing_later_is_refused_then():
    """Some files are read once: a generator behind `from_generator`, for one."""
    given = iter(as_batches(X, LABELS))
    surface = rt.LossSurface(classifier(), Again(given))
    surface.value()
    with pytest.raises(ValueError) as caught:
        surface.value()
    assert str(caught.value) == NOTHING

    rows = iter(zip(X, LABELS, strict=True))
    spec = (tf.TensorSpec((4,), "float32"), tf.TensorSpec((), "int64"))
    dataset = tf.data.Dataset.from_generator(lambda: rows, output_signature=spec).batch(8)
    surface = rt.LossSurface(classifier(), dataset)
    surface.value()
    with pytest.raises(ValueError) as caught:
        surface.value()
    assert str(caught.value) == NOTHING


UNFIT = {
    "too few features": (X[:, :3], LABELS, None, "x of shape (2, 3); y of shape (2,)"),
    "targets of another shape": (
        X,
        np.zeros((22, 5)),
        None,
        "x of shape (2, 4); y of shape (2, 5)",
    ),
    "weights of another shape": (
        X,
        LABELS,
        np.ones((22, 7)),
        "x of shape (2, 4); y of shape (2,); sample_weight of shape (2, 7)",
    ),
}


@pytest.mark.parametrize("as_dataset", [False, True], ids=["arrays", "dataset"])
@pytest.mark.parametrize("name", UNFIT)
def test_data_that_the_model_cannot_take_are_refused(name, as_dataset):
    x, y, weights, received = UNFIT[name]
    parts = [part for part in (x, y, weights) if part is not None]
    if as_dataset:
        parts = [tf.data.Dataset.from_tensor_slices(tuple(parts)).batch(8)]
    with pytest.raises(ValueError) as caught:
        rt.LossSurface(classifier(), *parts)
    said = str(caught.value)
    assert said.startswith(
        "Expected data that the model 'classifier' and its loss can take. "
        f"Received: {received} (the first samples), which gave: "
    )
    assert "\n" not in said
    assert not said.endswith("gave: ")
    assert caught.value.__cause__ is not None


# --- any model ------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(3, "tanh")
        self.norm = layers.BatchNormalization()
        self.end = layers.Dense(3, "softmax")

    def call(self, inputs, training=False):
        return self.end(self.norm(self.hidden(inputs), training=training))


class WithoutTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.end = layers.Dense(3, "softmax")

    def call(self, inputs):
        return self.end(inputs)


def two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    hidden = layers.Multiply()([layers.Dense(3, "tanh")(a), layers.Dense(3)(b)])
    return keras.Model([a, b], layers.Dense(3, "softmax")(hidden))


def shared_layer():
    inputs, dense = keras.Input((4,)), layers.Dense(4, "tanh")
    return keras.Model(inputs, layers.Dense(3, "softmax")(dense(dense(inputs))))


def frozen_layer():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(3, "softmax")]
    )
    model.layers[0].trainable = False
    return model


def built(model):
    model(X[:2])
    return model


MODELS = {
    "subclassed": (lambda: built(Subclassed()), X),
    "subclassed, without training": (lambda: built(WithoutTraining()), X),
    "two inputs": (two_inputs, [X, X[:, ::-1].copy()]),
    "a shared layer": (shared_layer, X),
    "a frozen layer": (frozen_layer, X),
}


@pytest.mark.parametrize("name", rows(MODELS, "subclassed, without training", "a shared layer"))
def test_products_of_any_model_are_differences_of_the_gradient(name):
    make, x = MODELS[name]
    mode = "batch_statistics"
    surface = rt.LossSurface(make(), x, LABELS, loss=LOSS, mode=mode, batch_size=11)
    params = [p.astype("float64") for p in numbers(surface.params)]
    (v,) = random_vectors(surface, 1)
    ahead, behind = (
        flat(
            surface.value_and_gradient(
                [p + sign * 3e-3 * d for p, d in zip(params, v, strict=True)]
            )[1]
        )
        for sign in (1, -1)
    )
    expected = (ahead - behind) / 6e-3
    found = flat(surface.hvp(None, v))
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    assert flat(v) @ flat(surface.gnvp(None, v)) > 0


@pytest.mark.slow
def test_a_stateful_model_of_a_fixed_batch():
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(11, 2, 2)),
            layers.SimpleRNN(3, stateful=True),
            layers.Dense(3, "softmax"),
        ]
    )
    surface = rt.LossSurface(model, X.reshape(22, 2, 2), LABELS, loss=LOSS, batch_size=11)
    before = numbers(model.variables)
    (v,) = random_vectors(surface, 1)
    first, second = (flat(surface.hvp(None, v)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.all(np.isfinite(first))
    assert np.any(first)
    for a, b in zip(numbers(model.variables), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same_products():
    found = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(3, "tanh"),
                layers.BatchNormalization(),
                layers.Dense(3, "softmax", dtype="float32"),
            ]
        )
        surface = rt.LossSurface(model, X, LABELS, loss=LOSS, mode="batch_statistics")
        (v,) = random_vectors(surface, 1)
        products = [getattr(surface, product)(None, v) for product in PRODUCTS]
        dtypes = {keras.backend.standardize_dtype(t.dtype) for p in products for t in p}
        assert dtypes == {"float32"}
        found.append([surface.value_and_gradient()[1], *products])
    for exact, rough in zip(*found, strict=True):
        exact, rough = flat(exact), flat(rough)
        assert np.all(np.isfinite(rough))
        assert 0 < np.linalg.norm(rough - exact) < 0.02 * np.linalg.norm(exact)


# --- nothing is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", rows(["inference", "batch_statistics", "training"], "training"))
def test_products_leave_every_variable_seed_and_slot_as_it_was(mode):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "tanh", kernel_regularizer=rt.regularizers.L2(0.1), name="hidden"),
            rt.layers.InstrumentedBatchNormalization(),
            layers.Dropout(0.5, seed=3),
            layers.GaussianNoise(0.1),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    model.fit(X, LABELS, verbose=0)
    everything = [*model.variables, *model.optimizer.variables]
    everything += [v for metric in model.metrics for v in metric.variables]
    before = numbers(everything)
    random_state = np.random.get_state()[1].copy()
    surface = rt.LossSurface(model, X, LABELS, mode=mode, batch_size=11)
    vectors = random_vectors(surface, 1)
    first, second = (
        [flat(p) for p in (*surface.hvp(None, vectors), *surface.gnvp(None, vectors))]
        for _ in range(2)
    )
    for a, b in zip(numbers(everything), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.random.get_state()[1], random_state)
    assert all("call" not in vars(layer) for layer in model.layers)


def test_gradients_are_counted_and_products_are_not():
    surface = surface_of()
    surface.value_and_gradient()
    surface.hvp(None, V)
    surface.value()
    assert surface.gradient_evaluations == 1
