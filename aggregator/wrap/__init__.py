r"""The output of programs that know nothing of this server, as events. Pure: no asyncio, no socket.

What a text becomes::

    an event                     itself, byte for byte
    another JSON object          the payload, byte for byte
    an array of objects          each of them by itself
    a syslog line                the payload {"message", "priority", "facility", "severity", "program", "pid", …}
    any other text               the payload {"message"}

A stream passes through the modules in this order: ``recognition`` (how the texts are separated), ``framing`` (bytes to
texts), ``wrapper`` (texts to events, with the help of the other modules). Line feeds between the tokens of a JSON
object become blanks, because an event is one line.
"""
