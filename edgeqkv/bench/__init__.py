"""Memory and latency of bundles on a device, variants side by side in one interleaved run.

:mod:`run` is one call of the command: :mod:`baseline` says which bundles, :mod:`matrix` which cells of them. :mod:`fleet` goes
to each device (:mod:`device`, :mod:`probe`), :mod:`program` chooses what runs there, and :mod:`measure` visits the cells in
turn, each of them a :mod:`running` one. What is measured is the process of :mod:`worker`, which speaks :mod:`protocol`. What
comes out is a :mod:`record`, which :mod:`summary` prints. A new kind of device is one more way to start a shell script.
"""
