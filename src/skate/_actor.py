"""Actor classes, the handles of their instances, and the methods of handles."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from ._exact import exact
from ._importable import find_global
from ._options import (
    BY_FUNCTION,
    STREAMING,
    ActorOptions,
    check_method_options,
    nearest,
    returns_of,
)
from ._ref import ActorId
from ._runtime import current, engine_of
from ._stream import ObjectRefGenerator
from .engine.actor_methods import BUILT_IN_METHODS
from .engine.protocol import ActorInterface, ActorSpec, MethodSpec
from .exceptions import ActorAlreadyExistsError, ActorClassInheritanceException

if TYPE_CHECKING:
    from ._ref import ActorRef
    from .engine.protocol import Engine

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_METHOD_OPTIONS = "__skate_method_options__"
_RECEIVER = "__skate_receiver__"


@overload
def method(function: F, /) -> F: ...


@overload
def method(**options: Any) -> Callable[[F], F]: ...


def method(*plain: F, **options: Any) -> F | Callable[[F], F]:
    """Give an actor's method options: ``@skate.method(num_returns=2)``."""
    if plain:
        if len(plain) == 1 and callable(plain[0]) and not options:
            return plain[0]
        raise TypeError("@skate.method takes options by name, such as num_returns=2.")
    if not options:
        raise TypeError("@skate.method takes options, such as num_returns=2.")
    checked = check_method_options(options)

    def decorate(function: F) -> F:
        setattr(function, _METHOD_OPTIONS, checked)
        return function

    return decorate


def receiver(function: F, /) -> F:
    """Have this method of an actor's class take in the calls of all the others.

    The engine calls it with the calls that have come since, a list of ``ReceivedCall``
    in the order in which each caller made them; it may answer them then or later, in
    any order. What it returns is the number of seconds after which it wants to be
    called again, with an empty list if nothing has come; None waits for the next call.
    It is always called on the same thread::

        class Adder:
            def add(self, x): ...  # so that handles have the method

            @skate.receiver
            def receive(self, calls):
                for call in calls:
                    call.answer(self.total + call.args[0])

    If it raises, or returns anything else, those of the calls given to it that it has
    not answered fail with the error, and the actor goes on.
    """
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"@skate.receiver decorates a method, not {function!r}.")
    setattr(function, _RECEIVER, True)
    return function


class ActorMethod:
    """A method of one actor. Holds the actor alive, as its handle does."""

    __slots__ = ("_actor", "_interface", "_spec")

    def __init__(
        self, actor: ActorRef, interface: ActorInterface, spec: MethodSpec
    ) -> None:
        self._actor = actor
        self._interface = interface
        self._spec = spec

    @property
    def _num_returns(self) -> int:
        return self._spec.num_returns

    # Any: the method's types are not known through a handle.
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; returns its ref at once (with ``num_returns=n``, n refs).

        A generator method returns an ObjectRefGenerator. Calls that one caller makes
        run in the order in which they were made. If the actor is dead, the ref holds
        an ActorDiedError; if it dies before it has answered and is restarted, an
        ActorUnavailableError (see ``max_task_retries``).

        Raises:
            PendingCallsLimitExceeded: ``max_pending_calls`` are unanswered.
        """
        engine = engine_of(self._actor)
        refs = engine.call_actor(self._actor, self._spec, args, kwargs)
        if self._spec.num_returns == 1:
            return refs[0]
        if self._spec.num_returns == STREAMING:
            return ObjectRefGenerator(refs[0], engine)
        return refs or None

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options, as ``skate.method`` takes them."""
        spec = _with_method_options(
            self._interface, self._spec, check_method_options(options)
        )
        return ActorMethod(self._actor, self._interface, spec)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"an actor's method is not called directly: write .{self._spec.name}.remote"
            "(...), and skate.get on what it returns."
        )

    def __repr__(self) -> str:
        return f"ActorMethod({self._interface.class_name}.{self._spec.name})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorMethod, (self._actor, self._interface, self._spec)


def _with_method_options(
    interface: ActorInterface, spec: MethodSpec, options: Mapping[str, Any]
) -> MethodSpec:
    changes = dict(options)
    group = changes.pop("concurrency_group", None)
    if group is not None:
        groups = interface.options.get("concurrency_groups", {})
        if group not in groups:
            raise ValueError(
                f"actor class {interface.class_name} has no concurrency group "
                f"{group!r}: {nearest(group, groups)}"
            )
        changes["group"] = 1 + list(groups).index(group)
    return spec._replace(**changes)


class ActorHandle(Generic[T]):
    """Refers to one actor; the actor ends when its last handle is gone.

    Handles may be passed to tasks and to other actors, in arguments, containers and
    results. The attributes of a handle are the methods of the actor.
    """

    # Not slots: a method found once becomes an ordinary attribute of the handle.
    def __init__(self, actor: ActorRef, interface: ActorInterface) -> None:
        self._skate_actor = actor
        self._skate_interface = interface
        title = interface.class_name.rpartition(".")[2]
        actor._counter.name_actor(actor._id, title)

    def __getattr__(self, name: str) -> ActorMethod:
        # Half-made handles (in copy and pickle) have no attribute at all.
        interface: ActorInterface | None = vars(self).get("_skate_interface")
        if interface is None:
            raise AttributeError(name)
        methods = interface.methods
        given: Mapping[str, Any] = {}
        if name in methods:
            given = methods[name]
        elif name.startswith("__") and name not in BUILT_IN_METHODS:
            raise AttributeError(name)
        elif name not in BUILT_IN_METHODS:
            raise AttributeError(
                f"actor class {interface.class_name} has no method {name!r}: "
                f"{nearest(name, methods)}"
            )
        options = interface.options
        spec = MethodSpec(
            name,
            max_task_retries=options.get("max_task_retries", 0),
            max_pending_calls=options.get("max_pending_calls", -1),
            out_of_order=options.get("allow_out_of_order_execution", False),
        )
        spec = _with_method_options(interface, spec, given)
        found = vars(self)[name] = ActorMethod(self._skate_actor, interface, spec)
        return found

    @property
    def _actor_id(self) -> ActorId:
        """Of Ray's handles, too: programs read it to tell actors apart."""
        return ActorId(f"{int(self._skate_actor._id):032x}")

    _ray_actor_id = _actor_id

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._skate_interface.methods})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorHandle):
            return NotImplemented
        return self._skate_actor == other._skate_actor

    def __hash__(self) -> int:
        return hash(self._skate_actor)

    def __repr__(self) -> str:
        name = self._skate_interface.class_name
        return f"ActorHandle({name}, {self._skate_actor.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._skate_actor, self._skate_interface)


class ActorClass(Generic[T]):
    """A class whose instances are actors. Made by ``@skate.remote``."""

    _spec: ActorSpec

    @classmethod
    def _of(cls, actor_class: type[T], options: dict[str, Any]) -> ActorClass[T]:
        self: ActorClass[T] = _blank(cls)
        self._set_class(actor_class, ActorOptions().updated(options))
        return self

    def _set_class(self, actor_class: type[T], options: ActorOptions) -> None:
        methods = dict(_methods(actor_class))
        receivers = [
            name for name, (function, _) in methods.items() if _receives(function)
        ]
        if len(receivers) > 1:
            raise TypeError(
                f"{actor_class.__qualname__} has more than one @skate.receiver: "
                f"{', '.join(receivers)}. One method takes in all calls."
            )
        for name in receivers:
            del methods[name]
        is_async = bool(receivers) or any(
            inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
            for function, _ in methods.values()
        )
        self.__wrapped__ = actor_class
        self.__module__ = actor_class.__module__
        self.__qualname__ = actor_class.__qualname__
        self.__name__ = actor_class.__name__
        self.__doc__ = actor_class.__doc__
        self._options = options
        self._spec = ActorSpec(
            cls=actor_class,
            name=f"{actor_class.__module__}.{actor_class.__qualname__}",
            options=replace(
                options,
                max_concurrency=options.max_concurrency or (1000 if is_async else 1),
            ),
            interface=_interface(actor_class, methods, options),
            is_async=is_async,
            receiver=receivers[0] if receivers else None,
        )

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Start an actor; returns its handle at once.

        If the constructor raises, the calls fail with ActorDiedError.

        Raises:
            TypeError: an argument cannot be pickled, or does not fit the constructor.
            ActorAlreadyExistsError: the name is taken (see ``get_if_exists``).
            ResourceError: the options ask for more than the session has.
        """
        spec = self._spec
        _check_constructor(spec, args, kwargs)
        engine = current()
        options = spec.options
        if not options.get_if_exists:
            return self._create(engine, args, kwargs)
        assert options.name is not None
        while True:  # another thread or task may take or free the name in between
            try:
                return get_actor(options.name, options.namespace)
            except ValueError:
                pass
            try:
                return self._create(engine, args, kwargs)
            except ActorAlreadyExistsError:
                continue

    def _create(
        self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorHandle[T]:
        actor = engine.create_actor(self._spec, args, kwargs)
        try:
            handle: ActorHandle[T] = ActorHandle(actor, self._spec.interface)
        except BaseException:  # Ctrl-C: it is not to live on without a handle
            if self._spec.options.lifetime == "detached":
                engine.kill_actor(actor, no_restart=True)
            raise
        return handle

    def options(self, **options: Any) -> ActorClass[T]:
        """The same class with other options, for one actor or for many."""
        return _with_options(self, self._options.updated(options))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"an actor class is not called directly: write {self.__name__}.remote"
            f"(...) to start an actor, or {self.__name__}.__wrapped__(...) for an "
            "ordinary instance."
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"{self.__name__} is an actor class, and those are not inherited from. "
            f"Inherit from the ordinary class, {self.__name__}.__wrapped__, and "
            "decorate the subclass with @skate.remote."
        )

    def __repr__(self) -> str:
        return f"ActorClass({self._spec.name})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        found = find_global(self.__module__, self.__qualname__)
        if found is self:
            return str(self.__qualname__)
        if getattr(found, "__wrapped__", None) is self.__wrapped__:
            return _with_options, (found, self._options)
        # State apart from construction: the class's methods may refer to this object.
        return _blank, (type(self),), (self.__wrapped__, self._options)

    def __setstate__(self, state: tuple[type[T], ActorOptions]) -> None:
        self._set_class(*state)


def _blank(cls: type[T]) -> T:
    return object.__new__(cls)


def _with_options(found: ActorClass[T], options: ActorOptions) -> ActorClass[T]:
    other: ActorClass[T] = _blank(type(found))
    other._set_class(found.__wrapped__, options)
    return other


def _methods(
    actor_class: type,
) -> list[tuple[str, tuple[Callable[..., Any], dict[str, Any]]]]:
    """Name -> (function, options given by ``@skate.method``) of what can be called."""
    found: list[tuple[str, tuple[Callable[..., Any], dict[str, Any]]]] = []
    for name in dir(actor_class):
        if name.startswith("__") and name != "__call__":
            continue
        attribute = inspect.getattr_static(actor_class, name)
        if isinstance(attribute, (staticmethod, classmethod)):
            attribute = attribute.__func__
        if inspect.isroutine(attribute) and name not in vars(object):
            given = dict(getattr(attribute, _METHOD_OPTIONS, {}))
            num_returns = returns_of(attribute, given.pop("num_returns", BY_FUNCTION))
            if num_returns != 1:
                given["num_returns"] = num_returns
            found.append((name, (attribute, given)))
    return found


def _receives(function: Callable[..., Any]) -> bool:
    return getattr(function, _RECEIVER, False) is True


def _interface(
    actor_class: type,
    methods: Mapping[str, tuple[Callable[..., Any], dict[str, Any]]],
    options: ActorOptions,
) -> ActorInterface:
    """Raises ValueError if a method names a concurrency group that there is not."""
    defaults = ActorOptions()
    for_callers = (
        "max_task_retries",
        "max_pending_calls",
        "allow_out_of_order_execution",
        "concurrency_groups",
    )
    interface = ActorInterface(
        f"{actor_class.__module__}.{actor_class.__qualname__}",
        {name: given for name, (_, given) in methods.items()},
        {
            name: getattr(options, name)
            for name in for_callers
            if getattr(options, name) != getattr(defaults, name)
        },
    )
    for name, given in interface.methods.items():
        _with_method_options(interface, MethodSpec(name), given)
    return interface


def _check_constructor(
    spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise TypeError here, where the mistake is, rather than in the actor."""
    try:
        signature = inspect.signature(spec.cls)
    except (TypeError, ValueError):  # built in C, or a metaclass with its own call
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{spec.name}{signature}: {error}.") from None


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """A handle of the live actor that was started with ``options(name=name)``.

    Raises:
        ValueError: there is none; the message lists the names that there are.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of an actor must be a string, not {name!r}.")
    named = current().get_actor(exact(name), exact(namespace))
    return ActorHandle(named.actor, named.interface)


def kill(actor: ActorHandle[Any], no_restart: bool = True) -> None:
    """End ``actor``'s process now. Calls that run or wait fail with ActorDiedError.

    Args:
        no_restart: end the actor for good. If False, it is restarted as after a crash,
            as often as its ``max_restarts`` allows.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(
            f"skate.kill takes the handle of an actor, not {actor!r} of type "
            f"{type(actor).__name__}."
        )
    if not isinstance(no_restart, bool):
        raise TypeError(f"no_restart must be True or False, not {no_restart!r}.")
    engine_of(actor).kill_actor(actor._skate_actor, no_restart)
