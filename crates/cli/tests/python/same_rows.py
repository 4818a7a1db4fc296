"""Opens a merged table as any Python user does and compares it with a Parquet file, row by row and column by column.

usage: same_rows.py TABLE PARQUET KEY,COLUMNS
"""

import json
import sys

import lance
import pyarrow.parquet as pq


def in_order(table, key):
    return table.sort_by([(column, "ascending") for column in key]).combine_chunks()


def main(uri, parquet, key):
    key = key.split(",")
    dataset = lance.dataset(uri)
    found = in_order(dataset.to_table(), key)
    expected = in_order(pq.read_table(parquet), key)
    if found.column_names != expected.column_names:
        sys.exit(f"columns {found.column_names} instead of {expected.column_names}")
    for name in expected.column_names:
        if not found.column(name).equals(expected.column(name)):
            sys.exit(f"column {name} differs: {found.column(name).type}, {expected.column(name).type}")
    print(json.dumps({"lance": lance.__version__, "rows": dataset.count_rows(), "version": dataset.version}))


if __name__ == "__main__":
    main(*sys.argv[1:])
