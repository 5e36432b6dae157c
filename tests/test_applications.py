"""The networks of the course: as many parameters as there, in the same order."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_regtools.applications import (
    alexnet,
    c1,
    c2,
    f1,
    lenet5,
    resnet,
    resnet18,
    resnet50,
    vgg,
    vgg16,
)


def parameters_without_weights(build):
    """The parameters of a model of which no weight is ever made."""
    with keras.StatelessScope(initialize_variables=False):
        model = build()
    count = sum(math.prod(weight.shape) for weight in model.weights)
    keras.utils.clear_session()  # or the weights would be made by the next scope
    return count


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lenet5, 61_706),
        (lambda: lenet5((32, 32, 3)), 62_006),
        (lambda: lenet5((28, 28, 1), 10), 44_426),
        (lambda: lenet5(classes=2), 61_706 - 8 * 85),
        (vgg16, 134_268_738),
        (lambda: vgg16(classes=1000), 138_357_544),
        (lambda: vgg16((32, 32, 3), 10), 33_638_218),
        (lambda: vgg((4, 4, 1), 2, filters=((2,),), dense=()), 9 * 2 + 2 + 8 * 2 + 2),
    ],
)
def test_the_number_of_parameters_is_that_of_the_course(build, expected):
    assert parameters_without_weights(build) == expected


def test_the_parameters_are_counted_as_keras_counts_them():
    assert parameters_without_weights(lenet5) == lenet5().count_params()


def order(model):
    """The layers of a model, each as its kind and its size."""
    return [
        (type(layer).__name__, getattr(layer, "filters", getattr(layer, "units", None)))
        for layer in model.layers
    ]


def test_lenet5_has_its_layers_in_their_order():
    assert order(lenet5()) == [
        ("Conv2D", 6),
        ("AveragePooling2D", None),
        ("Conv2D", 16),
        ("AveragePooling2D", None),
        ("Flatten", None),
        ("Dense", 120),
        ("Dense", 84),
        ("Dense", 10),
    ]


def test_vgg16_has_its_layers_in_their_order():
    pool = ("MaxPooling2D", None)
    with keras.StatelessScope(initialize_variables=False):
        found = order(vgg16())
    keras.utils.clear_session()
    assert found == [
        *[("Conv2D", 64)] * 2,
        pool,
        *[("Conv2D", 128)] * 2,
        pool,
        *[("Conv2D", 256)] * 3,
        pool,
        *[("Conv2D", 512)] * 3,
        pool,
        *[("Conv2D", 512)] * 3,
        pool,
        ("Flatten", None),
        *[("Dense", 4096)] * 2,
        ("Dense", 2),
    ]


def small_vgg():
    return vgg((8, 8, 3), 4, filters=((2, 2), (3,)), dense=(5,), name="small")


@pytest.mark.parametrize(
    ("build", "kernels", "padding"), [(lenet5, {(5, 5)}, "valid"), (small_vgg, {(3, 3)}, "same")]
)
def test_activations_are_fused_and_the_last_one_gives_probabilities(build, kernels, padding):
    model = build()
    *hidden, last = [layer for layer in model.layers if layer.weights]
    convolutions = [layer for layer in hidden if isinstance(layer, layers.Conv2D)]
    assert {layer.kernel_size for layer in convolutions} == kernels
    assert {layer.padding for layer in convolutions} == {padding}
    assert {layer.activation for layer in hidden} == {keras.activations.relu}
    assert last.activation is keras.activations.softmax
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:]))
    outputs = ops.convert_to_numpy(model(x))
    assert outputs.shape == (3, last.units)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("build", "name"), [(lenet5, "lenet5"), (small_vgg, "small")])
def test_a_network_comes_uncompiled_with_a_name_for_each_layer(build, name):
    first, second = build(), build()
    assert (first.name, first.compiled) == (name, False)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert not any(
        np.array_equal(a, b)
        for a, b in zip(first.get_weights(), second.get_weights(), strict=True)
        if a.ndim > 1
    )


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (f1, 784 * 512 + 512 + 4 * (512 * 513) + 5 * 4 * 512 + 512 * 10 + 10),
        (
            lambda: c1((8, 8, 1)),
            (26 + 1600 + 1 + 8) * 64 + (256 + 1 + 4) * 384 + (384 + 5) * 192 + 1930,
        ),
    ],
)
def test_the_networks_of_keskar_have_the_parameters_of_their_plan(build, expected):
    assert parameters_without_weights(build) == expected


@pytest.mark.parametrize("build", [f1, c1, c2])
def test_each_hidden_layer_of_them_has_normalization_before_its_relu(build):
    model = build((8, 8, 1), 3)
    kinds = [type(layer).__name__ for layer in model.layers]
    for i, kind in enumerate(kinds[:-1]):
        if kind in ("Dense", "Conv2D"):
            assert kinds[i + 1 : i + 3] == ["BatchNormalization", "ReLU"]
    assert model.output_shape == (None, 3)
    outputs = ops.convert_to_numpy(model(np.ones((2, 8, 8, 1), "float32")))
    assert outputs.sum(axis=1) == pytest.approx([1, 1], rel=1e-5)


def test_the_dropout_of_the_convolutional_ones_is_seeded():
    rates = [layer.rate for layer in c1((8, 8, 1)).layers if hasattr(layer, "rate")]
    assert rates == [0.5, 0.5]
    seeds = [layer.seed for layer in c2((8, 8, 1), seed=3).layers if hasattr(layer, "seed")]
    assert seeds == [3] * 4


def test_alexnet_has_normalization_everywhere_and_dropout_behind_dense_layers():
    model = alexnet((32, 32, 3), 10, filters=(2, 3, 4, 5, 6), dense=(7, 8), dropout=0.25, seed=3)
    hidden = ["BatchNormalization", "Activation"]
    pooled = ["Conv2D", *hidden, "MaxPooling2D"]
    dense = ["Dense", *hidden, "Dropout"]
    expected = [*2 * pooled, *2 * ["Conv2D", *hidden], *pooled, "Flatten", *2 * dense]
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == [*expected, "Dense", *hidden]
    assert [x.rate for x in model.layers if isinstance(x, layers.Dropout)] == [0.25, 0.25]
    convolutions = [x for x in model.layers if isinstance(x, layers.Conv2D)]
    assert [(x.kernel_size[0], x.strides[0]) for x in convolutions] == [
        (11, 4), (5, 1), (3, 1), (3, 1), (3, 1)
    ]  # fmt: skip
    assert model.layers[-1].activation is keras.activations.softmax
    outputs = ops.convert_to_numpy(model(np.ones((2, 32, 32, 3), "float32")))
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)


def test_alexnet_and_the_residual_networks_have_the_parameters_of_their_papers():
    kernels = [363, 2400, 2304, 3456, 3456]
    counts = [96, 256, 384, 384, 256]
    expected = sum((k + 5) * c for k, c in zip(kernels, counts, strict=True))
    units = [256, 4096, 4096, 1000, 10]
    expected += sum((a + 5) * b for a, b in zip(units, units[1:], strict=False))
    assert parameters_without_weights(alexnet) == expected
    # The counts that are known of them hold no moving statistics: two for each filter.
    assert parameters_without_weights(resnet18) == 11_689_512 + 2 * 4_800
    assert parameters_without_weights(resnet50) == 25_557_032 + 2 * 26_560


@pytest.mark.parametrize(("bottleneck", "width"), [(False, 1), (True, 4)])
def test_a_residual_network_adds_what_its_blocks_compute(bottleneck, width):
    model = resnet((16, 16, 3), 5, blocks=(2, 1), filters=4, bottleneck=bottleneck, small=True)
    sums = [x for x in model.layers if isinstance(x, layers.Add)]
    assert [x.output.shape for x in sums] == [
        (None, 16, 16, 4 * width), (None, 16, 16, 4 * width), (None, 8, 8, 8 * width)
    ]  # fmt: skip
    for layer in model.layers:  # with kernels of zeros a block gives the ReLU of its input
        if isinstance(layer, layers.Conv2D) and layer.name.startswith("block1_2"):
            layer.kernel.assign(ops.zeros_like(layer.kernel))
    watch = [model.get_layer(f"block1_{i}_relu").output for i in (1, 2)]
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    before, after = keras.Model(model.input, watch)(x)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (before, after)))
    assert float(ops.max(after)) > 0


def test_the_stem_of_large_images_makes_a_quarter_of_them():
    model = resnet((64, 32, 1), 5, blocks=(1,), filters=2)
    assert model.get_layer("stem_relu").output.shape == (None, 32, 16, 2)
    assert model.get_layer("block1_1_relu").output.shape == (None, 16, 8, 2)


def test_four_filters_are_no_alexnet():
    with pytest.raises(ValueError, match="`filters` must be five positive integers"):
        alexnet(filters=(1, 2, 3, 4))
