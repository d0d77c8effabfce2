"""Progress of long work: a bar with ETA on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Reports the steps of one phase.

    phase: its name; total: its last step; first: the step that this start continues from; unit:
    what is counted.
    """

    def __init__(self, phase: str, total: int, first: int = 0, unit: str = "steps") -> None:
        self.first = first
        self._phase, self._total, self._unit = phase, total, unit
        self._measured_from: tuple[int, float] | None = None  # step and time of the first update
        self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=phase, total=total, initial=first, dynamic_ncols=True)

    def update(self, step: int, shown: Mapping[str, float] | None = None) -> None:
        """Tells that `step` steps are done; shown: a few metrics to print beside."""
        values = {name: f"{float(value):.4g}" for name, value in (shown or {}).items()}
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._measured_from is None:  # what came before includes compilation
            self._measured_from = step, now
        elif now - self._last_line < SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._last_line = now
        parts = [f"{self._phase} {step}/{self._total}", self._pace(step, now)]
        parts += [f"{name} {value}" for name, value in values.items()]
        print(", ".join(part for part in parts if part), flush=True)

    def _pace(self, step: int, now: float) -> str:
        since, start = self._measured_from
        if step == since:
            return ""
        rate = (step - since) / max(now - start, 1e-9)
        return f"{rate:.3g} {self._unit}/s, {(self._total - step) / rate:.0f} s left"

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
