"""Texts: files of them, their ids and sets, their tokens, and models that read them."""
