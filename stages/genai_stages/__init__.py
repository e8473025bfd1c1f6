"""The build's stages. Knows ONNX; knows neither Kubernetes nor S3."""

import os

# ONNX Runtime keeps a device id and a database of telemetry in ~/.cache/Microsoft; whoever wants
# that sets the variable to 0. It is read when onnxruntime is imported, so it stands before that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
