"""A worker of sagas in Python, written against the proto files alone: takes tasks from a queue, and does them.

Usage: saga_worker.py --queue QUEUE --file FILE [--handler NAME] [--concurrency N] HOST:PORT...

The tasks are confirmations to customers: each is "sent" by a line in FILE. SIGTERM and Ctrl-C stop it: it takes nothing
more, and finishes what it has begun.
"""
import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_tools import protoc

# The stubs are generated into a directory that is gone when the program ends.
PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")
stubs = tempfile.TemporaryDirectory()
FILES = [f"kvorum/v1/{name}.proto" for name in ("kv", "index_types", "saga_types", "saga")]
if protoc.main(["", f"-I{PROTO}", f"--python_out={stubs.name}", f"--grpc_python_out={stubs.name}", *FILES]):
    sys.exit("the stubs could not be generated")
sys.path.insert(0, stubs.name)
from kvorum.v1 import kv_pb2, saga_pb2, saga_pb2_grpc, saga_types_pb2  # noqa: E402

# How long one poll waits for a task, and how long the end of one is told again and again, in seconds.
POLL, TELL_FOR = 2, 30
log = logging.getLogger("saga_worker")


def kind(error):
    """The kind of a store's error, by which a program decides what to do next."""
    return dict(error.trailing_metadata() or ()).get("kvorum-error", "no kvorum error")


class Refused(Exception):
    """The task can't be done, and nothing was: it is not tried again."""


class Nodes:
    """The nodes of a cluster. Any of them serves any call; where one does not answer, the next one is asked."""

    def __init__(self, addresses):
        self.channels = [grpc.insecure_channel(address) for address in addresses]
        self.stubs = [saga_pb2_grpc.SagaStub(channel) for channel in self.channels]
        self.at = 0

    def call(self, name, request, wait):
        """One call, to one node."""
        at = self.at
        request.header.deadline_ms = int(wait * 1000)
        try:
            # The node answers by the deadline; a little later it is taken for dead.
            return getattr(self.stubs[at], name)(request, timeout=wait + 3)
        except grpc.RpcError:
            self.at = (at + 1) % len(self.stubs)
            raise


class Worker:
    """Takes tasks from a queue and has handlers do them, until it is stopped."""

    def __init__(self, nodes, queue, handlers, concurrency):
        self.nodes, self.queue, self.handlers, self.concurrency = nodes, queue, handlers, concurrency
        self.name = f"python-{os.getpid()}"
        self.stopping = threading.Event()
        # Tasks are taken only where a thread is free: the lease of one that waits here would run out.
        self.free = threading.Semaphore(concurrency)

    def run(self):
        with ThreadPoolExecutor(self.concurrency) as threads:
            while not self.stopping.is_set():
                if not self.free.acquire(timeout=1):
                    continue
                slots = 1
                while slots < self.concurrency and self.free.acquire(blocking=False):
                    slots += 1
                for task in self.poll(slots):
                    slots -= 1
                    threads.submit(self.execute, task)
                for _ in range(slots):
                    self.free.release()
            # Leaving the block waits for what has begun.

    def poll(self, most):
        """At most so many tasks; none where there are none for a while."""
        request = saga_pb2.PollSagaTasksRequest(queue=self.queue, worker=self.name, max=most)
        try:
            return self.nodes.call("PollTasks", request, POLL).tasks
        except grpc.RpcError as error:
            # Tasks that were handed out and did not come here are handed out again when their leases end.
            log.info("tasks can't be taken now (%s): %s", kind(error), error.details())
            self.stopping.wait(0.2)
            return []

    def execute(self, task):
        """Does a task and tells what it came to."""
        told = threading.Event()
        try:
            if task.heartbeat_ms:
                threading.Thread(target=self.heartbeat, args=(task, told), daemon=True).start()
            self.tell(task, self.attempt(task))
        finally:
            told.set()
            self.free.release()

    def attempt(self, task):
        """Does a task; answers what is to be told of it."""
        handler = self.handlers.get(task.handler)
        # A transaction is a step for a program that commits one; see `saga_step` in kv.proto.
        if handler is None or task.is_txn:
            return self.failed(task, f"{self.name} has no handler {task.handler!r}", kind="no_handler", did_nothing=True)
        try:
            return saga_pb2.CompleteSagaTaskRequest(token=task.token, output=handler(task))
        except Refused as error:
            return self.failed(task, error, kind="refused", is_final=True, did_nothing=True)
        except Exception as error:  # Whatever it is, the saga has to learn that this attempt came to nothing.
            log.exception("task %s failed", task.key)
            return self.failed(task, error, kind=type(error).__name__)

    @staticmethod
    def failed(task, error, **how):
        failure = saga_types_pb2.SagaFailure(message=str(error), **how)
        return saga_pb2.FailSagaTaskRequest(token=task.token, failure=failure)

    def tell(self, task, end):
        """Tells how a task ended, again until it is known to be recorded. The token makes a repetition harmless."""
        name = "CompleteTask" if isinstance(end, saga_pb2.CompleteSagaTaskRequest) else "FailTask"
        give_up_at = time.monotonic() + TELL_FOR
        while True:
            try:
                return self.nodes.call(name, end, 5)
            except grpc.RpcError as error:
                if kind(error) == "invalid" and name == "CompleteTask":
                    # The output is too large, or what is no output of such a step: no other attempt would do better.
                    end = self.failed(task, error.details(), kind="output", is_final=True)
                    name = "FailTask"
                    continue
                if kind(error) in ("denied", "invalid") or time.monotonic() > give_up_at:
                    # Denied: its lease had ended, and another attempt has begun or will.
                    log.info("the end of %s does not count (%s): %s", task.key, kind(error), error.details())
                    return None
                time.sleep(0.1)

    def heartbeat(self, task, told):
        """Says that the worker is still at the task, as often as it has to, until its end is told."""
        every = task.heartbeat_ms / 1000 / 3
        while not told.wait(every):
            try:
                request = saga_pb2.HeartbeatSagaTaskRequest(token=task.token)
                # `cancel_requested` says that the saga goes back; a handler that takes long would look at that and stop.
                self.nodes.call("HeartbeatTask", request, task.heartbeat_ms / 1000)
            except grpc.RpcError as error:
                if kind(error) == "denied":
                    return
                log.info("a sign of life of %s did not get through (%s)", task.key, kind(error))


def confirm(path, task):
    """Sends a confirmation: appends a line to a file. May happen twice, as with real mail: `key` tells which are one."""
    try:
        customer = json.loads(task.input)["customer"]
    except (ValueError, KeyError) as error:
        raise Refused(f"the saga's input names no customer: {error}") from error
    line = json.dumps({"trip": task.saga_id, "key": task.key, "to": customer, "by": "python"}) + "\n"
    # One write at the end of the file: lines of several workers don't mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)
    return b""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--handler", default="confirmation", help="the handler that the saga's definition names")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--stop-on-stdin-eof", action="store_true", help="so that who started it takes it along")
    parser.add_argument("endpoints", nargs="+", metavar="HOST:PORT")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    handlers = {args.handler: lambda task: confirm(args.file, task)}
    worker = Worker(Nodes(args.endpoints), args.queue, handlers, args.concurrency)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: worker.stopping.set())
    if args.stop_on_stdin_eof:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), worker.stopping.set()), daemon=True).start()
    log.info("%s takes tasks of %s", worker.name, args.queue)
    worker.run()
    log.info("stopped")


if __name__ == "__main__":
    main()
