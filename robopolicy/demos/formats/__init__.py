"""The field's demo formats, each read into `Demo`, and written where users need it."""

from robopolicy.demos.formats.base import DemoFormat as DemoFormat
from robopolicy.demos.formats.base import DemoReader as DemoReader
from robopolicy.demos.formats.base import WritableFormat as WritableFormat
from robopolicy.demos.formats.base import action_spec_of as action_spec_of
from robopolicy.demos.formats.conversion import convert as convert
from robopolicy.demos.formats.conversion import run_convert as run_convert
from robopolicy.demos.formats.registry import FORMATS as FORMATS
from robopolicy.demos.formats.registry import WRITERS as WRITERS
from robopolicy.demos.formats.registry import open_demos as open_demos
