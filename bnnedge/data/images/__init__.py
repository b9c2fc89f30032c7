"""Images as tensors and as files: resize, crop, mirror, measure and split them."""
