"""The vendor's Python API, as its public documents describe it, over this project's builds.

    import genai_builder as qairt
    from genai_builder.gen_ai_api.gen_ai_builder_factory import GenAIBuilderFactory

Scripts written for `qairt` change the name in their imports, and nothing else. Sources: the pages
of 80-87189-2 (Gen AI Builder overview, advanced features, qairt.modules.lora).
"""

from genai_builder.api.models import CompiledModel, Model, compile_model, load

compile = compile_model  # noqa: A001 - the vendor's name

__all__ = ["CompiledModel", "Model", "compile", "load"]
