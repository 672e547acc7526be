"""What a team may see of now: its workloads, and of the nodes what these draw there."""

from dataclasses import replace

from joulegram.collector.live import NodePower, Now, together


def own(now: Now, team: str) -> Now:
    """Now as if there were nothing but this team's workloads."""
    return together(
        now.at_ms,
        [part for node in now.nodes if (part := _part(node, team)) is not None],
        [part for node in now.silent if (part := _part(node, team)) is not None],
    )


def _part(node: NodePower, team: str) -> NodePower | None:
    workloads = [workload for workload in node.workloads if workload.team == team]
    if not workloads:
        return None
    power_w: dict[str, float] = {}
    for workload in workloads:
        for component, watts in workload.power_w.items():
            power_w[component] = power_w.get(component, 0.0) + watts
    # Of a workload's watts nobody knows which device they came from: as good as the node's.
    share = sum(power_w.values()) / node.total_w if node.total_w else 0.0
    return replace(
        node,
        power_w=power_w,
        quality_w={quality: watts * share for quality, watts in node.quality_w.items()},
        workloads=workloads,
        processes=[process for process in node.processes if process.workload.team == team],
    )
