"""Commonsense170k: the training questions and the eight test sets, from LLM-Adapters or from a folder."""
