"""``edgeqkv demo``: the commands that show the gain, one after the other.

:mod:`script` says which, :mod:`running` runs them and tells the time that is left, :mod:`kept` decides which exports of an
earlier demo are as good as new ones."""
