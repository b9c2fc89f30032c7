"""Device functions on words of 32 bits, shared by the plain ``tl`` kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def popcount(words):
    """Number of 1 bits of each int32. LLVM turns the sequence into one POPC, the interpreter runs it as it stands.

    The shifts are arithmetic; what they bring in on the left is masked away.
    """
    pairs = words - ((words >> 1) & 0x55555555)
    nibbles = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    octets = (nibbles + (nibbles >> 4)) & 0x0F0F0F0F
    return ((octets * 0x01010101) >> 24) & 0xFF


@triton.jit
def pack_words(bits, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Packs booleans [ROWS, WORDS * 32] into int32 [ROWS, WORDS], element j at bit j % 32, by a sum of 32 bits."""
    lanes = tl.arange(0, 32)[None, None, :]
    placed = tl.reshape(bits.to(tl.int32), (ROWS, WORDS, 32)) << lanes
    return tl.sum(placed, axis=2)


@triton.jit
def spread_words(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The inverse of ``pack_words``: int32 [ROWS, WORDS] become int32 0 and 1 [ROWS, WORDS * 32]."""
    lanes = tl.arange(0, 32)[None, None, :]
    bits = (tl.reshape(words, (ROWS, WORDS, 1)) >> lanes) & 1
    return tl.reshape(bits, (ROWS, WORDS * 32))


@triton.jit
def offsets64(BLOCK: tl.constexpr, axis: tl.constexpr):
    """Indices of this program's block along a grid axis, in int64: a large batch passes 2^31 elements."""
    return tl.program_id(axis).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
