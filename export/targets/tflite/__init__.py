"""The LCE target: a TFLite file; its writer, the forms of the nodes, the reader."""
