"""
The C++ core of skate's embedded engine. Use the names in skate instead.
"""

from collections.abc import Sequence
import enum
from typing import Annotated

import numpy
from numpy.typing import NDArray


from collections.abc import Callable, Generator, Sequence
from typing import Any
from skate._ref import ActorRef, ObjectRef
from skate.engine.protocol import MethodSpec

build_type: str = 'Release'

is_small: bool = False

MAX_PROCS: int = 4096

MAX_CPUS: int = 1024

FIRST_EPOCH: int = 1

DRIVER: int = 1

METHOD_FIELDS: tuple[str, ...] = ...

class SystemError(enum.IntEnum):
    """Why there is no value."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    NONE = 0

    WORKER_CRASHED = 1

    ACTOR_DIED = 2

    OWNER_DIED = 3

    ACTOR_UNAVAILABLE = 4

    CANCELLED = 5

    NO_RESOURCES = 6

class DeathCause(enum.IntEnum):
    """Why a process ended."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    UNKNOWN = 0

    EXITED = 1

    SIGNALED = 2

    KILLED = 3

    OUT_OF_SCOPE = 4

    CONSTRUCTOR_FAILED = 5

    ACTOR_EXIT = 6

    OWNER_ENDED = 7

    RUNTIME_ENV_FAILED = 8

    NO_PROCESS = 9

    OUT_OF_MEMORY = 16

class Notice(enum.IntEnum):
    """Of a call given earlier."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    NONE = 0

    CANCELLED = 1

    ITEMS_READ = 2

class NextItem(enum.IntEnum):
    """What Node.look_at_stream says."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    ITEM = 0

    END = 1

    NOT_YET = 2

class ProcState(enum.IntEnum):
    """What a process does."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    NONE = 0

    STARTING = 1

    PARKED = 2

    SEARCHING = 3

    RUNNING = 4

    BLOCKED = 5

    LEAVING = 6

class WhyState(enum.IntEnum):
    """Why an object has no value yet: see core/explain.hpp."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    UNKNOWN = 0

    READY = 1

    FAILED = 2

    NEEDS = 3

    QUEUED = 4

    TAKEN = 5

    LEASE = 6

    SENT = 7

    BEHIND = 8

    RECEIVED = 9

EVENT_SUBMIT: int = 1

EVENT_RUN: int = 2

EVENT_GET: int = 3

EVENT_GOT: int = 4

EVENT_SPAN: int = 5

EVENT_WAIT: int = 6

class BlockState(enum.IntEnum):
    """Where a block of Node.list_blocks is: see core/blocks.hpp."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    FIXED = 0

    RESIDENT = 1

    LEAVING = 2

    EMPTYING = 3

    ON_DISK = 4

    CODE = 5

    DROPPED = 6

    HOLED = 7

    FREE = 8

class Forget(enum.IntEnum):
    """How much of a dead process can go."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    BORROWS = 0

    OBJECTS = 1

    ALL = 2

HOLDS_OBJECTS: int = 1

HOLDS_BLOCKS: int = 2

CAME_BY_OBJECTS: int = 4

CAME_BY_BLOCKS: int = 8

MAX_PACKET: int = 65536

NOTE_BOXED: bytes = ...

NOTE_CANNOT_ANSWER: bytes = ...

NOTE_MAP: bytes = ...

NOTE_ASK: bytes = ...

NOTE_TELL: bytes = ...

NOTE_WANT_WORKER: bytes = ...

NOTE_WANT_LEASE: bytes = ...

NOTE_DROP_LEASE: bytes = ...

NOTE_LEASE_DONE: bytes = ...

NOTE_BLOCKED: bytes = ...

NOTE_RUNNING: bytes = ...

NOTE_TOKEN_FREE: bytes = ...

NOTE_SPILL_FILE: bytes = ...

NOTE_CONFIRM: bytes = ...

NOTE_LET_GO: bytes = ...

NOTE_UNWANTED: bytes = ...

NOTE_UNREACHED: bytes = ...

def owner_of(id: int) -> tuple[int, int]:
    """Index and epoch of the process that owns an object."""

def configure(engine: object, object_ref: object, actor_ref: object, dumps: object, loads: object, load_error: object, load_failure: object) -> None: ...

def unconfigure() -> None: ...

def give_advice(get_in_a_loop: Callable[[int], None], same_large_argument: Callable[[str, int], None]) -> None: ...

def watch_for_blocking(blocked: Callable[[], None]) -> None:
    """In an async actor: call it when a get has waited."""

def on_long_wait(report: Callable[[], bool], after_s: float) -> None:
    """
    Call report() once a second in waits that last longer, until it returns True.
    """

class Descriptor:
    """An open file, until it is dropped."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def fileno(self) -> int: ...

    def detach(self) -> int:
        """Its number, for whoever closes it then."""

    def close(self) -> None: ...

class Node:
    """One process of the engine; see src/core/node.hpp."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def __init__(self, *, session_fd: int, segment_fd: int, supervisor_fd: int, index: int, epoch: int, is_pool: bool) -> None: ...

    @property
    def in_forked_child(self) -> bool:
        """Nothing of the session may be touched: it is the parent's."""

    def on_unraisable(self, otherwise: Any, what: Any) -> None: ...

    def next_task(self) -> Call | None: ...

    def next_notice(self) -> Call | None:
        """Of calls that still run after next_task has given None."""

    def next_call(self, timeout: float | None) -> Call | None:
        """None if no call came in time; StopIteration if none will come."""

    def serve(self, functions: dict[int, tuple[Any, str]], variable: Any, failed: Any, has_company: Any) -> Call | None: ...

    def serve_calls(self, object: Any, title: str, others: set[str], variable: Any, actor: int, failed: Any) -> Call | None: ...

    def explain(self, object: int, process: int, counts: bool = True) -> dict[str, Any] | None:
        """
        What a process knows of why an object has no value; None if it is silent. To count what is ahead of it takes as long as that is many.
        """

    def list_objects(self) -> list[dict[str, Any]]:
        """What this process owns or borrows, apart from code."""

    def list_blocks(self) -> list[dict[str, Any]]:
        """
        The blocks in use in all arenas; in the driver, those of dead processes too.
        """

    def statistics(self) -> dict[str, int]: ...

    def has_dependants(self) -> bool:
        """
        Whether something would end with this process: tasks or actors that it has started, or values of its own that others hold.
        """

    def processes(self) -> list[dict[str, int]]:
        """What the session directory says of each live process."""

    def name_function(self, function: int, name: str) -> None:
        """What the trace, and a full store, call an exported function."""

    def name_actor(self, actor: int, title: str) -> None:
        """What the trace calls an actor's class."""

    def name_process(self, name: str) -> None:
        """What made its blocks that no function or line is known for."""

    def record_span(self, name: str, start_ns: int) -> None:
        """Something of the user's, from then to now."""

    def submit(self, function: int, holds_refs: bool, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], num_returns: int, max_retries: int, resources: bytes | None, window: int, parent: int) -> list[ObjectRef[Any]]: ...

    def construct_actor(self, actor: ActorRef, code: int, holds_refs: bool, restartable: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...

    def hand_to_driver(self, actor: ActorRef, index: int, epoch: int, code: int, holds_refs: bool, restartable: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...

    def reserve_actor(self) -> ActorRef: ...

    def drop_reserved(self, actor: ActorRef) -> None: ...

    def call_actor(self, actor: ActorRef, method: MethodSpec, args: tuple[Any, ...], kwargs: dict[str, Any], parent: int, retry_on: bytes) -> list[ObjectRef[Any]]: ...

    def unanswered_calls(self, actor: ActorRef) -> int: ...

    def export_function(self, code: bytes, refs: list[ObjectRef[Any]], exported: Any) -> None: ...

    def new_actor(self) -> ActorRef: ...

    def place_actor(self, actor: ActorRef, index: int, epoch: int) -> None: ...

    def next_item(self, task: int, timeout: float | None, taken: list[ObjectRef[Any]]) -> bool:
        """Appends the next item of a stream; False at its end."""

    def peek_item(self, task: int) -> ObjectRef[Any]:
        """A ref that is ready once next_item does not block."""

    def look_at_stream(self, task: int) -> int:
        """A NextItem: what next_item would do now."""

    def close_stream(self, task: int) -> None: ...

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> bool:
        """False: it is a call of an actor, which is not to be killed."""

    def put(self, value: Any) -> ObjectRef[Any]: ...

    def lend(self, value: Any) -> ObjectRef[Any]: ...

    def get(self, refs: Sequence[ObjectRef[Any]], timeout: float | None, writable: bool) -> list[Any]: ...

    def wait(self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]: ...

    def watch(self) -> Watch: ...

    def empty(self, shape: tuple[int, ...], dtype: numpy.dtype[Any]) -> numpy.ndarray: ...

    def release(self, id: int) -> None: ...

    def adopt(self, kind: type[ObjectRef[Any]], id: int) -> ObjectRef[Any]:
        """A ref, of that type, that has been decoded."""

    def holds_error(self, object: int) -> bool: ...

    def catch_up(self) -> None: ...

    def wait_death(self, index: int, epoch: int) -> None:
        """
        Until calls to that process, which is being ended, fail or go to another.
        """

    def ask(self, question: bytes) -> tuple[bytes, Descriptor | None]:
        """The answer, and the descriptor that came with it, if any."""

    def tell(self, note: bytes) -> None: ...

    def alive_word(self, index: int) -> int:
        """
        Address of two words: not 0 while there is a process, and that one's epoch.
        """

    @property
    def index(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def closed(self) -> bool: ...

    @property
    def store_limit(self) -> int: ...

    @property
    def engine_died(self) -> bool: ...

    def send_last_calls(self) -> None:
        """Before this process ends: what it has called and not sent is sent."""

    def close(self) -> None: ...

    def stop_serving(self) -> None: ...

    def wear_out(self) -> None: ...

    def take_no_more(self) -> None: ...

    def stay(self) -> None: ...

    def is_cancelled(self, task: int) -> bool: ...

    def interrupt_by(self, signal: int) -> None: ...

    def take_interrupt(self) -> bool: ...

    def postpone_interrupt(self) -> None: ...

    def want_notices(self) -> None: ...

    def serve_in_threads(self, threads: Sequence[int]) -> None:
        """For each concurrency group, how many calls it runs at once."""

    def serve_on_a_loop(self) -> bool:
        """
        This thread runs it. True: tell by loop_rests when it has nothing to run.
        """

    def loop_rests(self, on: bool) -> None: ...

    def report_blocking(self, on: bool) -> None: ...

def flush_before_answer(flush: Callable[[], None]) -> None:
    """Call this once, before the next answer of a call is sent."""

class Call:
    """A task that this worker was given."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    @property
    def task_id(self) -> int: ...

    @property
    def function_id(self) -> int: ...

    @property
    def group(self) -> int: ...

    @property
    def num_returns(self) -> int: ...

    @property
    def is_constructor(self) -> bool: ...

    @property
    def function_holds_refs(self) -> bool: ...

    @property
    def method(self) -> str: ...

    @property
    def retry_on(self) -> bytes: ...

    def function_code(self) -> bytes: ...

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]: ...

    def encode(self, results: list[Any]) -> None: ...

    def send(self) -> None: ...

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def stream(self, generator: Generator[Any, None, None], interruptible: bool) -> None: ...

    def send_item(self, item: Any) -> bool: ...

    def has_room(self) -> bool: ...

    @property
    def notice(self) -> int: ...

    @property
    def is_streaming(self) -> bool: ...

    @property
    def cancelled(self) -> bool: ...

    @property
    def wanted(self) -> bool:
        """Its caller lives and has not cancelled it."""

    def fail_cancelled(self) -> None: ...

    def fail(self, error: bytes, refs: list[ObjectRef[Any]], retryable: bool) -> None: ...

class Watch:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def add(self, ref: object, tag: int) -> None: ...

    def remove(self, ref: object, tag: int) -> None:
        """What was added so is not told any more."""

    def next(self, timeout: float | None, told: list[int]) -> None:
        """
        Appends tags of what has become ready; none: the time is up, or it was closed.
        """

    def close(self) -> None: ...

class Control:
    """The supervisor's hand on the session directory."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def __init__(self, *, num_cpus: int, num_cores: int, store_limit: int, arena_bytes: int, spill_limit: int, watch_memory: bool, spin_ns: int, spin_busy_ns: int, session_id: str, places: int) -> None: ...

    @property
    def session_fd(self) -> int: ...

    @property
    def segment_fd(self) -> int: ...

    def make_segment(self) -> int: ...

    def prepare(self, index: int, epoch: int, is_pool: bool, title: str) -> None: ...

    def mark_dead(self, index: int, epoch: int) -> None: ...

    def shrink(self, num_procs: int) -> None:
        """The places from there on are free: nobody need look at them."""

    def running_tasks(self) -> list[tuple[int, str, int, bool]]:
        """Process id, name, start and whether it may be tried again, of each."""

    def active_workers(self) -> int: ...

    def any_starting(self) -> bool: ...

    def clear_worker_request(self) -> None: ...

    def take_cpus(self, wanted: int) -> int: ...

    def give_cpus(self, count: int) -> None: ...

    def want_cpus(self, count: int) -> None: ...

    def pool_hopes(self) -> bool: ...

    def serve_pool(self) -> bool: ...

    def free_cpus(self) -> int: ...

    def send_died(self, to: int, to_epoch: int, index: int, epoch: int, cause: int, detail: int, successor: int, successor_epoch: int, place_is_free: bool) -> None: ...

    def send_forget(self, to: int, to_epoch: int, index: int, epoch: int, step: int) -> None: ...

    def send_lease(self, to: int, to_epoch: int, task: int, index: int, epoch: int) -> None: ...

    def send_lease_refused(self, to: int, to_epoch: int, task: int, detail: int) -> None: ...

    def has_mail(self, to: int, from_: int) -> bool: ...

    def collect(self) -> int: ...

    def close_session(self) -> None: ...

    def say_why(self, reason: str) -> None: ...

    def store_used(self) -> int: ...

def group_segment_bytes(world_size: int, array_bytes: int) -> int:
    """
    Bytes of a segment in which each rank can place arrays of `array_bytes`.
    """

def say_left_group(fd: int, rank: int) -> None:
    """
    Tell the ranks of a segment that one of them will not come, or come again.
    """

def says_left_group(fd: int, rank: int) -> bool:
    """Whether that rank has left, as the segment's memory says."""

def reduce_into(outs: Sequence[Any], arrays: Sequence[Any], op: str = 'sum', bfloat16: bool = False) -> None:
    """
    Write the elementwise reduction of `arrays`, in their order, to all `outs`.
    """

class Group:
    """A rank's end of a collective group in one shared segment."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def __init__(self, fd: int, bytes: int, rank: int, world_size: int, alive: Sequence[tuple[int, int]] = [], spin_us: float | None = None) -> None:
        """
        Map the segment `fd`, which stays the caller's. `alive` holds for each rank the address of two 32-bit words, and an epoch: its process lives while the first is not zero and the second is the epoch. Address 0 stands for a rank that always does. The words must outlive the group.
        """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def spare_spin(self) -> float:
        """Seconds that a wait may look where every rank has a core; else 0."""

    def empty(self, nbytes: int) -> numpy.ndarray:
        """A writable uint8 array of `nbytes` in the group's memory."""

    def barrier(self, timeout: float | None = None) -> tuple[str, list[int], str] | None: ...

    def allreduce(self, x: Any, op: str = 'sum', timeout: float | None = None, bfloat16: bool = False, label: str = '') -> tuple[str, list[int], str] | None: ...

    def reduce(self, x: Any, op: str = 'sum', root: int = 0, timeout: float | None = None, bfloat16: bool = False) -> tuple[str, list[int], str] | None: ...

    def broadcast(self, x: Any, root: int = 0, timeout: float | None = None, bfloat16: bool = False, label: str = '') -> tuple[str, list[int], str] | None: ...

    def allgather(self, x: Any, out: Any, timeout: float | None = None, bfloat16: bool = False, label: str = '') -> tuple[str, list[int], str] | None: ...

    def reducescatter(self, x: Any, out: Any, op: str = 'sum', timeout: float | None = None, bfloat16: bool = False) -> tuple[str, list[int], str] | None: ...

    def send(self, x: Any, to: int, timeout: float | None = None, bfloat16: bool = False, label: str = '') -> tuple[str, list[int], str] | None: ...

    def recv(self, x: Any, from_: int, timeout: float | None = None, bfloat16: bool = False, label: str = '') -> tuple[str, list[int], str] | None: ...

    def offset_of(self, x: object) -> int:
        """Where an array that `empty` made is, for `at` of every rank."""

    def at(self, offset: int, nbytes: int) -> numpy.ndarray:
        """The memory of any rank's array, as uint8; that rank keeps it alive."""

    def close(self) -> None:
        """Leave: the other ranks get status `left` if they wait for this one."""

def rounds_words(workers: int) -> int:
    """How many words of 32 bits the rounds of so many workers need."""

class Rounds:
    """Rounds of work through words in shared memory, zeros at first."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def __init__(self, words: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu')], workers: int, spin: float = 0.0) -> None: ...

    def begin(self) -> int:
        """The chief's: begin a round; its number."""

    def wait(self, timeout: float) -> bool:
        """
        The chief's: whether all have ended the round within so many seconds, or until a signal.
        """

    def has_ended(self, worker: int) -> bool: ...

    def next(self, seen: int, timeout: float) -> int:
        """
        A worker's: the round after `seen`; `seen` if there was none by then, or until a signal.
        """

    @property
    def num_odd(self) -> int:
        """How many workers have something to say about this round."""

    def end(self, worker: int, number: int, is_odd: bool = False) -> None:
        """A worker's: its part of that round is done."""

def make_memfd(name: str, bytes: int) -> int: ...

def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""

def become_subreaper() -> None:
    """Become the parent of orphans among this process's descendants."""

def trim_heap() -> None:
    """Give free memory of the heap back to the system."""

def fork_orphan() -> int:
    """
    Fork a child of the nearest subreaper's: its id, 0 in it, -1 if that failed.
    """

def line_buffer_stdout() -> None:
    """Let C code's printf show a line when it ends, into a pipe too."""

def spin_ping_pong(rounds: int) -> float:
    """Seconds for a round trip between two spinning processes."""

def announce_stacks(node: Node, signal_number: int, fd: int) -> None:
    """
    After faulthandler.register(signal_number, fd): lets others ask for stacks.
    """

def forget_stacks() -> None: ...

def monotonic_ns() -> int: ...

class Statistics:
    """What the processes of a session say."""

    from collections.abc import Callable, Generator, Sequence
    from typing import Any
    from skate._ref import ActorRef, ObjectRef
    from skate.engine.protocol import MethodSpec

    def __init__(self, fd: int) -> None: ...

    @staticmethod
    def of(node: Node) -> Statistics: ...

    @property
    def num_cpus(self) -> int: ...

    @property
    def session_id(self) -> str: ...

    @property
    def store_limit(self) -> int: ...

    @property
    def closing(self) -> bool: ...

    def processes(self) -> list[dict[str, Any]]: ...

    def functions(self) -> dict[str, dict[str, Any]]: ...

    def events(self) -> list[tuple[int, int, int, int, int, int, int, int, bool]]:
        """
        (process, pid, kind, thread, label, start, end, id, failed); end 0: it goes on.
        """

    @property
    def known_since(self) -> int:
        """Events of a process that were before that may be gone."""

    def users(self) -> list[tuple[int, int, str, bool, int]]:
        """(process, pid, title, is of the pool, epoch), oldest first."""

    def labels(self, process: int) -> list[str]: ...

    def running(self) -> list[tuple[int, int, int, str]]:
        """(process, task, since, name)"""
