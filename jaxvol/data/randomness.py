"""Random streams of the pipeline: each is a function of the run's seed, its purpose and a place."""

from __future__ import annotations

import numpy as np

# what a random stream is for: the second word of its seed
ORDER, READ, AUGMENT, FIT = range(4)


def generator(*words: int) -> np.random.Generator:
    """The generator of a stream: the same words give the same draws, on every machine.

    words: seed, purpose (ORDER, READ, AUGMENT or FIT), then epoch, or step and row, or example
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
