"""`LossSurface`: equal to what Keras evaluates, exact in closed form, and without a trace."""

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import numbers

import keras_regtools as rt

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6)).astype("float32")
LABELS = RNG.integers(0, 3, 50)
IMAGES = RNG.standard_normal((30, 8, 8, 2)).astype("float32")


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def classifier(*middle, end="softmax", **compile_arguments):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), *middle, layers.Dense(3, activation=end)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=end is None)
    model.compile(**{"optimizer": "sgd", "loss": loss, **compile_arguments})
    return model


@pytest.mark.parametrize("name", problems.rows(problems.PROBLEMS, "saddle"))
def test_value_gradient_and_hessian_are_those_of_the_closed_form(name):
    problem = problems.PROBLEMS[name]
    with problems.float64():
        surface = problem.surface(batch_size=3)
        rtol = 1e-12 if problems.HAS_FLOAT64 else 1e-5
        value, gradient = surface.value_and_gradient()
        size = len(problem.weights)
        columns = [numbers(surface.hvp(None, [np.eye(size)[i]]))[0] for i in range(size)]
    np.testing.assert_allclose(surface.value(), problem.value, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(value, problem.value, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(numbers(gradient)[0], problem.gradient, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(np.stack(columns, 1), problem.hessian, rtol=rtol, atol=1e-6)


def test_the_hessian_of_linear_regression_is_two_over_n_times_the_gram_matrix():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1, use_bias=False)])
    surface = rt.LossSurface(model, X, X[:, :1], loss="mse", batch_size=16)
    v = RNG.standard_normal((6, 1))
    expected = 2 / len(X) * X.T @ (X @ v)
    np.testing.assert_allclose(numbers(surface.hvp(None, [v]))[0], expected, rtol=1e-4, atol=1e-6)


def two_outputs():
    inputs = keras.Input((6,))
    hidden = layers.Dense(4, "tanh", kernel_regularizer="l2")(inputs)
    outputs = {"a": layers.Dense(3, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)}
    model = keras.Model(inputs, outputs)
    loss = {"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"}
    model.compile("sgd", loss, loss_weights={"a": 2.0, "b": 0.5})
    return model, {"a": LABELS, "b": X[:, :1]}


CASES = {
    "softmax": lambda: (classifier(), LABELS),
    "logits": lambda: (classifier(end=None), LABELS),
    "a function by name": lambda: (classifier(loss="sparse_categorical_crossentropy"), LABELS),
    "one-hot targets": lambda: (
        classifier(loss="categorical_crossentropy"),
        np.eye(3, dtype="float32")[LABELS],
    ),
    "weight penalties": lambda: (
        classifier(layers.Dense(4, "relu", kernel_regularizer=rt.regularizers.L2(0.1))),
        LABELS,
    ),
    "activity penalties": lambda: (
        classifier(layers.Dense(4, "relu", activity_regularizer="l1")),
        LABELS,
    ),
    "batch normalization": lambda: (classifier(layers.BatchNormalization()), LABELS),
    "instrumented": lambda: (rt.instrument(classifier(layers.BatchNormalization())), LABELS),
    "two outputs with loss weights": two_outputs,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "sample weights"])
def test_the_value_is_what_evaluate_says(name, weighted):
    model, y = CASES[name]()
    weights = RNG.uniform(0.5, 2, 50).astype("float32") if weighted else None
    if weighted and isinstance(y, dict):
        weights = {key: weights for key in y}
    # the last of these batches holds 2 samples
    expected = model.evaluate(X, y, sample_weight=weights, batch_size=16, verbose=0)
    expected = expected[0] if isinstance(expected, list) else expected
    surface = rt.LossSurface(model, X, y, weights, batch_size=16)
    assert surface.value() == pytest.approx(expected, rel=2e-6)


def test_penalties_can_be_left_out():
    model = classifier(layers.Dense(4, "relu", kernel_regularizer=rt.regularizers.L2(0.1)))
    penalty = sum(rt.regularizers.penalties(model).values())
    with_penalties = rt.LossSurface(model, X, LABELS).value()
    without = rt.LossSurface(model, X, LABELS, penalties=False).value()
    assert penalty > 0.1
    assert with_penalties - without == pytest.approx(penalty, rel=1e-5)


def test_another_loss_than_the_compiled_one():
    model = classifier()
    surface = rt.LossSurface(model, X, np.eye(3, dtype="float32")[LABELS], loss="mse")
    error = model.predict(X, verbose=0) - np.eye(3)[LABELS]
    assert surface.value() == pytest.approx(np.mean(error**2), rel=1e-5)


def test_datasets_give_what_arrays_give():
    class Pairs(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return X[16 * i : 16 * (i + 1)], LABELS[16 * i : 16 * (i + 1)]

    model = classifier()
    assert rt.LossSurface(model, Pairs()).value() == pytest.approx(
        rt.LossSurface(model, X, LABELS).value(), rel=1e-6
    )


def bn_model():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, "tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.layers[1].moving_mean.assign(RNG.standard_normal(5))
    return model


@pytest.mark.parametrize("size", problems.rows([1, 7, 50, 500], 7))
def test_in_inference_the_batch_size_does_not_matter(size):
    model = bn_model()
    whole = rt.LossSurface(model, X, LABELS, batch_size=50)
    parts = rt.LossSurface(model, X, LABELS, batch_size=size)
    assert parts.value() == pytest.approx(whole.value(), rel=1e-5)
    for a, b in zip(*(numbers(s.value_and_gradient()[1]) for s in (parts, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def by_hand(model, normalize):
    """The loss of `bn_model` without dropout, in numpy, with batches normalized by hand."""
    (w, b), (gamma, beta, *_), _, (v, c) = (layer.get_weights() or [()] for layer in model.layers)
    hidden = np.tanh(X.astype("float64") @ w + b)
    logits = (normalize(hidden) * gamma + beta) @ v + c
    logits -= logits.max(axis=1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.mean(logp[np.arange(50), LABELS])


def test_batch_statistics_are_those_of_the_fixed_batches_without_dropout():
    model = bn_model()

    def normalize(hidden):
        parts = [hidden[i : i + 20] for i in range(0, 50, 20)]
        return np.concatenate([(p - p.mean(0)) / np.sqrt(p.var(0) + 1e-3) for p in parts])

    surface = rt.LossSurface(model, X, LABELS, batch_size=20, mode="batch_statistics")
    assert surface.value() == pytest.approx(by_hand(model, normalize), rel=1e-5)


def test_batch_statistics_leave_frozen_normalization_as_it_is():
    model = bn_model()
    model.layers[1].trainable = False
    surface = rt.LossSurface(model, X, LABELS, mode="batch_statistics")
    assert surface.value() == rt.LossSurface(model, X, LABELS).value()


def test_inference_uses_the_moving_statistics():
    model = bn_model()
    mean, variance = numbers([model.layers[1].moving_mean, model.layers[1].moving_variance])
    expected = by_hand(model, lambda hidden: (hidden - mean) / np.sqrt(variance + 1e-3))
    assert rt.LossSurface(model, X, LABELS).value() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", [None, 7])
def test_draws_are_held_fixed_in_training_mode(seed):
    model = classifier(layers.Dropout(0.5, seed=seed))
    surface = rt.LossSurface(model, X, LABELS, mode="training")
    first = surface.value()
    assert surface.value() == first
    assert surface.value_and_gradient()[0] == pytest.approx(first, rel=1e-6)
    assert first != pytest.approx(rt.LossSurface(model, X, LABELS).value(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "batch_statistics", "training"])
def test_nothing_is_written_to_the_model_or_to_global_seeds(mode):
    model = rt.instrument(bn_model())
    model.fit(X, LABELS, verbose=0)
    before = state(model)
    keras.utils.set_random_seed(3)
    expected = np.random.rand(), keras.random.normal((3,))
    keras.utils.set_random_seed(3)
    surface = rt.LossSurface(model, X, LABELS, mode=mode)
    surface.value()
    surface.value_and_gradient()
    surface.hvp(None, surface.params)
    received = np.random.rand(), keras.random.normal((3,))
    assert received[0] == expected[0]
    np.testing.assert_array_equal(*numbers([received[1], expected[1]]))
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all("call" not in vars(layer) for layer in model.layers)


def test_one_surface_follows_a_fit_without_being_traced_again():
    traces = []

    class Counting(layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs * 1.0

    model = classifier(Counting())
    surface = rt.LossSurface(model, X, LABELS, batch_size=25)
    first, _ = surface.value_and_gradient()
    model.fit(X, LABELS, epochs=2, verbose=0)
    traces.clear()
    second, _ = surface.value_and_gradient()
    if keras.backend.backend() != "torch":  # which traces nothing, ever
        assert not traces
    assert second == pytest.approx(model.evaluate(X, LABELS, verbose=0), rel=1e-5)
    assert first != second


def test_params_are_a_copy_that_training_does_not_move():
    model = classifier()
    surface = rt.LossSurface(model, X, LABELS)
    before = numbers(surface.params)
    params = surface.params
    value = surface.value()
    model.fit(X, LABELS, verbose=0)
    for a, b in zip(numbers(params), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert surface.value(params) == value
    assert surface.value() != value


SHIFTED = {"beta_initializer": keras.initializers.RandomNormal(seed=1)}
SMOOTH = {
    "dense": lambda: [layers.Flatten(), layers.Dense(4, "tanh")],
    "convolution and average pooling": lambda: [
        layers.Conv2D(2, 3, activation="tanh"),
        layers.AveragePooling2D(2),
    ],
    "batch normalization": lambda: [
        layers.Conv2D(2, 3),
        layers.BatchNormalization(),
        layers.Activation("tanh"),
    ],
    "instrumented batch normalization": lambda: [
        layers.Conv2D(2, 3),
        rt.layers.InstrumentedBatchNormalization(),
        layers.Activation("tanh"),
    ],
    "layer normalization": lambda: [layers.Conv2D(8, 3), layers.LayerNormalization()],
    "group normalization": lambda: [layers.Conv2D(4, 3), layers.GroupNormalization(2)],
    "groups of rows, as many as channels": lambda: [
        layers.Conv2D(6, 3),
        layers.GroupNormalization(2, axis=1, **SHIFTED),
    ],
    "batch normalization of columns, as many as channels": lambda: [
        layers.Conv2D(6, 3),
        layers.BatchNormalization(axis=2, **SHIFTED),
        layers.Activation("tanh"),
    ],
    "dropout": lambda: [layers.Flatten(), layers.Dense(4, "tanh"), layers.Dropout(0.4, seed=1)],
}


MODES = ("inference", "batch_statistics", "training")
SEE_THE_MODE = [name for name in SMOOTH if "batch normalization" in name or name == "dropout"]


@pytest.mark.parametrize(
    ("name", "mode"),
    problems.rows(
        [
            (name, mode)
            for name in SMOOTH
            for mode in (MODES if name in SEE_THE_MODE else ("training",))
        ],
        ("dense", "training"),
        ("batch normalization", "training"),
        ("instrumented batch normalization", "batch_statistics"),
        ("dropout", "training"),
    ),
)
def test_derivatives_agree_with_central_differences(name, mode):
    with problems.float64():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                *SMOOTH[name](),
                layers.Flatten(),
                layers.Dense(3, "softmax"),
            ]
        )
        y = LABELS[:30]
        loss = "sparse_categorical_crossentropy"
        surface = rt.LossSurface(model, IMAGES, y, loss=loss, mode=mode, batch_size=16)
        params = numbers(surface.params)
        rng = np.random.default_rng(1)
        v = [rng.standard_normal(p.shape) for p in params]
        # In single precision the difference itself is rough: sharp is sharp on TensorFlow.
        step, rtol = (1e-5, 1e-6) if problems.HAS_FLOAT64 else (3e-3, 2e-2)

        def moved(sign):
            return [p + sign * step * d for p, d in zip(params, v, strict=True)]

        slope = (surface.value(moved(1)) - surface.value(moved(-1))) / (2 * step)
        gradient = numbers(surface.value_and_gradient(params)[1])
        ahead, behind = (numbers(surface.value_and_gradient(moved(s))[1]) for s in (1, -1))
        product = np.concatenate([p.ravel() for p in numbers(surface.hvp(params, v))])
    expected = np.concatenate(
        [((a - b) / (2 * step)).ravel() for a, b in zip(ahead, behind, strict=True)]
    )
    along = sum(np.vdot(g, d) for g, d in zip(gradient, v, strict=True))
    assert along == pytest.approx(slope, rel=rtol)
    assert np.linalg.norm(product - expected) < rtol * np.linalg.norm(expected)


def test_the_hessian_of_softmax_regression():
    """Mean of (diag p - p pᵀ) ⊗ x xᵀ."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax", use_bias=False)])
    surface = rt.LossSurface(model, X, LABELS, loss="sparse_categorical_crossentropy")
    p = model.predict(X, verbose=0).astype("float64")
    curvature = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
    v = RNG.standard_normal((6, 3))
    expected = np.einsum("nij,na,nb,bj->ai", curvature, X, X, v) / len(X)
    received = numbers(surface.hvp(None, [v]))[0]
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_before_batch_normalization_the_size_of_a_weight_does_not_matter(scale):
    """ε → 0: L(aw) = L(w), ⟨w, g⟩ = 0, ‖g(aw)‖ = ‖g(w)‖ / a."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, use_bias=False),
            layers.BatchNormalization(epsilon=1e-12),
            layers.Activation("tanh"),
            layers.Dense(3, "softmax"),
        ]
    )
    loss = "sparse_categorical_crossentropy"
    surface = rt.LossSurface(model, X, LABELS, loss=loss, mode="batch_statistics")
    w, *rest = surface.params
    value, gradient = surface.value_and_gradient([w, *rest])
    scaled_value, scaled_gradient = surface.value_and_gradient([scale * w, *rest])
    w, g, scaled_g = numbers([w, gradient[0], scaled_gradient[0]])
    assert scaled_value == pytest.approx(value, rel=1e-5)
    assert np.vdot(w, g) == pytest.approx(
        0, abs=1e-5 * float(np.linalg.norm(w) * np.linalg.norm(g))
    )
    np.testing.assert_allclose(scaled_g, g / scale, rtol=1e-3, atol=1e-6)


class Own(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(y_pred)


def unbuilt():
    model = keras.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def no_weights():
    model = keras.Sequential([keras.Input((6,)), layers.Flatten()], name="flat")
    model.compile("sgd", "mse")
    return model


def wrong(expected, model=None, x=X, y=LABELS, error=ValueError, **arguments):
    return error, expected, model or classifier, x, y, arguments


BAD = {
    "mode": wrong(
        "Argument `mode` must be one of 'inference', 'batch_statistics', 'training'. "
        "Received: mode='test'",
        mode="test",
    ),
    "batch size": wrong(
        "Argument `batch_size` must be a positive integer. "
        "Received: batch_size=0 (of type <class 'int'>)",
        batch_size=0,
    ),
    "lengths": wrong(
        "Expected `x`, `y` and `sample_weight` to have the same number of samples. "
        "Received: x with 50 samples, y with 49 samples",
        y=LABELS[:49],
    ),
    "no samples": wrong(
        "Expected at least one sample. Received: x with 0 samples", x=X[:0], y=LABELS[:0]
    ),
    "no model": wrong(
        "Expected a `keras.Model`. Received: 3 (of type <class 'int'>).",
        lambda: 3,
        error=TypeError,
    ),
    "no weights": wrong(
        "Expected a model with trainable weights. Received: the model 'flat', which has none",
        no_weights,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name):
    error, expected, model, x, y, arguments = BAD[name]
    with pytest.raises(error) as caught:
        rt.LossSurface(model(), x, y, **arguments)
    assert str(caught.value) == expected


def test_an_unbuilt_or_uncompiled_model_is_refused():
    model = unbuilt()
    with pytest.raises(ValueError, match="Expected a built model"):
        rt.LossSurface(model, X, LABELS)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)], name="plain")
    with pytest.raises(ValueError) as caught:
        rt.LossSurface(model, X, LABELS)
    assert str(caught.value) == (
        "Expected a compiled model. Received: the model 'plain', which is not compiled. "
        "Call `model.compile(optimizer, loss)` first."
    )
    model.compile("sgd")
    with pytest.raises(ValueError) as caught:
        rt.LossSurface(model, X, LABELS)
    assert str(caught.value) == (
        "Expected a model compiled with a loss. Received: the model 'plain', compiled without one. "
        "Pass `loss=` to say what to measure."
    )


def test_a_one_shot_generator_is_refused():
    with pytest.raises(TypeError) as caught:
        rt.LossSurface(classifier(), (pair for pair in [(X, LABELS)]))
    assert str(caught.value).startswith(
        "Expected data that can be read more than once. Received: the one-shot iterator "
    )
    assert str(caught.value).endswith(
        "Pass arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset` instead."
    )


def test_parameters_of_the_wrong_shape_are_refused():
    surface = rt.LossSurface(classifier(), X, LABELS)
    with pytest.raises(ValueError) as caught:
        surface.value([np.zeros((6, 5))])
    assert str(caught.value) == (
        "Expected `params` to be a list of tensors shaped like the model's trainable variables, "
        "[(6, 5), (5,), (5, 3), (3,)]. Received: shapes [(6, 5)]"
    )


def test_a_model_with_its_own_loss_computation_is_refused():
    inputs = keras.Input((6,))
    model = Own(inputs, layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(NotImplementedError, match="overrides it. Pass `loss=`"):
        rt.LossSurface(model, X, LABELS)
    assert rt.LossSurface(model, X, LABELS, loss="mse").value() > 0


def test_a_layer_frozen_later_is_still_a_part_of_the_surface():
    model = classifier(layers.Dense(4, "tanh", name="middle"))
    surface = rt.LossSurface(model, X, LABELS)
    value, gradient = surface.value_and_gradient()
    model.get_layer("middle").trainable = False
    again, same = surface.value_and_gradient()
    assert again == pytest.approx(value, rel=1e-6)
    for a, b in zip(numbers(gradient), numbers(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_loss_of_a_model_whose_losses_are_all_added_ones():
    class Energy(layers.Layer):
        def call(self, inputs):
            self.add_loss(ops.mean(inputs**2))
            return inputs

    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), Energy()])
    model.compile("sgd")
    expected = model.evaluate(X, X[:, :5], batch_size=50, verbose=0)
    surface = rt.LossSurface(model, X)
    assert surface.value() == pytest.approx(expected, rel=1e-6)
    v = surface.params
    assert rt.vectors.dot(v, surface.hvp(None, v)) == pytest.approx(2 * expected, rel=1e-4)


def test_a_surface_says_whether_the_model_was_compiled_or_frozen_anew():
    model = classifier()
    surface = rt.LossSurface(model, X, LABELS)
    model.fit(X, LABELS, verbose=0)
    assert surface.is_current()
    model.layers[0].trainable = False
    assert not surface.is_current()
    model.layers[0].trainable = True
    assert surface.is_current()
    model.compile("sgd", "mse")
    assert not surface.is_current()


def test_the_samples_of_a_dataset_are_counted():
    class Pairs(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return X[16 * i : 16 * (i + 1)], LABELS[16 * i : 16 * (i + 1)]

    surface = rt.LossSurface(classifier(), Pairs())
    assert surface.data.samples is None
    surface.value()
    assert surface.data.samples == 50


def test_a_batch_that_is_not_finite_is_named_at_other_weights_too():
    model = classifier()
    weights = model.get_weights()
    weights[0][0, 0] = np.nan
    there = rt.LossSurface(model, X, LABELS, batch_size=20).restricted(model.layers[-1])
    with pytest.raises(ValueError) as caught:
        rt.measures.hessian_eigenvalues(there.at(weights))
    assert str(caught.value) == (
        "Expected a finite loss. Received: a loss of nan in batch 1 (samples 0 to 19)"
    )
