"""Memory and latency of bundles on a device, variants side by side in one interleaved run.

:mod:`worker` runs on the device, one process for each bundle; :mod:`device` starts it there; :mod:`measure` decides what is
measured and in which order; :mod:`record` is what comes out. A new kind of device is one more way to start the worker.
"""
