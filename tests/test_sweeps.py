"""Measures by layer and by checkpoint: what each row says is what the measure alone would say."""

import random

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_regtools as rt

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 4)).astype("float32")
Y = RNG.integers(0, 3, 20)


def network():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((5,)), layers.Dense(3, "tanh", name="deep")], name="inner"
    )
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh", name="first"),
            layers.BatchNormalization(name="norm"),
            inner,
            layers.Dense(3, "softmax", name="last"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def full_hessian(surface):
    size = rt.vectors.size(surface.params)
    units = [rt.vectors.unflatten(row, surface.params) for row in np.eye(size)]
    assert size % 5 == 0  # always as many at once: traced once
    fives = [surface.hvp(None, units[i : i + 5]) for i in range(0, size, 5)]
    return np.stack([rt.vectors.flatten(p) for five in fives for p in five])


def loss(surface):
    return surface.value()


def top(surface):
    return rt.measures.hessian_eigenvalues(surface, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.backends
def test_each_layers_curvature_is_that_of_its_block():
    surface = rt.LossSurface(network(), X, Y)
    hessian = full_hessian(surface)
    table = rt.measures.by_layer(surface, {"top": top, "loss": loss})
    assert [row["layer"] for row in table.rows] == ["first", "norm", "deep", "last"]
    assert [row["parameters"] for row in table.rows] == [25, 10, 18, 12]
    start = 0
    for row in table.rows:
        stop = start + row["parameters"]
        expected = np.linalg.eigvalsh(hessian[start:stop, start:stop])[-1]
        assert row["top"] == pytest.approx(expected, rel=1e-3)
        assert row["loss"] == pytest.approx(surface.value(), rel=1e-6)
        start = stop


def test_some_layers_by_name_and_one_measure_by_its_own_name():
    table = rt.measures.by_layer(rt.LossSurface(network(), X, Y), loss, ["last", "deep"])
    assert [list(row) for row in table.rows] == [["layer", "parameters", "loss"]] * 2
    assert set(table.scalars()) == {
        f"{layer}/{number}" for layer in ("last", "deep") for number in ("parameters", "loss")
    }
    assert table.to_frame().index.tolist() == ["last", "deep"]
    assert table.to_frame().index.name == "layer"


def test_a_layer_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError) as caught:
        rt.measures.by_layer(rt.LossSurface(network(), X, Y), loss, ["middle"])
    assert str(caught.value) == (
        "Expected `layers` to name layers or trainable variables of the model, such as "
        "['first', 'norm', 'deep', 'last']. Received: 'middle'"
    )


def trained(epochs):
    """A model, and its weights after each epoch."""
    model = network()
    weights = []
    for _ in range(epochs):
        model.fit(X, Y, batch_size=5, verbose=0)
        weights.append(model.get_weights())
    return model, weights


@pytest.mark.backends
def test_a_series_of_weights_is_measured_without_moving_the_model():
    model, (first, second) = trained(2)
    state = [np.array(ops.convert_to_numpy(v)) for v in [*model.variables]]
    table = rt.measures.by_checkpoint(
        rt.LossSurface(model, X, Y), {"loss": loss, "top": top}, {"one": first, "two": second}
    )
    for variable, before in zip(model.variables, state, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), before)
    for row, weights in zip(table.rows, (first, second), strict=True):
        model.set_weights(weights)
        assert row["loss"] == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-5)
        assert row["top"] == pytest.approx(top(rt.LossSurface(model, X, Y)).value, rel=1e-3)
    assert [row["checkpoint"] for row in table.rows] == ["one", "two"]


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_files_are_read_beside_the_model(tmp_path, ending):
    model, (first, _) = trained(2)
    now = model.get_weights()
    model.set_weights(first)
    path = tmp_path / f"first{ending}"
    (model.save if ending == ".keras" else model.save_weights)(path)
    model.set_weights(now)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    surface = rt.LossSurface(model, X, Y)
    table = rt.measures.by_checkpoint(surface, loss, [path])
    assert random.random() == expected
    assert table.rows == ({"checkpoint": str(path), "loss": surface.at(first).value()},)
    assert surface.at(first).value() != surface.value()
    for weights, before in zip(model.get_weights(), now, strict=True):
        np.testing.assert_array_equal(weights, before)


@pytest.mark.backends
def test_nothing_is_traced_anew_for_a_checkpoint():
    traces = []

    class Counting(layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs * 1.0

    model = keras.Sequential([keras.Input((4,)), Counting(), layers.Dense(3, "softmax")])
    surface = rt.LossSurface(model, X, Y, loss="sparse_categorical_crossentropy")
    surface.value()
    traces.clear()
    elsewhere = [2 * w for w in model.get_weights()]
    assert surface.at(elsewhere).value() != surface.value()
    if keras.backend.backend() != "torch":  # which traces nothing, ever
        assert not traces


def test_the_layers_of_another_place_are_there_too():
    model, (first, second) = trained(2)
    surface = rt.LossSurface(model, X, Y)
    there = surface.at(first).restricted("last")
    assert there.value() == surface.at(first).value() != surface.value()
    np.testing.assert_array_equal(ops.convert_to_numpy(there.params[0]), first[-2])


class Subclassed(keras.Model):
    def __init__(self, width):
        super().__init__(name="mine")
        self.dense = layers.Dense(width)

    def call(self, inputs):
        return self.dense(inputs)


def subclassed_surface():
    model = Subclassed(1)
    model(X)
    return rt.LossSurface(model, X, X[:, :1], loss="mse")


BAD = {
    "no measures": (
        lambda surface: rt.measures.by_layer(surface, {}),
        ValueError,
        "Expected `measures` to be a dict from names to callables, not empty. "
        "Received: measures={}",
    ),
    "no callable": (
        lambda surface: rt.measures.by_layer(surface, {"a": 3}),
        TypeError,
        "Expected each measure to be a callable of a `LossSurface`. Received: 'a': 3",
    ),
    "no checkpoints": (
        lambda surface: rt.measures.by_checkpoint(surface, loss, []),
        ValueError,
        "Expected at least one checkpoint. Received: none",
    ),
    "other weights": (
        lambda surface: rt.measures.by_checkpoint(surface, loss, {"a": [np.zeros((2, 1))]}),
        ValueError,
        "Expected `weights` to be a list of arrays shaped like the model's weights, "
        "[(4, 1), (1,)]. Received: shapes [(2, 1)]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        call(subclassed_surface())
    assert str(caught.value) == message


def test_a_file_beside_a_subclassed_model_is_refused(tmp_path):
    surface = subclassed_surface()
    surface.model.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError) as caught:
        rt.measures.by_checkpoint(surface, loss, [tmp_path / "a.weights.h5"])
    assert str(caught.value) == (
        "Expected a Sequential or functional model beside files of weights. Received: the model "
        f"'mine' of {Subclassed}, which cannot be copied to load them into. Pass lists of arrays, "
        "as `get_weights()` gives them."
    )


def test_progress_is_shown_on_request(capsys):
    surface = rt.LossSurface(network(), X, Y)
    rt.measures.by_layer(surface, loss)
    assert capsys.readouterr().out == ""
    rt.measures.by_layer(surface, loss, verbose=1)
    assert "4/4" in capsys.readouterr().out
