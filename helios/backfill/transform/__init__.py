"""A file of klines becomes COPY text, in a process of its own and with the standard library alone.

The loader starts `program.main` in a child that imports neither Helios nor its libraries (a start costs some twenty
milliseconds, and the parsing never fights the sending thread for the interpreter). So the modules here import only
the standard library and each other.
"""
