"""Run under emulation: both plug-ins in the stock runtimes, on files that ``test_aarch64.py`` wrote into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from bnnedge.kernels import native, plugins


def main(folder: Path) -> None:
    images = np.load(folder / "images.npy")
    interpreter = Interpreter(str(folder / "net.tflite"), experimental_delegates=[plugins.litert_delegate(threads=2)])
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(entry["index"], [len(images), *entry["shape"][1:]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    interpreter.invoke()
    np.save(folder / "litert.npy", interpreter.get_tensor(result["index"]).transpose(0, 3, 1, 2))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    plugins.register_onnxruntime(options)
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), options, providers=["CPUExecutionProvider"])
    np.save(folder / "onnxruntime.npy", session.run(None, {session.get_inputs()[0].name: images})[0])
    print(" ".join(native.kernel_names()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
