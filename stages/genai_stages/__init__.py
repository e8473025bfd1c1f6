"""The build's stages. Knows ONNX; knows neither Kubernetes nor S3."""
