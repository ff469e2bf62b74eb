"""Conformance kits: for each family of components, checks of its contract that a component's own tests can call.

Each module belongs to one family and imports nothing above that family's layer. It has one function per requirement, which
raises AssertionError with the value found, and the tuple `CHECKS` of all these functions. A test of a plug-in memory:

    from robopolicy.testing.memory import CHECKS

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_memory_keeps_the_contract(check):
        check(MyMemory(MyOptions(window=4), width=5), width=5)
"""
