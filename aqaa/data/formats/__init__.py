"""Other people's ways of writing speech data down, one file each; see :mod:`aqaa.data.convert`."""
