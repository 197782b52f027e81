"""Provenance: find the source of each value of a call.

A model can be talked into anything, but words do not change where a value came from. ``Origins`` is an index over a
conversation, built once a check. It tells for each value of a call whether a trusted source said it: the user or the
system, a tool whose outputs nobody else can write, or a whole field of another tool's output.

The functions of the language: ``untrusted`` in ``origins``, ``private`` in ``private``, ``acts`` in ``labels``.
"""
