"""``@skate.remote`` and remote functions."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from ._actor import ActorClass
from ._exact import printable
from ._importable import find_global
from ._options import STREAMING, TaskOptions, returns_of
from ._runtime import current
from ._stream import ObjectRefGenerator
from .engine.protocol import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ._ref import ObjectRef

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
# What ``.remote`` returns: ObjectRef[R], a list of refs, or None.
Refs_co = TypeVar("Refs_co", covariant=True)


class RemoteFunction(Generic[P, Refs_co]):
    """A function whose calls run as tasks. Made by ``@skate.remote``."""

    __name__: str
    __qualname__: str
    _spec: TaskSpec

    def __init__(self, function: Callable[P, Any], options: TaskOptions) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise TypeError(
                f"{_name(function)} is 'async def', which runs in actors only: make "
                "it a method of an actor, or call asyncio.run in an ordinary function."
            )
        num_returns = returns_of(function, options.num_returns)
        options = replace(options, num_returns=num_returns)
        if options.name is not None:
            options = replace(options, name=printable(options.name))
        name = options.name or printable(_name(function))
        self._set_spec(TaskSpec(function, name, options))

    def _set_spec(self, spec: TaskSpec) -> None:
        functools.update_wrapper(self, spec.function)
        self._spec = spec
        self._num_returns = spec.options.num_returns
        self._signature = _signature(spec.function)
        self._fewest, self._most = _arity(self._signature)

    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Refs_co: ...
    # Any: an ObjectRef may stand in for every argument, which ParamSpec cannot say.
    @overload
    def remote(self, *args: Any, **kwargs: Any) -> Refs_co: ...

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Start a task; returns its ref at once (with ``num_returns=n``, n refs).

        A generator function returns an ObjectRefGenerator: the refs of its items, each
        as soon as it is there. A top-level ref among the arguments is replaced by its
        value before the function runs; a ref inside a container stays a ref.

        Raises:
            TypeError: the function or an argument cannot be pickled, or the
                arguments do not fit the function.
            ResourceError: the options ask for more than the session has.
        """
        if kwargs or not self._fewest <= len(args) <= self._most:
            self._check_arguments(args, kwargs)
        engine = current()
        refs = engine.submit(self._spec, args, kwargs)
        if self._num_returns == 1:
            return refs[0]
        if self._num_returns == STREAMING:
            return ObjectRefGenerator(refs[0], engine)
        return refs or None

    @overload
    def options(
        self, *, num_returns: Literal[0], **options: Any
    ) -> RemoteFunction[P, None]: ...
    @overload
    def options(
        self, *, num_returns: int, **options: Any
    ) -> RemoteFunction[P, list[ObjectRef[Any]]]: ...
    @overload
    def options(self, **options: Any) -> RemoteFunction[P, Refs_co]: ...

    def options(self, **options: Any) -> RemoteFunction[P, Any]:
        """The same function with other options, for one call or for many."""
        return RemoteFunction(self._spec.function, self._spec.options.updated(options))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"a remote function is not called directly: write {self.__name__}.remote"
            f"(...) to start a task, or {self.__name__}.__wrapped__(...) to run it "
            "here."
        )

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError here, where the mistake is, rather than in the task."""
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(
                    f"{self._spec.name}{self._signature}: {error}."
                ) from None

    def __repr__(self) -> str:
        return f"RemoteFunction({self._spec.name})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        found = find_global(self.__module__, self.__qualname__)
        if found is self:
            return str(self.__qualname__)
        if getattr(found, "__wrapped__", None) is self._spec.function:
            return _with_options, (found, self._spec.options)
        # State apart from construction: a recursive function refers to this object.
        spec = self._spec
        return _blank, (type(self),), (spec.function, spec.name, spec.options)

    def __setstate__(self, state: tuple[Any, str, TaskOptions]) -> None:
        self._set_spec(TaskSpec(*state))


def _with_options(
    function: RemoteFunction[..., Any], options: TaskOptions
) -> RemoteFunction[..., Any]:
    return RemoteFunction(function._spec.function, options)


def _blank(cls: type[T]) -> T:
    return object.__new__(cls)


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _arity(signature: inspect.Signature | None) -> tuple[int, float]:
    """How many positional arguments alone are a valid call: fewest, most."""
    if signature is None:
        return 0, float("inf")
    fewest, most = 0, 0.0
    for parameter in signature.parameters.values():
        required = parameter.default is parameter.empty
        if parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            fewest += required
            most += 1
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY and required:
            return 1, 0  # never: always look at the keywords
    return fewest, most


class _Remote(Protocol):
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a class is callable too
        self, target: type[T], /
    ) -> ActorClass[T]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a generator is a value too
        self, target: Callable[P, Generator[R, Any, Any]], /
    ) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
    @overload
    def __call__(
        self, target: Callable[P, R], /
    ) -> RemoteFunction[P, ObjectRef[R]]: ...


class _RemoteNone(Protocol):
    def __call__(self, target: Callable[P, Any], /) -> RemoteFunction[P, None]: ...


class _RemoteMany(Protocol):
    def __call__(
        self, target: Callable[P, Any], /
    ) -> RemoteFunction[P, list[ObjectRef[Any]]]: ...


@overload
def remote(  # type: ignore[overload-overlap]  # a class is callable too
    target: type[T], /
) -> ActorClass[T]: ...
@overload
def remote(  # type: ignore[overload-overlap]  # a generator is a value too
    target: Callable[P, Generator[R, Any, Any]], /
) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(*, num_returns: Literal[0], **options: Any) -> _RemoteNone: ...
@overload
def remote(*, num_returns: int, **options: Any) -> _RemoteMany: ...
@overload
def remote(**options: Any) -> _Remote: ...


def remote(*targets: Any, **options: Any) -> Any:
    """Make a function a remote function, or a class an actor class.

    ``@skate.remote``, ``@skate.remote(num_cpus=2)``, or ``skate.remote(f)``.

    Raises:
        TypeError: not a function or class, or an option has a wrong type.
        ValueError: an option does not exist (the message names the nearest), has a
            value out of range, or is one of Ray's that skate does not have.
    """
    if not targets:
        if not options:
            raise TypeError(
                "@skate.remote takes options in its parentheses, such as "
                "@skate.remote(num_cpus=2); without options write @skate.remote."
            )
        # Refuse bad options on their own line; what they apply to is not known yet.
        return functools.partial(_decorate, options=options)
    if len(targets) != 1 or options:
        raise TypeError(
            "skate.remote takes either one function or class, or options by keyword: "
            "skate.remote(f) or skate.remote(num_cpus=2)(f)."
        )
    return _decorate(targets[0], options={})


def _decorate(target: Any, *, options: dict[str, Any]) -> Any:
    if isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"{target!r} is remote already; use .options(...) on it.")
    if inspect.isclass(target):
        return ActorClass._of(target, options)
    if not callable(target) or isinstance(target, (staticmethod, classmethod)):
        raise TypeError(
            f"@skate.remote applies to a function or a class, not to {target!r}."
        )
    function = cast("Callable[..., Any]", target)
    return RemoteFunction(function, TaskOptions().updated(options))
