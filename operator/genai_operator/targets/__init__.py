"""GenAITarget: what is built for, in which image, with which toolchain."""
