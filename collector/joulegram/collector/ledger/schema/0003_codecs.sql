-- 0003_codecs.sql. Fewer bytes on disk per process row, for the same CPU (bench/disk_row.py has
-- the candidates): 11.0 before, 9.7 after. Only new parts and merges are written so; nothing is
-- rewritten by this. A server that does not know a codec keeps what it had.

-- The kernel counts CPU time of processes in ticks of 10 ms: all values of a block share a factor.
/* >=24.1 ALTER TABLE rows MODIFY COLUMN cpu_ns UInt64 CODEC(GCD, T64, ZSTD(1)) */;
-- One step a frame, and then the next node: the differences are the same for long.
/* >=20.1 ALTER TABLE rows MODIFY COLUMN seq UInt64 CODEC(DoubleDelta, ZSTD(1)) */;
-- Zero in most rows, and large in few: transposing the bits of 64 values at once spreads them.
/* >=20.1 ALTER TABLE rows MODIFY COLUMN gpu_uj UInt64 CODEC(ZSTD(1)) */;
/* >=20.1 ALTER TABLE rows MODIFY COLUMN gpu_ns UInt64 CODEC(ZSTD(1)) */;
/* >=20.1 ALTER TABLE rows MODIFY COLUMN total_uj UInt64 CODEC(T64, ZSTD(1)) */;
-- Indices into a dictionary that repeat from frame to frame.
/* >=20.1 ALTER TABLE rows MODIFY COLUMN command LowCardinality(String) CODEC(ZSTD(1)) */;
/* >=20.1 ALTER TABLE rows MODIFY COLUMN device LowCardinality(String) CODEC(ZSTD(1)) */;
/* >=20.1 ALTER TABLE rows MODIFY COLUMN node LowCardinality(String) CODEC(ZSTD(1)) */;
