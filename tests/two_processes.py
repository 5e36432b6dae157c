"""One training by one or by two processes of JAX, each of which has its part of each batch.

`python tests/two_processes.py PROCESSES INDEX PORT FILE.npz`
"""

import contextlib
import sys

import keras
import numpy as np
import two_devices

import keras_regtools as rt
from keras_regtools.regularizers import L1, hold_zeros

BATCH = 32


def main(processes, index, port, path):
    if processes > 1:
        import jax  # need not be installed where this file is only looked at for doctests

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        addresses = ",".join(f"127.0.0.1:{port + i}" for i in range(processes))
        keras.distribution.initialize(addresses, processes, index)
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )

    def mine(array):
        """This process' part of each batch."""
        parts = array.reshape(-1, processes, BATCH // processes, *array.shape[1:])
        return parts[:, index].reshape(-1, *array.shape[1:])

    options = {"mine": mine, "batch_size": BATCH // processes}
    scope = contextlib.nullcontext
    # The first process writes, into the directory that both name.
    found = two_devices.recorded(scope, f"{path.rsplit('.', 2)[0]}.report", **options)

    def accumulated():
        return keras.optimizers.SGD(0.05, gradient_accumulation_steps=3)

    acting = {
        "sam": (two_devices.sgd, None, [rt.callbacks.SharpnessAwareMinimization(rho=0.1)]),
        "proximal": (two_devices.sgd, L1(2e-2, proximal=True), []),
        "accumulated": (accumulated, None, [rt.callbacks.GradientMonitor(every=1)]),
    }
    for name, (optimizer, penalty, used) in acting.items():
        model, _ = two_devices.network(scope, optimizer, penalty)
        history = two_devices.fit(model, callbacks=used, **options).history
        found |= {f"acting/{name}/{key}": values for key, values in history.items()}
        if penalty is not None:
            hold_zeros(model)
            two_devices.fit(model, **options)
        found |= {f"acting/{name}/{i}": w for i, w in enumerate(model.get_weights())}
    np.savez(path, **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
