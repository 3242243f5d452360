# The tool with PyTorch's build for CPUs, as a user without rights:
#   docker build -t latency-matrix .
#   docker run --rm --shm-size=2g -v "$PWD/results:/results" latency-matrix matrix --out /results
FROM python:3.12-slim-bookworm

# The native variants compile for the machine that they run on.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 user

WORKDIR /opt/latency-matrix
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY chatbot chatbot
COPY ray_jobs ray_jobs
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c requirements.lock .

USER 1000
WORKDIR /home/user
ENV RAY_USAGE_STATS_ENABLED=0
ENTRYPOINT ["latency-matrix"]
CMD ["--help"]
