# The pipeline in a container, to run on a clone that is mounted at /work: docs/setup.md says how.
FROM debian:trixie-slim

# cuda brings nvcc, which builds llama.cpp for the GPU at the first run; cpu leaves it out.
ARG DEVICE=cuda
RUN sed -i 's/ main$/ main contrib non-free/' $(find /etc/apt/sources.list /etc/apt/sources.list.d -type f) \
    && apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates g++ git make python3 python3-dev python3-venv tini \
        $([ "$DEVICE" = cpu ] || echo nvidia-cuda-toolkit) \
    && rm -rf /var/lib/apt/lists/*

# The user who owns the clone, so that what a run writes is theirs.
ARG UID=1000
RUN useradd --create-home --uid "$UID" qlora && mkdir /work && chown qlora /work
USER qlora

# An index with another build of torch, such as the CPU's.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL
# Environment and caches are in one folder, for one volume.
ENV QLORA_VENV=/home/qlora/.venv
COPY --chown=qlora Makefile requirements*.txt /tmp/setup/
COPY --chown=qlora locks /tmp/setup/locks
COPY --chown=qlora tools /tmp/setup/tools
COPY --chown=qlora qlora /tmp/setup/qlora
RUN cd /tmp/setup && make "$QLORA_VENV/installed" && rm -rf /tmp/setup /home/qlora/.cache/pip

WORKDIR /work
# tini passes signals on: `docker stop` ends a run as Ctrl-C does, and the next run resumes it.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["make", "repro"]
