"""What curvature costs on TensorFlow with oneDNN and without it, and PyTorch beside both.

`python benchmarks/onednn.py --write` prints and keeps the table. Two processes, one with oneDNN and
one without, make their calls in turn; PyTorch has oneDNN of its own and is called in both.
"""

import json
import os
import pathlib
import subprocess
import sys

import machine  # itself without Keras: TensorFlow decides about oneDNN when it is imported

HEAD = ("network", "what", "with, seconds", "without, seconds", "without / with")
ROWS = {
    "gradient": "a gradient",
    "product": "a Hessian product",
    "ten": "ten at once, per product",
    "gauss_newton": "a Gauss-Newton product",
    "ten_gauss_newton": "ten Gauss-Newton products at once, per product",
    "eigenvalue": "the top eigenvalue, at a tolerance of 0.001",
    "torch_gradient": "PyTorch, a gradient",
    "torch_product": "PyTorch, a Hessian product",
}


def calls(network, data, cache):
    """The functions that are timed, by the names of `ROWS`."""
    machine.pin()
    import numpy as np
    import torch
    from networks import (
        surface_of,
        to_torch,
        torch_batches,
        trained,
        twin_gradient,
        twin_of,
        twin_product,
    )

    import keras_regtools as rt

    model, x, y = trained(network, data, cache)
    surface, twin, batches = surface_of(model, x, y), twin_of(model), torch_batches(x, y)
    rng = np.random.default_rng(1)
    vectors = [
        [rng.standard_normal(w.shape).astype("float32") for w in model.get_weights()]
        for _ in range(10)
    ]
    vector = [torch.from_numpy(a) for a in to_torch(model, vectors[0])]
    return {
        "gradient": surface.value_and_gradient,
        "product": lambda: surface.hvp(None, vectors[0]),
        "ten": lambda: surface.hvp(None, vectors),
        "gauss_newton": lambda: surface.gnvp(None, vectors[0]),
        "ten_gauss_newton": lambda: surface.gnvp(None, vectors),
        "eigenvalue": lambda: rt.measures.hessian_eigenvalues(surface, tolerance=1e-3),
        "torch_gradient": lambda: twin_gradient(twin, batches),
        "torch_product": lambda: twin_product(twin, batches, vector),
    }


def answer(network, data, cache):
    """Makes the calls whose names come in by lines, and tells the seconds of each."""
    made = calls(network, data, pathlib.Path(cache))
    for line in sys.stdin:
        _, taken = machine.seconds(made[line.strip()])
        print(f"seconds {taken}", flush=True)


class Process:
    """A process that makes calls when it is asked, with oneDNN or without."""

    def __init__(self, onednn, *arguments):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer", json.dumps([*map(str, arguments)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": str(onednn), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def seconds(self, name):
        print(name, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"The process ended. Exit status: {self._process.wait()}")

    def end(self):
        self._process.stdin.close()
        self._process.wait()


def rows(network, data, cache, repeats):
    """Of one network."""
    processes = [Process(onednn, network, data, cache) for onednn in (1, 0)]
    found = []
    for name, what in ROWS.items():
        for process in processes:
            process.seconds(name)  # the first call traces
        times = [[], []]
        for _ in range(repeats):
            for process, taken in zip(processes, times, strict=True):
                taken.append(process.seconds(name) / (10 if name.startswith("ten") else 1))
        found.append([network, what, *map(machine.spread, times)])
        found[-1].append(machine.spread(machine.ratios(*times[::-1])))
        machine.progress(found[-1])
    for process in processes:
        process.end()
    return found


def main():
    if sys.argv[1:2] == ["--answer"]:
        answer(*json.loads(sys.argv[2]))
        return
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    from networks import chosen, options, trained

    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the table in results/")
    args = parser.parse_args()
    networks, data = chosen(args)
    found = []
    for network in networks:
        trained(network, data, args.cache)  # of which both processes read the weights
        found += rows(network, data, args.cache, args.repeats)
    text = (
        f"# With oneDNN and without\n\n{machine.provenance()}\n\n"
        f"Calls of two processes in turn; median (min–max) of {args.repeats} turns.\n\n"
        f"{machine.table(HEAD, found)}\n"
    )
    print(text)
    if args.write:
        machine.write("onednn.md", text)


if __name__ == "__main__":
    main()
