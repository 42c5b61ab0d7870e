"""Find the state dict in a file of training code, with its key, its prefix and whether it is averaged."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.inert_pickle import Inert, StoredTensor, UnknownTensor
from edged.models.naming import Network, find_networks
from edged.models.other_networks import ADVICE, other_network
from edged.models.pickle_scan import quoted
from edged.spec import Choice

MAX_DEPTH = 6  # of nested dicts
MAX_DICTS = 10_000
MAX_TENSORS = 20_000
MAX_NAME = 512  # characters
# Entries of a checkpoint whose state_dict Lightning's WeightAveraging callback has replaced by the averaged one.
_BY_LIGHTNING = frozenset({"state_dict", "current_model_state", "averaging_state"})
MAX_LIST = 100  # items of a list that are looked at
MAX_COMPLETING = 8  # networks whose running statistics may complete averages of parameters
_STATISTICS = (".running_mean", ".running_var")  # of BatchNorm
_COUNTER = ".num_batches_tracked"
_AVERAGED = re.compile(  # as a word of its own, or as one of camelCase
    r"(^|[._-])(?i:ema\d*|averaged?|avg|swa|shadow|polyak)([._-]|$)|(^|\.)n_averaged$"
    r"|[a-z0-9](EMA|Ema|SWA|Swa|Averaged?)([A-Z0-9._-]|$)|(^|[._-])(EMA|[eE]ma|SWA|[sS]wa|[aA]veraged?)[A-Z]"
)
# Keys of tensors that have the shapes of the parameters but are none: gradients, and what optimizers keep.
_OF_OPTIMIZER = re.compile(
    r"(?i)(^|[._-])(optim\w*|exp_avg\w*|momentum\w*|grads?|gradients?|grad_\w+|adamw?|sgd)([._-]|$)"
)


@dataclass(frozen=True)
class Found:
    """A state dict in a file.

    Attributes:
        key: Key of the state dict in the file, nested keys joined by dots.
        entries: Entries of the state dict, by name.
        network: The ResNet that it holds; None if there is none.
        declared: Whether an entry next to it says that it is an average over training.
        statistics: Key of the state dict that the running statistics were taken from; None if they are its own.
    """

    key: str
    entries: Mapping[Any, Any] = field(repr=False)
    network: Network | None = None
    declared: bool = False
    statistics: str | None = None

    @property
    def averaged(self) -> bool:
        """Whether the file says that its weights are an average over training."""
        prefix = "" if self.network is None else self.network.prefix
        named = _AVERAGED.search(self.key) or _AVERAGED.search(prefix)
        return self.declared or bool(named) or "n_averaged" in self.entries

    @property
    def place(self) -> str:
        """Key and prefix in readable form."""
        prefix = "" if self.network is None else self.network.prefix
        return f"key {self.key!a}, prefix {prefix!a}"


def find_state(tree: Any, choice: Choice | None = None) -> Found:
    """Find the state dict of the one network that `tree` holds.

    Args:
        tree: Contents of the file as inert data.
        choice: Choice of the user between several networks; None looks for the one that fits.

    Raises:
        CheckpointError: There is none, or several fit and `choice` does not single one out.
        UnsafeCheckpointError: The file holds a whole module instead of a state dict.
    """
    choice = choice or Choice()
    states = [*_state_dicts(tree)]
    averaged_key = "state_dict" if isinstance(tree, dict) and tree.keys() >= _BY_LIGHTNING else None
    networks = [
        Found(state.key, state.entries, network, declared=state.key == averaged_key)
        for state in states
        for network in find_networks(shapes_of(state.entries), choice.head_layers)
        if network.fits
    ]
    completed = _completed(networks, tree)
    fitting = [
        state
        for state in completed
        if choice.key in (None, state.key) and (state.network is None or choice.prefix in (None, state.network.prefix))
    ]
    if fitting:
        taken = _preferred(fitting, choice)
        _check_statistics(taken, completed)
        return taken
    chosen = [state for state in states if choice.key in (None, state.key)]
    if chosen:
        return _nearest(chosen, choice)
    module = _whole_module(tree)
    if module is None:
        raise CheckpointError(_why_none(tree, choice))
    other = other_network(dict(_module_shapes(module)))
    what = f"it holds the whole module {quoted(module.name)}"
    if other is not None:
        raise UnsafeCheckpointError(f"{what}: {other}, which edged does not know; {ADVICE}")
    raise UnsafeCheckpointError(f"{what}, whose network is code; save model.state_dict() instead")


def _preferred(fitting: list[Found], choice: Choice) -> Found:
    """Return the one network to take of those that fit: the averaged one, unless the user asks for the last one."""
    averaged = [state for state in fitting if state.averaged]
    if choice.weights != "last" and averaged:
        fitting = averaged
    elif choice.weights == "last" and len(averaged) < len(fitting):
        fitting = [state for state in fitting if not state.averaged]
    elif choice.weights == "averaged" and not averaged:
        raise CheckpointError("it holds no averaged weights, and weights: averaged asks for them; set weights: auto")
    fitting = _different(fitting)
    if len(fitting) > 1:
        places = " and ".join(state.place for state in fitting[:4])
        raise CheckpointError(
            f"it holds {len(fitting)} networks that fit ({places});"
            " choose one with checkpoint: {key: ..., prefix: ...}"
        )
    return fitting[0]


def _completed(networks: list[Found], tree: Any) -> list[Found]:
    """Give averages of parameters alone the running statistics of the last weights, as training evaluates them.

    Many classes that average weights keep no buffers: by the names of the parameters, or as a list in their order.
    """
    whole = [state for state in networks if not _is_parameters_only(state)]
    partial = [state for state in networks if _is_parameters_only(state) and not _OF_OPTIMIZER.search(state.key)]
    first = whole[:MAX_COMPLETING]
    completed = [*whole, *(_with_statistics(state, first) for state in partial)]
    parameters = [(state, _parameters(state)) for state in first]
    listed = (_from_list(key, tensors, parameters) for key, tensors in _averaged_lists(tree))
    return [*completed, *(state for state in listed if state is not None)]


def _check_statistics(taken: Found, others: Sequence[Found]) -> None:
    """Check that averages of parameters could be completed where the file holds a whole network, too.

    Raises:
        CheckpointError: They are of another network than the whole one.
    """
    whole = next((state for state in others if not _is_parameters_only(state)), None)
    if whole is not None and _is_parameters_only(taken):
        raise CheckpointError(
            f"{taken.place} holds parameters without the running statistics of BatchNorm, and other ones than"
            f" {whole.place}, which has them; set weights: last, or checkpoint: {{key: ...}}, to take the latter"
        )


def _is_parameters_only(state: Found) -> bool:
    names = {} if state.network is None else state.network.names
    return "bn1.weight" in names and not any(name.endswith(_STATISTICS) for name in names)


def _with_statistics(state: Found, whole: Sequence[Found]) -> Found:
    """Return parameters with the running statistics of the first network of the same shapes; unchanged without one."""
    assert state.network is not None  # noqa: S101 - see _is_parameters_only
    names = state.network.names
    for other in whole:
        of_other = {} if other.network is None else other.network.names
        statistics = {name: stored for name, stored in of_other.items() if name.endswith(_STATISTICS)}
        if of_other.keys() - statistics.keys() == names.keys() and all(
            tuple(other.entries[of_other[name]].shape) == tuple(state.entries[stored].shape)
            for name, stored in names.items()
        ):
            entries = {stored: other.entries[stored] for stored in statistics.values()} | dict(state.entries)
            network = dataclasses.replace(state.network, names={**names, **statistics})
            return dataclasses.replace(state, entries=entries, network=network, statistics=other.key)
    return state


def _parameters(state: Found) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a state dict by name, in the order in which a module lists them."""
    return {
        name: shape for name, shape in shapes_of(state.entries).items() if not name.endswith((*_STATISTICS, _COUNTER))
    }


def _from_list(
    key: str,
    tensors: Sequence[StoredTensor | Tensor],
    candidates: Sequence[tuple[Found, Mapping[str, tuple[int, ...]]]],
) -> Found | None:
    """Return the first candidate whose parameters have the shapes of `tensors`, in this order, with these values."""
    for state, parameters in candidates:
        if len(parameters) == len(tensors) and [*parameters.values()] == [tuple(each.shape) for each in tensors]:
            entries = {**state.entries, **dict(zip(parameters, tensors, strict=True))}
            return Found(key, entries, state.network, statistics=state.key)
    return None


def _is_average(key: str) -> bool:
    return bool(_AVERAGED.search(key)) and not _OF_OPTIMIZER.search(key)


def _averaged_lists(tree: Any) -> Iterator[tuple[str, Sequence[StoredTensor | Tensor]]]:
    """Yield lists of tensors whose key says that they are an average over training."""
    for key, value, _ in _containers(tree):
        if isinstance(value, list | tuple) and 0 < len(value) <= MAX_TENSORS and _is_average(key):
            tensors = [each for each in value if isinstance(each, StoredTensor | Tensor)]
            if len(tensors) == len(value):
                yield key, tensors


def _state_dicts(tree: Any) -> Iterator[Found]:
    """Yield every dict that holds a tensor, and objects of subclasses of dict, the outermost first."""
    for key, value, held in _containers(tree):
        tensors = any(isinstance(inner, StoredTensor | Tensor | UnknownTensor) for inner in held.values())
        if tensors and not isinstance(value, list | tuple):
            yield Found(key, held)


def _containers(tree: Any) -> Iterator[tuple[str, Any, Mapping[Any, Any]]]:
    """Yield the key, the value and the members of every container, the outermost first."""
    queue: deque[tuple[str, Any, int]] = deque([("", tree, 0)])
    seen: set[int] = set()
    while queue and len(seen) < MAX_DICTS:
        key, value, depth = queue.popleft()
        held = _held(value)
        if held is None or id(value) in seen:
            continue
        seen.add(id(value))
        yield key, value, held
        if depth < MAX_DEPTH:
            inner = ((name, each) for name, each in held.items() if _is_key(name))
            queue += [(f"{key}.{name}" if key else str(name), each, depth + 1) for name, each in inner]


def _is_key(name: object) -> bool:
    """Return whether a key can be joined to others by dots: Python cannot write out the largest numbers."""
    return isinstance(name, str) or (isinstance(name, int) and abs(name) < 1 << 63)


def _different(found: list[Found]) -> list[Found]:
    """Return `found` without those that name the same stored tensors as an earlier one."""
    different: list[Found] = []
    known: list[dict[str, Any]] = []
    for state in found:
        names = {} if state.network is None else state.network.names
        stored = {name: state.entries[where] for name, where in names.items()}
        tensors = {name: value if isinstance(value, StoredTensor) else id(value) for name, value in stored.items()}
        if tensors not in known:
            different.append(state)
            known.append(tensors)
    return different


def _held(value: Any) -> Mapping[Any, Any] | None:
    """Return what a container holds, by key or position: a dict, an object that is filled like one, a list or tuple."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Inert) and value.entries and not _is_module(value):
        return {name: each for name, each in value.entries if isinstance(name, str | int)}
    return dict(enumerate(value[:MAX_LIST])) if isinstance(value, list | tuple) else None


def shapes_of(entries: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor whose name is no longer than `MAX_NAME`.

    Raises:
        TooLargeError: There are more than `MAX_TENSORS` entries.
    """
    if len(entries) > MAX_TENSORS:
        raise TooLargeError(f"the state dict has {len(entries)} entries, the limit is {MAX_TENSORS}")
    return {
        name: tuple(value.shape)
        for name, value in entries.items()
        if isinstance(name, str) and len(name) <= MAX_NAME and isinstance(value, StoredTensor | Tensor)
    }


def _nearest(found: list[Found], choice: Choice) -> Found:
    """Return the state dict that comes nearest to a network, to explain the misfit: one with a body, or the largest."""
    with_bodies = [
        Found(state.key, state.entries, network)
        for state in found
        for network in find_networks(shapes_of(state.entries), choice.head_layers)
    ]
    if with_bodies:
        return max(with_bodies, key=lambda state: len(state.network.names) if state.network else 0)
    return max(found, key=lambda state: len(shapes_of(state.entries)))


def _whole_module(tree: Any) -> Inert | None:
    """Return a module that was saved instead of its state dict, at the top or under a key."""
    candidates = tree.values() if isinstance(tree, dict) else [tree]
    return next((value for value in candidates if isinstance(value, Inert) and _is_module(value)), None)


def _module_shapes(module: Inert) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor of a module that was saved as a whole."""
    pending, seen, left = [("", module)], {id(module)}, MAX_TENSORS
    while pending:
        prefix, inner = pending.pop()
        state = inner.state if isinstance(inner.state, dict) else {}
        groups = [state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        for members in groups:
            for name, value in members.items() if isinstance(members, dict) else ():
                left -= 1
                path = f"{prefix}{name}" if isinstance(name, str) else ""
                if left < 0:
                    return
                if isinstance(value, StoredTensor) and len(path) <= MAX_NAME:
                    yield path, tuple(value.shape)
                elif isinstance(value, Inert) and id(value) not in seen and len(path) < MAX_NAME:
                    seen.add(id(value))
                    pending.append((f"{path}.", value))


def _why_none(tree: Any, choice: Choice) -> str:
    if choice.key is not None:
        keys = ", ".join(quoted(state.key, 40) for state in _state_dicts(tree)) or "none"
        return f"it has no state dict under the key {quoted(choice.key)}; there are {keys}"
    if not isinstance(tree, dict):
        return f"it holds a {kind_of(tree)}, not a dict of tensors; save model.state_dict()"
    found = ", ".join(quoted(key, 40) for key in list(tree)[:5]) or "nothing"
    return f"no state dict is in it, at the top or under any key; found {found}"


def _is_module(value: Inert) -> bool:
    return isinstance(value.state, dict) and "_parameters" in value.state


def kind_of(value: object) -> str:
    """Return the name of the kind of a value, for messages: printable and short, whatever the file says."""
    if isinstance(value, Inert):
        name = quoted(value.name)[1:-1]
        return f"{name} (a whole module)" if _is_module(value) else name
    if isinstance(value, StoredTensor | Tensor):
        return "tensor"
    return quoted(value.kind)[1:-1] if isinstance(value, UnknownTensor) else type(value).__name__
