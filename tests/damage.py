"""What can happen to a file on its way."""

import random


def damaged(sound, others, n=100):
    """n seeded corruptions of the bytes: a quarter each cut short, a bit flipped, swapped, spliced with others."""
    draw = random.Random(0)
    for trial in range(n):
        at, other = draw.randrange(len(sound)), draw.choice(others)
        flipped = bytes([sound[at] ^ 1 << draw.randrange(8)])
        bad = (sound[:at], sound[:at] + flipped + sound[at + 1 :], other, sound[:at] + other[at:])[trial % 4]
        yield bad if bad != sound else other
