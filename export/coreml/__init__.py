"""The decoder as Core ML's MIL: one package whose two functions prefill and decode over states that they share.

The program is built, not traced: traced cache writes are silently dropped or baked in. Everything has a fixed shape, as the
Neural Engine wants it, so that attention always reads the whole capacity and a mask hides what is not filled yet.

========  ===========  ==============================================================================================
input     ids          int32 [1, tokens]: ``prefill_chunk`` of them for the function ``prefill``, one for ``decode``
input     position     int32 [1], how many positions of the cache are filled
state     cache_N_k    (and cache_N_v where a layer caches two tensors) fp16 [1, n_kv_head, capacity, width of the row]
output    logits       float32 [vocab_size] of the last token
========  ===========  ==============================================================================================
"""
