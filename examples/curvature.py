"""The curvature of the course's LeNet-5 after training: eigenvalues, trace, spectrum, by layer.

Trains LeNet-5, measures the top eigenvalue in every epoch, and then, with an error for each number,
the largest eigenvalues, the trace and the spectrum of the Hessian, the share of the gradient in
the top eigenvectors, and each layer's own curvature. Leaves one picture and one table in a folder.
"""

import pathlib

import _onednn  # noqa: F401
import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from _data import DATASETS, load_images
from _options import add_dataset, add_epochs, parser, positive
from _verdict import below

import keras_regtools as rt

CLASSES = 10


def main():
    options = parser(__doc__, "runs/curvature")
    add_dataset(options, DATASETS)
    add_epochs(options, 10)
    measured = "training images that are measured on (default: %(default)s)"
    options.add_argument("--samples", type=positive, default=512, help=measured)
    args = options.parse_args()
    keras.utils.set_random_seed(args.seed)
    (x, y), _ = load_images(args.dataset, args.seed)
    samples, steps, products = (32, 10, 50) if args.smoke else (args.samples, 40, 1000)

    model = rt.applications.lenet5(x.shape[1:], classes=CLASSES)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    top = rt.callbacks.Measure(
        {"curvature": rt.measures.hessian_eigenvalues}, x, y, samples=samples, seed=args.seed
    )
    model.fit(
        x[:256] if args.smoke else x,
        y[:256] if args.smoke else y,
        batch_size=64,
        epochs=1 if args.smoke else args.epochs,
        callbacks=[top],
        verbose=2,
    )

    surface = rt.LossSurface(model, x[:samples], y[:samples])
    largest = rt.measures.hessian_eigenvalues(surface, k=CLASSES, tolerance=0.01)
    trace = rt.measures.hessian_trace(surface, max_products=products)
    share = rt.measures.gradient_share(surface, k=CLASSES)
    spectrum = rt.measures.hessian_density(surface, steps=steps, draws=5)
    layers = rt.measures.by_layer(
        surface,
        {"top": rt.measures.hessian_eigenvalues, "trace": rt.measures.hessian_trace},
        ["output"] if args.smoke else None,
    ).to_frame()

    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    layers.to_csv(folder / "layers.csv")
    text = (
        f"{100 * share.value:.0f} % of the squared gradient lies in {CLASSES} of "
        f"{spectrum.size:,} directions, and they hold "
        f"{100 * largest.eigenvalues.sum() / trace.estimate:.0f} % of the trace."
    )
    figure = draw(spectrum, top.records)
    below(figure, text)
    figure.savefig(folder / "curvature.png", dpi=110)

    print(f"\nOn {samples} images, loss {surface.value():.4f}:")
    for value, residual in zip(largest.eigenvalues, largest.residuals, strict=True):
        print(f"  eigenvalue {value:9.4g} ± {residual:.1g}")
    print(f"  trace      {trace.estimate:9.4g} ± {trace.stderr:.1g} ({trace.products} products)")
    print(layers[["parameters", "top", "top/residual_1", "trace", "trace/stderr"]].to_string())
    print(f"\n{text}\nThe picture is {folder / 'curvature.png'}")


def draw(spectrum, records):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    rt.plots.density(spectrum, left)
    epochs, values = records.series("curvature")
    right.plot([epoch + 1 for epoch in epochs], values, marker="o")
    right.set(
        title="The largest eigenvalue in training",
        xlabel="epoch",
        ylabel="eigenvalue",
        ylim=(0, None),
    )
    right.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
