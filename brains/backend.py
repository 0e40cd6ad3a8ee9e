"""Imports Keras on TensorFlow, without TensorFlow's greetings. What needs either imports it from here."""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"


@contextlib.contextmanager
def _silent_stderr():
    """Discard what is written to file descriptor 2: TensorFlow's C++ code writes there before it reads a log level."""
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


with _silent_stderr():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
