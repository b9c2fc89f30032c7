"""The ONNX target: its operators and their functions, the writer, the forms of the nodes, the reader."""
