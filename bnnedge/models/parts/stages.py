"""The body of a ResNet: stages of residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

Shortcut = Callable[[int, int, int], nn.Module]
"""Makes a shortcut from the input's channels, the output's channels and the stride."""
Block = Callable[[int, int, int, nn.Module], nn.Module]
"""Makes a block from the input's channels, the output's channels, the stride and the shortcut."""


def residual_stages(
    in_channels: int, depths: Sequence[int], widths: Sequence[int], block: Block, shortcut: Shortcut
) -> nn.Sequential:
    """All blocks in a row: stage i has ``depths[i]`` blocks of ``widths[i]`` channels each.

    The first block of every stage but the first one has stride 2. A block that changes the shape gets a ``shortcut``,
    any other one the identity.
    """
    blocks: list[nn.Module] = []
    for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            changes = stride != 1 or in_channels != channels
            skip = shortcut(in_channels, channels, stride) if changes else nn.Identity()
            blocks.append(block(in_channels, channels, stride, skip))
            in_channels = channels
    return nn.Sequential(*blocks)
