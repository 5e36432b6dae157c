"""One first call in a fresh process: its seconds and its peak memory, printed as JSON.

`curvature.py` starts it; by hand: `python benchmarks/fresh.py product lenet5 fashion_mnist FOLDER`,
with the folder in which `networks.py` left the weights.
"""

import json
import pathlib
import subprocess
import sys
import time

CALLS = ("gradient", "product", "ten", "both")


def in_fresh_process(call, network, data, cache):
    """What this file prints when it is run: a dict."""
    arguments = [sys.executable, __file__, call, network, data, str(cache)]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def peak():
    """The peak memory of this process, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` starts at the parent's peak on Linux; this is the same for this program alone.
        (line,) = [line for line in status.read_text().splitlines() if "VmHWM" in line]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak():
    """Lets the peak begin again at the present memory, on Linux."""
    clear = pathlib.Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def main():
    call, network, data, cache = sys.argv[1:]
    import machine

    machine.pin()
    import numpy as np
    from networks import surface_of, trained

    model, x, y = trained(network, data, pathlib.Path(cache))
    rng = np.random.default_rng(0)
    vectors = [
        [rng.standard_normal(w.shape).astype("float32") for w in model.get_weights()]
        for _ in range(10 if call == "ten" else 1)
    ]

    start = time.perf_counter()
    surface = surface_of(model, x, y)
    constructed = time.perf_counter()
    forget_peak()
    before = peak()
    calls = {
        "gradient": lambda: surface.value_and_gradient(),
        "product": lambda: surface.hvp(None, vectors[0]),
        "ten": lambda: surface.hvp(None, vectors),
        "both": lambda: (surface.value_and_gradient(), surface.hvp(None, vectors[0])),
    }
    called = time.perf_counter()
    calls[call]()
    ended = time.perf_counter()
    memory = peak() - before
    _, again = machine.seconds(calls[call])
    result = {
        "construction": constructed - start,
        "first": ended - called,
        "again": again,
        "memory": memory,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
