-- 0001_ledger.sql. The ledger: energy and intensity, apart; never grams.
-- Energy is UInt64 uJ, coverage a fraction, times are UTC. A comment of the form
-- `/* >=20.1 ... */` holds what servers from that version on understand. A kill may leave a
-- file half applied, and it is then applied again: every statement can be repeated.

-- One row per process or remainder of a frame. Row 0 is the frame's header: a frame counts
-- once its header is there, and the header travels in the same insert as its rows.
-- The key is the identity (node, epoch, seq, row), so a row that arrives twice collapses
-- into one. `window` comes before it for the main query, one node over time; the index on seq
-- finds the header of a frame that claims to be of another window.
CREATE TABLE IF NOT EXISTS rows (
    node         LowCardinality(String),
    window       DateTime('UTC') /* >=20.1 CODEC(DoubleDelta, ZSTD(1)) */,
    epoch        UInt64 /* >=20.1 CODEC(ZSTD(1)) */,
    seq          UInt64 /* >=20.1 CODEC(Delta, ZSTD(1)) */,
    row          UInt32 /* >=20.1 CODEC(Delta, ZSTD(1)) */,
    landed_at_ms UInt64 /* >=20.1 CODEC(DoubleDelta, ZSTD(1)) */,
    -- header only, 0 elsewhere
    window_ms    UInt32 /* >=20.1 CODEC(ZSTD(1)) */,
    row_count    UInt32 /* >=20.1 CODEC(ZSTD(1)) */,
    total_uj     UInt64 /* >=20.1 CODEC(ZSTD(1)) */,
    hash         UInt64 /* >=20.1 CODEC(ZSTD(1)) */,
    -- rows 1.., 0 in the header
    workload     UInt64 /* >=20.1 CODEC(ZSTD(1)) */,   -- id in `workloads`
    holder       UInt64 /* >=20.1 CODEC(ZSTD(1)) */,   -- idle GPU rows: the workload that holds it
    device       LowCardinality(String),               -- GPU rows: the GPU's name
    pid          UInt32 /* >=20.1 CODEC(ZSTD(1)) */,
    start_ticks  UInt64 /* >=20.1 CODEC(ZSTD(1)) */,
    command      LowCardinality(String),
    cpu_uj       UInt64 /* >=20.1 CODEC(T64, ZSTD(1)) */,
    dram_uj      UInt64 /* >=20.1 CODEC(T64, ZSTD(1)) */,
    gpu_uj       UInt64 /* >=20.1 CODEC(T64, ZSTD(1)) */,
    other_uj     UInt64 /* >=20.1 CODEC(T64, ZSTD(1)) */,
    cpu_ns       UInt64 /* >=20.1 CODEC(T64, ZSTD(1)) */,
    gpu_ns       UInt64 /* >=20.1 CODEC(T64, ZSTD(1)) */
    /* >=20.1 , INDEX by_seq seq TYPE minmax GRANULARITY 1 */
) ENGINE = ReplacingMergeTree PARTITION BY toYYYYMMDD(window)
  ORDER BY (node, window, epoch, seq, row)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;

-- What each metered part drew in a frame; sums of it are what a report must equal.
CREATE TABLE IF NOT EXISTS devices (
    node      LowCardinality(String),
    window    DateTime('UTC'),
    epoch     UInt64,
    seq       UInt64,
    device    UInt16,
    window_ms UInt32,
    name      LowCardinality(String),
    component LowCardinality(String),
    energy_uj UInt64,
    idle_uj   UInt64,
    raw_uj    UInt64,
    clamped   UInt8,
    late      UInt8,
    quality   LowCardinality(String),
    coverage  Float64,
    simulated UInt8,
    host_node LowCardinality(String),  -- a guest VM names the node it runs on
    boot_id   LowCardinality(String)
) ENGINE = ReplacingMergeTree PARTITION BY toYYYYMMDD(window)
  ORDER BY (node, window, epoch, seq, device)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;

-- What a scheduler says a workload may use, per frame. Only workloads that reserve something.
CREATE TABLE IF NOT EXISTS reservations (
    node      LowCardinality(String),
    window    DateTime('UTC'),
    epoch     UInt64,
    seq       UInt64,
    workload  UInt64,
    device    LowCardinality(String),  -- '' for CPUs
    window_ms UInt32,
    amount    Float64                  -- CPUs, or the fraction of the device
) ENGINE = ReplacingMergeTree PARTITION BY toYYYYMMDD(window)
  ORDER BY (node, window, epoch, seq, workload, device)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;

-- Who a workload is. `workload` = blake2b-64 of (scope, kind, id). Details may come to be
-- known later or change; each version is kept, readers take the one seen last.
CREATE TABLE IF NOT EXISTS workloads (
    workload    UInt64,
    details     UInt64,  -- blake2b-64 of the columns below
    seen_at_ms  UInt64,
    scope       LowCardinality(String),
    kind        LowCardinality(String),
    id          String,
    user        String,
    project     String,
    name        String,
    labels      Array(String),  -- attribute names...
    label_values Array(String)  -- ...and their values
) ENGINE = ReplacingMergeTree(seen_at_ms) ORDER BY (workload, details)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;

-- Energy per (node, 5-minute slot), recomputed whole from rows and devices and written in one
-- insert under a new generation; readers take the greatest generation of a slot only. Entries
-- never vanish from a slot, so an older generation may be merged away. `entry` says what a row
-- is: 'frames' (one per generation: what it was made from), 'device', 'workload', 'reserved'.
CREATE TABLE IF NOT EXISTS slots (
    node       LowCardinality(String),
    slot       DateTime('UTC'),
    generation UInt64,
    entry      LowCardinality(String),
    workload   UInt64,
    holder     UInt64,
    device     LowCardinality(String),
    component  LowCardinality(String), -- device entries
    -- frames: how many, and the sum of their hashes modulo 2^64; dirty when the headers differ
    frames     UInt32,
    frames_hash UInt64,
    frames_ms  UInt64,                 -- frames: sum of window_ms
    -- workload entries: energy by component; device entries: energy_uj, idle_uj
    cpu_uj     UInt64,
    dram_uj    UInt64,
    gpu_uj     UInt64,
    other_uj   UInt64,
    energy_uj  UInt64,
    idle_uj    UInt64,
    cpu_ns     UInt64,
    gpu_ns     UInt64,
    -- device entries: sum of coverage x window_ms, and the energy by quality
    covered_ms  Float64,
    derived_uj  UInt64,
    modelled_uj UInt64,
    -- reserved entries: sum of amount x window_ms
    reserved_ms Float64,
    simulated  UInt8,
    host_node  LowCardinality(String)  -- device entries of a guest: the node it runs on
) ENGINE = ReplacingMergeTree(generation) PARTITION BY toYYYYMM(slot)
  ORDER BY (node, slot, entry, workload, holder, device, component)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;

-- What a grid emitted per kWh during [valid_from, valid_to), as somebody knew it.
CREATE TABLE IF NOT EXISTS intensity (
    zone        LowCardinality(String),
    basis       LowCardinality(String), -- average-direct-consumption, average-lifecycle-production, ...
    valid_from  DateTime('UTC'),
    valid_to    DateTime('UTC'),
    provider    LowCardinality(String),
    known_at_ms UInt64,                 -- ours: when we fetched it
    updated_at_ms UInt64,               -- the provider's own stamp, 0 when it gives none
    g_per_kwh   Float64,
    quality     LowCardinality(String)  -- measured, estimated, forecast, fallback
) ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(valid_from)
  ORDER BY (zone, basis, valid_from, valid_to, provider, known_at_ms)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;

-- What the operator said (zone, PUE, team rules, retired nodes), with valid and knowledge time.
CREATE TABLE IF NOT EXISTS settings (
    kind          LowCardinality(String), -- site, teams, retired
    name          String,                 -- which one; '' where there is only one
    valid_from    DateTime('UTC'),
    known_at_ms   UInt64,
    value         String                  -- JSON
) ENGINE = ReplacingMergeTree ORDER BY (kind, name, valid_from, known_at_ms)
  /* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1 */;
