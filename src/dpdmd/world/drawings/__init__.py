"""The world of drawings: things that several people drew, so that the modes of a prompt are known pictures."""
