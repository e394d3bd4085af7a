"""What measurements say: :mod:`compare` pairs each record with its baseline, :mod:`verdict` says it in a sentence,
:mod:`content` puts it into tables, :mod:`plots` draws, :mod:`page` and :mod:`markdown` write it down."""
