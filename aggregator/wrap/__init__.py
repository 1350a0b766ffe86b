r"""What programs write, as events: the language of whoever knows nothing of this server. Pure: no asyncio, no socket.

A text, by what it is::

    an event                     itself, byte for byte
    another JSON object          the payload, byte for byte
    an array of objects          each of them by itself
    a syslog line                the payload {"message", "priority", "facility", "severity", "program", "pid", …}
    any other text               the payload {"message"}

On its way a stream passes the modules in this order: ``recognition`` (how the texts are set apart), ``framing`` (bytes
to texts), ``wrapper`` (texts to events, with the help of the others). Line feeds between the tokens of a JSON object
become blanks, because an event is one line.
"""
