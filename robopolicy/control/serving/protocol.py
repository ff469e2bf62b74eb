"""The server's metadata, and the check of a client's message against what the policy expects.

The wire format itself, openpi's msgpack arrays, is `robopolicy.client.pack` and `unpack`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robopolicy import __version__
from robopolicy.client import ACTIONS_PER_CALL_KEY, RESET_KEY, ProtocolError
from robopolicy.control.serving.mapping import KeyMapping, KeySource, place_image
from robopolicy.types import TOKENS_KEY, ArraySpec, PolicySpec

ANNOUNCED = ("chunk", "window", "history", "frame_stride", "control_dt", "samples", "execution", "provenance")
"""Fields of a policy's spec that the metadata carries under their own names."""
IMAGE_FACTOR = 16
"""How many times longer than the policy's image a side of a client's image may be; the server resizes images."""
SMALLEST_CAP, LARGEST_CAP = 1920, 4096
"""Bounds of that limit [pixels]: common cameras are accepted even if the policy's images are small."""
REPORTED = 64
"""Maximum number of unknown keys that a server reports."""


def largest_side(expected: ArraySpec) -> int:
    """The longest side [pixels] of an image that is accepted for one of the policy's cameras."""
    return min(max(IMAGE_FACTOR * max(expected.shape[:2]), SMALLEST_CAP), LARGEST_CAP)


class ObservationReader:
    """Converts a client's message to the policy's observation, or raises an error that describes what is wrong.

    Args:
        spec: what the policy expects.
        mapping: the clients' names of its keys.
        tokens: shapes expected from a client that sends `tokens` instead of images; None: tokens are not accepted.
    """

    def __init__(self, spec: PolicySpec, mapping: KeyMapping, tokens: PolicySpec | None = None) -> None:
        self.spec, self.mapping, self.tokens = spec, mapping, tokens
        self._fields = {**(tokens.observation if tokens else {}), **spec.observation}
        self._sources = {key: mapping.keys.get(key, KeySource(names=(key,))) for key in self._fields}
        known = {name for key, source in self._sources.items() for name in (*source.names, key)}
        self._known = known | {RESET_KEY, ACTIONS_PER_CALL_KEY, *mapping.instruction}
        self._reported: set[str] = set()

    def largest_message_bytes(self) -> int:
        """Bytes of the largest observation that is accepted: 4:3 images of the largest side, 8 bytes per other value."""
        return sum(
            3 * largest_side(expected) ** 2 * 3 // 4 if expected.is_image else 8 * expected.width
            for expected in self._fields.values()
        )

    def metadata(self) -> dict[str, Any]:
        """The server's first message: the keys that a client should send, under the client's own names."""
        observation: dict[str, Any] = {}
        for key, expected in self.spec.observation.items():
            source, shape = self._sources[key], list(expected.shape)
            if source.columns is not None:
                earlier = observation.get(source.names[0], {"shape": [0]})
                shape = [max(source.columns[1], *earlier["shape"])]
            if source.layout == "chw":
                shape = [shape[2], *shape[:2]]
            observation[source.names[0]] = {"shape": shape, "dtype": expected.dtype}
        if self.spec.instruction:
            observation[self.mapping.instruction[0]] = {"shape": [], "dtype": "str"}
        spec = self.spec.to_dict()
        instead = {key: field for key, field in self._fields.items() if key not in self.spec.observation}
        return {
            "observation": observation,
            "optional": {
                **{key: {"shape": list(field.shape), "dtype": field.dtype} for key, field in instead.items()},
                RESET_KEY: {"shape": [], "dtype": "bool"},
                ACTIONS_PER_CALL_KEY: {"shape": [], "dtype": "int"},
            },
            "action_spec": spec["action"],
            **{name: spec[name] for name in ANNOUNCED},
            "control_rate_hz": 1.0 / self.spec.control_dt if self.spec.control_dt else self.spec.action.rate_hz,
            "mapping": self.mapping.name,
            "robopolicy_version": __version__,
        }

    def read(self, message: Any) -> dict[str, Any]:
        """The policy's observation, without batch axes: arrays as `spec.observation` says, and `instruction` (str).

        Images of another size are resized, floats cast to float32, unknown keys left out (`unused` names them).

        Raises:
            ProtocolError: a key is missing, or has the wrong type or shape, or a value is NaN or infinite.
        """
        sent = flatten(message)
        spec = self.tokens if self.tokens and TOKENS_KEY in sent else self.spec
        observation: dict[str, Any] = {}
        for key, expected in spec.observation.items():
            source = self._sources[key]
            name = next((name for name in (*source.names, key) if name in sent), None)
            if name is None:
                raise ProtocolError(self._missing(source.names[0], sent, spec))
            taken = source if name in source.names else KeySource(names=(key,))
            observation[key] = _fitting(sent[name], expected, taken, _shown(name))
        if spec.instruction:
            observation["instruction"] = self._instruction(sent, spec)
        return observation

    def unused(self, message: Any) -> list[str]:
        """Keys of a message that the policy doesn't read, escaped for a log; each is reported once for all clients."""
        unknown = [key for key in flatten(message) if key not in self._known and key not in self._reported]
        unknown = sorted(unknown)[: REPORTED - len(self._reported)]
        self._reported.update(unknown)
        return [_shown(key) for key in unknown]

    def _instruction(self, sent: Mapping[str, Any], spec: PolicySpec) -> str:
        name = next((name for name in self.mapping.instruction if name in sent), None)
        if name is None:
            raise ProtocolError(self._missing(self.mapping.instruction[0], sent, spec))
        if not isinstance(sent[name], str):
            raise ProtocolError(f"'{name}' has type {type(sent[name]).__name__}; expected the instruction as str")
        return sent[name]

    def _missing(self, name: str, sent: Mapping[str, Any], spec: PolicySpec) -> str:
        expected = ", ".join(self._sources[key].names[0] for key in spec.observation)
        prompt = f", {self.mapping.instruction[0]}" if spec.instruction else ""
        received = ", ".join(_shown(key) for key in list(sent)[:20]) or "nothing"
        return f"observation lacks '{name}'. Expected: {expected}{prompt}. Received: {received}"


def flatten(message: Any) -> dict[str, Any]:
    """A message's values by name; those of a map inside it as `outer/inner`, as ALOHA sends its `images`."""
    if not isinstance(message, dict):
        raise ProtocolError(f"the observation has type {type(message).__name__}; expected a map of keys to values")
    flat: dict[str, Any] = {}
    for key, value in message.items():
        if not isinstance(key, str):
            raise ProtocolError(f"keys of an observation must be strings, got {type(key).__name__}")
        if isinstance(value, dict):
            flat.update({f"{key}/{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def _fitting(value: Any, expected: ArraySpec, source: KeySource, name: str) -> np.ndarray:
    if isinstance(value, (bool, int, float)) and expected.shape == (1,):
        value = np.asarray([value])
    if not isinstance(value, (np.ndarray, np.generic)):
        raise ProtocolError(f"'{name}' has type {type(value).__name__}; expected an array of shape {expected.shape}")
    array = np.asarray(value)
    if expected.is_image:
        return _image(array, expected, source, name)
    if array.shape == () and expected.shape == (1,):
        array = array.reshape(1)
    if source.columns is not None:
        low, high = source.columns
        if array.ndim != 1 or len(array) < high:
            raise ProtocolError(f"'{name}' has shape {array.shape}; expected at least {high} numbers")
        array = array[low:high]
    try:
        return expected.checked(array, f"'{name}'")
    except ValueError as error:
        raise ProtocolError(str(error)) from None


def _image(array: np.ndarray, expected: ArraySpec, source: KeySource, name: str) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ProtocolError(f"'{name}' has dtype {array.dtype}; expected a uint8 image, 0 to 255")
    if source.layout == "chw" and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != expected.shape[2] or not min(array.shape) > 0:
        raise ProtocolError(f"'{name}' has shape {array.shape}; expected an image such as {expected.shape}")
    if max(array.shape) > (side := largest_side(expected)):
        raise ProtocolError(f"'{name}' has shape {array.shape}; expected sides of at most {side} pixels")
    return place_image(array, expected.shape[0], expected.shape[1], source)


def _shown(name: Any) -> str:
    return ascii(name)[1:-1][:40] if isinstance(name, str) else f"<{type(name).__name__}>"
