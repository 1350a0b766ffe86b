// Sends COUNT records with @fluent-org/logger: node client.js PORT MODE COUNT [SHARED_KEY]
// It waits for acks, and sends again what has none. Prints how many of its calls went well.
const { FluentClient } = require("@fluent-org/logger");

const [port, mode, count, sharedKey] = process.argv.slice(2);
const client = new FluentClient("app", {
  eventMode: mode,
  socket: { host: "127.0.0.1", port: Number(port), timeout: 10000, reconnect: { minDelay: 50, maxDelay: 200 } },
  ack: { ackTimeout: 5000 },
  eventRetry: { attempts: 1000, minDelay: 50, maxDelay: 200 },
  security: sharedKey && { clientHostname: "node", sharedKey },
});

(async () => {
  let well = 0;
  for (let sent = 0; sent < Number(count); sent += 50) {
    const calls = [];
    for (let n = sent; n < sent + 50; n++) calls.push(client.emit("js", { n, text: "größe" }));
    for (const call of await Promise.allSettled(calls)) well += call.status === "fulfilled";
    await new Promise((done) => setTimeout(done, 10));
  }
  await client.shutdown();
  console.log(well);
})();
