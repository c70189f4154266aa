"""What stands in for a GPU's recording where there is none: rehearses a function and then calls it anew each time."""

from collections.abc import Callable

import torch


class Rehearsing:
    """Three rehearsals, as on a GPU; ``fails_after`` of them it finds that the function cannot be recorded.

    Attributes:
        repeats: How often what it recorded was repeated.
    """

    def __init__(self, fails_after: int | None = None) -> None:
        self.fails_after, self.repeats = fails_after, 0

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        for number in range(3):
            if number == self.fails_after:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            run()
            torch.rand(1)

        def repeat() -> None:
            self.repeats += 1
            run()

        return repeat
