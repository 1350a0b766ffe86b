import logging

from fluent.handler import FluentHandler, FluentRecordFormatter

handler = FluentHandler("app.web", host="127.0.0.1", port=24224)
handler.setFormatter(FluentRecordFormatter({"level": "%(levelname)s", "logger": "%(name)s", "host": "%(hostname)s"}))
logging.getLogger().addHandler(handler)

logging.warning("the disk is %d %% full", 91)
handler.close()
