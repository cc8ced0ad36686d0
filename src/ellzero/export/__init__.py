"""What a small network is shipped as: a packed file, an ONNX model, C source."""
