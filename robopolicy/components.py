"""The registry of components: which kinds each family has, the options of each kind, and where it comes from.

A component is one file: a frozen dataclass of its options, the class (or function) that builds it, and

    @register("memory", "lstm", LSTMOptions)

above it. The file lies in the family's package and is named after the kind, so that nothing else has to list it and
only the kinds that are asked for are imported. Components of other packages come from the entry-point group
`robopolicy.components` (entries named `<family>.<kind>`), or from modules given to `load_plugins`. A run folder, demo
file or model card never causes an import.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeVar

from robopolicy.options import ConfigError as ConfigError
from robopolicy.options import Options as Options
from robopolicy.options import option as option
from robopolicy.options import options_of
from robopolicy.options import require as require
from robopolicy.types import one_line

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "encoder": ("robopolicy.model.encoders",),
    "text": ("robopolicy.model.texts",),
    "pooling": ("robopolicy.model.poolings",),
    "memory": ("robopolicy.model.memories",),
    "action_head": ("robopolicy.model.action_heads",),
    "loss": ("robopolicy.training.losses",),
    "augmentation": ("robopolicy.training.augmentations",),
    "execution": ("robopolicy.control.execution",),
    "task": ("robopolicy.sim.tasks",),
    "robot": ("robopolicy.control.robots", "robopolicy.sim.robots"),
    "operator": ("robopolicy.control.operators",),
    "demo_format": ("robopolicy.demos.formats",),
    "key_mapping": ("robopolicy.control.serving.mappings",),
}
"""Family -> the packages whose modules are its built-in kinds. Modules named `_...` or `base` are not kinds."""

GROUP = "robopolicy.components"
"""Entry-point group of installed plug-ins."""

BUILT_IN = "robopolicy"
"""Origin of the built-in kinds."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class NoOptions:
    """The options of kinds that have none."""


@dataclass(frozen=True)
class Component:
    """One kind of one family."""

    family: str
    kind: str
    make: Callable[..., Any]
    """Makes an instance of this kind from its options and the arguments of the family's contract."""
    options: type
    """Frozen dataclass of its options."""
    origin: str
    """`robopolicy`, or the plug-in it comes from."""


_registered: dict[tuple[str, str], Component] = {}
_by_options: dict[type, Component] = {}
_watchers: dict[str, list[Callable[[str], None]]] = {}
"""Family -> what to call with each kind that is registered."""
_plugin: list[str] = []
"""Names of the plug-ins that are being imported; the innermost import is last."""


def register(family: str, kind: str, options: type = NoOptions) -> Callable[[_T], _T]:
    """Decorator that registers a class or function as `kind` of `family`.

    Args:
        family: one of `FAMILIES`.
        kind: name in configs and on the command line; for built-in kinds also the file's name.
        options: frozen dataclass of the kind's options, each with a default and a docstring below it. One dataclass
            belongs to one kind: derive a subclass to share fields.

    Raises:
        ConfigError: the family is unknown, the options are not a frozen dataclass or belong to another kind, or
            another module has registered the same kind.
    """
    _require_family(family)
    if options is NoOptions:
        # A separate class, so that an instance identifies its kind.
        options = dataclass(frozen=True)(type("NoOptions", (NoOptions,), {}))
    if not (is_dataclass(options) and options.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError(f"{family} {kind!r}: options must be a frozen dataclass, got {options!r}")

    def add(made: _T) -> _T:
        module = getattr(made, "__module__", "?")
        package = module.partition(".")[0]
        # A plug-in may import, and so register, built-in kinds: those that it builds on.
        origin = _plugin[-1] if _plugin and package != BUILT_IN else package
        component = Component(family, kind, made, options, origin)  # type: ignore[arg-type]
        before = _registered.get((family, kind))
        if before is not None and getattr(before.make, "__module__", "?") != module:
            raise ConfigError(
                f"{family} {kind!r} is provided twice: by {before.origin} ({before.make.__module__}) and by "
                f"{component.origin} ({module}); rename one of them"
            )
        owner = _by_options.get(options)
        if owner is not None and (owner.family, owner.kind) != (family, kind):
            raise ConfigError(
                f"{options.__name__} holds the options of {owner.family} {owner.kind!r}; {family} {kind!r} needs its "
                "own dataclass (a subclass will do)"
            )
        if issubclass(options, Options):
            options.section = section_of(family, kind)
        _registered[family, kind] = component
        _by_options[options] = component
        for call in _watchers.get(family, ()):
            call(kind)
        return made

    return add


def on_register(family: str, call: Callable[[str], None]) -> None:
    """Call `call(kind)` whenever a kind of this family is registered from now on."""
    _watchers.setdefault(family, []).append(call)


def component(family: str, kind: str) -> Component:
    """The kind called `kind`; imports its file, and no other.

    Raises:
        ConfigError: there is no such kind (those that exist are listed), or its plug-in fails to import.
    """
    _require_family(family)
    if (family, kind) not in _registered:
        if found := _built_in(family).get(kind):
            package, file = found
            if file.suffix == ".yaml":
                import_module(package).register_file(file)
            else:
                import_module(f"{package}.{kind}")
        else:
            _load_entry_point(family, kind)
    if (family, kind) not in _registered:
        raise ConfigError(f"{family} {kind!r} is unknown; choose one of {', '.join(kinds(family))}")
    return _registered[family, kind]


def component_of(options: Any) -> Component:
    """The component that this instance of options belongs to.

    Raises:
        ConfigError: they are not the options of a registered kind.
    """
    found = _by_options.get(type(options))
    if found is None:
        raise ConfigError(f"{type(options).__name__} is not the options class of a registered component")
    return found


def origin_of(family: str, kind: str) -> str:
    """Where a kind comes from: `robopolicy`, the plug-in, or `unknown`; nothing is imported."""
    if (family, kind) in _registered:
        return _registered[family, kind].origin
    if kind in _built_in(family):
        return BUILT_IN
    found = [entry for entry in _entry_points() if entry.name == f"{family}.{kind}"]
    return _distribution(found[0]) if found else "unknown"


def values_of(options: Any) -> dict[str, Any]:
    """The inverse of `options_from`: `kind` and the options as plain values."""
    return {"kind": component_of(options).kind, **asdict(options)}


def build(options: Any, *args: Any, **context: Any) -> Any:
    """Make the component that these options belong to; `args` and `context` are those of its family's contract."""
    return component_of(options).make(options, *args, **context)


def kinds(family: str) -> tuple[str, ...]:
    """Every known kind of a family: built in, from installed entry points, and registered by loaded plug-ins."""
    _require_family(family)
    installed = [entry.name.partition(".")[2] for entry in _entry_points() if entry.name.startswith(f"{family}.")]
    registered = [kind for owner, kind in _registered if owner == family]
    return tuple(sorted({*_built_in(family), *installed, *registered}))


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that register components.

    Raises:
        ConfigError: a module can't be imported; the message gives its name and the error.
    """
    for module in modules:
        find_in_current_folder(module)
        _import_plugin(module, module)


def find_in_current_folder(module: str) -> None:
    """If a module given by the user lies in the current folder, add the folder to the search path.

    The folder comes last in the search path, so that nothing in it hides an installed package.
    """
    here, first = os.getcwd(), module.partition(".")[0]
    if here not in sys.path and (Path(here, first).is_dir() or Path(here, f"{first}.py").is_file()):
        sys.path.append(here)


def options_from(family: str, kind: str, values: Mapping[str, Any], where: str | None = None) -> Any:
    """Options of a kind from plain values, each converted to its field's type.

    Args:
        family: the kind's family.
        kind: its name.
        values: option -> value.
        where: prefix of an option's name in messages; None: its section on the command line.

    Raises:
        ConfigError: the kind is unknown, has no option of one of these names (those it has are listed), or a value has the
            wrong type.
    """
    options = component(family, kind).options
    return options_of(options, values, where or f"--{section_of(family, kind)}.", f"{family} {kind!r}")


def section_of(family: str, kind: str) -> str:
    """Section of a kind's options on the command line: its family, or family and kind where a config may have several."""
    return {"augmentation": f"augmentation.{kind}", "loss": f"losses.{kind}"}.get(family, family)


# -- discovery -------------------------------------------------------------------------------------------------------------


def _require_family(family: str) -> None:
    require(family in FAMILIES, f"unknown component family {family!r}; choose one of {', '.join(FAMILIES)}")


def _built_in(family: str) -> dict[str, tuple[str, Path]]:
    """Built-in kind -> its package and file, by the files in the family's packages; nothing is imported.

    Some kinds are data only, in a YAML file, which the package's `register_file(path)` registers.
    """
    found = {}
    for package in FAMILIES[family]:
        folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
        for file in (*folder.glob("*.py"), *folder.glob("*.yaml")):
            if not file.stem.startswith("_") and file.stem != "base":
                found[file.stem] = (package, file)
    return found


def _entry_points() -> list[metadata.EntryPoint]:
    return list(metadata.entry_points(group=GROUP))


def _load_entry_point(family: str, kind: str) -> None:
    found = [entry for entry in _entry_points() if entry.name == f"{family}.{kind}"]
    if len(found) > 1:
        sources = ", ".join(f"{entry.value} ({_distribution(entry)})" for entry in found)
        raise ConfigError(f"{family} {kind!r} is provided twice: {sources}; uninstall one of them")
    for entry in found:
        _import_plugin(entry.module, _distribution(entry))
        require(
            (family, kind) in _registered,
            f"{family} {kind!r}: {_distribution(entry)} names it, but its module {entry.module} does not register it; "
            f"expected @register({family!r}, {kind!r}, ...) there",
        )


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


def _import_plugin(module: str, origin: str) -> None:
    _plugin.append(origin)
    try:
        import_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"plug-in {module} can't be imported: {type(error).__name__}: {one_line(error)}") from error
    finally:
        _plugin.pop()
