"""What measurements say: :mod:`compare` pairs each record with its baseline, :mod:`content` puts it into words and tables,
:mod:`plots` draws, :mod:`page` and :mod:`markdown` write it down."""
