# One file, one image for each role; nothing in them but what the role imports.
#
#   docker build --target operator -t genai-operator .
#   docker build --target stages   -t genai-stages .                       # cpu targets
#   docker build --target stages   -t genai-stages-htp --build-arg HTP=1 . # and Snapdragon targets
#
# The vendor's wheel may not be redistributed, so the published stages image is built without it
# and everybody builds their own with HTP=1. It needs glibc 2.35: Debian 12 or later as BASE.
ARG BASE=python:3.12-slim

FROM ${BASE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/genai/bin:/usr/local/bin:/usr/bin:/bin

# Dependencies apart from the code, so that a change of the code sends one small layer.
FROM base AS dependencies
COPY pyproject.toml constraints.txt LICENSE /source/
RUN cd /source && touch README.md \
 && for room in core planner runtime stages cli operator; do \
      mkdir -p $room/genai_$room && touch $room/genai_$room/__init__.py; done \
 && python3 -m venv /opt/genai \
 && pip install --no-cache-dir --quiet --upgrade 'pip>=25.1'

FROM dependencies AS operator-dependencies
RUN cd /source && pip install --no-cache-dir --quiet -c constraints.txt '.[operator]' \
 && pip uninstall --quiet --yes genai-operator pip

FROM dependencies AS stages-dependencies
ARG HTP=0
RUN cd /source && pip install --no-cache-dir --quiet -c constraints.txt '.[stages,s3]' \
 && if [ "$HTP" != 1 ]; then pip uninstall --quiet --yes onnxruntime-qnn; fi \
 && pip uninstall --quiet --yes genai-operator pip

# The code itself, only the rooms that the role imports.
FROM base AS operator-code
COPY core/genai_core /code/genai_core
COPY planner/genai_planner /code/genai_planner
COPY operator/genai_operator /code/genai_operator
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /code

FROM base AS stages-code
COPY core/genai_core /code/genai_core
COPY runtime/genai_runtime /code/genai_runtime
COPY stages/genai_stages /code/genai_stages
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /code

FROM base AS operator
COPY --from=operator-dependencies /opt/genai /opt/genai
COPY --from=operator-code /code /code
ENV PYTHONPATH=/code
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python3", "-m", "genai_operator"]

FROM base AS stages
ARG HTP=0
# The vendor's libraries want it.
RUN if [ "$HTP" = 1 ]; then apt-get update -qq \
 && apt-get install -qq --yes --no-install-recommends libatomic1 \
 && rm -rf /var/lib/apt/lists/*; fi
COPY --from=stages-dependencies /opt/genai /opt/genai
COPY --from=stages-code /code /code
ENV PYTHONPATH=/code HOME=/tmp
USER 65532:65532
ENTRYPOINT ["python3", "-m", "genai_stages"]
