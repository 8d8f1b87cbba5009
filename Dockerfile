# The dashboard on the CPU. Written by hand and NOT built or run by the project's tests: please report what does not work.
#
#   docker build -t smallalign .
#   docker run --rm --network host -v "$PWD/models:/data/models" smallalign
#
# Inside it listens on 127.0.0.1, as everywhere, since nobody has to log in; `--network host` is what lets this machine's
# browser reach it, and no other machine's. To serve others, set up a login first: see docs/how-to/serve-others.md.
FROM python:3.11-slim

RUN useradd --create-home worker && mkdir -p /data/models && chown -R worker /data
WORKDIR /src
COPY . .
# The default torch brings gigabytes of CUDA. With --build-arg TORCH_INDEX=<PyTorch's index for CPU wheels> it does not.
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt \
    && pip install --no-cache-dir --no-deps .

USER worker
WORKDIR /data
VOLUME /data/models
# What runs in the visitor's browser, so that the first start needs no network.
RUN smallalign dashboard --setup
CMD ["smallalign", "dashboard"]
