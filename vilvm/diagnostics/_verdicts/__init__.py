"""The sentences of the findings, one file per diagnostic.

Each file has one function that turns the result of its diagnostic into a ``Finding``. The result
imports that function, so the function does not import the type of the result.
"""
