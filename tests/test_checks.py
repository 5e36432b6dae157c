"""`LossSurface.check`: chance and hidden second derivatives are found and named, nothing else."""

import warnings

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import rows

import keras_regtools as rt

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 6)).astype("float32")
Y = RNG.integers(0, 3, 24)
LOSS = "sparse_categorical_crossentropy"
HIDES = keras.backend.backend() == "tensorflow"  # in `ops.moments`


class OwnNormalization(layers.Layer):
    """Right, but for `ops.moments`, whose second derivative TensorFlow gets wrong."""

    def call(self, inputs):
        mean, variance = ops.moments(inputs, axes=[-1], keepdims=True)
        return (inputs - mean) * ops.rsqrt(variance + 1e-3)


class Stopped(layers.Layer):
    def call(self, inputs):
        return inputs * ops.stop_gradient(ops.sigmoid(inputs))


class Chance(layers.Layer):
    def call(self, inputs):
        return inputs * (1 + 0.1 * np.random.rand())


class Kinked(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 200))

    def call(self, inputs):
        return ops.relu(ops.matmul(inputs, self.w))


class Smooth(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5))

    def call(self, inputs):
        return ops.tanh(ops.matmul(inputs, self.w))


class Block(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.inner = layers.Dense(6), inner

    def call(self, inputs):
        return inputs + self.inner(self.dense(inputs))


class Subclassed(keras.Model):
    def __init__(self, own=False, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.end, self.own = layers.Dense(32, "relu"), layers.Dense(3, "softmax"), own

    def call(self, inputs):
        hidden = self.hidden(inputs)
        if self.own:
            mean, variance = ops.moments(hidden, axes=[-1], keepdims=True)
            hidden = (hidden - mean) * ops.rsqrt(variance + 1e-3)
        return self.end(hidden)


def surface(*middle, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, "tanh"),
            *(make() for make in middle),
            layers.Dense(3, "softmax"),
        ]
    )
    return rt.LossSurface(model, X, Y, loss=LOSS, **arguments)


def functional():
    inputs = keras.Input((6,))
    hidden = layers.Dense(6, "tanh")(inputs)
    mean, variance = ops.moments(hidden, axes=[-1], keepdims=True)
    hidden = (hidden - mean) * ops.rsqrt(variance + 1e-3)
    return keras.Model(inputs, layers.Dense(3, "softmax")(hidden))


def subclassed(own):
    keras.utils.set_random_seed(0)
    model = Subclassed(own, name="mine")
    model(X[:2])
    return rt.LossSurface(model, X, Y, loss=LOSS)


CLEAN = {
    "Keras' own layers": lambda: surface(layers.LayerNormalization, lambda: layers.Dropout(0.5)),
    "a smooth layer": lambda: surface(Smooth),
    "a layer with kinks": lambda: surface(Kinked),
    "a block of layers": lambda: surface(lambda: Block(layers.LayerNormalization())),
    "a lambda": lambda: surface(lambda: layers.Lambda(lambda t: t * ops.sigmoid(t))),
    "a subclassed model": lambda: subclassed(own=False),
    "batch statistics": lambda: surface(layers.BatchNormalization, mode="batch_statistics"),
}


@pytest.mark.parametrize("name", rows(CLEAN, "Keras' own layers", "a lambda", "batch statistics"))
def test_nothing_is_said_of_what_is_right(name):
    looked_at = CLEAN[name]()
    assert looked_at.check() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        looked_at.hvp(None, looked_at.params)


HIDDEN = {
    "a stopped gradient": (lambda: surface(lambda: Stopped(name="own")), True),
    "in a lambda": (
        lambda: surface(
            lambda: layers.Lambda(lambda t: t * ops.stop_gradient(t), name="own"),
        ),
        True,
    ),
    "inside a block": (lambda: surface(lambda: Block(Stopped(name="own"), name="block")), True),
    "moments": (lambda: surface(lambda: OwnNormalization(name="own")), HIDES),
    "moments in the model's own call": (lambda: subclassed(own=True), HIDES),
}


@pytest.mark.parametrize("name", rows(HIDDEN, "a stopped gradient", "inside a block", "moments"))
def test_a_hidden_second_derivative_is_found_and_its_layer_named(name):
    make, hidden = HIDDEN[name]
    found = make().check()
    assert len(found) == hidden
    for sentence in found:
        where = "'mine' (of type Subclassed)" if "model's" in name else "'own' (of type "
        assert sentence.startswith(f"The Hessian product of the layer {where}")
        assert "hides a part of its second derivative" in sentence


DOUBTFUL = {
    "renorm": (lambda: layers.BatchNormalization(renorm=True, name="own"), "training"),
    "spectral normalization": (
        lambda: layers.SpectralNormalization(layers.Dense(4), name="own"),
        "training",
    ),
    "without a mask": (lambda: WithoutMask(name="own"), "batch_statistics"),
}


class WithoutMask(layers.BatchNormalization):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training) * 1.0


@pytest.mark.parametrize("name", rows(DOUBTFUL, "without a mask"))
def test_what_is_not_right_is_named_though_it_is_keras_own(name):
    """Whatever the layer: either the product is right or the check names it."""
    make, mode = DOUBTFUL[name]
    with problems.float64():
        doubtful = surface(make, mode=mode)
        params, v = doubtful.params, [p + 0.1 for p in doubtful.params]
        found = doubtful.check()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            product = rt.vectors.flatten(doubtful.hvp(params, v))
        step = 1e-5 if problems.HAS_FLOAT64 else 1e-2
        ahead, behind = (
            rt.vectors.flatten(doubtful.value_and_gradient(rt.vectors.axpy(s * step, v, params))[1])
            for s in (1, -1)
        )
    difference = (ahead - behind) / (2 * step)
    off = np.linalg.norm(product - difference) / np.linalg.norm(difference)
    assert off < (1e-5 if problems.HAS_FLOAT64 else 0.05) or (
        len(found) == 1 and "the layer 'own' (of type " in found[0]
    )


def test_a_loss_function_that_hides_a_derivative_is_named():
    def own_loss(y_true, y_pred):
        return ops.mean(y_pred * ops.stop_gradient(y_pred) + y_pred**2, axis=-1)

    model = surface().model
    (sentence,) = rt.LossSurface(model, X, X[:, :3], loss=own_loss).check()
    assert sentence.startswith("The Hessian product of the loss function is ")

    def right_loss(y_true, y_pred):
        return ops.mean(y_pred**4, axis=-1)

    assert rt.LossSurface(model, X, X[:, :3], loss=right_loss).check() == []


class GraphOnly(layers.Layer):
    """Refuses a slope of its outputs on so few samples."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, inputs):
        self.calls += 1
        if self.calls > 6:
            raise ValueError("not again")
        return inputs * 1.0


def test_a_layer_that_could_not_be_checked_is_named():
    (sentence,) = surface(lambda: GraphOnly(name="own")).check()
    assert sentence.startswith(
        "It could not be checked whether the layer 'own' (of type GraphOnly) is right: "
    )


@pytest.mark.slow
def test_an_operation_outside_of_layers_is_named():
    found = rt.LossSurface(functional(), X, Y, loss=LOSS).check()
    assert len(found) == HIDES
    assert all("the operation 'moments' (of type Moments)" in sentence for sentence in found)


def test_the_first_product_warns_and_the_second_one_does_not():
    doubtful = surface(lambda: Stopped(name="own"))
    with pytest.warns(UserWarning, match="Hessian product of the layer 'own' "):
        doubtful.hvp(None, doubtful.params)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        doubtful.hvp(None, doubtful.params)
        alone = doubtful.restricted(doubtful.variables[:2])
        alone.hvp(None, alone.params)


def test_the_fault_is_what_the_sentence_says():
    """The product of the whole surface is off central differences, as the check of a layer says."""
    with problems.float64():
        doubtful = surface(lambda: Stopped(name="own"))
        assert len(doubtful.check()) == 1
        params = doubtful.params
        v = rt.vectors.random_normal(params, np.random.default_rng(0))
        with pytest.warns(UserWarning):
            product = rt.vectors.flatten(doubtful.hvp(params, v))
        step = 1e-5 if problems.HAS_FLOAT64 else 1e-2
        ahead, behind = (
            rt.vectors.flatten(doubtful.value_and_gradient(rt.vectors.axpy(s * step, v, params))[1])
            for s in (1, -1)
        )
    difference = (ahead - behind) / (2 * step)
    assert np.linalg.norm(product - difference) > 0.01 * np.linalg.norm(difference)


def test_chance_in_a_layer_is_found_and_the_layer_named():
    (sentence,) = surface(lambda: Chance(name="own")).check()
    assert sentence == (
        "Two calls of the layer 'own' (of type Chance) on the same samples differ, so that the "
        "surface is another function at each call. Give its random draws a seed that is part of "
        "the model's state."
    )


class Shuffled(keras.utils.PyDataset):
    """Eight batches of three samples; the third one is another in each pass."""

    def __init__(self, shuffles=True):
        super().__init__()
        self.shuffles, self.reads = shuffles, 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.reads += 1
        x = X[3 * index : 3 * index + 3]
        return x + (self.reads if self.shuffles and index == 2 else 0), Y[3 * index : 3 * index + 3]


def test_data_that_change_between_two_passes_are_found():
    model = surface().model
    assert rt.LossSurface(model, Shuffled(False), loss=LOSS).check() == []
    assert rt.LossSurface(model, Shuffled(), loss=LOSS).check() == [
        "The data are not the same in two passes, so that the surface is another function at each "
        "call. They differ in batch 3; a dataset that shuffles or augments must be made without "
        "that."
    ]


def test_a_check_leaves_the_model_and_the_seeds_as_they_were():
    model = surface(lambda: Stopped(name="own"), layers.BatchNormalization, Smooth).model
    model.compile("sgd", LOSS)
    model.fit(X, Y, verbose=0)
    before = [np.array(ops.convert_to_numpy(v)) for v in model.variables]
    keras.utils.set_random_seed(3)
    expected = np.random.rand()
    keras.utils.set_random_seed(3)
    rt.LossSurface(model, X, Y, mode="training").check()
    assert np.random.rand() == expected
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    assert all("call" not in vars(layer) for layer in model.layers)


def without_a_second_derivative():
    """A layer that can be differentiated once, in this backend's own way."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        class Once(layers.Layer):
            def build(self, shape):
                self.w = self.add_weight(shape=(1, 1, 1))

            def call(self, inputs):
                image = inputs[:, :, None, None]
                ones = (1, 1, 1, 1)
                return tf.nn.dilation2d(image, self.w, ones, "SAME", "NHWC", ones)[:, :, 0, 0]

        return Once
    if backend == "jax":
        import jax

        def refuse(residuals, cotangent):
            def inner(c):
                return c

            once = jax.custom_vjp(inner)
            once.defvjp(lambda c: (c, None), lambda _, c: 1 / 0)
            return (once(cotangent) * residuals,)

        square = jax.custom_vjp(lambda t: t * t)
        square.defvjp(lambda t: (t * t, 2 * t), refuse)

        class Once(layers.Layer):
            def call(self, inputs):
                return square(inputs)

        return Once
    import torch

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            ctx.save_for_backward(t)
            return t * t

        @staticmethod
        def backward(ctx, cotangent):
            if cotangent.requires_grad or torch.is_grad_enabled():
                raise RuntimeError("no second derivative")
            return 2 * cotangent * ctx.saved_tensors[0]

    class Once(layers.Layer):
        def call(self, inputs):
            return Square.apply(inputs)

    return Once


def test_a_layer_without_a_second_derivative_is_named():
    once = without_a_second_derivative()
    looked_at = surface(lambda: once(name="own"))
    assert np.isfinite(looked_at.value_and_gradient()[0])
    with pytest.raises(NotImplementedError) as caught:
        looked_at.hvp(None, looked_at.params)
    assert str(caught.value).startswith(
        "Expected layers and a loss that can be differentiated twice. Received: the layer 'own' "
        "(of type Once), whose second derivative gave: "
    )
