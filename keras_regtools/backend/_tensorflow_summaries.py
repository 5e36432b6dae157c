"""Event files for TensorBoard, written with TensorFlow whatever the backend."""


class EventFile:
    """An event file in a directory.

    Args:
        directory: The log directory.
    """

    def __init__(self, directory):
        import tensorflow as tf

        self._tf = tf
        self._writer = tf.summary.create_file_writer(str(directory))

    def scalar(self, name, value, step):
        """Write a number."""
        with self._writer.as_default():
            self._tf.summary.scalar(name, value, step=step)

    def histogram(self, name, buckets, step):
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

    def image(self, name, png, step):
        """Write an image, given as the bytes of a PNG file."""
        with self._tf.device("cpu"), self._writer.as_default():
            self._tf.summary.image(name, self._tf.io.decode_png(png)[None], step=step)

    def hyperparameters(self, values):
        """Write a dict of numbers, texts and booleans as the hyperparameters of the run."""
        from tensorboard.plugins.hparams import summary

        with self._writer.as_default():
            content = summary.session_start_pb(values).SerializeToString()
            self._tf.summary.experimental.write_raw_pb(content, step=0)

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()
