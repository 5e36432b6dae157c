"""How the time of a gradient and of a Hessian product grows with samples and with parameters.

Prints the slopes of straight lines through the logarithms and draws `results/scaling.png`.
"""

import argparse

import _onednn  # noqa: F401
import keras
import machine
import numpy as np

import keras_regtools as rt

SAMPLES = (128, 256, 512, 1024, 2048, 4096)
WIDTHS = (8, 16, 32, 64)  # of the first convolution; parameters grow with their square
BATCH_SIZE = 128


def surface_of(model, samples):
    """A loss surface over random images: times do not depend on what they show."""
    rng = np.random.default_rng(0)
    x = rng.random((samples, 32, 32, 1), dtype="float32")
    y = rng.integers(10, size=samples)
    loss = "sparse_categorical_crossentropy"
    return rt.LossSurface(model, x, y, loss=loss, batch_size=BATCH_SIZE)


def network(width):
    """A small VGG-like network, everything in proportion to `width`."""
    filters = ((width,), (2 * width,), (4 * width,))
    return rt.applications.vgg((32, 32, 1), 10, filters=filters, dense=(8 * width,))


def times_of(surfaces, repeats):
    """Median seconds of gradient and product on each surface, all of them in turn."""
    calls = {}
    for size, surface in surfaces.items():
        vector = [np.ones(v.shape, "float32") for v in surface.model.trainable_variables]
        calls["gradient", size] = surface.value_and_gradient
        calls["product", size] = lambda surface=surface, vector=vector: surface.hvp(None, vector)
    times, _ = machine.in_turn(calls, repeats)
    return {
        what: [float(np.median(times[what, size])) for size in surfaces]
        for what in ("gradient", "product")
    }


def slope(sizes, times):
    """The exponent of the power law through the times."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def draw(panels, path):
    """One log-log panel per entry `(label, sizes, times)`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(9, 4), layout="constrained")
    for ax, (label, sizes, times) in zip(axes, panels, strict=True):
        for marker, (what, taken) in zip("os", times.items(), strict=True):
            exponent, offset = np.polyfit(np.log(sizes), np.log(taken), 1)
            (points,) = ax.loglog(
                sizes, taken, marker, label=f"{what}, slope {slope(sizes, taken):.2f}"
            )
            line = np.exp(offset) * np.array(sizes, dtype=float) ** exponent
            ax.loglog(sizes, line, color=points.get_color(), linewidth=1)
        ax.set(xlabel=label, ylabel="seconds")
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        ax.set_xticks([], minor=True)
        ax.grid(which="both", alpha=0.3)
        ax.legend()
    figure.suptitle("Time of a gradient and of a Hessian product (a slope of 1 is proportional)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    args = parser.parse_args()
    machine.pin()
    keras.utils.set_random_seed(0)

    lenet5 = rt.applications.lenet5()
    by_samples = {samples: surface_of(lenet5, samples) for samples in SAMPLES}
    by_parameters = {}
    for width in WIDTHS:
        model = network(width)
        by_parameters[model.count_params()] = surface_of(model, BATCH_SIZE)
    panels = [
        ("samples, LeNet-5", list(by_samples), times_of(by_samples, args.repeats)),
        (
            f"parameters, VGG-like, {BATCH_SIZE} samples",
            list(by_parameters),
            times_of(by_parameters, args.repeats),
        ),
    ]
    rows = []
    for label, sizes, times in panels:
        for what, taken in times.items():
            seconds = ", ".join(f"{t:.3g}" for t in taken)
            span = f"{sizes[0]:,}–{sizes[-1]:,}"
            rows.append([what, label, span, seconds, f"{slope(sizes, taken):.2f}"])
    print(machine.provenance(), end="\n\n")
    print(machine.table(("time of a", "against", "range", "seconds", "slope"), rows))
    machine.RESULTS.mkdir(exist_ok=True)
    draw(panels, machine.RESULTS / "scaling.png")


if __name__ == "__main__":
    main()
