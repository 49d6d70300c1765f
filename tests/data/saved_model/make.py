"""Makes tests/data/saved_model/: y = relu(x w) - 1, as TensorFlow 2.21 writes it."""

import sys

import numpy as np
import tensorflow as tf


class Linear(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(np.arange(6, dtype=np.float32).reshape(3, 2))

    @tf.function
    def call(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.relu(x @ self.w) - 1}


model = Linear()
signature = model.call.get_concrete_function(tf.TensorSpec([None, 3], tf.float32, name="x"))
tf.saved_model.save(model, sys.argv[1], signatures=signature)
