"""
The steps of a plan, and what each does to a chain.

Each kind of step says itself, beside its `action`:

* `needs`: what has to be allowed before it happens without a person.
* `rewrites`: the fields that name images whose data it writes in place.
* `copies`: True: it is there to move data, and a plan shows how much, even none.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, assert_never

from reconciler.model.host import ACTS, Act
from reconciler.model.image import Chain, Format, Image, short_name


@dataclass(frozen=True, slots=True)
class Create:
    """
    A new empty image becomes active, on top of *backing*.

    Images above *backing* are off the chain afterwards: a rollback.

    Attributes:
        backing: None creates an image that stands on nothing.
        size: Virtual size in bytes.
    """

    action: ClassVar[str] = "create"
    needs: ClassVar[Act] = "create"
    rewrites: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[bool] = False
    image: Path
    backing: Path | None
    format: Format
    size: int

    def __str__(self) -> str:
        on = f" on {short_name(self.backing)}" if self.backing else ""
        return f"create {short_name(self.image)}{on}"


@dataclass(frozen=True, slots=True)
class Commit:
    """
    The data of *top* and of all images above *base* moves down into *base*.

    Attributes:
        relink: True: what stood on *top* stands on *base* afterwards, and
            *top* and all between are off the chain.  False: *top* stays the
            name of the merged view until a rename puts *base* in its place;
            every header stays as it is.
    """

    action: ClassVar[str] = "commit"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ("base",)
    copies: ClassVar[bool] = True
    top: Path
    base: Path
    relink: bool = True

    def __str__(self) -> str:
        return f"commit {short_name(self.top)} down into {short_name(self.base)}"


@dataclass(frozen=True, slots=True)
class Pull:
    """Data above *base* moves up into *into*, which stands on *base* afterwards."""

    action: ClassVar[str] = "pull"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ("into",)
    copies: ClassVar[bool] = True
    into: Path
    base: Path | None

    def __str__(self) -> str:
        down = short_name(self.base) if self.base else "nothing"
        return f"pull up into {short_name(self.into)} down to {down}"


@dataclass(frozen=True, slots=True)
class Rebase:
    """
    *image* stands on *backing* afterwards and reads as before.

    *backing* lies outside the chain (differences are copied up), or has the
    view that the backing file of *image* has (only the header changes).
    """

    action: ClassVar[str] = "rebase"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ("image",)
    copies: ClassVar[bool] = False
    image: Path
    backing: Path

    def __str__(self) -> str:
        return f"rebase {short_name(self.image)} onto {short_name(self.backing)}"


@dataclass(frozen=True, slots=True)
class Rename:
    """
    The file *source* takes the name *target*; what was there before is gone.

    Attributes:
        link: True: *target* becomes a second name now, and *source* goes
            when the domain is off.
    """

    action: ClassVar[str] = "rename"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[bool] = False
    source: Path
    target: Path
    link: bool = False

    def __str__(self) -> str:
        return f"rename {short_name(self.source)} to {short_name(self.target)}"


@dataclass(frozen=True, slots=True)
class Resize:
    """*image* grows to *size* bytes; the new part reads as zeroes."""

    action: ClassVar[str] = "resize"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ("image",)
    copies: ClassVar[bool] = False
    image: Path
    size: int

    def __str__(self) -> str:
        return f"resize {short_name(self.image)} to {self.size}"


@dataclass(frozen=True, slots=True)
class Repair:
    """The reference counts of *image*, which was not closed cleanly, are made right again."""

    action: ClassVar[str] = "repair"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ("image",)
    copies: ClassVar[bool] = False
    image: Path

    def __str__(self) -> str:
        return f"repair {short_name(self.image)}"


@dataclass(frozen=True, slots=True)
class Attach:
    """*image* is active from now on; images above it are off the chain."""

    action: ClassVar[str] = "attach"
    needs: ClassVar[Act] = "create"
    rewrites: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[bool] = False
    image: Path

    def __str__(self) -> str:
        return f"attach {short_name(self.image)}"


@dataclass(frozen=True, slots=True)
class Forget:
    """libvirt's metadata of *snapshot*, which is gone, is dropped."""

    action: ClassVar[str] = "forget"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[bool] = False
    snapshot: str

    def __str__(self) -> str:
        return f"forget snapshot {self.snapshot}"


@dataclass(frozen=True, slots=True)
class Remove:
    """The file *image*, which is off the chain and stands under nothing, is unlinked."""

    action: ClassVar[str] = "remove"
    needs: ClassVar[Act] = "merge"
    rewrites: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[bool] = False
    image: Path

    def __str__(self) -> str:
        return f"remove {short_name(self.image)}"


Step = Create | Commit | Pull | Rebase | Rename | Resize | Repair | Attach | Forget | Remove

STEPS: tuple[type[Step], ...] = (
    Create,
    Commit,
    Pull,
    Rebase,
    Rename,
    Resize,
    Repair,
    Attach,
    Forget,
    Remove,
)
"""Every kind of step, in the order of DESIGN's list."""

_PATHS = {"image", "backing", "top", "base", "into", "source", "target"}


def advance(chain: Chain, step: Step, outside: Chain | None = None) -> Chain:
    """
    The chain that *step* leaves behind.

    The planner thinks with this function, the executor checks each finished
    step against it, and the tests use it as the model of a disk.

    Args:
        chain: The chain before the step.
        step: What is done.
        outside: For a rebase or create onto an image that *chain* lacks: the
            chain whose active image it is.
    """
    match step:
        case Create(image, backing, image_format, size):
            below = _standing_on(chain, backing, outside)
            new = Image(path=image, format=image_format, virtual_size=size)
            return Chain((*below.images, new))
        case Commit(top, base, relink):
            lower = chain.image(base)
            grown = replace(
                lower, virtual_size=max(lower.virtual_size, chain.image(top).virtual_size)
            )
            gone = [*chain.between(base, top), chain.image(top)] if relink else []
            return _with(chain.without(gone), base, grown)
        case Pull(into, base):
            return chain.without(chain.between(base, into))
        case Rebase(image, backing):
            upper = chain.images[chain.index(image) :]
            return Chain((*_standing_on(chain, backing, outside).images, *upper))
        case Rename(source, target) if target in chain and chain.image(target).second == source:
            return _with(chain, target, replace(chain.image(target), second=None))
        case Rename(source, target, link):
            old = chain.image(source)
            second = (old.second or source) if link else None
            moved = replace(old, path=target, second=second)
            if target in chain:
                between = chain.between(source, target)
                return _with(chain.without([*between, chain.image(source)]), target, moved)
            return _with(chain, source, moved)
        case Resize(image, size):
            return _with(chain, image, replace(chain.image(image), virtual_size=size))
        case Repair(image):
            return _with(chain, image, replace(chain.image(image), dirty=False))
        case Attach(image):
            return chain.up_to(image)
        case Forget() | Remove():
            return chain
        case _:
            assert_never(step)


def _standing_on(chain: Chain, backing: Path | None, outside: Chain | None) -> Chain:
    """The chain below a new link to *backing*."""
    if backing is None:
        return Chain()
    if outside is not None and backing in outside:
        return outside.up_to(backing)
    return chain.up_to(backing)


def _with(chain: Chain, path: Path, image: Image) -> Chain:
    """*chain* with *image* in the place of the image at *path*."""
    return Chain(tuple(image if old.path == path else old for old in chain.images))


def touched(step: Step) -> tuple[Path, ...]:
    """Paths of the images whose bytes or name *step* changes, the survivor first."""
    match step:
        case Create(image) | Rebase(image) | Resize(image) | Repair(image) | Remove(image):
            return (image,)
        case Commit(_, base):
            return (base,)
        case Pull(into):
            return (into,)
        case Rename(source, target):
            return (target, source)
        case Attach() | Forget():
            return ()
        case _:
            assert_never(step)


def rewritten(step: Step) -> tuple[Path, ...]:
    """Images whose data *step* writes in place: from then on they are no longer untouched."""
    return tuple(getattr(step, name) for name in step.rewrites)


Need = Act | Literal["person"]
"""What a step needs: an act that a host may allow, or a person, which none can."""


def need(step: object) -> Need:
    """What has to be allowed for *step*; a kind that says nothing needs a person."""
    known: Need = getattr(type(step), "needs", "person")
    return known if known in ACTS else "person"


def active_after(active: Path | None, step: Step) -> Path | None:
    """The image that is active after *step*, where *active* was before it."""
    match step:
        case Create(image) | Attach(image):
            return image
        case Commit(top, base, True) if top == active:
            return base
        case Rename(source, target) if source == active:
            return target
        case _:
            return active


def as_data(step: Step) -> dict[str, Any]:
    """*step* as plain JSON or TOML data; None values are kept."""
    data: dict[str, Any] = {"action": step.action}
    for key in step.__slots__:
        value = getattr(step, key)
        data[key] = str(value) if isinstance(value, Path) else value
    return data


def from_data(data: dict[str, Any]) -> Step:
    """
    The step that *data* (as `as_data` writes it) describes.

    A missing flag has its default, and a missing backing file is None.

    Raises:
        ValueError: *data* is no step.
    """
    for kind in STEPS:
        if kind.action == data.get("action"):
            return kind(**{field.name: _value(kind, field, data) for field in fields(kind)})
    raise ValueError(f"{data.get('action')!r} is no step")


_OPTIONAL = {(Create, "backing"), (Pull, "base")}


def _value(kind: type[Step], field: Field[Any], data: dict[str, Any]) -> Any:
    """The value of *field* in *data*; ValueError where it is missing or of another kind."""
    value = data.get(field.name)
    if value is None and (kind, field.name) in _OPTIONAL:
        return None
    if value is None and field.default is not MISSING:
        return field.default
    wanted = {"size": int, "relink": bool, "link": bool}.get(field.name, str)
    known = field.name != "format" or value in ("qcow2", "raw")
    if type(value) is not wanted or not known:
        raise ValueError(f"{kind.action}: {field.name} is {value!r}")
    return Path(str(value)) if field.name in _PATHS else value
