"""Two cores, times taken in turn, and a table that says on what machine."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time

CORES = 2
RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = (
    "keras-regtools",
    "tensorflow",
    "keras",
    "torch",
    "numpy",
    "scipy",
    "pyhessian",
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
)


def pin():
    """Keeps this process and its children on two cores, and both frameworks at two threads."""
    import tensorflow as tf
    import torch

    if hasattr(os, "sched_setaffinity"):
        chosen = sorted(os.sched_getaffinity(0))[-CORES:]
        for thread in os.listdir("/proc/self/task"):  # numpy has started threads of its own
            os.sched_setaffinity(int(thread), chosen)
    tf.config.threading.set_intra_op_parallelism_threads(CORES)
    tf.config.threading.set_inter_op_parallelism_threads(CORES)
    torch.set_num_threads(CORES)


def seconds(call):
    """What the call returns, and how long it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def in_turn(calls, repeats, warm=True):
    """Times the calls A B C A B C ..., so that whatever else the machine does falls on all.

    Args:
        calls: A dict of functions without arguments.
        repeats: How often each is timed.
        warm: Whether each is called once beforehand, untimed.

    Returns:
        `(times, results)`: dicts of lists, `repeats` long.
    """
    if warm:
        for call in calls.values():
            call()
    times = {name: [] for name in calls}
    results = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            result, taken = seconds(call)
            times[name].append(taken)
            results[name].append(result)
    return times, results


def ratios(numerators, denominators):
    """The ratio within each turn."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values, digits=3):
    """The median and the smallest and largest value, as text."""
    values = [float(value) for value in values]
    middle, low, high = (
        f"{value:,.0f}" if value >= 1000 else f"{value:.{digits}g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return middle if low == high else f"{middle} ({low}–{high})"


def table(header, rows):
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def progress(text):
    """Says on the standard error what is done, long before the end."""
    print(text, file=sys.stderr, flush=True)


def write(name, text):
    """Writes a file of `benchmarks/results/`."""
    path = RESULTS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def provenance():
    """The command, the day, the versions and the machine, as markdown without names or paths."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    lines = [
        f"- Command: `{command()}`",
        f"- Day: {datetime.date.today().isoformat()}",
        f"- Versions: Python {platform.python_version()}, {', '.join(versions)}",
        f"- Machine: {processor()}, {os.cpu_count()} cores, {CORES} of them used; no GPU used",
        f"- oneDNN: {versions_of_backend().get('oneDNN', 'not of this backend')}",
    ]
    if hasattr(os, "getloadavg"):
        lines.append(f"- Load of the machine at the end, ours included: {os.getloadavg()[1]:.1f}")
    return "\n".join(lines)


def versions_of_backend():
    from keras_regtools.version import versions

    return versions()


def command():
    """The command line, without the folder of the cache."""
    arguments, given = [], iter(sys.argv[1:])
    for argument in given:
        if argument == "--cache":
            next(given, None)
        elif not argument.startswith("--cache="):
            arguments.append(argument)
    script = f"benchmarks/{pathlib.Path(sys.argv[0]).name}"
    return shlex.join(["python", script, *arguments])


def processor():
    """The model of the CPU."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
