-- 0002_totals.sql. What a month's question asks, and what stays when slots go.

-- frames: when the first frame of the slot began and the last one ended, epoch seconds, so that
-- nobody asks the raw rows for it. 0: written before these were kept.
ALTER TABLE slots ADD COLUMN IF NOT EXISTS first_s UInt32;
ALTER TABLE slots ADD COLUMN IF NOT EXISTS end_s UInt32;

-- Energy per (zone, team, slot), for good: written when the slots it is made from are about to
-- be dropped, by the rules known then. A day is written whole in one insert under a new
-- generation; readers take the greatest generation of a slot only. `entry` says what a row is:
-- 'team' (a team's energy by component and kind: 'older' or a reserved kind), 'device' (what one
-- component of all nodes drew), 'node' (what a node drew that day; its slot is the day's first; its
-- kind is 'guest' where another node's energy holds it).
CREATE TABLE IF NOT EXISTS totals (
    zone        LowCardinality(String),
    slot        DateTime('UTC'),
    generation  UInt64,
    entry       LowCardinality(String),
    team        LowCardinality(String),
    kind        LowCardinality(String),
    node        LowCardinality(String),
    component   LowCardinality(String),
    -- team entries
    cpu_uj      UInt64,
    dram_uj     UInt64,
    gpu_uj      UInt64,
    other_uj    UInt64,
    -- device and node entries
    energy_uj   UInt64,
    -- device entries: energy by quality; of all nodes, the measured and the expected time
    derived_uj  UInt64,
    modelled_uj UInt64,
    covered_ms  Float64,
    expected_ms Float64,
    simulated   UInt8
) ENGINE = ReplacingMergeTree(generation) PARTITION BY toYear(slot)
  ORDER BY (zone, slot, entry, team, kind, node, component)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;
