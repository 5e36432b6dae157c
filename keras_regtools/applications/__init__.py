"""The networks of the course and of the papers, as functions that return an uncompiled model."""

from keras_regtools.applications.alexnet import alexnet
from keras_regtools.applications.keskar import c1, c2, f1
from keras_regtools.applications.lenet import lenet5
from keras_regtools.applications.resnet import resnet, resnet18, resnet50
from keras_regtools.applications.vgg import vgg, vgg16

__all__ = [
    "alexnet", "c1", "c2", "f1", "lenet5", "resnet", "resnet18", "resnet50", "vgg", "vgg16"
]  # fmt: skip


def __dir__():
    return __all__
