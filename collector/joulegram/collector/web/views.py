"""Live state and standing numbers -> the API's answers. Pure: no queries, no clock."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from joulegram.collector.live import NodePower, ProcessPower, WorkloadPower
from joulegram.collector.live import Now as LiveNow
from joulegram.collector.rules import RESERVED_KINDS
from joulegram.collector.web import models


def iso(ms: float) -> str:
    """Milliseconds since 1970 -> ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(int(ms) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def grams_per_hour(power_w: float, grid: Mapping[str, Any] | None) -> float | None:
    """Emissions at this power, gCO2e/h: W / 1000 x PUE x gCO2e/kWh. None: intensity unknown."""
    if grid is None or grid["g_per_kwh"] is None:
        return None
    return float(power_w / 1000 * grid["pue"] * grid["g_per_kwh"])


def now(live: LiveNow, grid: Mapping[str, Any] | None, top: int) -> models.Now:
    """The answer of /api/v1/now, with at most `top` workloads and processes."""
    newest = max((*live.nodes, *live.silent), key=_window_end_ms, default=None)
    total_w = live.total_w
    return models.Now(
        at=iso(live.at_ms),
        state="live" if live.nodes else "silent" if live.silent else "waiting",
        power_w=total_w,
        components_w=dict(live.power_w),
        quality_w=dict(live.quality_w),
        modelled_share=live.quality_w.get("modelled", 0.0) / total_w if total_w else 0.0,
        simulated=live.simulated,
        # While no node reports, what is drawn is not known: that is no zero.
        g_per_hour=grams_per_hour(total_w, grid) if live.nodes else None,
        coverage=live.coverage,
        window_s=newest.window_ms / 1000 if newest else None,
        window_end=iso(_window_end_ms(newest)) if newest else None,
        nodes=models.Nodes(
            reporting=len(live.nodes),
            silent=len(live.silent),
            silent_names=[node.node for node in live.silent[:10]],
        ),
        intensity=models.Intensity.model_validate(dict(grid)) if grid else None,
        workloads=[_workload(w, total_w, grid) for w in live.workloads[:top]],
        reserved=[_workload(w, total_w, grid) for w in live.reserved],
        processes=[_process(p) for p in live.processes[:top]],
    )


def nodes(live: LiveNow, limit: int) -> models.NodeList:
    """The answer of /api/v1/nodes, by name."""
    silent = {node.node for node in live.silent}
    everyone = sorted((*live.nodes, *live.silent), key=lambda node: node.node)
    return models.NodeList(
        nodes=[_node(node, node.node in silent) for node in everyone[:limit]],
        left_off=max(0, len(everyone) - limit),
    )


def _workload(
    workload: WorkloadPower, total_w: float, grid: Mapping[str, Any] | None
) -> models.Workload:
    return models.Workload(
        scope="" if workload.kind in RESERVED_KINDS else workload.scope,
        kind=workload.kind,
        id=workload.id,
        name=workload.name or workload.id or workload.kind,
        user=workload.user,
        project=workload.project,
        team=workload.team,
        power_w=workload.total_w,
        components_w=dict(workload.power_w),
        share=workload.total_w / total_w if total_w else 0.0,
        g_per_hour=grams_per_hour(workload.total_w, grid),
    )


def _process(process: ProcessPower) -> models.Process:
    workload = process.workload
    return models.Process(
        node=process.node,
        pid=process.pid,
        command=process.command,
        kind=workload.kind,
        workload=workload.name or workload.id or workload.kind,
        user=workload.user,
        power_w=process.power_w,
    )


def _node(node: NodePower, silent: bool) -> models.Node:
    return models.Node(
        node=node.node,
        host_node=node.host_node,
        simulated=node.simulated,
        silent=silent,
        duplicate=node.doubled and not silent,
        power_w=0.0 if silent else node.total_w,
        components_w={} if silent else dict(node.power_w),
        quality_w={} if silent else dict(node.quality_w),
        coverage=0.0 if silent else node.coverage,
        window_start=iso(node.window_start_ms),
        window_s=node.window_ms / 1000,
        received_at=iso(node.received_at_ms),
    )


def _window_end_ms(node: NodePower) -> int:
    return node.window_start_ms + node.window_ms
