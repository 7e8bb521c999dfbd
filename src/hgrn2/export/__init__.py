"""Models for other engines: graphs that run without PyTorch. `onnx_folder.write` is where it begins."""
