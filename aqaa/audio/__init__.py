"""The ear and the file: reading and writing sound, and the log-mel every organ works on."""
