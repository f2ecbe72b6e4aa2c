"""Which colour a number has on a coloured cell, so that it can be read (WCAG 2.1, success criterion 1.4.3)."""

from collections.abc import Sequence

BLACK, WHITE = "#000000", "#ffffff"
LEAST = 4.5  # contrast of text of usual size; black or white reaches it on every colour


def luminance(colour: Sequence[float]) -> float:
    """The relative luminance of red, green and blue from 0 to 1 (sRGB), as WCAG defines it."""
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour[:3]]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """The contrast of two colours, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def text_on(background: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast to the background (red, green and blue from 0 to 1)."""
    return BLACK if contrast(background, (0, 0, 0)) >= contrast(background, (1, 1, 1)) else WHITE
