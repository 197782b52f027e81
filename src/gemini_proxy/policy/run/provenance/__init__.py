"""Provenance: find the source of each value of a call.

A model can be talked into anything, but words do not change where a value came from. ``Origins`` is an index over a
conversation, built once a check. It tells for each value of a call whether a trusted source said it: the user or the
system, a tool whose outputs nobody else can write, or a whole field of another tool's output.
"""

from gemini_proxy.policy.run.provenance.labels import Labels, readable_parameters
from gemini_proxy.policy.run.provenance.origins import Origins, Traced

__all__ = ["Labels", "Origins", "Traced", "readable_parameters"]
