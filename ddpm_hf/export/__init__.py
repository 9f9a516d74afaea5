"""Write a trained model for programs without PyTorch: ONNX, torch.export, or safetensors and JSON.

In: a pipeline with any U-Net of this package, drawn with DDPM or DDIM.
Out: a folder with the network, or its whole denoising loop, and the numbers of each step.
`table` has these numbers, `modules` and `graph` make the network, `files` writes and compares, `draw` is a reader.
"""
