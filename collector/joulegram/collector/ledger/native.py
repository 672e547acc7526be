"""Columns onto the wire of a ClickHouse server, as cheaply as they lie in memory.

The driver's own stream looks for nulls and sorts texts anew in every column, which is most of
what an insert costs a client. Numbers here go as their bytes, and texts as the codes that they
already have. Whatever else there is (arrays, what may be null) is left to the driver.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from clickhouse_driver import defines
from clickhouse_driver.columns.service import write_column
from clickhouse_driver.streams.native import BlockOutputStream
from clickhouse_driver.varint import write_varint
from clickhouse_driver.writer import write_binary_int64, write_binary_str, write_binary_uint8
from numpy.typing import NDArray

NUMBERS = {
    **{f"{sign}Int{bits}": f"<{sign.lower() or 'i'}{bits // 8}" for sign in ("", "U")
       for bits in (8, 16, 32, 64)},
    "Float32": "<f4",
    "Float64": "<f8",
    "DateTime": "<u4",
    "DateTime('UTC')": "<u4",
}  # fmt: skip
CODED = "LowCardinality(String)"

# How ClickHouse announces codes: version 1; a dictionary of this block's own follows.
_CODES_VERSION = 1
_OWN_DICTIONARY = 1 << 9 | 1 << 10
_CODE_WIDTHS = ((2**8, 0, "<u1"), (2**16, 1, "<u2"), (2**32, 2, "<u4"))


class Coded(np.ndarray):
    """Texts as codes: element i is `texts[codes[i]]`. An array, so that the driver passes it on."""

    texts: list[str]

    @classmethod
    def of(cls, codes: NDArray[Any], texts: list[str]) -> "Coded":
        """View `codes`, indices into `texts`, as texts."""
        coded = codes.view(cls)
        coded.texts = texts
        return coded

    def plain(self) -> NDArray[np.object_]:
        """The texts themselves."""
        texts: NDArray[np.object_] = np.array(self.texts, dtype=object)[np.asarray(self)]
        return texts


def as_array(column: Any) -> NDArray[Any]:
    """A column of numpy, of Arrow, or a list, as an array that `Columns` and the driver take."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
        return column
    arrow = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
    if isinstance(arrow, pa.ChunkedArray):
        arrow = arrow.combine_chunks()
    if pa.types.is_dictionary(arrow.type) and arrow.indices.type == pa.int64():
        arrow = arrow.cast(pa.dictionary(pa.int32(), arrow.type.value_type))
    if not arrow.null_count:
        if pa.types.is_string(arrow.type) or pa.types.is_large_string(arrow.type):
            arrow = arrow.dictionary_encode()
        if pa.types.is_dictionary(arrow.type):
            return Coded.of(arrow.indices.to_numpy(), arrow.dictionary.to_pylist())
        if pa.types.is_primitive(arrow.type):
            numbers: NDArray[Any] = arrow.to_numpy(zero_copy_only=False)
            return numbers
    whole = np.empty(len(arrow), dtype=object)
    whole[:] = arrow.to_pylist()
    return whole


class Columns(BlockOutputStream):  # type: ignore[misc]
    """The driver's stream of blocks, with columns from `as_array`."""

    def write(self, block: Any) -> None:
        """Send one block; an empty one ends an insert."""
        revision = self.context.server_info.used_revision
        if revision >= defines.DBMS_MIN_REVISION_WITH_BLOCK_INFO:
            block.info.write(self.fout)
        write_varint(block.num_columns, self.fout)
        write_varint(block.num_rows, self.fout)
        for index, (name, kind) in enumerate(block.columns_with_types):
            write_binary_str(name, self.fout)
            write_binary_str(kind, self.fout)
            if block.num_columns:
                if revision >= defines.DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION:
                    write_binary_uint8(0, self.fout)  # none
                self._column(name, kind, block.get_column_by_index(index))
        self.finalize()

    def _column(self, name: str, kind: str, items: NDArray[Any]) -> None:
        if isinstance(items, Coded):
            if kind == CODED and len(items):
                self._coded(items)
                return
            items = items.plain()
        dtype = NUMBERS.get(kind)
        if dtype and items.dtype.kind in "iufb":
            self.fout.write(items.astype(dtype, copy=False).tobytes())
        else:
            write_column(self.context, name, kind, items, self.fout)

    def _coded(self, items: Coded) -> None:
        _, width, dtype = next(w for w in _CODE_WIDTHS if len(items.texts) <= w[0])
        write_binary_int64(_CODES_VERSION, self.fout)
        write_binary_int64(_OWN_DICTIONARY | width, self.fout)
        write_binary_int64(len(items.texts), self.fout)
        self.fout.write_strings(items.texts, encoding="utf-8")
        write_binary_int64(len(items), self.fout)
        self.fout.write(np.asarray(items).astype(dtype, copy=False).tobytes())
