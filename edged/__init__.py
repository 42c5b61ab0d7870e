"""Post-training quantization of ResNet and YOLOv5 checkpoints: tensors and files in, tensors and files out."""

__version__ = "0.1.0"
