"""Histograms for TensorBoard, written with TensorFlow whatever the backend."""


class HistogramWriter:
    """Event files in a directory.

    Args:
        directory: The log directory.
    """

    def __init__(self, directory):
        import tensorflow as tf

        self._tf = tf
        self._writer = tf.summary.create_file_writer(str(directory))

    def write(self, name, buckets, step):
        """Write a histogram.

        Args:
            name: Its tag.
            buckets: Array with a row for each bucket: left edge, right edge, count.
            step: The step, an int.
        """
        from tensorboard.plugins.histogram import metadata

        about = metadata.create_summary_metadata(display_name=name, description="")
        with self._writer.as_default():
            tensor = self._tf.constant(buckets, "float64")
            self._tf.summary.write(name, tensor, step=step, metadata=about)

    def close(self):
        self._writer.close()
