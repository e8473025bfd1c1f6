"""Hand-written source models, for tests of ingest: one architecture in many ways of writing it.

Exporters differ in where they scale scores, how they hide keys, repeat heads or spell a norm. A
`Style` picks one way for each; the graph is written node by node, with dynamic sizes, as none
of them does, so that recognition by structure is tried on what it has not seen.
"""

from genai_stages.testing_sources.source_style import Style
from genai_stages.testing_sources.source_writer import write_source

__all__ = ["Style", "write_source"]
