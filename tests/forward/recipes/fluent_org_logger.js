const { randomUUID } = require("node:crypto");
const { FluentClient } = require("@fluent-org/logger");

const log = new FluentClient("app", {
  eventMode: "PackedForward",
  socket: { host: "127.0.0.1", port: 24224 },
  ack: { ackTimeout: 5000 },                    // sends again what got no ack
  eventRetry: { attempts: 1e6, maxDelay: 1000 }, // how long a server may be away
});

log.emit("web", { id: randomUUID(), level: "info", message: "started" }).then(() => log.shutdown());
