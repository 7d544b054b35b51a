"""The loss of a training as a drawing: SVG, of the training and, where there is one, of the validation."""

from typing import Final

_WIDTH: Final = 720
_HEIGHT: Final = 360
_LEFT: Final = 60
_RIGHT: Final = 16
_TOP: Final = 40
_BOTTOM: Final = 40
_LINES: Final = 4  # across
_COLOURS: Final = {"training loss": "#2563eb", "validation loss": "#d97706"}


class Curve:
    """Losses by step. Of a long training every second step is left out, then every second of the rest, and so on."""

    def __init__(self, points: int) -> None:
        self._most, self._every = points, 1
        self._training: list[tuple[int, float]] = []
        self._validation: list[tuple[int, float]] = []
        self.steps = 0

    def add(self, step: int, training: float, validation: float | None) -> None:
        """Add a step, later than all before it."""
        self.steps = step
        if step % self._every == 0 or not self._training:
            self._training.append((step, training))
        if validation is not None:
            self._validation.append((step, validation))
        if len(self._training) > self._most:
            self._every *= 2
            self._training = self._training[::2]

    def draw(self) -> str:
        """Return the drawing."""
        curves = {"training loss": self._training, "validation loss": self._validation}
        values = [loss for points in curves.values() for _, loss in points]
        low, high = min(values), max(values)
        high = high if high > low else low + 1.0
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

        def at(step: int, loss: float) -> str:
            x = _LEFT + (right - _LEFT) * (step - 1) / max(1, self.steps - 1)
            return f"{x:.1f},{bottom - (bottom - _TOP) * (loss - low) / (high - low):.1f}"

        parts = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>']
        for number in range(_LINES + 1):
            y, value = bottom - (bottom - _TOP) * number / _LINES, low + (high - low) * number / _LINES
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e5e7eb"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        for column, (name, points) in enumerate((name, points) for name, points in curves.items() if points):
            line = " ".join(at(*point) for point in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[name]}" stroke-width="1.5"/>')
            parts.append(f'<text x="{_LEFT + 140 * column}" y="24" fill="{_COLOURS[name]}">{name}</text>')
        parts.append(f'<text x="{_LEFT}" y="{bottom + 24}">step 1</text>')
        parts.append(f'<text x="{right}" y="{bottom + 24}" text-anchor="end">step {self.steps}</text>')
        size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        style = 'font-family="sans-serif" font-size="12" fill="#374151"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"
