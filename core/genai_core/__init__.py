"""The contract: kinds, keys, records, the store. Knows neither ONNX nor Kubernetes."""
