"""The shapes of the API's answers, with their units; `/api/openapi.json` is made from them.

Power is W, energy integer uJ, emissions gCO2e, intensity gCO2e/kWh, times ISO 8601 in UTC.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Failure(BaseModel):
    """Why there is no answer, and what to do about it."""

    error: str
    remedy: str


class Intensity(BaseModel):
    """The site's grid intensity in the running 5-minute slot."""

    model_config = ConfigDict(extra="ignore")

    zone: str
    pue: float = Field(description="facility energy / IT energy")
    basis: str = Field(description="what the number counts, such as average-direct-consumption")
    wanted_basis: str = Field(description="the basis that the site is configured to count")
    g_per_kwh: float | None = Field(description="gCO2e/kWh; null: unknown")
    quality: str = Field(description="measured, estimated, forecast or fallback")
    provider: str
    valid_from: str | None = Field(description="start of what the value speaks of, ISO 8601")
    valid_to: str | None = Field(description="end of what the value speaks of, ISO 8601")
    known_at: str | None = Field(description="when we came to know it")


class Workload(BaseModel):
    scope: str
    kind: str = Field(description="slurm, kubernetes, container, systemd, user, run, ...; or rest")
    id: str
    name: str
    user: str
    project: str
    team: str
    power_w: float = Field(description="mean power over the newest window, W")
    components_w: dict[str, float] = Field(description="the same by component, W")
    share: float = Field(description="of the power of all nodes, 0..1")
    g_per_hour: float | None = Field(description="gCO2e per hour at this power; null: unknown")


class Process(BaseModel):
    node: str
    pid: int
    command: str = Field(description="comm only; arguments hold secrets")
    kind: str = Field(description="of its workload")
    workload: str = Field(description="name of its workload, or its id")
    user: str
    power_w: float = Field(description="mean power over the newest window, W")


class Nodes(BaseModel):
    reporting: int = Field(description="nodes whose newest window is current")
    silent: int = Field(description="nodes that sent nothing for 3 windows")
    silent_names: list[str] = Field(description="the first ten")


class Now(BaseModel):
    """All nodes together in their newest windows. Silent nodes add no watts."""

    at: str = Field(description="when this was answered, ISO 8601")
    state: str = Field(
        description="waiting: no frame since the start; live; silent: no node reports; nothing: "
        "nothing of the team runs whose token asks"
    )
    power_w: float = Field(
        description="mean power of all reporting nodes over their newest windows, W"
    )
    components_w: dict[str, float] = Field(description="by component, W; unmetered ones are absent")
    quality_w: dict[str, float] = Field(description="by quality of the reading, W")
    modelled_share: float = Field(description="modelled part of the power, 0..1")
    simulated: bool = Field(description="some of it was made by a simulator")
    g_per_hour: float | None = Field(description="gCO2e per hour at this power; null: unknown")
    coverage: float | None = Field(description="measured part of the expected, 0..1; null: no node")
    window_s: float | None = Field(description="length of the newest window, s")
    window_end: str | None = Field(description="end of the newest window, ISO 8601; null: none yet")
    nodes: Nodes
    intensity: Intensity | None
    workloads: list[Workload] = Field(description="greatest first, without the reserved kinds")
    reserved: list[Workload] = Field(description="idle, system and unattributed")
    processes: list[Process] = Field(description="greatest first")


class PowerSeries(BaseModel):
    """Mean power in steps; every list has the length of `t`. null: nobody measured then."""

    step_s: int = Field(description="length of a step, s")
    simulated: bool = Field(description="some of it was made by a simulator")
    t: list[float] = Field(description="start of the step, seconds since 1970 UTC")
    cpu: list[float | None] = Field(description="W")
    dram: list[float | None] = Field(description="W")
    gpu: list[float | None] = Field(description="W")
    other: list[float | None] = Field(description="W")


class IntensityPoint(BaseModel):
    t: float = Field(description="start of the 5-minute slot, seconds since 1970 UTC")
    g_per_kwh: float | None = Field(description="gCO2e/kWh; null: unknown")
    quality: str | None = Field(description="measured, estimated, forecast or fallback")
    basis: str | None
    provider: str | None


class IntensitySeries(BaseModel):
    points: list[IntensityPoint]


class Node(BaseModel):
    node: str
    host_node: str = Field(description="the node that this guest VM runs on, or empty")
    simulated: bool
    silent: bool
    duplicate: bool = Field(description="two agents report under this name at once")
    power_w: float = Field(description="W; 0 while silent")
    components_w: dict[str, float] = Field(description="by component, W")
    quality_w: dict[str, float] = Field(description="by quality of the reading, W")
    coverage: float = Field(description="measured part of its newest window, 0..1")
    window_start: str = Field(description="start of its newest window, ISO 8601")
    window_s: float = Field(description="length of its newest window, s")
    received_at: str = Field(description="when that window arrived, ISO 8601")


class NodeList(BaseModel):
    nodes: list[Node]
    left_off: int = Field(description="nodes beyond `limit`")


class Missing(BaseModel):
    what: str
    why: str
    remedy: str


class Health(BaseModel):
    status: str = Field(description="ready, degraded (something is missing), failed (no ledger)")
    version: str
    missing: list[Missing]


class ReportRow(BaseModel):
    model_config = ConfigDict(extra="allow")

    key: str = Field(description="the workload, user, team, node, component or kind")
    team: str | None = Field(description="who answers for it; null: several teams")
    energy_uj: int = Field(description="uJ")
    g_co2e: float | None = Field(description="gCO2e; null: no intensity is known")
    coverage: float | None = Field(description="measured part of the expected node-time, 0..1")
    quality: Any = Field(description="the worst that went in: measured, derived or modelled")


class ReportTotal(BaseModel):
    model_config = ConfigDict(extra="allow")

    energy_uj: int = Field(description="uJ; equals metered_uj")
    g_co2e: float | None = Field(description="gCO2e; null: no intensity is known")


class Report(BaseModel):
    """Energy and grams of a past time. `metered_uj` is what the devices drew."""

    model_config = ConfigDict(extra="allow")

    since: str = Field(description="start of the first 5-minute slot, ISO 8601")
    until: str = Field(description="end of the last 5-minute slot, ISO 8601")
    as_of: str | None = Field(description="the answer as it was known then, ISO 8601")
    by: str
    idle_policy: str
    basis: str = Field(description="what a gram counts, such as average-direct-consumption")
    components: list[str]
    pue: float | None = Field(
        description="facility energy / IT energy applied; where it changed, the mean by energy"
    )
    intensity: dict[str, float] = Field(description="{quality: share of the energy}")
    rows: list[ReportRow]
    total: ReportTotal
    metered_uj: int = Field(description="what the devices drew, uJ")
    simulated: bool = Field(description="some of it was made by a simulator")
