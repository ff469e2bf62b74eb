"""Conformance kits: what every component of a family promises, as functions that a component's own tests call.

Each module belongs to one family and imports nothing above that family's layer. It holds one function per promise, which
raises AssertionError with what was found, and `CHECKS`, all of them. The test of a plug-in's memory:

    from robopolicy.testing.memory import CHECKS

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_memory_keeps_the_contract(check):
        check(MyMemory(MyOptions(window=4), width=5), width=5)
"""
