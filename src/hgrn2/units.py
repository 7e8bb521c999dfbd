"""Numbers as people read them: losses, rates, durations, counts."""

import math


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; a dash where there is no number, e notation where fixed digits would say nothing."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1e}" if abs(value) >= 1e5 or 0 < abs(value) < 10**-digits else f"{value:.{digits}f}"


def rate(tokens_per_s: float | None) -> str:
    """Tokens/s with three significant digits: 950, 12.3k, 1.07M."""
    return "–" if tokens_per_s is None else f"{short(tokens_per_s)} tokens/s"


def short(value: float) -> str:
    """Three significant digits and a letter for thousands, millions and more; 12,345 becomes 12.3k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            digits = max(0, 2 - int(math.log10(max(abs(value) / size, 1.0) * 1.0005)))
            return f"{value / size:.{digits}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """m:ss, h:mm:ss, or days and hours."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    minutes, hours, days = whole // 60 % 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
