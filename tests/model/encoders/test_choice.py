"""Which encoder a config asks for."""

import pytest

from robopolicy.config import EncoderConfig
from robopolicy.model.encoders import make_encoder
from robopolicy.model.encoders.keys import KeysEncoder
from robopolicy.model.encoders.pixels import PixelsEncoder
from robopolicy.types import ArraySpec

QPOS, FRONT = ArraySpec((14,)), ArraySpec((16, 16, 3), "uint8")


@pytest.mark.parametrize(
    ("obs", "kind"), [({"qpos": QPOS}, KeysEncoder), ({"qpos": QPOS, "front": FRONT}, PixelsEncoder)]
)
def test_auto_looks_at_pictures_where_there_are_any(obs: dict[str, ArraySpec], kind: type) -> None:
    """One config for a family of files must train on those without cameras too."""
    assert type(make_encoder(EncoderConfig(kind="auto", width=8, hidden=8), obs, text_tokens=0)) is kind
