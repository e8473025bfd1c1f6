"""Runs containers: ONNX Runtime on the CPU, the HTP emulator."""
