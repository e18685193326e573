#!/usr/bin/env python3
"""What the demo's query indexes must answer, computed from the files of iso-codes without kvorum.

usage: scripts/subdivisions.py listing|counts|types FILE

  listing   every subdivision by country, type and code, with its name
  counts    how many subdivisions each country has
  types     how many of each type each country has

FILE is iso_3166-2.json. One JSON array a line, in the order of the bytes of the texts.
"""

import collections
import json
import sys

if len(sys.argv) != 3 or sys.argv[1] not in ("listing", "counts", "types"):
    sys.exit(__doc__)

with open(sys.argv[2], encoding="utf-8") as file:
    subdivisions = json.load(file)["3166-2"]

rows = [(one["code"].split("-")[0], one["type"], one["code"], one["name"]) for one in subdivisions]
if sys.argv[1] == "counts":
    rows = collections.Counter(row[0] for row in rows).items()
elif sys.argv[1] == "types":
    rows = [(*key, count) for key, count in collections.Counter(row[:2] for row in rows).items()]

for row in sorted(rows, key=lambda row: [str(field).encode() for field in row[:3]]):
    print(json.dumps(list(row), ensure_ascii=False, separators=(",", ":")))
