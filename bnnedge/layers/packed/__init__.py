"""The binary convolution and the binary dense layer with their gradients, as PyTorch operators that keep bits.

    y  = conv(sign(x), w)                      packed kernels, or a dense convolution of +-1 values
    dx = conv_transposed(g, w) * 1{abs(x) <= clip}
    dw = gradient of the dense convolution's weight for the input sign(x)

``w`` is the weight that a method made of the latent one, whose own gradient goes on through that. If it is binary, one
magnitude in each output channel, it is packed too. g is real, so both gradients are dense; sign(x) and w are unpacked
just in time.

The operators are opaque to ``torch.compile`` and ``torch.export``, with shapes known to both. They return what they
keep for the backward pass: see ``formats.Outputs``.
"""
