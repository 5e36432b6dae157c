"""Import this before Keras: TensorFlow decides about oneDNN when it is imported.

It turns oneDNN on by itself only on processors with AVX-512 VNNI. On the others convolutions, and
Hessian products most of all, take up to three times as long without it.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
