"""Imports Keras on TensorFlow, without TensorFlow's greetings. What needs either imports it from here."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

# TensorFlow's C++ code greets on file descriptor 2 before it reads that variable
_stderr, _nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_nothing, 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers, ops
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_nothing)

tf.get_logger().setLevel("ERROR")  # it warns of networks that are built one after another, each with its own graph

# GPUs would round what float32 products take to 10 bits, too few for SSIM and for the nearest of two codes
tf.config.experimental.enable_tensor_float_32_execution(False)

__all__ = ["keras", "layers", "ops", "tf"]
