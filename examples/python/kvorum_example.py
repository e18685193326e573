"""Puts, gets, scans and commits a transaction over two shards, from Python, written against the proto files alone.

Usage: kvorum_example.py HOST:PORT
"""
import os
import random
import sys
import tempfile
import time

import grpc
from grpc_tools import protoc

# The stubs are generated into a directory that is gone when the program ends.
PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")
stubs = tempfile.TemporaryDirectory()
FILES = ["kvorum/v1/kv.proto", "kvorum/v1/index_types.proto", "kvorum/v1/saga_types.proto"]
if protoc.main(["", f"-I{PROTO}", f"--python_out={stubs.name}", f"--grpc_python_out={stubs.name}", *FILES]):
    sys.exit("the stubs could not be generated")
sys.path.insert(0, stubs.name)
from kvorum.v1 import kv_pb2, kv_pb2_grpc  # noqa: E402

# In a cluster that is cut into shards, these two keys are in the first and in the last one.
HERE, THERE = b"\x01python/stock", b"\xf1python/stock"


def kind(error):
    """The kind of a store's error, by which a program decides what to do next."""
    return dict(error.trailing_metadata() or ()).get("kvorum-error", "no kvorum error")


def move(kv):
    """Moves the value of HERE to THERE, as a whole or not at all. Returns the commit timestamp and the attempts."""
    for attempt in range(1, 21):
        # Begin: a timestamp. All reads are of that instant.
        start_ts = kv.Timestamp(kv_pb2.TimestampRequest(), timeout=10).ts
        held = kv.GetMany(kv_pb2.GetManyRequest(keys=[HERE, THERE], at_ts=start_ts), timeout=10).records
        if not held[0].HasField("record") or held[1].HasField("record"):
            sys.exit("the value is not where it should be")
        # The writes are kept here until the commit, which says what was read and what is written. The request id makes
        # a retry of this very commit harmless; it bears the start timestamp.
        request_id = kv_pb2.RequestId(seen_ts=start_ts, unique=os.urandom(16))
        commit = kv_pb2.CommitRequest(
            header=kv_pb2.Header(request_id=request_id),
            start_ts=start_ts,
            read_keys=[HERE, THERE],
            writes=[
                kv_pb2.Write(delete=HERE),
                kv_pb2.Write(put=kv_pb2.PutStep(key=THERE, value=held[0].record.value)),
            ],
        )
        try:
            return kv.Commit(commit, timeout=10).commit_ts, attempt
        except grpc.RpcError as error:
            # Somebody changed or locked what was read: nothing was done. Read again, after a moment.
            if kind(error) != "conflict":
                raise
            time.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 6)))
    sys.exit("others were in the way twenty times")


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
    kv.Put(kv_pb2.PutRequest(key=HERE, value=b"7 pears"), timeout=10)
    kv.Delete(kv_pb2.DeleteRequest(key=THERE), timeout=10)
    commit_ts, attempts = move(kv)
    # Just before its commit timestamp nothing had moved, at it everything has.
    for at_ts, expected_values in ((commit_ts - 1, [b"7 pears", b""]), (commit_ts, [b"", b"7 pears"])):
        records = kv.GetMany(kv_pb2.GetManyRequest(keys=[HERE, THERE], at_ts=at_ts), timeout=10).records
        if [record.record.value for record in records] != expected_values:
            sys.exit(f"at {at_ts} the two keys hold {records}")
except grpc.RpcError as error:
    sys.exit(f"{error.code().name} ({kind(error)}): {error.details()}")
if scanned != expected:
    sys.exit(f"the scan returned {len(scanned)} rows that differ from the {len(expected)} written")
print(f"put, got and scanned {len(scanned)} rows")
print("moved a value between two shards in one transaction")
