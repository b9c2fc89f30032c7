"""Builds the models of this folder with Larq and converts them with Larq Compute Engine's own converter.

Needs the extra ``peers``, ``larq-compute-engine`` and ``numpy<2``; made with TensorFlow 2.21.0, tf-keras 2.21.0, Larq
0.14.0 and LCE 0.16.0::

    pip install "tensorflow==2.21.0" "tf-keras==2.21.0" "larq==0.14.0" "larq-compute-engine==0.16.0" "numpy<2"
    TF_USE_LEGACY_KERAS=1 python tests/lce_models/make.py

``<name>.tflite`` is what the converter wrote; ``<name>.npz`` holds an input ``x`` and what Keras makes of it, ``y``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import larq
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf

keras = tf.keras
FOLDER = Path(__file__).parent
BINARY = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}


def conv(filters: int, kernel: int | tuple[int, int] = 3, **options: Any) -> Any:
    return larq.layers.QuantConv2D(filters, kernel, **{**BINARY, "padding": "same", **options})


def norm(x: Any) -> Any:
    """Batch normalization with scales of both signs; ``randomize`` fills it."""
    return keras.layers.BatchNormalization()(x)


def zero_padding(x: Any) -> Any:
    return norm(conv(33)(x))


def one_padding(x: Any) -> Any:
    return norm(conv(33, pad_values=1.0)(x))


def no_padding(x: Any) -> Any:
    return norm(conv(7, (2, 3), padding="valid")(x))


def even_stride_2(x: Any) -> Any:
    """SAME pads nothing before and one after."""
    return norm(conv(33, strides=2)(x))


def even_stride_2_one_padding(x: Any) -> Any:
    return norm(conv(33, strides=2, pad_values=1.0)(x))


def dilation(x: Any) -> Any:
    return norm(conv(5, dilation_rate=2)(x))


def groups(x: Any) -> Any:
    return norm(conv(6, groups=2)(x))


def relu(x: Any) -> Any:
    """The activation between convolution and normalization, where the converter fuses it."""
    return norm(conv(33, pad_values=1.0, activation="relu")(x))


def relu6(x: Any) -> Any:
    return norm(keras.layers.ReLU(6.0)(conv(5, padding="valid")(x)))


def thresholds(x: Any) -> Any:
    """Two convolutions in a row: the first one writes bits."""
    return norm(conv(5, pad_values=1.0)(norm(conv(40, pad_values=1.0, strides=2)(x))))


def max_pool(x: Any) -> Any:
    """Between two convolutions: bits are pooled."""
    x = norm(conv(40, pad_values=1.0)(x))
    return norm(conv(5, padding="valid")(keras.layers.MaxPool2D(3, 2, padding="same")(x)))


def signs(x: Any) -> Any:
    return keras.layers.Activation(larq.quantizers.SteSign())(norm(conv(33)(x)))


def residual(x: Any) -> Any:
    y = norm(conv(34)(x)) + x
    return norm(conv(34, pad_values=1.0)(keras.layers.PReLU(shared_axes=[1, 2])(y))) + y


def network(x: Any) -> Any:
    """A float stem, residual binary blocks and a classifier, as zoo models have them."""
    x = norm(keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)(x))
    x = norm(conv(32)(x)) + x
    x = norm(conv(64, pad_values=1.0)(keras.layers.MaxPool2D(2)(x)))
    x = keras.layers.GlobalAveragePooling2D()(norm(conv(64)(x)))
    return keras.layers.Dense(10)(x)


def filter_larger_than_map(x: Any) -> Any:
    return norm(conv(5, 5)(x))


def symmetric_padding(x: Any) -> Any:
    """What a network ported from PyTorch does at stride 2: one before, one after."""
    x = tf.pad(larq.quantizers.SteSign()(x), [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)
    return norm(conv(5, padding="valid", strides=2, input_quantizer=None)(x))


def ternary_activations(x: Any) -> Any:
    return norm(conv(5, padding="valid", input_quantizer="ste_tern")(x))


def int8(x: Any) -> Any:
    """Convolutions that read and write int8; the ranges are made up, so what Keras computes is another thing."""
    x = norm(conv(33, pad_values=1.0)(x))
    return norm(conv(33, pad_values=1.0, activation="relu")(x)) + x


Shape = tuple[int, int, int]
MODELS: dict[Callable[[Any], Any], Shape] = {
    zero_padding: (5, 7, 40),
    one_padding: (5, 7, 40),
    no_padding: (5, 6, 65),
    even_stride_2: (8, 6, 34),
    even_stride_2_one_padding: (8, 6, 33),
    dilation: (7, 6, 34),
    groups: (4, 5, 64),
    relu: (5, 5, 33),
    relu6: (5, 5, 3),
    thresholds: (6, 8, 33),
    max_pool: (6, 7, 33),
    signs: (4, 5, 33),
    residual: (4, 5, 34),
    network: (16, 16, 1),
    filter_larger_than_map: (3, 4, 34),
    symmetric_padding: (6, 6, 33),
    ternary_activations: (4, 4, 33),
    int8: (6, 5, 34),
}


def randomize(model: Any, rng: np.random.Generator) -> None:
    """Weights in [-1, 1]; normalization with small means, scales of both signs and one scale of zero a layer."""
    for layer in model.layers:
        shapes = [weight.shape for weight in layer.get_weights()]
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma = rng.uniform(0.5, 1.5, shapes[0]) * rng.choice([-1, 1], shapes[0])
            gamma[-1] = 0
            beta, mean = rng.uniform(-1, 1, (2, *shapes[0]))
            layer.set_weights([gamma, beta, 4 * mean, rng.uniform(1, 9, shapes[0])])
        else:
            layer.set_weights([rng.uniform(-1, 1, shape) for shape in shapes])


def make(build: Callable[[Any], Any], shape: Shape) -> None:
    rng = np.random.default_rng(len(build.__name__))
    entry = keras.layers.Input(shape)
    model = keras.Model(entry, build(entry))
    randomize(model, rng)
    x = rng.integers(-3, 4, (1, *shape)).astype(np.float32)
    options = {"experimental_default_int8_range": (-6.0, 6.0)} if build is int8 else {}
    (FOLDER / f"{build.__name__}.tflite").write_bytes(lce.convert_keras_model(model, **options))
    np.savez_compressed(FOLDER / f"{build.__name__}.npz", x=x, y=model.predict(x, verbose=0))


if __name__ == "__main__":
    for build, shape in MODELS.items():
        make(build, shape)
