"""Opens a merged table on an object store and counts its rows.

usage: count_rows.py TABLE STORAGE_OPTIONS_AS_JSON
"""

import json
import sys

import lance


def main(uri, options):
    print(json.dumps({"rows": lance.dataset(uri, storage_options=json.loads(options)).count_rows()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
