"""``LceBconv2d``: results equal LCE's interpreter and the arithmetic written out in ``convolution.py``."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from bnnedge.errors import ConfigError
from bnnedge.kernels.layout import WORD_BITS, pack
from bnnedge.kernels.plugins import litert_delegate
from tests.kernels.litert.convolution import (
    CHANNELS,
    KINDS,
    PADDINGS,
    Case,
    Parameters,
    check_conv,
    conv_model,
    expected,
)
from tests.kernels.litert.running import Pair, needs_delegate, needs_lce, run, run_in_lce
from tests.kernels.litert.writing import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, VALID

pytestmark = needs_delegate

GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"size": (1, 1), "kernel": (1, 1)},
    "3x3": {},
    "3x3 on 7x7": {"size": (7, 7)},
    "stride 2 on even": {"size": (8, 6), "stride": (2, 2)},
    "stride 2 on odd": {"size": (7, 5), "stride": (2, 2)},
    "1x1 stride 2": {"size": (6, 7), "kernel": (1, 1), "stride": (2, 2)},
    "stride beyond the map": {"size": (6, 7), "stride": (9, 1)},
    "dilation": {"size": (7, 8), "dilation": (2, 2)},
    "uneven": {"size": (9, 8), "kernel": (2, 3), "stride": (2, 3), "dilation": (3, 1)},
    "5x5": {"size": (6, 5), "kernel": (5, 5)},
}
BEYOND: dict[str, dict[str, Any]] = {  # SAME only: the filter reaches over the whole map
    "3x3 on 1x1": {"size": (1, 1)},
    "3x3 on 2x2": {"size": (2, 2)},
    "7x7 on 3x2": {"size": (3, 2), "kernel": (7, 7)},
    "dilated 3x3 on 4x4": {"size": (4, 4), "dilation": (3, 4)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*GEOMETRIES, *BEYOND])
def test_convolution(name: str, kind: str) -> None:
    geometry = {**GEOMETRIES, **BEYOND}[name]
    paddings = [p for p in PADDINGS if name in GEOMETRIES or p[0] == SAME]
    for channels, (padding, pad_values) in itertools.product(CHANNELS, paddings):
        case = Case(channels=channels, kind=kind, padding=padding, pad_values=pad_values, **geometry)
        check_conv(replace(case, outputs=1 + (channels + 3) % 7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 8, 16, 31, 32, 33, 64, 65, 129])
def test_output_channels_and_batches(outputs: int, kind: str) -> None:
    for padding, pad_values in PADDINGS:
        check_conv(Case(outputs=outputs, kind=kind, padding=padding, pad_values=pad_values, batch=3))


@pytest.mark.parametrize("activation", [NONE, RELU, RELU_N1_TO_1, RELU6])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_activations(kind: str, activation: int) -> None:
    for (padding, pad_values), channels in itertools.product(PADDINGS, (2, 33, 96)):
        check_conv(Case(channels, 17, kind=kind, activation=activation, padding=padding, pad_values=pad_values))
    check_conv(Case(2, 17, kernel=(1, 1), kind=kind, activation=activation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "outputs", "groups"), [(64, 2, 2), (64, 64, 2), (128, 12, 4), (192, 66, 3)])
def test_groups(channels: int, outputs: int, groups: int, kind: str) -> None:
    for padding, pad_values in PADDINGS:
        case = Case(channels, outputs, kind=kind, padding=padding, pad_values=pad_values, groups=groups)
        check_conv(case)
        check_conv(replace(case, stride=(2, 2), size=(6, 6), dilation=(2, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_and_number_of_threads(kind: str) -> None:
    with pytest.raises(ConfigError) as refused:
        litert_delegate(kernel="?")
    names = str(refused.value).partition("known: ")[2].split(", ")
    assert names[-2:] == ["portable", "reference"]
    case = Case(channels=96, outputs=70, size=(14, 15), kind=kind, batch=2)
    for kernel, threads in itertools.product(names, (1, 2, 5)):
        for padding, pad_values in PADDINGS:
            padded = replace(case, padding=padding, pad_values=pad_values)
            p = Parameters.of(padded)
            delegate = litert_delegate(threads, kernel=kernel)
            found = run(conv_model(padded, p), pack(p.signs).view(np.int32), delegate)
            np.testing.assert_array_equal(found, expected(padded, p), err_msg=f"{kernel}, {threads} threads")


@needs_lce
@pytest.mark.parametrize("kernel", ["default", "indirect"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_of_lce(kind: str, kernel: str) -> None:
    for channels, (padding, pad_values) in itertools.product(CHANNELS, ((VALID, 0), (SAME, 1))):
        case = Case(channels, 37, kind=kind, padding=padding, pad_values=pad_values, stride=(2, 1))
        p = Parameters.of(case)
        data, x = conv_model(case, p), pack(p.signs).view(np.int32)
        np.testing.assert_array_equal(run(data, x), run_in_lce(data, x, kernel), err_msg=str(case))


@needs_lce
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(250):
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        channels = int(rng.integers(1, 300)) if groups == 1 else groups * WORD_BITS * int(rng.integers(1, 4))
        kernel, dilation = [tuple(int(v) for v in rng.integers(1, high, 2)) for high in (6, 4)]
        padding, pad_values = PADDINGS[rng.integers(3)]
        low = [(k - 1) * d + 1 if padding == VALID else 1 for k, d in zip(kernel, dilation, strict=True)]
        check_conv(
            Case(
                channels=channels,
                outputs=groups * int(rng.integers(1, 70)),
                size=(low[0] + int(rng.integers(0, 9)), low[1] + int(rng.integers(0, 9))),
                kernel=cast(Pair, kernel),
                stride=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
                dilation=cast(Pair, dilation),
                padding=padding,
                pad_values=pad_values,
                activation=int(rng.integers(4)),
                groups=groups,
                batch=int(rng.integers(1, 3)),
                kind=KINDS[rng.integers(3)],
                scale=float(rng.uniform(0.01, 2.0)),
                zero_point=int(rng.integers(-128, 128)),
            ),
            litert_delegate(int(rng.integers(1, 3))),
        )
