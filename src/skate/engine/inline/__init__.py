"""The engine in the calling process: deterministic, for debuggers and as an oracle.

``docs/design/0002-inline-engine.md`` says what runs when, and on which thread.
"""
