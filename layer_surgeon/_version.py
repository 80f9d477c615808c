"""The version of layer_surgeon, in one place."""

__version__ = "0.1.0"
