# The real one packs; here is nothing to pack.
