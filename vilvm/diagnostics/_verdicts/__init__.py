"""The findings of the diagnostics in words, one file a diagnostic.

Each file has one function that turns the result of its diagnostic into a ``Finding``. The result
imports that function, so the function does not import the type of the result.
"""
