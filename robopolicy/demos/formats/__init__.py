"""Demo formats. Each is one module, which reads a file or folder as `Demo` values; some also write them."""

from robopolicy.demos.formats._conversion import convert as convert
from robopolicy.demos.formats._detection import demo_format as demo_format
from robopolicy.demos.formats._detection import open_demos as open_demos
from robopolicy.demos.formats.base import DemoFormat as DemoFormat
from robopolicy.demos.formats.base import DemoReader as DemoReader
from robopolicy.demos.formats.base import WritableFormat as WritableFormat
from robopolicy.demos.formats.base import action_spec_of as action_spec_of
