"""TensorRT in parts: which library, export to ONNX, build, cache, run."""
