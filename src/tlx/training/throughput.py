"""How fast a stage goes through its images, and what holds it up."""

import time


class Throughput:
    """Images a second, and the share of the time spent waiting for them, since the last reading.

    Ends of epochs, val among them, are in neither: `begin` starts the clock anew.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.images, self.elapsed, self.waited = 0, 0.0, 0.0
        self.last = time.perf_counter()

    def batch_arrived(self, since: float = 0.0) -> None:
        """`since`: when the step before was over with all that waits for a GPU in it."""
        self.waited += time.perf_counter() - max(self.last, since)

    def batch_done(self, images: int) -> None:
        now = time.perf_counter()
        self.elapsed += now - self.last
        self.last = now
        self.images += images

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.elapsed if self.elapsed > 0 else 0.0

    def read(self) -> dict[str, float]:
        """Since the last reading; empty when no image was trained on since."""
        if self.images == 0:
            return {}
        found = {
            "speed/images_per_second": self.rate,
            "speed/waiting_for_data": self.waited / self.elapsed,
        }
        self.images, self.elapsed, self.waited = 0, 0.0, 0.0
        return found
