"""Energy over owners, to the last microjoule, for many windows at once."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MAX_WEIGHT = 2**31  # of a window's weights together: products of two stay within int64


def split_uj(energy_uj: Ints, weights: Ints) -> Ints:
    """Split each window's energy in proportion to its weights, by largest remainder.

    Args:
        energy_uj: shape (windows,), each >= 0.
        weights: shape (windows, owners), each >= 0, in every window at least one > 0 and
            together below MAX_WEIGHT.
    Returns: shape (windows, owners); row by row they sum to `energy_uj` exactly. Ties go to
        the owner that stands first.
    """
    total = weights.sum(axis=1)
    assert energy_uj.min(initial=0) >= 0 and total.min(initial=1) > 0
    assert total.max(initial=0) < MAX_WEIGHT
    whole, rest = np.divmod(energy_uj, total)
    products = rest[:, None] * weights
    shares, remainders = np.divmod(products, total[:, None])
    left = rest - shares.sum(axis=1)
    shares += whole[:, None] * weights
    order = np.argsort(-remainders, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(weights.shape[1])[None, :], axis=1)
    shares += rank < left[:, None]
    return shares
