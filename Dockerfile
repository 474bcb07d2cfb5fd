# gpt2-onnx for CPUs: docker build --tag gpt2-onnx .
# No bundle is in the image, so that a new one needs no new image; it is mounted: docs/deploying.md.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
# The tools by themselves, so that a change of the sources leaves their layer as it is.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt build hatchling
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY export export
COPY runtime runtime
COPY docs/sbom.cdx.json docs/
# Without isolation, which would fetch whatever hatchling is the latest.
RUN python -m build --wheel --no-isolation --outdir /dist

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="gpt2-onnx" \
      org.opencontainers.image.description="GPT-2 on ONNX Runtime, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/constraints.txt /dist/*.whl /opt/gpt2-onnx/
# The wheel by its path: by its name alone pip might take somebody else's. No torch: export is done elsewhere.
RUN set -- /opt/gpt2-onnx/*.whl \
    && pip install --no-cache-dir --constraint /opt/gpt2-onnx/constraints.txt "$1[cpu,cli,serve]" \
    && pip check \
    && useradd --uid 10001 --user-group --no-create-home --no-log-init --shell /usr/sbin/nologin gpt2
# Telemetry is off for whatever imports onnxruntime before `runtime` does, too; unbuffered, logs come as they are made.
ENV GPT2_ONNX_MODEL=/model \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
# By number: Kubernetes' runAsNonRoot knows no names.
USER 10001:10001
# The server ends in peace on SIGINT and on SIGTERM. The other commands, as process 1, obey SIGINT alone: Python installs
# no handler for SIGTERM, and the kernel gives process 1 no signal without one.
STOPSIGNAL SIGINT
# The server has loaded its model when it answers; until then nobody listens. http.client, as the image has no curl, and
# as urllib would ask a proxy. It is for the server alone: other commands end by themselves.
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m --retries=3 \
    CMD ["python", "-c", "import sys, http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=8); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
EXPOSE 8000
ENTRYPOINT ["gpt2-onnx"]
CMD ["serve", "--host", "0.0.0.0", "--log-format", "json"]
