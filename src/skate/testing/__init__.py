"""For the tests of programs that use skate: a pytest plugin.

It is loaded by itself where skate is installed, and does nothing for tests that do not
ask for its fixture. See ``docs/reference/testing.md``.
"""
