# docker build -t aggregator . && docker run -d -p 127.0.0.1:8080:8080 -v aggregator:/data --stop-timeout 15 aggregator
# BASE: any Debian-like image with `python`, pip and venv, 3.11 or later; both stages must share it.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
# The base's pip fills this virtual environment from outside: no pip goes into the final image with it.
RUN python -m venv --without-pip /opt/venv
# The dependencies have a layer of their own, which is rebuilt only when setup.cfg changes.
# EXTRAS: extras of setup.cfg; without `postgres` the image is smaller, and supports SQLite only.
ARG EXTRAS=forward,postgres
COPY setup.cfg .
RUN python -c "import configparser; c = configparser.RawConfigParser(); c.read('setup.cfg'); \
        print(c['options']['install_requires'], *map(c['options.extras_require'].get, '${EXTRAS}'.split(',')))" \
        > requirements.txt \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: -r requirements.txt
COPY pyproject.toml .
COPY aggregator aggregator
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps .

FROM ${BASE}
# /data must belong to the user before VOLUME: a new named volume takes its owner from here.
# If a folder of the host is mounted there instead, it must belong to uid 10001.
RUN useradd --uid 10001 --user-group --no-create-home --no-log-init --shell /usr/sbin/nologin aggregator \
    && install -d -m 0750 -o aggregator -g aggregator /data
COPY --from=build /opt/venv /opt/venv
# glibc asks for memory in pages of 2 MiB, if the kernel leaves that to programs: 4 % more events a second. It also
# gives the buffers of batches back. By default it keeps them in the heap, which then has some 15 MB of holes.
ENV PATH=/opt/venv/bin:$PATH \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1048576 \
    AGGREGATOR_HOST=0.0.0.0 \
    AGGREGATOR_ANONYMOUS=all \
    AGGREGATOR_SOCKET=/data/aggregator.sock \
    AGGREGATOR_DB=/data/events.db
# By number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 10001:10001
VOLUME /data
# 8080 acks, 8081 is silent. With AGGREGATOR_ANONYMOUS=all no client authenticates: publish them to those you trust.
EXPOSE 8080 8081
# The check uses the unix socket, where the server's own user may use HEALTH whatever the rules are.
HEALTHCHECK --interval=30s --timeout=12s --start-period=30s --retries=3 CMD ["aggregator", "admin", "HEALTH"]
# The server itself is process 1, without a shell in between: SIGTERM reaches it, and it stores what it has read.
STOPSIGNAL SIGTERM
ENTRYPOINT ["aggregator"]
CMD ["serve"]
