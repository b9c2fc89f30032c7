"""Parts that several networks are built from: residual blocks, their shortcuts, and stages of them."""
