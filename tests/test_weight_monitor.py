"""What the weights look like, by numpy."""

import json

import keras
import numpy as np
import pytest

import keras_regtools as rt
from keras_regtools.callbacks.weights import weight_statistics

pytestmark = pytest.mark.backends
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 6, 6, 1)).astype("float32"), RNG.integers(0, 3, 32)


def network(penalty=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.SeparableConv2D(4, 3, name="separable"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax", name="out", kernel_regularizer=penalty),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


def kernels(model):
    two = model.get_layer("separable").get_weights()[:2]
    return {
        "separable": np.concatenate([w.ravel() for w in two]),
        "out": model.get_layer("out").get_weights()[0].ravel(),
    }


def test_each_layer_has_the_numbers_of_its_kernels():
    model, monitor, seen = network(), rt.callbacks.WeightMonitor(threshold=0.05), []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(kernels(model)))
    history = model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[monitor, keep]).history
    for name in ("separable", "out"):
        for quantity, expected in {
            "norm": np.linalg.norm,
            "largest": lambda w: np.abs(w).max(),
            "zero_share": lambda w: (w == 0).mean(),
            "small_share": lambda w: (np.abs(w) < 0.05).mean(),
            "percentile_5": lambda w: np.percentile(w, 5),
            "percentile_50": np.median,
            "percentile_95": lambda w: np.percentile(w, 95),
        }.items():
            epochs, values = monitor.records.series(f"kernels/{name}/{quantity}")
            assert epochs == [0, 1, 2]
            np.testing.assert_allclose(
                values, [expected(s[name]) for s in seen], rtol=1e-5, atol=1e-7
            )
        counts = monitor.records.last(f"kernels/{name}/histogram")
        assert sum(counts) == seen[-1][name].size
    whole = [np.concatenate(list(s.values())) for s in seen]
    np.testing.assert_allclose(
        history["kernels/norm"], [np.linalg.norm(w) for w in whole], rtol=1e-5
    )
    expected = [(np.abs(w) < 0.05).mean() for w in whole]
    np.testing.assert_allclose(history["kernels/small_share"], expected, rtol=1e-6)
    assert not [name for name in monitor.records.names() if "/bn/" in name]


def test_zeros_are_told_from_small_weights():
    plain, proximal = (network(rt.regularizers.L1(0.1, proximal=p)) for p in (False, True))
    shares = []
    for model in (plain, proximal):
        monitor = rt.callbacks.WeightMonitor(logs=["kernels/zero_share"])
        model.fit(X, Y, batch_size=8, epochs=6, verbose=0, callbacks=[monitor])
        shares.append(monitor.records.last("kernels/out/zero_share"))
        assert model.history.history["kernels/zero_share"][-1] == pytest.approx(
            np.mean(np.concatenate(list(kernels(model).values())) == 0)
        )
    assert shares[0] == 0
    assert shares[1] > 0.3


def test_statistics_of_many_weights_are_those_of_all():
    w = RNG.normal(size=(300, 400)).astype("float32")
    found = weight_statistics([w, np.zeros(1000)])
    flat = np.concatenate([w.ravel(), np.zeros(1000)])
    assert found["zero_share"] == (flat == 0).mean()
    for q in (5, 50, 95):
        assert found[f"percentile_{q}"] == pytest.approx(np.percentile(flat, q), abs=0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_end_nothing(bad):
    model = network()
    model.get_layer("out").kernel.assign(np.full((64, 3), bad))
    model.compile(keras.optimizers.SGD(0.0), model.loss)
    monitor = rt.callbacks.WeightMonitor(logs="all")
    model.fit(X, Y, verbose=0, callbacks=[monitor])
    assert not np.isfinite(monitor.records.last("kernels/out/norm"))
    assert sum(monitor.records.last("kernels/out/histogram")) == 0


def test_pictures_page_and_tensorboard(tmp_path):
    model = network(rt.regularizers.L1(0.1, proximal=True))
    callbacks = [
        rt.callbacks.WeightMonitor(every=2, tensorboard=tmp_path / "board"),
        rt.callbacks.Report(tmp_path / "run"),
    ]
    model.fit(X, Y, batch_size=8, epochs=5, verbose=0, callbacks=callbacks)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "of the kernels&#39; weights were zero" in page or "kernels' weights were zero" in page
    assert list((tmp_path / "board").rglob("events*"))
    records = rt.records.read(tmp_path / "run" / "records.jsonl")
    assert records.series("kernels/out/norm")[0] == [0, 2, 4]
    ax = rt.plots.kernel_norms(records)
    assert [line.get_label() for line in ax.get_lines()] == ["separable", "out"]
    drawn = rt.plots.kernel_sparsity(records).get_lines()[1].get_ydata()
    np.testing.assert_allclose(drawn, records.series("kernels/out/zero_share")[1])
    json.dumps(records.last("kernels/out/histogram"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -1}, "`threshold` must be a finite number, zero or above"),
        ({"every": 0}, "`every` must be a positive integer"),
        ({"logs": ["norm"]}, "`logs` must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rt.callbacks.WeightMonitor(**settings)
