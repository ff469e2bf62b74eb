"""The encoder `auto`: `pixels` if the policy reads images, else `keys`, so that one config works with and without cameras."""

from dataclasses import dataclass
from typing import ClassVar

from robopolicy.components import Options, option, register
from robopolicy.model.encoders.base import EncoderInputs, TokenEncoder
from robopolicy.model.encoders.keys import KeysEncoder, KeysOptions
from robopolicy.model.encoders.pixels import PixelsEncoder, PixelsOptions


@dataclass(frozen=True)
class AutoOptions(Options):
    """Options of the encoder `auto`."""

    width: int = option(128, ">= 1")
    """D, width of one token."""
    hidden: int = option(128, ">= 1")
    """Width of the perceptrons' hidden layer."""

    default_text: ClassVar[str] = "vocabulary"


@register("encoder", "auto", AutoOptions)
def make_auto(options: AutoOptions, inputs: EncoderInputs) -> TokenEncoder:
    """The encoder `pixels` with its default options where there are cameras, else `keys`."""
    if inputs.cameras:
        return PixelsEncoder(PixelsOptions(width=options.width, hidden=options.hidden), inputs)
    return KeysEncoder(KeysOptions(width=options.width, hidden=options.hidden), inputs)
