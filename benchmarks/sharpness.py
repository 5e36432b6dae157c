"""Keskar's sharpness: its time beside its gradients, its memory, and its share of a fit.

Times are taken in turn in one run, on two cores; memory in fresh processes.
"""

import functools
import json
import subprocess
import sys
import time

import _onednn  # noqa: F401
import fresh
import keras
import machine
import numpy as np

import keras_regtools as rt
from keras_regtools.optimize import minimize_in_unit_box

TIME = ["network", "measure", "seconds", "evaluations", "over its gradient evaluations"]
MEMORY = ["measure", "peak beyond that of a gradient, in arrays of the weights (4 bytes each)"]
SHARE = ["batch size", "epochs", "measured", "seconds of the fit", "of which sharpness", "share"]
KINDS = {
    "full space, L-BFGS-B": {"solver": "l-bfgs-b"},
    "full space, projected gradient": {"solver": "projected_gradient"},
    "subspace of 100": {"subspace": 100},
}
ALONE = "L-BFGS-B alone, of a function that needs no memory"
UNITS = 1900  # of the two hidden layers of the network whose memory is measured


def times(args):
    """The time of each kind over that of as many gradients, taken between its own."""
    from networks import chosen, surface_of, trained

    rows = []
    networks, data = chosen(args)
    subjects = {name: surface_of(*trained(name, data, args.cache)) for name in networks}
    if args.network == "both":
        subjects["f1, 1,024 images"] = many_weights_and_few_images(data)
    for network, surface in subjects.items():
        for name, settings in KINDS.items():
            calls = {
                "gradient": surface.value_and_gradient,
                "sharpness": functools.partial(rt.measures.keskar_sharpness, surface, **settings),
                "gradient again": surface.value_and_gradient,
            }
            taken, results = machine.in_turn(calls, args.repeats)
            evaluations = results["sharpness"][0].evaluations
            pairs = zip(taken["gradient"], taken["gradient again"], strict=True)
            gradients = [evaluations * (a + b) / 2 for a, b in pairs]
            row = [
                network,
                name,
                machine.spread(taken["sharpness"]),
                evaluations,
                machine.spread(machine.ratios(taken["sharpness"], gradients)),
            ]
            rows.append(row)
            machine.progress(machine.table(TIME, [row]))
    return rows


def many_weights_and_few_images(data):
    """Keskar's F1 where its gradient is cheap, so that all else is seen."""
    from networks import images

    x, y = images(data)
    model = rt.applications.f1(x.shape[1:])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=64, verbose=0)
    return rt.LossSurface(model, x[:1024], y[:1024], mode="batch_statistics")


def memory():
    """The peak memory of each kind, in a fresh process each."""
    rows = []
    for name in (*KINDS, ALONE):
        arguments = [sys.executable, __file__, "--memory-of", name]
        output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        rows.append([name, f"{found['beyond'] / found['weights']:.1f}"])
        machine.progress(machine.table(MEMORY, rows[-1:]))
    return rows, found["weights"] // 4


def memory_of(name):
    """Print the peak memory of one kind beyond that of a gradient, in bytes."""
    machine.pin()
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(2):
        model.add(keras.layers.Dense(UNITS, activation="relu"))
    model.add(keras.layers.Dense(10, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((256, 64)).astype("float32"), rng.integers(0, 10, 256)
    surface = rt.LossSurface(model, x, y)
    rt.measures.keskar_sharpness(rt.LossSurface(model, x[:1], y[:1]), subspace=1, iterations=1)
    surface.value_and_gradient()
    peaks = []
    for call in (
        surface.value_and_gradient,
        lambda: alone(model.count_params()) if name == ALONE else of(surface, name),
    ):
        fresh.forget_peak()
        before = fresh.peak()
        call()
        peaks.append(fresh.peak() - before)
    weights = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    beyond = peaks[1] - (0 if name == ALONE else peaks[0])
    print(json.dumps({"beyond": beyond, "weights": weights}))


def of(surface, name):
    return rt.measures.keskar_sharpness(surface, iterations=3, **KINDS[name])


def alone(size):
    def bowl(z, gradient):
        np.negative(z, out=gradient)
        return -0.5 * float(z @ z)

    minimize_in_unit_box(bowl, np.random.default_rng(0).uniform(-1, 1, size), 3, [0])


def shares(args):
    """The share of `callbacks.Sharpness` at its defaults in fits of LeNet-5."""
    from networks import chosen

    _, data = chosen(args)
    if data == "fashion_mnist":
        (x, y), _ = keras.datasets.fashion_mnist.load_data()
        x = np.pad(x[..., None].astype("float32") / 255, ((0, 0), (2, 2), (2, 2), (0, 0)))
    else:
        from networks import images

        x, y = images(data)
    rows = []
    for batch_size in (32, 128, 512):
        keras.utils.set_random_seed(0)
        model = rt.applications.lenet5()
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        sharpness = rt.callbacks.Sharpness(x, y)
        begin = time.perf_counter()
        model.fit(x, y, batch_size=batch_size, epochs=args.epochs, callbacks=[sharpness], verbose=0)
        total = time.perf_counter() - begin
        measured = len(sharpness.records.series("sharpness/keskar")[0])
        share = f"{100 * sharpness.seconds / total:.1f} %"
        rows.append(
            [batch_size, args.epochs, measured, f"{total:.1f}", f"{sharpness.seconds:.1f}", share]
        )
        machine.progress(machine.table(SHARE, rows[-1:]))
    return rows, data, len(x)


def main():
    if sys.argv[1:2] == ["--memory-of"]:
        memory_of(sys.argv[2])
        return
    from networks import options

    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of the fits (default: %(default)s)")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/sharpness.md too"
    )
    args = parser.parse_args()
    machine.pin()
    own = times(args)
    peaks, weights = memory()
    parts, data, samples = shares(args)
    text = "\n\n".join(
        [
            "# Sharpness",
            machine.provenance(),
            "## Time",
            "Keskar's sharpness at its defaults (10 iterations); median (min-max) of "
            f"{args.repeats} turns.",
            machine.table(TIME, own),
            "## Memory",
            f"A network of {weights:,} weights in a fresh process, three iterations.",
            machine.table(MEMORY, peaks),
            "## Share of a fit",
            f"`callbacks.Sharpness(x, y)` at its defaults, LeNet-5, {samples:,} images of {data}; "
            "the first one includes the tracing.",
            machine.table(SHARE, parts),
        ]
    )
    print(text)
    if args.write:
        machine.write("sharpness.md", f"{text}\n")


if __name__ == "__main__":
    main()
