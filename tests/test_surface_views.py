"""Accuracy, slopes of samples, and the surfaces that one surface can be turned into."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops
from problems import doubles

import keras_regtools as rt

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 4)).astype("float32")
OTHER_X = RNG.standard_normal((11, 4)).astype("float32")
LABELS = RNG.integers(0, 3, 22)
OTHER_LABELS = RNG.integers(0, 3, 11)
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
YES = RNG.integers(0, 2, (22, 1))
MANY = RNG.integers(0, 2, (22, 3))
WEIGHTS = RNG.uniform(0.5, 2, 22).astype("float32")
TRACES = keras.backend.backend() != "torch"  # which traces nothing, ever


def flat(tensors):
    return np.concatenate([t.ravel() for t in doubles(tensors)])


def network(end, units, loss, *metrics):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(units, end)], name="network"
    )
    model.compile("sgd", loss, metrics=list(metrics), run_eagerly=True)
    return model


# --- accuracy -------------------------------------------------------------------------------------

losses = keras.losses
LOGITS = {"from_logits": True}
CASES = {  # name -> end, units, loss, targets, metric
    "sparse": ("softmax", 3, lambda: "sparse_categorical_crossentropy", LABELS, "accuracy"),
    "sparse column": (
        "softmax",
        3,
        lambda: "sparse_categorical_crossentropy",
        LABELS[:, None],
        "accuracy",
    ),
    "sparse logits": (
        None,
        3,
        lambda: losses.SparseCategoricalCrossentropy(**LOGITS),
        LABELS,
        "accuracy",
    ),
    "a function": (
        "softmax",
        3,
        lambda: losses.sparse_categorical_crossentropy,
        LABELS,
        "accuracy",
    ),
    "one-hot": ("softmax", 3, lambda: "categorical_crossentropy", ONE_HOT, "accuracy"),
    "one-hot logits": (
        None,
        3,
        lambda: losses.CategoricalCrossentropy(**LOGITS),
        ONE_HOT,
        "accuracy",
    ),
    "focal": ("softmax", 3, lambda: "categorical_focal_crossentropy", ONE_HOT, "accuracy"),
    "categorical hinge": (
        None,
        3,
        lambda: "categorical_hinge",
        ONE_HOT,
        "categorical_accuracy",
    ),
    "binary": ("sigmoid", 1, lambda: "binary_crossentropy", YES, "accuracy"),
    "binary row": ("sigmoid", 1, lambda: "binary_crossentropy", YES[:, 0], "accuracy"),
    "binary logits": (
        None,
        1,
        lambda: losses.BinaryCrossentropy(**LOGITS),
        YES,
        keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy"),
    ),
    "binary focal": ("sigmoid", 1, lambda: "binary_focal_crossentropy", YES, "accuracy"),
    "several labels": ("sigmoid", 3, lambda: "binary_crossentropy", MANY, "binary_accuracy"),
    "hinge": ("tanh", 1, lambda: "hinge", 2 * YES - 1, None),
    "hinge of zeros and ones": ("tanh", 1, lambda: "squared_hinge", YES, None),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_accuracy_are_those_that_keras_evaluates(name):
    end, units, loss, y, metric = CASES[name]
    model = network(end, units, loss(), *([metric] if metric else []))
    surface = rt.LossSurface(model, X, y, batch_size=8)
    assert surface.classifies
    value, accuracy = surface.value_and_accuracy()
    assert 0.1 < accuracy < 0.95  # so that a wrong rule would show
    expected = model.evaluate(X, y, batch_size=8, verbose=0, return_dict=True)
    assert value == pytest.approx(expected.pop("loss"), rel=1e-5)
    if metric:
        (right,) = expected.values()
    else:  # Keras has no metric of signs
        right = np.mean((y > 0) == (model.predict(X, verbose=0) > 0))
    assert accuracy == pytest.approx(right, rel=1e-6)
    assert type(value) is type(accuracy) is float


def test_sample_weights_count_in_the_loss_and_not_in_the_accuracy():
    model = network("softmax", 3, "sparse_categorical_crossentropy", "accuracy")
    weighted = rt.LossSurface(model, X, LABELS, WEIGHTS).value_and_accuracy()
    plain = rt.LossSurface(model, X, LABELS).value_and_accuracy()
    assert weighted[1] == plain[1]
    expected = model.evaluate(X, LABELS, sample_weight=WEIGHTS, batch_size=22, verbose=0)
    assert weighted == pytest.approx(expected, rel=1e-5)
    assert weighted[0] != pytest.approx(plain[0], rel=1e-3)


def test_penalties_count_in_the_loss_beside_the_accuracy():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "softmax", kernel_regularizer="l2")]
    )
    surfaces = [
        rt.LossSurface(model, X, LABELS, loss="sparse_categorical_crossentropy", penalties=counted)
        for counted in (True, False)
    ]
    (inside, right), (outside, right_too) = (s.value_and_accuracy() for s in surfaces)
    assert inside - outside == pytest.approx(0.01 * np.sum(flat(model.weights) ** 2), rel=1e-4)
    assert right == right_too


def test_the_accuracy_is_that_at_other_weights():
    model = network("softmax", 3, "sparse_categorical_crossentropy")
    surface = rt.LossSurface(model, X, LABELS)
    params = [0 * p for p in surface.params]
    params[-1] = np.array([0.0, 1.0, 0.0])  # always the second class
    value, accuracy = surface.value_and_accuracy(params)
    assert accuracy == pytest.approx(np.mean(LABELS == 1))
    assert value == pytest.approx(surface.value(params), rel=1e-6)


def two_outputs():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(3, "softmax")(inputs) for _ in range(2)], name="two")
    model.compile("sgd", ["sparse_categorical_crossentropy"] * 2)
    return rt.LossSurface(model, X, [LABELS, LABELS])


NOT_CLASSIFYING = {
    "mse": (
        lambda: rt.LossSurface(network(None, 3, "mse"), X, ONE_HOT),
        "the model 'network' with the loss 'meansquarederror'",
    ),
    "an own loss": (
        lambda: rt.LossSurface(network(None, 3, own_loss), X, ONE_HOT),
        "the model 'network' with the loss 'ownloss'",
    ),
    "two outputs": (two_outputs, "the model 'two' with several outputs"),
}


def own_loss(y, z):
    return ops.sum(ops.square(y - z), -1)


@pytest.mark.parametrize("name", NOT_CLASSIFYING)
def test_what_does_not_classify_has_no_accuracy(name):
    make, received = NOT_CLASSIFYING[name]
    surface = make()
    assert not surface.classifies
    with pytest.raises(ValueError) as caught:
        surface.value_and_accuracy()
    assert str(caught.value) == (
        "Expected a model whose accuracy can be computed: one output and a cross-entropy or hinge "
        f"loss. Received: {received}"
    )
    with pytest.raises(ValueError) as caught:
        surface.with_normalized_logits()
    assert str(caught.value) == (
        "Expected a model whose logits can be normalized: one output and a categorical "
        f"cross-entropy. Received: {received}"
    )


# --- views ----------------------------------------------------------------------------------------


class Counting(layers.Layer):
    """Counts how often it is called: each time that something is traced."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, inputs):
        self.calls.append(1)
        return inputs * 1.0


def moving_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            Counting(),
            layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1), name="hidden"),
            layers.BatchNormalization(name="bn"),
            layers.Activation("tanh"),
            layers.Dense(3, "softmax", name="head"),
        ],
        name="moving",
    )
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.optimizer.build(model.trainable_variables)
    model.set_weights(checkpoint(model, 4))
    return model


def state(model):
    return doubles([*model.variables, *model.optimizer.variables])


def checkpoint(model, seed=1):
    rng = np.random.default_rng(seed)
    return [np.abs(rng.standard_normal(w.shape)) + 0.1 for w in model.weights]


@functools.cache
def shared():
    """One surface for the tests that only look, with all that they look at traced."""
    model = moving_model()
    surface = rt.LossSurface(model, X, LABELS, batch_size=11)
    for s in (surface, surface.with_normalized_logits()):
        look(s)
    return model, surface


@pytest.fixture
def model():
    return shared()[0]


@pytest.fixture
def surface():
    """The shared surface, and a look at the model when the test has ended."""
    model, surface = shared()
    before = state(model)
    yield surface
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all("call" not in vars(layer) for layer in model.layers)


def look(surface):
    """All that a surface answers."""
    value, gradient = surface.value_and_gradient()
    v = [np.ones(p.shape) for p in surface.params]
    return np.array(
        [
            surface.value(),
            *surface.value_and_accuracy(),
            value,
            *flat(gradient),
            *surface.slope_moments(v),
        ]
    )


@functools.cache
def there():
    """What a model of other weights gives, a model of its own."""
    other = moving_model()
    other.set_weights(checkpoint(other))
    return rt.LossSurface(other, X, LABELS, batch_size=11)


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_at_other_weights_it_is_the_surface_of_a_model_that_has_them(model, surface):
    here = look(surface)
    elsewhere = surface.at(checkpoint(model))
    expected = look(there())
    assert_same(look(elsewhere), expected)
    assert np.max(np.abs(expected - here)) > 0.1
    np.testing.assert_array_equal(look(surface), here)
    assert_same(flat(elsewhere.params), flat(there().params))


def test_moving_statistics_may_be_held_alone(model, surface):
    bn = model.get_layer("bn")
    held = surface.holding([(bn.moving_mean, np.full(3, 2.0)), (bn.moving_variance, np.ones(3))])
    weights = model.get_weights()
    positions = [
        i for i, v in enumerate(model.weights) if v is bn.moving_mean or v is bn.moving_variance
    ]
    assert len(positions) == 2
    for i, value in zip(positions, (np.full(3, 2.0), np.ones(3)), strict=True):
        weights[i] = value
    assert held.value() == surface.at(weights).value()
    assert held.value() != pytest.approx(surface.value(), rel=1e-3)
    assert_same(flat(held.params), flat(surface.params))
    both = held.holding([(bn.beta, np.full(3, 5.0))])  # adds to what is held
    weights[[v.path for v in model.weights].index(bn.beta.path)] = np.full(3, 5.0)
    assert both.value() == surface.at(weights).value()
    assert both.value() != held.value()


def test_what_is_held_does_not_follow_the_model():
    model = moving_model()
    surface = rt.LossSurface(model, X, LABELS)
    elsewhere = surface.at(model.get_weights())
    before = surface.value()
    model.fit(X, LABELS, verbose=0)
    assert elsewhere.value() == pytest.approx(before, rel=1e-6)
    assert surface.value() == pytest.approx(model.evaluate(X, LABELS, verbose=0)[0], rel=1e-5)
    assert surface.value() != pytest.approx(before, rel=1e-4)


def test_arrays_of_other_shapes_are_no_weights(model, surface):
    weights = checkpoint(model)
    for wrong in (weights[:-1], weights[::-1], []):
        with pytest.raises(ValueError) as caught:
            surface.at(wrong)
        assert str(caught.value) == (
            "Expected `weights` to be a list of arrays shaped like the model's weights, "
            "[(4, 3), (3,), (3,), (3,), (3,), (3,), (3, 3), (3,)]. "
            f"Received: shapes {[w.shape for w in wrong]}"
        )


def test_over_other_data_it_is_the_surface_of_those(model, surface):
    over = surface.over(OTHER_X, OTHER_LABELS)
    fresh = rt.LossSurface(there().model, OTHER_X, OTHER_LABELS)
    assert over.value_and_accuracy() == pytest.approx(
        model.evaluate(OTHER_X, OTHER_LABELS, verbose=0), rel=1e-5
    )
    expected = look(fresh)
    assert_same(look(over.at(checkpoint(model))), expected)
    assert_same(look(surface.at(checkpoint(model)).over(OTHER_X, OTHER_LABELS)), expected)
    assert (over.batch_size, over.data.samples, over.mode) == (11, 11, "inference")
    assert (surface.data.samples, over.penalties) == (22, True)
    assert over.gradient_evaluations == 0


def test_over_batches_it_keeps_their_size(surface):
    batches = rt.data.Batches(OTHER_X, OTHER_LABELS, batch_size=4)
    over = surface.over(batches)
    assert over.batch_size == 4
    assert over.value() == pytest.approx(surface.over(OTHER_X, OTHER_LABELS).value(), rel=1e-6)


def test_data_that_the_model_cannot_take_are_refused_at_once(surface):
    with pytest.raises(ValueError) as caught:
        surface.over(OTHER_X[:, :3], OTHER_LABELS)
    assert str(caught.value).startswith(
        "Expected data that the model 'moving' and its loss can take. "
        "Received: x of shape (2, 3); y of shape (2,) (the first samples), which gave: "
    )


# --- normalized logits ----------------------------------------------------------------------------


def test_normalized_logits_are_divided_by_their_spread(model, surface):
    z = np.log(model.predict(X, verbose=0).astype("float64"))
    z = z / np.std(z, 1, keepdims=True)
    expected = np.mean(np.log(np.sum(np.exp(z), 1)) - z[np.arange(22), LABELS])
    expected += 0.1 * np.sum(doubles([model.get_layer("hidden").kernel])[0] ** 2)
    normalized = surface.with_normalized_logits()
    value, accuracy = normalized.value_and_accuracy()
    assert value == pytest.approx(expected, rel=1e-5)
    assert accuracy == surface.value_and_accuracy()[1]
    assert value != pytest.approx(surface.value(), rel=1e-3)


def test_a_surface_of_normalized_logits_has_the_gradient_of_its_values(surface):
    normalized = surface.with_normalized_logits()
    _, gradient = normalized.value_and_gradient()
    v = [np.random.default_rng(3).standard_normal(p.shape) for p in surface.params]
    start = doubles(surface.params)
    ahead, behind = (
        normalized.value([p + sign * 1e-2 * d for p, d in zip(start, v, strict=True)])
        for sign in (1, -1)
    )
    slope = sum(np.sum(g * d) for g, d in zip(doubles(gradient), v, strict=True))
    assert slope == pytest.approx((ahead - behind) / 2e-2, rel=2e-2)


@pytest.mark.slow
def test_views_can_be_combined_in_any_order(model, surface):
    weights = checkpoint(model)
    one = surface.with_normalized_logits().at(weights)
    two = surface.at(weights).with_normalized_logits()
    np.testing.assert_array_equal(look(one), look(two))
    assert_same(look(one), look(there().with_normalized_logits()))
    three = surface.with_normalized_logits().over(OTHER_X, OTHER_LABELS).at(weights)
    four = surface.at(weights).with_normalized_logits().over(OTHER_X, OTHER_LABELS)
    np.testing.assert_array_equal(look(three), look(four))
    assert three.value() != pytest.approx(one.value(), rel=1e-3)


def test_normalized_logits_of_some_layers(model, surface):
    expected = surface.with_normalized_logits().value()
    for part in (
        surface.restricted("head").with_normalized_logits(),
        surface.with_normalized_logits().restricted("head"),
    ):
        assert [v.path for v in part.variables] == [v.path for v in model.layers[-1].weights]
        assert part.value() == pytest.approx(expected, rel=1e-6)


def test_a_restricted_surface_looks_from_where_the_whole_one_does(model, surface):
    weights = checkpoint(model)
    expected = surface.at(weights).value()
    part = surface.at(weights).restricted("head")
    assert_same(flat(part.params), np.concatenate([w.ravel() for w in weights[-2:]]))
    assert part.value() == pytest.approx(expected, rel=1e-6)
    assert surface.restricted("head").at(weights).value() == pytest.approx(expected, rel=1e-6)
    assert surface.restricted("head").value() == pytest.approx(surface.value(), rel=1e-6)


def test_restrictions_made_before_are_of_their_own_data_and_logits(model, surface):
    """What was traced is kept for later, and must not be mistaken for something else."""
    for view in (surface, surface.with_normalized_logits()):
        view.restricted("head").value()
    over = surface.over(OTHER_X, OTHER_LABELS)
    assert over.restricted("head").value() == pytest.approx(over.value(), rel=1e-6)
    whole = surface.restricted(model)
    assert whole.value() == pytest.approx(surface.value(), rel=1e-6)


# --- slopes of the samples ------------------------------------------------------------------------


def per_sample(surface, v, params):
    """⟨v, ∇ℓ⟩ of each sample, from the gradient of a surface over it alone."""
    slopes = []
    for one, _ in surface.data.rebatched(1).one_by_one():
        _, gradient = surface.over(one).value_and_gradient(params)
        slopes.append(flat(gradient) @ np.concatenate([d.ravel() for d in v]))
    return np.array(slopes)


@pytest.mark.parametrize(
    ("weights", "penalties"), [(None, False), (WEIGHTS, True)], ids=["plain", "weighted, penalized"]
)
def test_moments_of_slopes_are_those_of_the_samples_own_gradients(weights, penalties):
    surface = rt.LossSurface(
        shared()[0], X, LABELS, weights, batch_size=8, penalties=penalties
    )  # of which the last batch is smaller
    rng = np.random.default_rng(2)
    v = [rng.standard_normal(p.shape) for p in surface.params]
    elsewhere = [p + 0.3 * d for p, d in zip(doubles(surface.params), v, strict=True)]
    for params in (None, elsewhere):
        slopes = per_sample(surface, v, params)
        found = surface.slope_moments(v, params)
        assert found == pytest.approx((np.mean(slopes**2), np.mean(slopes**4)), rel=1e-3)
        assert np.std(slopes) > 0.1
    assert all(type(moment) is float for moment in found)


def test_slopes_of_several_outputs():
    inputs = keras.Input((4,))
    outputs = [layers.Dense(3, "softmax", name="a")(inputs), layers.Dense(1, name="b")(inputs)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"], loss_weights=[1.0, 0.5])
    surface = rt.LossSurface(model, X, [LABELS, X[:, :1]], WEIGHTS, batch_size=11)
    v = [np.ones(p.shape) for p in surface.params]
    slopes = per_sample(surface, v, None)
    expected = np.mean(slopes**2), np.mean(slopes**4)
    assert surface.slope_moments(v) == pytest.approx(expected, rel=1e-3)


def test_slopes_of_some_layers_follow_those_alone(model, surface):
    part = surface.restricted("head")
    v = [np.ones(p.shape) for p in part.params]
    zeros = [np.zeros(p.shape) for p in surface.params[:-2]]
    assert part.slope_moments(v) == pytest.approx(surface.slope_moments([*zeros, *v]), rel=1e-4)


def test_a_vector_of_another_structure_has_no_slopes(surface):
    with pytest.raises(ValueError) as caught:
        surface.slope_moments([np.ones(3)])
    assert str(caught.value) == (
        "Expected `v` to be a list of tensors shaped like the model's trainable variables, "
        "[(4, 3), (3,), (3,), (3,), (3, 3), (3,)]. Received: shapes [(3,)]"
    )


# --- nothing is traced twice, nothing is written --------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not TRACES, reason="PyTorch traces nothing")
def test_views_are_not_traced_again():
    model = moving_model()
    surface = rt.LossSurface(model, X, LABELS, batch_size=11)
    for s in (surface, surface.with_normalized_logits(), surface.restricted("head")):
        look(s)
    over = surface.over(OTHER_X, OTHER_LABELS)  # which tries the data once
    calls = model.layers[0].calls
    calls.clear()
    weights = checkpoint(model)
    held = surface.holding([(model.get_layer("bn").moving_mean, np.ones(3))])
    for view in (surface.at(weights), held, over, over.at(weights)):
        look(view)
    look(surface.at(weights).with_normalized_logits())
    look(surface.at(weights).restricted("head"))
    look(surface.with_normalized_logits().at(weights))
    assert not calls


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch_statistics", "training"])
def test_views_leave_every_variable_and_slot_as_it_was(mode):
    model = moving_model()
    surface = rt.LossSurface(model, X, LABELS, mode=mode, batch_size=11)
    before = state(model)
    look(surface)
    views = [surface.at(checkpoint(model)), surface.over(OTHER_X, OTHER_LABELS)]
    for view in (*views, surface.with_normalized_logits()):
        view.value_and_accuracy()
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all("call" not in vars(layer) for layer in model.layers)


def test_a_part_of_the_weights_keeps_the_loss_and_the_variables_of_the_beginning():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "tanh", name="a"), layers.Dense(3, "softmax", name="b")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    surface = rt.LossSurface(model, X, LABELS)
    value, normalized = surface.value(), surface.with_normalized_logits().value()
    model.compile("sgd", "sparse_categorical_crossentropy", loss_weights=[3.0])
    assert surface.restricted("b").value() == pytest.approx(value, rel=1e-6)
    model.get_layer("a").trainable = False
    assert surface.with_normalized_logits().value() == pytest.approx(normalized, rel=1e-6)


def test_two_outputs_with_one_loss_do_not_classify():
    inputs = keras.Input((4,))
    outputs = [layers.Dense(3, "softmax", name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    surface = rt.LossSurface(model, X, [LABELS, LABELS])
    assert not surface.classifies
    with pytest.raises(ValueError, match="whose logits can be normalized"):
        surface.with_normalized_logits()
