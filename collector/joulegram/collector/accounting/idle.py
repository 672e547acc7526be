"""Who answers for idle energy: the reader's choice, never the meter's. Pure.

separate        idle is shown apart
by_active       each component's idle goes by the active energy in it
by_reservation  a held GPU's idle goes to its holder, the rest by reserved CPUs
"""

from collections.abc import Mapping


def split_uj(energy_uj: int, weights: Mapping[int, int]) -> dict[int, int]:
    """Split an energy over owners in proportion to their weights, to the last microjoule.

    Args:
        energy_uj: energy to hand out, uJ, >= 0.
        weights: {owner: weight}, each >= 0, at least one > 0.
    Returns: {owner: uJ}; the values sum to `energy_uj` exactly.
    Raises: ValueError when a quantity is outside its range.
    Method: largest remainder (Hamilton); ties go to the smaller owner, so that every reader
        of the same slot splits it the same way.
    """
    total = sum(weights.values())
    if energy_uj < 0 or total <= 0 or min(weights.values()) < 0:
        raise ValueError(f"out of range: {energy_uj=} {weights=}")
    shares = {owner: energy_uj * weight // total for owner, weight in weights.items()}
    left = energy_uj - sum(shares.values())
    if left:
        by_remainder = sorted(weights, key=lambda o: (-(energy_uj * weights[o] % total), o))
        for owner in by_remainder[:left]:
            shares[owner] += 1
    return shares


def share_idle(
    policy: str,
    idle_uj: Mapping[int, int],
    active_uj: Mapping[int, int],
    reserved: Mapping[int, int],
) -> tuple[dict[int, int], int]:
    """Share the idle energy of one (slot, node, component) out.

    Args:
        policy: by_active or by_reservation.
        idle_uj: {holder or 0: uJ}; only GPUs have holders.
        active_uj: {workload: uJ} in this component.
        reserved: {workload: reserved CPU time}; empty for GPUs, which are held instead.
    Returns: ({workload: uJ it takes}, uJ without a taker, which stays idle); together exactly
        the idle energy that came in.
    """
    if policy not in ("by_active", "by_reservation"):
        raise ValueError(f"out of range: {policy=}")
    taken: dict[int, int] = {}
    pool = sum(idle_uj.values())
    if policy == "by_reservation":
        taken = {holder: uj for holder, uj in idle_uj.items() if holder and uj}
        pool = idle_uj.get(0, 0)
    weights = {w: x for w, x in (active_uj if policy == "by_active" else reserved).items() if x > 0}
    if not weights or not pool:
        return taken, pool
    for workload, uj in split_uj(pool, weights).items():
        taken[workload] = taken.get(workload, 0) + uj
    return taken, 0
