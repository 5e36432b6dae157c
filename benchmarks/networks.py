"""Two trained networks in Keras, the same in PyTorch, and the images they are measured on.

Run as a script, it checks that both agree: `python benchmarks/networks.py`.
"""

import argparse
import os
import pathlib
import tempfile

import _onednn  # noqa: F401
import keras
import numpy as np
import torch

import keras_regtools as rt

SAMPLES, BATCH_SIZE = 2048, 256
EPOCHS = 5
DATA = ("fashion_mnist", "digits")


def _lenet5():
    return rt.applications.lenet5()


def _vgg():
    blocks = ((32, 32), (64, 64), (128, 128))
    return rt.applications.vgg((32, 32, 1), 10, filters=blocks, dense=(128,))


NETWORKS = {"lenet5": _lenet5, "vgg": _vgg}


def options(description):
    """The arguments that the scripts share."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
    parser.add_argument(
        "--data", choices=DATA, help="default: fashion_mnist if Keras has its files, else digits"
    )
    parser.add_argument(
        "--cache",
        type=pathlib.Path,
        default=pathlib.Path(tempfile.gettempdir()) / "keras_regtools_benchmarks",
        help="folder of the trained weights and of the true values (default: %(default)s)",
    )
    return parser


def chosen(args):
    """The names of the networks, and of the data."""
    networks = list(NETWORKS) if args.network == "both" else [args.network]
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    files = list((home / "datasets" / "fashion-mnist").glob("*.gz"))
    data = args.data or ("fashion_mnist" if len(files) == 4 else "digits")
    return networks, data


def images(data):
    """Images of 32x32x1 in [0, 1] and labels: 2,048 of them, or the first 1,792 digits."""
    if data == "fashion_mnist":
        (x, y), _ = keras.datasets.fashion_mnist.load_data()
        x = np.pad(x[:SAMPLES, ..., None].astype("float32") / 255, ((0, 0), (2, 2), (2, 2), (0, 0)))
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = (x / 16).reshape(-1, 8, 8, 1).astype("float32").repeat(4, axis=1).repeat(4, axis=2)
    # Whole batches only: a peer averages over batches, which is the mean if they are equal.
    count = min(SAMPLES, len(x)) // BATCH_SIZE * BATCH_SIZE
    return x[:count], y[:count].astype("int32")


def trained(network, data, cache):
    """The network after a short training, and its data.

    Weights and data are kept in `cache`, for the next run and for fresh processes.

    Returns:
        `(model, x, y)`, the model compiled.
    """
    keras.utils.set_random_seed(0)
    model = NETWORKS[network]()
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    path = cache / f"{network}_{data}.npz"
    if not path.exists():
        x, y = images(data)
        model.fit(x, y, batch_size=32, epochs=EPOCHS, verbose=0)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, *model.get_weights(), x=x, y=y)
    stored = np.load(path)
    model.set_weights([stored[f"arr_{i}"] for i in range(len(model.weights))])
    return model, stored["x"], stored["y"]


def surface_of(model, x, y):
    """The loss surface that is measured."""
    return rt.LossSurface(model, x, y, batch_size=BATCH_SIZE)


def twin_of(model, dtype=torch.float32):
    """The same network in PyTorch, with logits in place of probabilities."""
    modules, channels = [], model.input_shape[-1]
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            padding = "same" if layer.padding == "same" else 0
            modules.append(
                torch.nn.Conv2d(channels, layer.filters, layer.kernel_size, padding=padding)
            )
            channels = layer.filters
        elif isinstance(layer, keras.layers.AveragePooling2D):
            modules.append(torch.nn.AvgPool2d(layer.pool_size))
        elif isinstance(layer, keras.layers.MaxPooling2D):
            modules.append(torch.nn.MaxPool2d(layer.pool_size))
        elif isinstance(layer, keras.layers.Flatten):
            modules.append(torch.nn.Flatten())
        elif isinstance(layer, keras.layers.Dense):
            modules.append(torch.nn.Linear(layer.kernel.shape[0], layer.units))
        else:
            raise TypeError(f"Expected a layer that has a twin. Received: {layer}")
        if getattr(layer, "activation", None) is keras.activations.relu:
            modules.append(torch.nn.ReLU())
    twin = torch.nn.Sequential(*modules).to(dtype).eval()
    with torch.no_grad():
        for own, weight in zip(
            twin.parameters(), to_torch(model, model.get_weights()), strict=True
        ):
            own.copy_(torch.from_numpy(weight))
    return twin


def to_torch(model, arrays):
    """A parameter vector of the Keras model, as arrays laid out for its twin."""
    result, arrays = [], iter(arrays)
    flattened = None  # height, width and channels before the layer that flattens
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten):
            flattened = layer.input.shape[1:]
        if isinstance(layer, keras.layers.Conv2D):
            result += [np.array(next(arrays)).transpose(3, 2, 0, 1), np.array(next(arrays))]
        elif isinstance(layer, keras.layers.Dense):
            kernel = np.array(next(arrays))
            if flattened is not None:
                # PyTorch flattens channels first.
                kernel = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3)
                kernel, flattened = kernel.reshape(-1, layer.units), None
            result += [kernel.T, np.array(next(arrays))]
    return [np.ascontiguousarray(array) for array in result]


def torch_batches(x, y, dtype=torch.float32, size=BATCH_SIZE):
    """The data for the twin, as a list of batches."""
    x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(dtype)
    y = torch.from_numpy(y.astype("int64"))
    return list(zip(x.split(size), y.split(size), strict=True))


def twin_gradient(twin, batches):
    """The twin's loss, a float, and its gradient, a list of tensors."""
    loss = torch.nn.CrossEntropyLoss()
    params = list(twin.parameters())
    value, gradient = 0.0, [torch.zeros_like(p) for p in params]
    for x, y in batches:
        batch = loss(twin(x), y)
        value += batch.item() / len(batches)
        for total, part in zip(gradient, torch.autograd.grad(batch, params), strict=True):
            total += part / len(batches)
    return value, gradient


def twin_product(twin, batches, vector):
    """The twin's Hessian times a list of tensors."""
    loss = torch.nn.CrossEntropyLoss()
    params = list(twin.parameters())
    product = [torch.zeros_like(p) for p in params]
    for x, y in batches:
        gradient = torch.autograd.grad(loss(twin(x), y), params, create_graph=True)
        parts = torch.autograd.grad(gradient, params, grad_outputs=vector)
        for total, part in zip(product, parts, strict=True):
            total += part / len(batches)
    return product


def disagreement(model, x, y):
    """Relative differences of loss, gradient and one Hessian product between both frameworks."""
    surface, twin, batches = surface_of(model, x, y), twin_of(model), torch_batches(x, y)
    rng = np.random.default_rng(0)
    vector = [rng.standard_normal(w.shape).astype("float32") for w in model.get_weights()]
    value, gradient = surface.value_and_gradient()
    product = surface.hvp(None, vector)
    twin_value, expected_gradient = twin_gradient(twin, batches)
    expected_product = twin_product(
        twin, batches, [torch.from_numpy(v) for v in to_torch(model, vector)]
    )
    return {
        "loss": abs(value - twin_value) / abs(twin_value),
        "gradient": _relative(to_torch(model, gradient), expected_gradient),
        "product": _relative(to_torch(model, product), expected_product),
    }


def _relative(received, expected):
    received, expected = flat(received), flat(expected)
    return float(np.linalg.norm(received - expected) / np.linalg.norm(expected))


def flat(arrays):
    """A list of arrays or tensors as one float64 vector."""
    return np.concatenate([np.asarray(array, dtype="float64").ravel() for array in arrays])


def check(model, x, y, tolerance=1e-5):
    """Raises unless the loss and the gradient of both frameworks agree."""
    differences = disagreement(model, x, y)
    for name in ("loss", "gradient"):
        if not differences[name] < tolerance:
            raise AssertionError(f"Expected twins. Received: relative differences {differences}")
    return differences


def main():
    args = options(__doc__).parse_args()
    networks, data = chosen(args)
    for network in networks:
        model, x, y = trained(network, data, args.cache)
        found = ", ".join(f"{name} {value:.1e}" for name, value in check(model, x, y).items())
        print(f"{network} on {len(x)} images of {data}: relative differences of {found}")


if __name__ == "__main__":
    main()
