"""Lines and planes of the loss: closed forms, batch normalization, directions, files."""

import functools
import json
import random

import keras
import numpy as np
import problems
import pytest
from keras import layers, ops
from problems import numbers

import keras_regtools as rt
from keras_regtools import landscape
from keras_regtools.landscape import (
    Directions,
    grid_cache,
    hessian_directions,
    loss_line,
    loss_plane,
    principal_directions,
    random_directions,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 3)).astype("float32")
Y = RNG.integers(0, 2, 24)
TEST = X[::3] + 0.5, Y[::3]
LOSS = "sparse_categorical_crossentropy"


def flat(tensors):
    return rt.vectors.flatten(tensors)


def random_like(tensors, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(tuple(t.shape)) for t in tensors]


# --- functions whose values are a line of numpy ---------------------------------------------------

H, HERE, THERE = np.array([1.0, 10.0]), np.array([1.0, -2.0]), np.array([3.0, 0.5])
AXES = [np.array([1.0, 0.0])], [np.array([0.0, 1.0])]


def quadratic(w):
    return 0.5 * ops.sum(problems.constant(H, w) * ops.square(w))


def closed_form(w):
    return float(0.5 * np.sum(H * w**2))


@functools.cache  # so that it is traced once
def bowl():
    return problems.function_surface(quadratic, HERE)


PATHS = {
    "linear": lambda a: (1 - a) * HERE + a * THERE,
    "curvilinear": lambda a: np.cos(a * np.pi / 2) * HERE + np.sin(a * np.pi / 2) * THERE,
}


@pytest.mark.backends
@pytest.mark.parametrize("path", PATHS)
def test_a_path_between_two_points_of_a_quadratic(path):
    alphas = [-1.0, 0.0, 0.3, 1.0, 2.0]
    with problems.float64():
        surface = problems.function_surface(quadratic, HERE)
        line = loss_line(surface, [THERE], path=path, alphas=alphas)
    rtol = 1e-12 if problems.HAS_FLOAT64 else 1e-5
    np.testing.assert_allclose(line.loss, [closed_form(PATHS[path](a)) for a in alphas], rtol=rtol)
    assert (line.path, line.label) == (path, "α: 0 at the first model, 1 at the second")
    assert (line.accuracy, line.test_loss, line.test_accuracy) == (None, None, None)
    assert (line.batch_norm, line.mode, line.penalties, line.samples) == (
        "none",
        "inference",
        True,
        4,
    )


@pytest.mark.backends
def test_a_plane_of_a_quadratic_has_a_row_for_each_y():
    with problems.float64():
        surface = problems.function_surface(quadratic, HERE)
        plane = loss_plane(surface, AXES, x=[-1, 0, 2], y=[0.5, -3])
    expected = [[closed_form(HERE + (x, y)) for x in (-1, 0, 2)] for y in (-3, 0.5)]
    rtol = 1e-12 if problems.HAS_FLOAT64 else 1e-5
    np.testing.assert_allclose(plane.loss, expected, rtol=rtol)
    assert (plane.x.tolist(), plane.y.tolist()) == ([-1, 0, 2], [-3, 0.5])
    assert (plane.x_label, plane.y_label) == ("direction 1", "direction 2")
    assert plane.trajectory is None


@pytest.mark.backends
def test_a_line_along_a_direction_steps_from_the_weights():
    line = loss_line(bowl(), direction=[THERE], alphas=[1, -0.5, 0])
    assert line.alphas.tolist() == [-0.5, 0, 1]
    expected = [closed_form(HERE + a * THERE) for a in line.alphas]
    np.testing.assert_allclose(line.loss, expected, rtol=1e-5)
    assert (line.path, line.label) == ("direction", "steps along the direction")
    pair = Directions([[THERE], [HERE]], ["gold", "silver"])
    named = loss_line(bowl(), direction=pair, alphas=[1, -0.5, 0])
    assert named.label == "steps along gold"
    np.testing.assert_array_equal(named.loss, line.loss)


def test_positions_by_default():
    between, along = loss_line(bowl(), [THERE]), loss_line(bowl(), direction=[THERE])
    np.testing.assert_allclose(between.alphas, np.linspace(-1, 2, 25))
    np.testing.assert_allclose(along.alphas, np.linspace(-1, 1, 51))
    few = loss_line(bowl(), [THERE], points=4), loss_plane(bowl(), AXES, y=[0, 3], points=4)
    np.testing.assert_allclose(few[0].alphas, [-1, 0, 1, 2])
    np.testing.assert_allclose(few[1].x, np.linspace(-1, 1, 4))
    assert few[1].loss.shape == (2, 4)


def test_a_surface_at_other_weights_is_looked_at_from_there():
    there = bowl().at([THERE])
    line = loss_line(there, direction=[HERE], alphas=[0, 1])
    expected = [closed_form(THERE), closed_form(THERE + HERE)]
    np.testing.assert_allclose(line.loss, expected, rtol=1e-5)
    plane = loss_plane(there, AXES, x=[0, 1], y=[0, 1])
    assert plane.loss[0, 0] == pytest.approx(closed_form(THERE), rel=1e-5)


def test_a_line_as_a_table():
    frame = loss_line(bowl(), [THERE], points=3, test=(np.zeros((2, 1)),) * 2).to_frame()
    assert (list(frame), frame.index.name) == (["loss", "test_loss"], "alpha")
    np.testing.assert_allclose(frame.index, [-1, 0.5, 2])
    assert frame["loss"][0.5] == pytest.approx(closed_form(PATHS["linear"](0.5)), rel=1e-5)


def test_a_result_is_read_only_and_repeats_itself():
    line = loss_line(bowl(), [THERE], points=3)
    assert line == loss_line(bowl(), [THERE], points=3)
    assert line != loss_line(bowl(), [THERE], points=3, path="curvilinear")
    with pytest.raises(ValueError, match="read-only"):
        line.loss[0] = 0
    with pytest.raises(AttributeError):
        line.loss = 0


def test_progress_is_shown_on_request(capsys):
    loss_plane(bowl(), AXES, points=2)
    assert capsys.readouterr().out == ""
    loss_plane(bowl(), AXES, points=2, verbose=1)
    assert "4/4" in capsys.readouterr().out


# --- batch normalization, accuracy, test data -----------------------------------------------------


def classifier(seed=0, *, frozen=(), loss=LOSS):
    keras.utils.set_random_seed(seed)
    gamma = keras.initializers.RandomNormal(1.0, 0.3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "tanh", bias_initializer="random_normal", name="hidden"),
            layers.BatchNormalization(gamma_initializer=gamma, name="bn"),
            layers.Dense(2, "softmax", name="end"),
        ],
        name="net",
    )
    for name in frozen:
        model.get_layer(name).trainable = False
    model.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    return model


@functools.cache
def pair():
    """Two models, and a third one to put weights in between into."""
    return classifier(1), classifier(2), classifier(3)


@functools.cache
def between(mode):
    return rt.LossSurface(pair()[0], X, Y, batch_size=10, mode=mode)


def mixed(alpha):
    first, second = (model.get_weights() for model in pair()[:2])
    return [(1 - alpha) * a + alpha * b for a, b in zip(first, second, strict=True)]


@pytest.mark.backends
def test_each_point_between_two_models_has_moving_statistics_of_its_own():
    first, second, judge = pair()
    expected = []
    for alpha in (0, 0.5, 1):
        judge.set_weights(mixed(alpha))
        rt.recalibrate(judge, X, batch_size=10)
        expected.append([*judge.evaluate(X, Y, verbose=0), *judge.evaluate(*TEST, verbose=0)])
    for target in (second, second.get_weights(), numbers(second.trainable_variables)):
        line = loss_line(between("inference"), target, alphas=[0, 0.5, 1], test=TEST)
        found = np.stack([line.loss, line.accuracy, line.test_loss, line.test_accuracy], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert line.batch_norm == "recalibrate"
    assert len(np.unique(np.round(expected, 3)[:, 0])) == 3  # or the test would show little


@pytest.mark.backends
def test_batch_statistics_are_those_of_a_surface_of_that_mode():
    surface = between("batch_statistics")
    line = loss_line(surface, pair()[1], alphas=[0, 0.5, 1], test=TEST)
    assert (line.batch_norm, line.mode) == ("batch_statistics", "batch_statistics")
    judge = rt.LossSurface(pair()[2], X, Y, batch_size=10, mode="batch_statistics")
    for index, alpha in enumerate(line.alphas):
        there = judge.at(mixed(alpha))
        assert line.loss[index] == pytest.approx(there.value(), rel=1e-5)
        assert line.test_loss[index] == pytest.approx(there.over(*TEST).value(), rel=1e-5)


def test_moving_statistics_as_they_are_only_on_request():
    first, second, _ = pair()
    surface = between("inference")
    moving = loss_line(surface, second, alphas=[0, 1], batch_norm="moving")
    here = dict(zip([v.path for v in first.weights], first.get_weights(), strict=True))
    there = [here[v.path] if "moving" in v.path else v.numpy() for v in second.weights]
    expected = [surface.value(), surface.at(there).value()]
    np.testing.assert_allclose(moving.loss, expected, rtol=1e-6)
    assert moving.batch_norm == "moving"
    asked = loss_line(surface, second, alphas=[0, 1], batch_norm="recalibrate")
    assert asked == loss_line(surface, second, alphas=[0, 1])
    assert np.all(np.abs(asked.loss - moving.loss) > 1e-3)


def test_a_plane_has_accuracy_and_test_data_and_statistics_of_its_own_too():
    surface = between("inference")
    directions = random_directions(surface, seed=4)
    plane = loss_plane(surface, directions, x=[0, 1], y=[0, 2], test=TEST)
    there = rt.vectors.axpy(2.0, directions.vectors[1], surface.params)
    line = loss_line(surface, there, alphas=[0, 1], test=TEST)
    for name in ("loss", "accuracy", "test_loss", "test_accuracy"):
        np.testing.assert_allclose(getattr(plane, name)[:, 0], getattr(line, name), rtol=1e-5)
    assert plane.batch_norm == "recalibrate"


def test_accuracy_is_left_out_where_there_is_none_or_on_request():
    assert loss_line(between("inference"), pair()[1], points=2, accuracy=False).accuracy is None
    assert loss_line(bowl(), [THERE], points=2).accuracy is None
    surface = rt.LossSurface(pair()[0], X, np.eye(2)[Y], loss="mse")
    with pytest.raises(ValueError) as caught:
        loss_line(surface, pair()[1], points=2, accuracy=True)
    assert str(caught.value) == (
        "Expected a model whose accuracy can be computed: one output and a cross-entropy or hinge "
        "loss. Received: the model 'net' with the loss 'meansquarederror'"
    )


class Batched(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[10 * i : 10 * i + 10], Y[10 * i : 10 * i + 10]


def test_data_may_be_a_dataset():
    first, second, _ = pair()
    streamed = rt.LossSurface(first, Batched())
    line = loss_line(streamed, second, alphas=[0, 1], test=Batched())
    arrays = loss_line(between("inference"), second, alphas=[0, 1])
    np.testing.assert_allclose(line.loss, arrays.loss, rtol=1e-5)
    np.testing.assert_array_equal(line.test_loss, line.loss)


def test_the_samples_of_a_dataset_are_told_the_first_time():
    assert loss_line(rt.LossSurface(pair()[0], Batched()), pair()[1], points=2).samples == 24


@pytest.mark.backends
def test_a_line_may_run_through_some_layers_alone():
    first = pair()[0]
    surface = rt.LossSurface(first, X, Y, batch_size=10, layers="end")
    target = first.get_weights()
    target[-2] = target[-2] + 1
    target[-3] = target[-3] + 1  # a moving statistic, which does not matter
    line = loss_line(surface, target, alphas=[0, 1])
    whole = loss_line(between("inference"), target, alphas=[0, 1])
    np.testing.assert_allclose(line.loss, whole.loss, rtol=1e-6)
    target[0] = target[0] + 1
    with pytest.raises(ValueError) as caught:
        loss_line(surface, target, alphas=[0, 1])
    assert str(caught.value) == (
        "Expected `target` to have the same frozen weights as the model. "
        f"Received: another {first.weights[0].path}"
    )


def test_another_gamma_in_a_frozen_batch_normalization_is_refused():
    first, second = classifier(1, frozen=["bn"]), classifier(1, frozen=["bn"])
    second.get_layer("bn").gamma.assign([3.0] * 4)
    with pytest.raises(ValueError, match="same frozen weights"):
        loss_line(rt.LossSurface(first, X, Y), second, points=2)


def test_a_frozen_batch_normalization_does_not_lend_its_statistics_to_the_other_model():
    first, second = classifier(1, frozen=["bn"]), classifier(2, frozen=["bn"])
    second.get_layer("bn").gamma.assign(first.get_layer("bn").gamma)
    second.get_layer("bn").moving_mean.assign([1.0] * 4)
    surface = rt.LossSurface(first, X, Y, mode="batch_statistics")
    expected = rt.LossSurface(second, X, Y, mode="batch_statistics").value()
    try:
        found = loss_line(surface, second, alphas=[0, 1]).loss[1]
    except ValueError:
        return  # to refuse it would do as well
    assert found == pytest.approx(expected, rel=1e-4)


# --- directions -----------------------------------------------------------------------------------


@functools.cache
def convolutional():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(3, 2, bias_initializer="random_normal"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2, "softmax", bias_initializer="random_normal"),
        ]
    )
    images = RNG.standard_normal((6, 5, 5, 2))
    return rt.LossSurface(model, images, Y[:6], loss=LOSS)


def lengths_of_filters(tensor):
    return np.linalg.norm(tensor.reshape(-1, tensor.shape[-1]), axis=0)


@pytest.mark.backends
def test_each_filter_of_a_random_direction_is_as_long_as_that_of_the_weights():
    surface = convolutional()
    found = random_directions(surface, 2, seed=5)
    assert found.labels == [f"filter-normalised random direction {i}" for i in (1, 2)]
    assert found.trajectory is None
    plain = random_directions(surface, 2, seed=5, normalize=None)
    assert plain.labels == ["random direction 1", "random direction 2"]
    for direction, drawn in zip(found.vectors, plain.vectors, strict=True):
        for d, raw, w in zip(*map(numbers, (direction, drawn, surface.params)), strict=True):
            if w.ndim == 1:  # biases and batch normalization
                assert not d.any()
                continue
            lengths = lengths_of_filters(w)
            np.testing.assert_allclose(lengths_of_filters(d), lengths, rtol=1e-5)
            np.testing.assert_allclose(d, raw * lengths / lengths_of_filters(raw), rtol=1e-4)
    drawn = np.concatenate([flat(v) for v in plain.vectors])
    assert (np.mean(drawn), np.std(drawn)) == pytest.approx((0, 1), abs=0.25)


def test_a_layer_normalised_direction_has_the_length_of_each_variable():
    surface = convolutional()
    found = random_directions(surface, 1, normalize="layer")
    assert found.labels == ["layer-normalised random direction 1"]
    lengths = [[np.linalg.norm(t) for t in numbers(v)] for v in (*found.vectors, surface.params)]
    np.testing.assert_allclose(*lengths, rtol=1e-5, atol=1e-7)


def test_the_same_seed_draws_the_same_directions():
    draws = [random_directions(convolutional(), 2, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (np.stack([flat(v) for v in d.vectors]) for d in draws)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first[0], first[1])
    # The same on every backend: what numpy's generator gives for the first kernel, as long as w.
    kernel = np.random.default_rng(1).standard_normal((2, 2, 2, 3))
    kernel = kernel * lengths_of_filters(numbers(convolutional().params)[0])
    expected = kernel / lengths_of_filters(np.random.default_rng(1).standard_normal((2, 2, 2, 3)))
    np.testing.assert_allclose(first[0][:24], expected.ravel(), rtol=1e-4)


def test_a_filter_of_zeros_stays_where_it_is():
    surface = problems.function_surface(lambda w: ops.sum(w), [[0.0, 3.0], [0.0, 4.0]])
    ((direction,),) = random_directions(surface, 1).vectors
    np.testing.assert_allclose(lengths_of_filters(ops.convert_to_numpy(direction)), [0, 5])


@pytest.mark.slow
@pytest.mark.backends
def test_hessian_directions_are_the_top_eigenvectors():
    surface = problems.tilted_bowl()  # eigenvalues 3.5 and 0.5 along (1, -1) and (1, 1)
    found = hessian_directions(surface, tolerance=1e-4)
    assert found.labels == ["eigenvector 1 (λ = 3.5)", "eigenvector 2 (λ = 0.5)"]
    for vector, expected in zip(found.vectors, ((1, -1), (1, 1)), strict=True):
        assert abs(flat(vector) @ expected) == pytest.approx(np.sqrt(2), rel=1e-3)
        assert np.linalg.norm(flat(vector)) == pytest.approx(1, rel=1e-4)


@pytest.mark.slow
def test_planes_by_name_are_those_of_the_directions():
    surface = convolutional()
    grid = {"x": [0, 1], "y": [0, 1], "accuracy": False}
    drawn = loss_plane(surface, seed=3, **grid)
    assert drawn == loss_plane(surface, random_directions(surface, seed=3), **grid)
    assert drawn.x_label == "filter-normalised random direction 1"
    tilted = problems.tilted_bowl()
    curved = loss_plane(tilted, "hessian", x=[0, 2], y=[0, 2])
    np.testing.assert_allclose(curved.loss - curved.loss[0, 0], [[0, 7], [1, 8]], atol=1e-2)
    assert curved.y_label == "eigenvector 2 (λ = 0.5)"


@functools.cache
def walked():
    """A surface at the end of a walk, and the walk: far in one direction, less far in others."""
    surface = rt.LossSurface(pair()[0], X, Y)
    rng, end = np.random.default_rng(3), numbers(surface.params)
    ways = [[rng.standard_normal(w.shape) for w in end] for _ in range(3)]
    steps = rng.standard_normal((6, 3)) * (3.0, 1.0, 0.2)
    steps[-1] = 0
    walk = [
        [w + sum(c * d[i] for c, d in zip(step, ways, strict=True)) for i, w in enumerate(end)]
        for step in steps
    ]
    return surface, [[w.astype("float32") for w in point] for point in walk]


def moves_of(surface, walk):
    return np.stack([flat(point) - flat(surface.params) for point in walk])


@pytest.mark.backends
def test_principal_directions_are_the_singular_vectors_of_the_movement():
    surface, walk = walked()
    moves = moves_of(surface, walk)
    u, s, v = np.linalg.svd(moves, full_matrices=False)
    found = principal_directions(surface, walk, k=3)
    basis = np.stack([flat(d) for d in found.vectors])
    np.testing.assert_allclose(np.abs(np.sum(basis * v[:3], axis=1)), 1, rtol=1e-4)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(np.abs(found.trajectory), np.abs(u * s)[:, :3], atol=1e-3)
    np.testing.assert_allclose(found.trajectory @ basis, moves, atol=1e-3)  # the signs agree
    shares = 100 * s**2 / np.sum(s**2)
    assert found.labels == [
        f"principal direction {i + 1} ({shares[i]:.0f} % of the movement)" for i in range(3)
    ]


def test_a_plane_of_principal_directions_goes_as_far_as_the_training_and_a_quarter_more():
    surface, walk = walked()
    found = principal_directions(surface, walk)
    plane = loss_plane(surface, found, points=2, accuracy=False)
    np.testing.assert_array_equal(plane.trajectory, found.trajectory)
    assert (plane.x_label, plane.y_label) == tuple(found.labels)
    for axis, path in ((plane.x, found.trajectory[:, 0]), (plane.y, found.trajectory[:, 1])):
        low, high = min(path.min(), 0), max(path.max(), 0)
        quarter = (high - low) / 4
        np.testing.assert_allclose(axis, [low - quarter, high + quarter])


def test_a_trajectory_is_drawn_where_it_lies_by_least_squares():
    surface = problems.function_surface(lambda w: ops.sum(w), [1.0, 2.0, 3.0])
    first, second, aside = np.array([2.0, 0, 0]), np.array([1.0, 1, 0]), np.array([0.0, 0, 5])
    steps = np.array([(2.0, -1.0), (0.5, 3.0)])  # the model itself is not among them
    walk = [[[1.0, 2.0, 3.0] + a * first + b * second + aside] for a, b in steps]
    plane = loss_plane(surface, [[first], [second]], trajectory=walk, points=2)
    np.testing.assert_allclose(plane.trajectory, steps, atol=1e-5)
    np.testing.assert_allclose(plane.x, [-1, 2.5], atol=1e-5)  # as far as without it at least
    kept = Directions([[first], [second]], ["a", "b"], trajectory=steps + 1)
    own = loss_plane(surface, kept, trajectory=walk, points=2)  # the one that is given counts
    np.testing.assert_allclose(own.trajectory, steps, atol=1e-5)


def test_a_fits_own_trajectory_spans_a_plane_that_ends_at_the_model():
    model = classifier(4)
    trajectory = rt.callbacks.WeightTrajectory()
    model.fit(X, Y, batch_size=8, epochs=3, callbacks=[trajectory], verbose=0)
    surface = rt.LossSurface(model, X, Y)
    plane = loss_plane(surface, principal_directions(surface, trajectory), points=2)
    assert plane.trajectory.shape == (4, 2)
    np.testing.assert_allclose(plane.trajectory[-1], 0, atol=1e-6)
    moves = moves_of(surface, trajectory.weights)
    lengths = np.linalg.norm(plane.trajectory, axis=1)
    assert np.all(lengths <= np.linalg.norm(moves, axis=1) * (1 + 1e-4) + 1e-6)
    assert lengths[0] > 0.9 * np.linalg.norm(moves[0])
    drawn = loss_plane(surface, "random", trajectory=trajectory, points=2, accuracy=False)
    assert drawn.trajectory.shape == (4, 2)


def test_a_straight_walk_has_no_second_principal_direction():
    surface, _ = walked()
    end, way = numbers(surface.params), random_like(surface.params)
    walk = [[w + c * d for w, d in zip(end, way, strict=True)] for c in (3.0, 1.7, 0.4)]
    assert len(principal_directions(surface, walk, k=1).vectors) == 1
    with pytest.raises(ValueError) as caught:
        principal_directions(surface, walk)
    assert str(caught.value) == (
        "Expected a trajectory that moved in at least 2 independent directions. "
        "Received: 3 points, in 1"
    )


@pytest.mark.parametrize(
    "find", [principal_directions, lambda s, t: loss_plane(s, AXES, trajectory=t)]
)
def test_a_trajectory_that_was_not_recorded_is_refused(find):
    with pytest.raises(ValueError) as caught:
        find(bowl(), rt.callbacks.WeightTrajectory())
    assert str(caught.value) == (
        "Expected a trajectory of at least one point. Received: one that holds none; "
        "`callbacks.WeightTrajectory` records it during a fit"
    )


# --- files ----------------------------------------------------------------------------------------

POINTS = 6  # of each grid below; none of them is where the model is
GRIDS = {
    "line": lambda file, **more: loss_line(
        bowl(),
        **{"direction": [THERE], "alphas": [-3, -2, -1, 1, 2, 3], "file": file, **more},
    ),
    "plane": lambda file, **more: loss_plane(
        bowl(), **{"directions": AXES, "x": [-1, 1, 2], "y": [1, 3], "file": file, **more}
    ),
}


@pytest.fixture(params=GRIDS)
def grid(request):
    return GRIDS[request.param]


class Evaluations:
    """Counts the points that are evaluated and does something at some of them."""

    def __init__(self, monkeypatch, then=lambda count: None):
        self.count, value = 0, rt.LossSurface.value

        def counting(surface, params=None):
            if not np.array_equal(flat(params), HERE):  # where the data are recognised
                then(self.count)
                self.count += 1
            return value(surface, params)

        monkeypatch.setattr(rt.LossSurface, "value", counting)


def interrupt_after(points):
    def then(count):
        if count == points:
            raise KeyboardInterrupt

    return then


@pytest.mark.backends
@pytest.mark.parametrize("points", [0, 2, 5])
def test_an_interrupted_grid_keeps_its_points_and_goes_on_from_there(
    grid, points, tmp_path, monkeypatch
):
    file = tmp_path / "runs" / "grid.npz"
    with monkeypatch.context() as patch:
        Evaluations(patch, interrupt_after(points))
        with pytest.raises(KeyboardInterrupt):
            grid(file)
    with np.load(file, allow_pickle=False) as kept:
        assert np.sum(kept["done"]) == points
        assert np.sum(np.isfinite(kept["loss"])) == points
        np.testing.assert_array_equal(np.isfinite(kept["loss"]), kept["done"])
    partial = landscape.load(file)
    evaluations = Evaluations(monkeypatch)
    finished = grid(str(file))
    assert evaluations.count == POINTS - points
    assert finished == grid(None)
    done = np.isfinite(partial.loss)
    np.testing.assert_array_equal(partial.loss[done], finished.loss[done])


def test_a_finished_file_is_read_and_no_point_is_evaluated(grid, tmp_path, monkeypatch):
    file = tmp_path / "grid.npz"
    first = grid(file)
    evaluations = Evaluations(monkeypatch)
    assert grid(file) == first
    assert evaluations.count == 0
    assert landscape.load(file) == first
    assert type(landscape.load(file)) is type(first)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.npz"]


def test_a_file_grows_while_it_is_computed(grid, tmp_path, monkeypatch):
    file, seen = tmp_path / "grid.npz", []
    monkeypatch.setattr(grid_cache, "_SECONDS", -1.0)
    Evaluations(monkeypatch, lambda count: seen.append(count and np.sum(np.load(file)["done"])))
    grid(file)
    assert seen == list(range(POINTS))


def test_numpy_reads_a_file_without_us(tmp_path):
    file = tmp_path / "plane.npz"
    walk = [[HERE + (4, 1)], [HERE]]
    GRIDS["plane"](file, trajectory=walk, test=(np.zeros((2, 1)),) * 2)
    with np.load(file, allow_pickle=False) as held:
        assert set(held.files) == {
            "x",
            "y",
            "trajectory",
            "loss",
            "test_loss",
            "done",
            "kind",
            "settings",
            "same",
        }
        assert held["loss"].shape == (2, 3)
        assert held["loss"][1, 0] == pytest.approx(closed_form(HERE + (-1, 3)), rel=1e-5)
        np.testing.assert_allclose(held["trajectory"], [(4, 1), (0, 0)], atol=1e-5)
        assert str(held["kind"]) == "plane"
        assert json.loads(str(held["settings"])) == {
            "x_label": "direction 1",
            "y_label": "direction 2",
            "batch_norm": "none",
            "evaluations": 12,
            "batch_size": 256,
            "mode": "inference",
            "penalties": True,
            "samples": 4,
        }
    assert landscape.load(file) == GRIDS["plane"](
        None, trajectory=walk, test=(np.zeros((2, 1)),) * 2
    )


TWO = (np.zeros((2, 1)),) * 2
OTHERS = {  # what is asked of a file, and how it is made otherwise
    "line": [
        ("weights", lambda file: GRIDS["line"](file, direction=[HERE])),
        ("positions", lambda file: GRIDS["line"](file, alphas=[-3, -2, -1, 1, 2, 3.5])),
        ("quantities", lambda file: GRIDS["line"](file, test=TWO)),
        ("path", lambda file: GRIDS["line"](file, direction=None, target=[THERE])),
        (
            "weights, data",
            lambda file: loss_line(
                bowl().at([THERE]), direction=[THERE], alphas=[-3, -2, -1, 1, 2, 3], file=file
            ),
        ),
        (
            "data",
            lambda file: loss_line(
                problems.function_surface(lambda w: 2 * quadratic(w), HERE),
                direction=[THERE],
                alphas=[-3, -2, -1, 1, 2, 3],
                file=file,
            ),
        ),
        ("positions, path, weights", lambda file: GRIDS["plane"](file)),
    ],
    "plane": [
        ("directions", lambda file: GRIDS["plane"](file, directions=[[THERE], AXES[1]])),
        ("directions", lambda file: GRIDS["plane"](file, directions=[AXES[0], [THERE]])),
        ("positions", lambda file: GRIDS["plane"](file, x=[-1, 1, 3])),
        ("positions", lambda file: GRIDS["plane"](file, x=[1, 3], y=[-1, 1, 2])),
        ("quantities", lambda file: GRIDS["plane"](file, test=TWO)),
        ("positions, weights, directions", lambda file: GRIDS["line"](file)),
    ],
}
REFUSED = [(kind, *row) for kind, rows in OTHERS.items() for row in rows]


@pytest.mark.parametrize(("kind", "other", "make"), REFUSED)
def test_a_file_of_something_else_is_refused_and_stays(kind, other, make, tmp_path):
    file = tmp_path / "grid.npz"
    make(file)
    before = file.read_bytes()
    with pytest.raises(ValueError) as caught:
        GRIDS[kind](file)
    assert str(caught.value) == (
        "Expected `file` to be new, or to hold a part of the same grid. Received: "
        f"{str(file)!r}, made with other {other}"
    )
    assert file.read_bytes() == before


def test_a_file_of_other_statistics_is_refused(tmp_path):
    file = tmp_path / "line.npz"
    arguments = {"target": pair()[1], "alphas": [0, 1], "accuracy": False, "file": file}
    loss_line(between("inference"), **arguments)
    for surface, batch_norm, other in (
        (between("inference"), "moving", "batch_norm, data"),
        (between("batch_statistics"), "auto", "batch_norm, mode, data"),
    ):
        with pytest.raises(ValueError) as caught:
            loss_line(surface, batch_norm=batch_norm, **arguments)
        assert str(caught.value) == (
            "Expected `file` to be new, or to hold a part of the same grid. Received: "
            f"{str(file)!r}, made with other {other}"
        )


def test_a_file_of_other_test_data_is_refused(tmp_path):
    arguments = {"target": pair()[1], "alphas": [0, 1], "file": tmp_path / "line.npz"}
    loss_line(between("inference"), test=TEST, **arguments)
    with pytest.raises(ValueError, match="made with other data"):
        loss_line(between("inference"), test=(TEST[0][:4], TEST[1][:4]), **arguments)


def test_a_line_from_where_the_loss_is_no_number_is_gone_on_with_too(tmp_path):
    surface = problems.function_surface(lambda w: ops.sum(ops.sqrt(w)), [-1.0])
    arguments = {"direction": [np.ones(1)], "alphas": [0, 5], "file": tmp_path / "line.npz"}
    first = loss_line(surface, **arguments)
    assert loss_line(surface, **arguments) == first


def test_a_file_of_another_program_is_refused(tmp_path):
    file = tmp_path / "other.npz"
    np.savez(file, a=np.zeros(3))
    for use in (GRIDS["line"], landscape.load):
        with pytest.raises(ValueError) as caught:
            use(file)
        assert str(caught.value) == (
            f"Expected a file of a line or a plane. Received: {str(file)!r} with the arrays ['a']"
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"a diary"])
def test_a_torn_file_is_one_sentence(tmp_path, content):
    file = tmp_path / "torn.npz"
    file.write_bytes(content)
    for use in (GRIDS["line"], landscape.load):
        with pytest.raises(ValueError, match="Expected a whole `.npz` file of a landscape"):
            use(file)


def test_a_file_with_arrays_of_other_shapes_is_one_sentence(tmp_path):
    file = tmp_path / "line.npz"
    GRIDS["line"](file)
    with np.load(file) as whole:
        arrays = {**whole, "loss": whole["loss"][:-1]}
    np.savez(file, **arrays)
    for use in (GRIDS["line"], landscape.load):
        with pytest.raises(ValueError, match="with arrays of the shapes"):
            use(file)


# --- nothing is written, nothing is traced again --------------------------------------------------


def chance():
    return random.random(), np.random.rand(), *numbers([keras.random.normal((2,))])[0]


@pytest.mark.backends
@pytest.mark.parametrize("mode", problems.rows(["inference", "training"], "training"))
def test_lines_planes_and_directions_leave_every_variable_seed_and_slot_as_it_was(mode):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "tanh", kernel_regularizer=rt.regularizers.L2(0.1)),
            rt.layers.InstrumentedBatchNormalization(),
            layers.Dropout(0.5, seed=3),
            layers.Dense(2, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    model.fit(X, Y, verbose=0)
    everything = [*model.variables, *model.optimizer.variables]
    everything += [v for metric in model.metrics for v in metric.variables]
    before = numbers(everything)
    keras.utils.set_random_seed(7)
    expected = chance()
    keras.utils.set_random_seed(7)
    surface = rt.LossSurface(model, X, Y, mode=mode, batch_size=10)
    target = [2 * w for w in model.get_weights()]
    lines = [loss_line(surface, target, points=2, test=TEST) for _ in range(2)]
    plane = loss_plane(
        surface, hessian_directions(surface, 2, max_products=4, tolerance=0.9), points=2
    )
    assert np.all(np.isfinite(plane.loss))
    assert lines[0] == lines[1]
    assert chance() == expected
    for a, b in zip(numbers(everything), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all("call" not in vars(layer) for layer in model.layers)


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="traces nothing, ever")
def test_nothing_is_traced_again_from_point_to_point():
    traces = []

    class Counting(layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs * 1.0

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), Counting(), layers.BatchNormalization(), layers.Dense(2, "softmax")]
    )
    surface = rt.LossSurface(model, X, Y, loss=LOSS, batch_size=10)  # the last batch is smaller
    loss_line(surface, [2 * p for p in surface.params], points=2, test=TEST)
    counts = []
    for points in (2, 7):
        traces.clear()
        loss_line(surface, [2 * p for p in surface.params], points=points, test=TEST)
        counts.append(len(traces))
    assert counts[0] == counts[1] < 7


# --- bad input ------------------------------------------------------------------------------------

SHAPES = [(3, 4), (4,), (4,), (4,), (4,), (4,), (4, 2), (2,)]
STRUCTURE = (
    "Expected `{name}` to have the structure of the model 'net', weights of the shapes "
    f"{SHAPES}. Received: shapes {{shapes}}"
)
OTHER_SHAPE = [(2,), (3,)]


def net():
    return between("inference")


BAD = {
    "neither": (
        lambda: loss_line(bowl()),
        "Expected either a `target` or a `direction`. Received: neither",
    ),
    "both": (
        lambda: loss_line(bowl(), [THERE], direction=[THERE]),
        "Expected either a `target` or a `direction`. Received: both",
    ),
    "a path that does not exist": (
        lambda: loss_line(bowl(), [THERE], path="straight"),
        "Argument `path` must be one of 'linear', 'curvilinear'. Received: path='straight'",
    ),
    "a curve along a direction": (
        lambda: loss_line(bowl(), direction=[THERE], path="curvilinear"),
        "Expected `path='linear'` along a direction. Received: path='curvilinear'",
    ),
    "a target of another structure": (
        lambda: loss_line(net(), [np.ones(2), np.ones(3)]),
        STRUCTURE.format(name="target", shapes=OTHER_SHAPE),
    ),
    "a direction of another structure": (
        lambda: loss_line(net(), direction=[np.ones(2), np.ones(3)]),
        STRUCTURE.format(name="direction", shapes=OTHER_SHAPE),
    ),
    "directions of another structure": (
        lambda: loss_plane(net(), [[np.ones(2), np.ones(3)]] * 2),
        STRUCTURE.format(name="directions", shapes=OTHER_SHAPE),
    ),
    "a trajectory of another structure": (
        lambda: principal_directions(net(), [[np.ones(2), np.ones(3)]]),
        "Expected a trajectory of weights of the shapes "
        f"{[*SHAPES[:4], *SHAPES[6:]]}. Received: shapes {OTHER_SHAPE}",
    ),
    "a direction of no length": (
        lambda: loss_line(bowl(), direction=[np.zeros(2)]),
        "Expected a direction that is not zero. Received: `direction`, of length 0",
    ),
    "a second direction of no length": (
        lambda: loss_plane(bowl(), [[THERE], [np.zeros(2)]]),
        "Expected a direction that is not zero. Received: direction 2, of length 0",
    ),
    "random directions of weights that are zero": (
        lambda: random_directions(bowl().at([np.zeros(2)]), normalize="layer"),
        "Expected a direction that is not zero. Received: random directions as long as the "
        "weights, of length 0",
    ),
    "random directions without a kernel": (
        lambda: loss_plane(bowl()),
        "Expected a direction that is not zero. Received: random directions as long as the "
        "weights, of length 0",
    ),
    "parallel directions": (
        lambda: loss_plane(bowl(), [[THERE], [-2 * THERE]]),
        "Expected two directions that span a plane. Received: parallel ones",
    ),
    "one direction": (
        lambda: loss_plane(bowl(), [[THERE]]),
        "Expected two directions. Received: 1",
    ),
    "directions of an unknown name": (
        lambda: loss_plane(bowl(), "principal"),
        "Argument `directions` must be one of 'random', 'hessian'. "
        "Received: directions='principal'",
    ),
    "an unknown normalisation": (
        lambda: random_directions(bowl(), normalize="weight"),
        "Argument `normalize` must be one of 'filter', 'layer', None. Received: normalize='weight'",
    ),
    "no directions": (
        lambda: random_directions(bowl(), 0),
        "Argument `k` must be a positive integer. Received: k=0 (of type <class 'int'>)",
    ),
    "one point at most": (
        lambda: loss_line(bowl(), [THERE], alphas=[0.5, 0.5]),
        "Expected `alphas` to be at least two different finite numbers. "
        "Received: alphas=[0.5, 0.5]",
    ),
    "one position that is not in a list": (
        lambda: loss_line(bowl(), [THERE], alphas=0.5),
        "Expected `alphas` to be at least two different finite numbers. Received: alphas=0.5",
    ),
    "a position that is not finite": (
        lambda: loss_plane(bowl(), AXES, y=[0, np.inf]),
        "Expected `y` to be at least two different finite numbers. Received: y=[0.0, inf]",
    ),
    "a grid of one point": (
        lambda: loss_plane(bowl(), AXES, points=1),
        "Argument `points` must be an integer, 2 or above. "
        "Received: points=1 (of type <class 'int'>)",
    ),
    "a grid of no point": (
        lambda: loss_line(bowl(), [THERE], points=0),
        "Argument `points` must be an integer, 2 or above. "
        "Received: points=0 (of type <class 'int'>)",
    ),
    "an unknown treatment of batch normalization": (
        lambda: loss_line(net(), pair()[1], batch_norm="stale"),
        "Argument `batch_norm` must be one of 'auto', 'recalibrate', 'moving', "
        "'batch_statistics'. Received: batch_norm='stale'",
    ),
    "batch statistics in inference": (
        lambda: loss_line(net(), pair()[1], batch_norm="batch_statistics"),
        "Expected `batch_norm` to fit the surface's mode: 'recalibrate' or 'moving' for "
        "'inference', 'batch_statistics' for the others. "
        "Received: batch_norm='batch_statistics' and a surface of mode 'inference'",
    ),
    "moving statistics beside those of batches": (
        lambda: loss_plane(between("batch_statistics"), batch_norm="moving"),
        "Expected `batch_norm` to fit the surface's mode: 'recalibrate' or 'moving' for "
        "'inference', 'batch_statistics' for the others. "
        "Received: batch_norm='moving' and a surface of mode 'batch_statistics'",
    ),
    "accuracy of what does not classify": (
        lambda: loss_plane(bowl(), AXES, accuracy=True),
        "Expected a model whose accuracy can be computed: one output and a cross-entropy or hinge "
        "loss. Received: the model {name!r} with the loss 'meanprediction'",
    ),
    "too few points of a trajectory": (
        lambda: principal_directions(bowl(), [[THERE]]),
        "Expected a trajectory that moved in at least 2 independent directions. "
        "Received: 1 points, in 1",
    ),
    "a trajectory that stood still": (
        lambda: principal_directions(bowl(), [[HERE], [HERE]], k=1),
        "Expected a trajectory that moved in at least 1 independent direction. "
        "Received: 2 points, in 0",
    ),
    "a file of another kind": (
        lambda: loss_line(bowl(), [THERE], file="line.h5"),
        "Expected `file` to end in '.npz'. Received: file='line.h5'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message.replace("{name!r}", repr(bowl().model.name))


def test_frozen_weights_that_differ_are_refused():
    first, second = classifier(1, frozen=["hidden"]), classifier(2, frozen=["hidden"])
    surface = rt.LossSurface(first, X, Y)
    with pytest.raises(ValueError) as caught:
        loss_line(surface, second)
    assert str(caught.value) == (
        "Expected `target` to have the same frozen weights as the model. "
        "Received: another net/hidden/kernel"
    )
    second.get_layer("hidden").set_weights(first.get_layer("hidden").get_weights())
    assert loss_line(surface, second, alphas=[0, 1]).loss[0] != 0


@pytest.mark.parametrize("mode", ["inference", "batch_statistics"])
def test_frozen_batch_normalization_alone_is_told(mode):
    surface = rt.LossSurface(classifier(1, frozen=["bn"]), X, Y, mode=mode)
    line = loss_line(surface, direction=rt.landscape.random_directions(surface, 1), points=2)
    assert line.batch_norm == "frozen"
    assert line.scalars()["evaluations"] == 2


def test_an_eigenvector_that_is_not_converged_says_how_far_off_it_may_be():
    surface = net()
    rough = hessian_directions(surface, 2, max_products=3)
    assert all(" ± " in label for label in rough.labels[1:])
    assert not any("±" in label for label in hessian_directions(surface, 2).labels)
