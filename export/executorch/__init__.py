"""ExecuTorch: the decoder in eager PyTorch, exported by ExecuTorch itself into one .pte with two methods over one cache.

========  =======  ==================================================================================================
decode    ids      int64 [1, 1], with position int64 [1], how many positions of the cache are filled
prefill   ids      int64 [1, chunk], with position int64 [1] and count int64 [1]: the first ``count`` ids are tokens, the
                   rest is padding
both      logits   float32 [1, 1, vocab_size] of the last token
========  =======  ==================================================================================================

The cache is a set of mutable buffers of the program, planned into an arena of their own that both methods share. Linears go to
XNNPACK; attention is our operator (runtimes/executorch/cached_attention.cc), which updates the buffers in place and writes no
padding, or ExecuTorch's own update_cache and custom_sdpa, which write padding too: it has to fit, and later rows replace it.

=============  ====================================================================================================
operators.py   our operators, as the exporter sees them
verbs.py       the decoder's verbs
lowering.py    weights as they are stored; the module, its two graphs, and the program's memory plan
file.py        the .pte file with the embedding and the head stored once
write.py       the artifact
=============  ====================================================================================================
"""
