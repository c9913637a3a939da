"""Describe the resolution of images: the side of a square, or a height and a width, in pixels."""

Resolution = int | tuple[int, int]


def height_width(resolution: Resolution) -> tuple[int, int]:
    """Give the height and the width of a resolution, in pixels."""
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def simplest(resolution: Resolution) -> Resolution:
    """Write a square by its side, so that equal resolutions are equal.

    Raises TypeError or ValueError where a value that is no number is no pair.
    """
    if isinstance(resolution, int):
        return resolution
    height, width = resolution
    return height if height == width else (height, width)


def nearest_multiples(resolution: Resolution, patch: int) -> list[Resolution]:
    """List the resolutions nearest to `resolution` whose sides are multiples of `patch`.

    For a square they are those below and above, as far as they are positive. Otherwise each side is rounded.
    """
    if isinstance(resolution, int):
        below = resolution // patch * patch
        return [side for side in (below, below + patch) if side]
    height, width = (max(patch, round(side / patch) * patch) for side in resolution)
    return [(height, width)]
