"""Puts, gets and scans from Python, written against the proto files alone. Usage: kvorum_example.py HOST:PORT"""
import os
import sys
import tempfile

import grpc
from grpc_tools import protoc

# The stubs are generated into a directory that is gone when the program ends.
PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")
stubs = tempfile.TemporaryDirectory()
if protoc.main(["", f"-I{PROTO}", f"--python_out={stubs.name}", f"--grpc_python_out={stubs.name}", "kvorum/v1/kv.proto"]):
    sys.exit("the stubs could not be generated")
sys.path.insert(0, stubs.name)
from kvorum.v1 import kv_pb2, kv_pb2_grpc  # noqa: E402

kv = kv_pb2_grpc.KvStub(grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"))
expected = {f"python/{n:03}".encode(): f"value {n}".encode() for n in range(100)}
try:
    for key, value in expected.items():
        kv.Put(kv_pb2.PutRequest(key=key, value=value), timeout=10)
    for key, value in expected.items():
        got = kv.Get(kv_pb2.GetRequest(key=key), timeout=10).record.value
        if got != value:
            sys.exit(f"{key!r} holds {got!r}, not {value!r}")
    pages = kv.Scan(kv_pb2.ScanRequest(prefix=b"python/"), timeout=30)
    scanned = {row.key: row.record.value for page in pages for row in page.rows}
except grpc.RpcError as error:
    kind = dict(error.trailing_metadata() or ()).get("kvorum-error", "no kvorum error")
    sys.exit(f"{error.code().name} ({kind}): {error.details()}")
if scanned != expected:
    sys.exit(f"the scan returned {len(scanned)} rows that differ from the {len(expected)} written")
print(f"put, got and scanned {len(scanned)} rows")
