"""ONNX: two graphs of one model, over one weight file."""
