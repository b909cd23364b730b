"""Everything that reads or writes the MRML scene."""
