"""Values to bytes and back: what every engine needs, the same on all of them.

A value becomes a header (a pickle, protocol 5), buffers that the header refers to (the
memory of arrays, not copied here), and the refs that it contains. C pickle comes first
and cloudpickle only where it must, because it is some ten times slower.
"""

from __future__ import annotations

import io
import itertools
import pickle
import sys
import traceback
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from .._importable import find_global
from .._ref import ObjectRef, capture_refs, restore_refs
from ..exceptions import RemoteTraceback, SkateError, TaskError
from .frames import is_of_engine, is_of_handler

if TYPE_CHECKING:
    import torch

    Buffer = bytes | bytearray | memoryview | pickle.PickleBuffer


class Packed(NamedTuple):
    """A value as bytes. ``refs`` must live as long as the other two do."""

    header: bytes
    buffers: list[pickle.PickleBuffer]  # ``.raw()`` is the memory, one dimension
    refs: list[ObjectRef[Any]]


# Values --------------------------------------------------------------------------


def dumps(value: Any, what: str = "the value") -> Packed:
    """Pickle ``value`` without copying the memory of its arrays.

    Raises:
        TypeError: it cannot be pickled; the message names ``what`` and the part of
            it that is at fault.
    """
    try:
        with capture_refs() as refs:
            buffers: list[pickle.PickleBuffer] = []
            header = _fast_dumps(value, buffers)
        # Other processes have another __main__: what it defines must go by value.
        if b"__main__" not in header and not _registered_by_value():
            return Packed(header, buffers, refs)
    except Exception as error:  # any reducer may raise anything
        if is_of_handler(error):
            raise
    return _cloud_dumps(value, what)


def loads(header: bytes | memoryview, buffers: Iterable[Buffer] = ()) -> Any:
    """The value again. Its arrays are views of ``buffers``, read-only as those are.

    Refs in it need an open ``restore_refs``.
    """
    return pickle.loads(header, buffers=buffers)


def _fast_dumps(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    reducers = _dispatch_table()
    if not reducers:
        return pickle.dumps(value, 5, buffer_callback=buffers.append)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = reducers
    pickler.dump(value)
    return file.getvalue()


def _cloud_dumps(value: Any, what: str) -> Packed:
    import cloudpickle

    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    with capture_refs() as refs:
        try:
            pickler = cloudpickle.Pickler(file, 5, buffer_callback=buffers.append)
            _add_reducers(pickler)
            pickler.dump(value)
        except Exception as error:
            if is_of_handler(error):
                raise
            raise _unpicklable(what, value, error) from error
    return Packed(file.getvalue(), buffers, refs)


def _add_reducers(pickler: Any) -> None:
    """Let a pickler of cloudpickle's know what ``_dispatch_table`` knows, and files."""
    theirs = pickler.dispatch_table
    reducers = _dispatch_table()
    ours = [] if reducers is None else reducers.maps[:-1]
    table = ChainMap(*ours, {types.CodeType: _reduce_code}, theirs)
    # Its class has an attribute of that name, which hides the one that counts.
    member: Any = vars(pickle.Pickler)["dispatch_table"]
    member.__set__(pickler, table)


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """As cloudpickle does, but with the name of the file.

    Version 3.1.3 leaves it out: tracebacks would show no line of the user's, and
    debuggers would not find their breakpoints.
    """
    import cloudpickle

    make, args = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return make, tuple(code.co_filename if a == "<dynamic-code>" else a for a in args)


def _registered_by_value() -> bool:
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and bool(cloudpickle.list_registry_pickle_by_value())


def split_returns(value: Any, num_returns: int, name: str) -> list[Any]:
    """What a task returned as ``num_returns`` values.

    Raises:
        TypeError, ValueError: it is not that many values.
    """
    if num_returns == 1:
        return [value]
    if num_returns == 0:
        return []
    try:
        values = list(value)
    except TypeError:
        raise TypeError(
            f"task {name} has num_returns={num_returns} and must return as many "
            f"values, not {type(value).__name__}."
        ) from None
    if len(values) != num_returns:
        raise ValueError(
            f"task {name} has num_returns={num_returns} but returned {len(values)} "
            "values."
        )
    return values


# Functions and classes -------------------------------------------------------------


def dumps_function(function: Any, what: str) -> Packed:
    """Pickle a remote function, or an actor's class.

    By its name if other processes can import it, so that it sees its own module;
    by value if it is from ``__main__``, a notebook or a closure.
    """
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", "<none>")
    found = find_global(module, qualname)
    if found is function:
        return Packed(pickle.dumps(_Global(module, qualname, False), 5), [], [])
    # Where the decorator replaced it: skate keeps the original as __wrapped__.
    if getattr(found, "__wrapped__", None) is function:
        return Packed(pickle.dumps(_Global(module, qualname, True), 5), [], [])
    return _cloud_dumps(function, what)


class _Global:
    """Pickles as ``module.qualname``, looked up and unwrapped where it is loaded."""

    def __init__(self, module: str | None, qualname: str, wrapped: bool) -> None:
        self._found_by = module, qualname, wrapped

    def __reduce__(self) -> tuple[Any, ...]:
        return _import_global, self._found_by


def _import_global(module: str, qualname: str, wrapped: bool) -> Any:
    import importlib

    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found.__wrapped__ if wrapped else found


# What users registered, in this process ----------------------------------------------


_registered: dict[Any, Any] = {}  # type -> reducer


def register_reducer(cls: type, reducer: Callable[[Any], tuple[Any, ...]]) -> None:
    """Pickle instances of exactly ``cls`` as ``reducer`` says, as ``copyreg`` does."""
    _registered[cls] = reducer


def deregister_reducer(cls: type) -> None:
    """Forget what was registered for ``cls``, if anything was."""
    _registered.pop(cls, None)


def _dispatch_table() -> ChainMap[Any, Any] | None:
    """What pickle must know beside ``copyreg``, which is last; None: nothing."""
    tensors = _tensor_reducers()
    if not _registered:
        return tensors
    if tensors is None:
        import copyreg

        return ChainMap(_registered, copyreg.dispatch_table)
    return tensors.new_child(_registered)


# Torch tensors -----------------------------------------------------------------


_reducers: ChainMap[Any, Any] | None = None


def _tensor_reducers() -> ChainMap[Any, Any] | None:
    """A dispatch table that knows tensors, once the program has imported torch."""
    global _reducers
    if _reducers is None and "torch" in sys.modules:
        import copyreg

        torch = sys.modules["torch"]
        if not hasattr(torch, "nn"):  # it is being imported right now
            return None
        ours = {torch.Tensor: _reduce_tensor, torch.nn.Parameter: _reduce_tensor}
        _reducers = ChainMap(ours, copyreg.dispatch_table)
    return _reducers


def _reduce_tensor(tensor: torch.Tensor) -> Any:
    import torch

    plain = (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not vars(tensor)
        and not tensor._backward_hooks
    )
    if not plain:
        return tensor.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    values = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # As bytes: NumPy, which lends the memory to pickle, has no bfloat16.
    memory: Any = values.reshape(-1).view(torch.uint8).numpy()
    return _restore_tensor, (
        pickle.PickleBuffer(memory),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.requires_grad,
        isinstance(tensor, torch.nn.Parameter),
    )


def _restore_tensor(
    buffer: Buffer,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    requires_grad: bool,
    is_parameter: bool,
) -> torch.Tensor:
    import torch

    if 0 in shape:  # frombuffer refuses empty buffers
        tensor = torch.empty(shape, dtype=dtype)
    else:
        tensor = torch.frombuffer(_own_memory(buffer), dtype=dtype).reshape(shape)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


COPIED_UP_TO = 32 << 10  # bytes: to map a block costs more than to copy these


def _own_memory(buffer: Buffer) -> Any:
    """``buffer`` as memory that may be written into, without a change of the value.

    Torch knows no read-only memory: a write in place would end the process, or change
    what others see. A block of the embedded engine's store can be mapped once more, and
    its pages are then copied as they are written; anything else is copied here.
    """
    view = memoryview(buffer)
    if not view.readonly:
        return view
    own_memory = getattr(view.obj, "own_memory", None)
    if own_memory is None or view.nbytes <= COPIED_UP_TO:
        return bytearray(view)
    return own_memory(view)


# What cannot be pickled ------------------------------------------------------------


def explain_arguments(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception
) -> TypeError:
    """The error for a call of ``name`` with an argument that cannot be pickled."""
    if is_of_handler(error):
        raise error
    numbered = ((f"argument {index}", arg) for index, arg in enumerate(args))
    named = ((f"argument {key!r}", arg) for key, arg in kwargs.items())
    for label, arg in itertools.chain(numbered, named):
        failure = _pickling_error(arg)
        if failure is not None:
            return _unpicklable(f"{label} of {name}", arg, failure)
    return _unpicklable(f"the arguments of {name}", (args, kwargs), error)


def _unpicklable(what: str, value: Any, error: Exception) -> TypeError:
    steps, culprit, _, error = _find_culprit(value, error)
    path = "".join(steps).removeprefix(" -> ").removeprefix(".")
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}"
    kind = kind.removeprefix("builtins.")
    if isinstance(culprit, types.GeneratorType):
        advice = "Return a list of its items instead."
    else:
        advice = (
            "Make it inside the task or actor that uses it, or pass what it is made of."
        )
    where = f"{path}, a {kind}," if path else f"it is a {kind}, which"
    return TypeError(
        f"cannot pickle {what}: {where} cannot be pickled ({error}). {advice}"
    )


class Culprit(NamedTuple):
    """The smallest part of a value that cannot be pickled."""

    steps: tuple[str, ...]  # how to write the way there
    part: Any
    parent: Any  # what holds it; None if it is the value itself
    error: Exception


def find_culprit(value: Any) -> Culprit | None:
    """What in ``value`` cannot be pickled; None if all can."""
    error = _pickling_error(value)
    return None if error is None else _find_culprit(value, error)


def _find_culprit(value: Any, error: Exception) -> Culprit:
    steps: list[str] = []
    parent = None
    seen = {id(value)}
    while True:
        for step, part in _parts(value):
            if id(part) in seen:
                continue
            failure = _pickling_error(part)
            if failure is not None:
                seen.add(id(part))
                steps.append(step)
                parent, value, error = value, part, failure
                break
        else:
            return Culprit(tuple(steps), value, parent, error)


def _pickling_error(value: Any) -> Exception | None:
    import cloudpickle

    with capture_refs():
        try:
            pickler = cloudpickle.Pickler(io.BytesIO(), 5)
            _add_reducers(pickler)
            pickler.dump(value)
        except Exception as error:  # any reducer may raise anything
            if is_of_handler(error):
                raise
            return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling ``value`` would pickle, each with how to write the way there."""
    if isinstance(value, types.MethodType):
        yield " -> self", value.__self__
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            try:
                yield f" -> captured variable {name!r}", cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f" -> global variable {name!r}", value.__globals__[name]
        for default in value.__defaults__ or ():
            yield " -> a default argument", default
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"[{key!r}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield " -> an item", item
    elif isinstance(value, type):
        for name, item in vars(value).items():
            function = getattr(item, "__func__", item)
            if not name.startswith("__") or isinstance(function, types.FunctionType):
                yield f".{name}", function
    else:
        for name, item in getattr(value, "__dict__", {}).items():
            yield f".{name}", item


# Errors ----------------------------------------------------------------------------


_SHORT = 1000  # characters


class ErrorBytes(bytes):
    """An error as bytes. ``refs`` are inside of it, and must live as long."""

    refs: Sequence[ObjectRef[Any]] = ()


def dump_error(
    error: BaseException, task_name: str, *, keeps_refs: bool = True
) -> ErrorBytes:
    """What user code raised in ``task_name``, with its traceback, as bytes.

    Args:
        keeps_refs: whoever carries the bytes keeps ``.refs`` too; else an exception
            with refs in it travels as its message alone.
    """
    try:
        return _dump_error(error, task_name, keeps_refs)
    except Exception:  # parts of it are the user's, and may raise anything
        return dump_error_in_short(error, task_name)


def _dump_error(error: BaseException, task_name: str, keeps_refs: bool) -> ErrorBytes:
    cause: BaseException | None = error
    text = _format_traceback(error, task_name)
    message = _message(error, task_name)
    if isinstance(error, TaskError):
        # A task that failed because one that it called failed: the type and the name
        # are those of the first; the traceback tells the way.
        cause, task_name = error.cause, error.task_name
    data, refs = _dump_cause(cause)
    if refs and not keeps_refs:
        data, refs = None, []
    dumped = ErrorBytes(pickle.dumps((data, message, task_name, text), 5))
    dumped.refs = refs
    return dumped


def dump_error_in_short(error: BaseException, task_name: str) -> ErrorBytes:
    """The same where all of it cannot be said: its type, and a line of its message."""
    message = _message(error, task_name)
    if len(message) > _SHORT:
        message = f"{message[:_SHORT]}..."
    text = f"task {task_name}:\n{message}"
    return ErrorBytes(pickle.dumps((None, message, task_name, text), 5))


def _message(error: BaseException, task_name: str) -> str:
    if isinstance(error, TaskError):
        return _text(error)
    return f"task {task_name} raised {type(error).__qualname__}: {_text(error)}"


def dump_system_error(error: SkateError) -> bytes:
    """An error of the engine's own, which ``load_error`` gives back as it is."""
    return pickle.dumps(error, 5)


def load_error(data: bytes | memoryview) -> SkateError:
    """A new exception each time, ready to be raised. Refs in it are as in ``loads``."""
    loaded = pickle.loads(data)
    if isinstance(loaded, SkateError):
        return loaded
    cause_bytes, message, task_name, text = loaded
    if cause_bytes is not None:
        try:
            return TaskError.of(pickle.loads(cause_bytes), task_name, text)
        except Exception as failure:  # user code may raise anything
            message += f" (the exception itself could not be loaded here: {failure})"
    return TaskError(message, task_name=task_name, remote_traceback=text)


def _dump_cause(
    cause: BaseException | None,
) -> tuple[bytes | None, list[ObjectRef[Any]]]:
    """``cause`` as bytes, if a copy can be made of them too, and the refs in it."""
    if cause is None:
        return None, []
    import cloudpickle

    try:
        file = io.BytesIO()
        with capture_refs() as refs:
            pickler = cloudpickle.Pickler(file, 5)
            _add_reducers(pickler)
            pickler.dump(cause)
        data = file.getvalue()
        with restore_refs(refs[0]._counter) if refs else nullcontext():
            pickle.loads(data)
    except Exception:  # exceptions with own constructors often fail
        return None, []
    return data, refs


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's __str__ may raise anything
        return object.__repr__(error)


def _format_traceback(error: BaseException, task_name: str) -> str:
    formatted = traceback.TracebackException.from_exception(error)
    _keep_user_frames(formatted)
    if isinstance(error, TaskError) and isinstance(error.__cause__, RemoteTraceback):
        frames = "".join(formatted.stack.format()).rstrip()
        return (
            f"{error.remote_traceback}\n\n"
            f"which ended the task that waited for it, {task_name}:\n{frames}"
        )
    lines = "".join(formatted.format()).rstrip()
    return f"task {task_name}:\n{lines}"


def _keep_user_frames(formatted: traceback.TracebackException) -> None:
    """Drop skate's own frames: they say nothing about the user's mistake."""
    left = [formatted]  # no recursion: a loop that retries makes chains of any length
    while left:
        part = left.pop()
        kept = [frame for frame in part.stack if not is_of_engine(frame.filename)]
        part.stack = traceback.StackSummary.from_list(kept)
        left += getattr(part, "exceptions", None) or ()
        left += filter(None, (part.__context__, part.__cause__))
