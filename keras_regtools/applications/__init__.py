"""The networks of the course, as functions that return an uncompiled model."""

from keras_regtools.applications.lenet import lenet5
from keras_regtools.applications.vgg import vgg, vgg16

__all__ = ["lenet5", "vgg", "vgg16"]
