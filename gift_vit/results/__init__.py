"""Tables, made from nothing but the records that finished runs leave (``result.json``)."""
