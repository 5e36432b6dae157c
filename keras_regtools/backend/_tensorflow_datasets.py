"""Datasets of TensorFlow, which every backend can train on."""


def of_length(dataset, length):
    """A `tf.data.Dataset` that says how many elements it has, as `fit` wants to know.

    Args:
        dataset: The dataset.
        length: How many there are.
    """
    import tensorflow as tf

    return dataset.apply(tf.data.experimental.assert_cardinality(length))
