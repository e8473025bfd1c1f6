"""The vendor's libraries: where they are, their C API, ONNX Runtime's provider, libGenie."""
