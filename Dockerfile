# One file, one image for each role; nothing in them but what the role imports.
#
#   docker build --target operator -t genai-operator .
#   docker build --target stages   -t genai-stages .                       # cpu targets
#   docker build --target stages   -t genai-stages-htp --build-arg HTP=1 . # and Snapdragon targets
#   docker build --target serving  -t genai-serving .                      # pods of GenAIDeployments
#
# Packages go in by hash: requirements/*.txt, which `make requirements` writes from constraints.txt. The
# base is a name here; a release names it by digest (`make release` refuses another), which
# `docker buildx imagetools inspect python:3.12-slim` prints; renew it with each release.
#
# The vendor's wheel may not be redistributed, so the published stages image is built without it
# and everybody builds their own with HTP=1. It needs glibc 2.35: Debian 12 or later as BASE.
ARG BASE=python:3.12-slim

FROM ${BASE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/genai/bin:/usr/local/bin:/usr/bin:/bin

# Dependencies apart from the code, so that a change of the code sends one small layer.
FROM base AS dependencies
COPY requirements /requirements/
RUN python3 -m venv /opt/genai
# No role in a cluster speaks to AWS other than S3 and its logins, or tests numpy: 53 MB of the
# operator's image, 120 MB of the stages' with what tools/requirements.py leaves out.
ENV INSTALL="pip install --no-cache-dir --quiet --disable-pip-version-check --require-hashes --no-deps" \
    REMOVE="pip uninstall --quiet --yes setuptools pip" \
    PACKAGES=/opt/genai/lib/python3*/site-packages \
    USED_AWS="-name s3 -o -name sts -o -name sso -o -name sso-oidc -o -name signin"

FROM dependencies AS operator-dependencies
RUN $INSTALL -r /requirements/operator.txt \
 && $REMOVE \
 && find $PACKAGES/botocore/data -mindepth 1 -maxdepth 1 -type d ! \( $USED_AWS \) -exec rm -r {} +

FROM dependencies AS stages-dependencies
ARG HTP=0
RUN $INSTALL -r /requirements/stages.txt $([ "$HTP" != 1 ] || echo -r /requirements/htp.txt) \
 && $REMOVE \
 && find $PACKAGES/botocore/data -mindepth 1 -maxdepth 1 -type d ! \( $USED_AWS \) -exec rm -r {} + \
 && rm -rf $PACKAGES/onnx/backend/test \
 && find $PACKAGES/numpy -type d -name tests -prune -exec rm -r {} +

# The server beside it shares the stages' layer: a node that builds has most of it already.
FROM stages-dependencies AS serving-dependencies
# What renders chat templates runs isolated (python -I), and so without PYTHONPATH.
RUN python3 -m ensurepip --default-pip >/dev/null \
 && $INSTALL -r /requirements/serving.txt \
 && $REMOVE \
 && for folder in $PACKAGES; do echo /code > "$folder/code.pth"; done

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

FROM base AS serving-code
COPY core/genai_core /code/genai_core
COPY runtime/genai_runtime /code/genai_runtime
COPY serving/genai_serving /code/genai_serving
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

# Before the server its pod runs genai_core.store.fetch from the same image.
FROM base AS serving
ARG HTP=0
RUN if [ "$HTP" = 1 ]; then apt-get update -qq \
 && apt-get install -qq --yes --no-install-recommends libatomic1 \
 && rm -rf /var/lib/apt/lists/*; fi
COPY --from=serving-dependencies /opt/genai /opt/genai
COPY --from=serving-code /code /code
ENV PYTHONPATH=/code HOME=/tmp
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "genai_serving"]
