// node client.js LIBRARY PORT COUNT DELAY_MS: logs "hello" COUNT times with {n: …}, as the library's README sets it up
const [, , library, port, count, delay] = process.argv
const net = { host: '127.0.0.1', port: Number(port) }
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

async function pump (log) {
  for (let n = 0; n < Number(count); n++) {
    log(n)
    await sleep(Number(delay))
  }
}

async function winstonLogstash (options) {
  const winston = require('winston')
  const Transport = require('winston-logstash/lib/winston-logstash-latest')
  const logger = winston.createLogger({ transports: [new Transport({ ...net, ...options })] })
  logger.on('error', () => {}) // without a listener its first error would end the process
  await pump(n => logger.info('hello', { n }))
  await sleep(1500)
  logger.close()
}

const libraries = {
  async pino () {
    const pino = require('pino')
    const transport = pino.transport({ target: 'pino-socket', options: { address: net.host, port: net.port, mode: 'tcp' } })
    const logger = pino(transport)
    await pump(n => logger.info({ n }, 'hello'))
    await new Promise(resolve => logger.flush(resolve))
    await sleep(500)
    transport.end()
  },

  async 'pino-recovery' () {
    const pino = require('pino')
    const transport = pino.transport({
      target: 'pino-socket',
      options: {
        address: net.host, port: net.port, mode: 'tcp', reconnect: true, recovery: true, recoveryQueueMaxSize: 10 << 20
      }
    })
    const logger = pino(transport)
    await pump(n => logger.info({ n }, 'hello'))
    await sleep(5000) // it tries to connect again after ever longer pauses
    transport.end()
  },

  async 'pino-reconnect' () {
    const pino = require('pino')
    const transport = pino.transport({
      target: 'pino-socket', options: { address: net.host, port: net.port, mode: 'tcp', reconnect: true }
    })
    const logger = pino(transport)
    await pump(n => logger.info({ n }, 'hello'))
    await sleep(1500)
    transport.end()
  },

  async log4js () {
    const log4js = require('log4js')
    log4js.configure({
      appenders: { net: { type: 'tcp', ...net } },
      categories: { default: { appenders: ['net'], level: 'info' } }
    })
    const logger = log4js.getLogger()
    await pump(n => logger.info('hello', { n }))
    await new Promise(resolve => log4js.shutdown(resolve))
  },

  async bunyan () {
    const stream = require('net').connect(net.port, net.host)
    const logger = require('bunyan').createLogger({ name: 'app', streams: [{ stream }] })
    await pump(n => logger.info({ n }, 'hello'))
    stream.end()
  },

  async winston () {
    const winston = require('winston')
    const stream = require('net').connect(net.port, net.host)
    const logger = winston.createLogger({ transports: [new winston.transports.Stream({ stream })] })
    await pump(n => logger.info('hello', { n }))
    stream.end()
  },

  'winston-logstash': () => winstonLogstash({ max_connect_retries: -1 }),
  'winston-logstash-default': () => winstonLogstash({}),

  async 'winston3-logstash-transport' () {
    const winston = require('winston')
    const Transport = require('winston3-logstash-transport')
    const logger = winston.createLogger({ transports: [new Transport({ mode: 'tcp', ...net })] })
    await pump(n => logger.info('hello', { n }))
    await sleep(1000)
    logger.close()
  }
}

libraries[library]().then(() => setTimeout(() => process.exit(0), 300))
