# docker build -t gemini-proxy .    (README and docs/operations.md say how to run it)
# One base for both stages: the interpreter of the environment that is copied is that of the image.
ARG PYTHON=3.13-slim

FROM python:${PYTHON} AS build
WORKDIR /source
COPY setup.cfg pyproject.toml README.md LICENSE config.example.toml ./
COPY policies policies
COPY src src
RUN python -m venv /opt/gemini-proxy \
    && /opt/gemini-proxy/bin/pip install --no-cache-dir --disable-pip-version-check '.[postgres,uvloop]'

FROM python:${PYTHON}
# The data of the proxy, and a folder for its socket that nginx, another user, can enter.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin gemini-proxy \
    && install -d -o gemini-proxy -g gemini-proxy -m 0700 /data \
    && install -d -o gemini-proxy -g gemini-proxy -m 0755 /run/gemini-proxy
COPY --from=build /opt/gemini-proxy /opt/gemini-proxy
COPY deploy/container.toml /etc/gemini-proxy/config.toml
ENV PATH=/opt/gemini-proxy/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GEMINI_PROXY_CONFIG=/etc/gemini-proxy/config.toml
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8005
# Exchanges under way get server.shutdown_grace seconds (30): give "docker stop" more than that (-t 60).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["gemini-proxy", "healthcheck"]
ENTRYPOINT ["gemini-proxy"]
CMD ["serve", "--first-key", "/data/first-key"]
