"""Runs tasks: the one part of the stages that knows a store."""
