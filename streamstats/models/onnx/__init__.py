"""ONNX models: their linear layers, what goes into them, and corrected biases."""
