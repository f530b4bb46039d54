//! A project on disk: its files, compiled and bound to environments as one set that is replaced as a whole.
