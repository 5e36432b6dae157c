"""What instruments cost at the beginning of a fit, and what twenty fits leave in memory.

`python benchmarks/beginning.py --write` prints and keeps the tables. Each first epoch is timed in a
process of its own, plain and instrumented in turn.
"""

import _onednn  # noqa: F401  # isort: skip
import argparse
import json
import os
import subprocess
import sys
import time

import machine

KINDS = ("plain", "instrumented", "instrumented, GradientMonitor")
NETWORKS = ("lenet5", "mobilenet_v2")


def made(network, kind, xla):
    """A compiled model, its data and its callbacks."""
    import keras
    import numpy as np

    import keras_regtools as rt

    keras.utils.set_random_seed(0)
    if network == "lenet5":
        model = rt.regularize(rt.applications.lenet5(), batch_norm=True)
        shape = (32, 32, 1)
    else:
        shape = (32, 32, 3)
        model = keras.applications.MobileNetV2(weights=None, input_shape=shape, classes=10)
    callbacks = []
    if kind != "plain":
        model = rt.instrument(model)
        callbacks.append(rt.callbacks.ActivationMonitor())
    if kind.endswith("GradientMonitor"):
        callbacks.append(rt.callbacks.GradientMonitor())
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=xla)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((256, *shape)).astype("float32"), rng.integers(0, 10, 256)
    return model, x, y, callbacks


def first_epoch(network, kind, xla):
    """Seconds of a first fit of one epoch, and of a second; `GradientMonitor` has each traced."""
    model, x, y, callbacks = made(network, kind, xla)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        model.fit(x, y, batch_size=64, callbacks=callbacks, verbose=0)
        times.append(time.perf_counter() - begin)
    return times


def growth(network, kind, xla, fits):
    """MiB that each of many models, made, fitted and dropped, leaves in the process."""
    import gc

    import keras

    sizes = []
    for _ in range(fits):
        model, x, y, callbacks = made(network, kind, xla)
        model.fit(x[:64], y[:64], batch_size=32, callbacks=callbacks, verbose=0)
        del model, callbacks
        keras.backend.clear_session()
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    half = fits // 2
    return (sizes[-1] - sizes[half - 1]) / (fits - half)


def child(*arguments):
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--child")
    options.add_argument("--write", action="store_true", help="keep the tables in results/")
    options.add_argument("--fits", type=int, default=20)
    options.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    options.add_argument("--xla", nargs="*", type=int, default=(0, 1), help="0, 1 or both")
    args = options.parse_args()
    if args.child:
        name, *given = json.loads(args.child)
        print(json.dumps({"first": first_epoch, "growth": growth}[name](*given)))
        return
    rows = []
    for network in args.networks:
        for xla in map(bool, args.xla):
            plain = None
            for kind in KINDS:
                first, second = child("first", network, kind, xla)
                grown = child("growth", network, kind, xla, args.fits) if not xla else None
                plain = plain or first
                rows.append(
                    [
                        f"{network}{', XLA' if xla else ''}",
                        kind,
                        f"{first:.1f} s",
                        f"{first / plain:.2f}",
                        f"{second:.2f} s",
                        "" if grown is None else f"{grown:.1f} MiB",
                    ]
                )
                machine.progress(rows[-1])
    head = [
        "network",
        "fit",
        "first epoch",
        "over plain",
        "second fit of one epoch",
        "kept by each fit",
    ]
    text = f"# The beginning of a fit\n\n{machine.provenance()}\n\n{machine.table(head, rows)}\n"
    print(text)
    if args.write:
        machine.write("beginning.md", text)


if __name__ == "__main__":
    main()
