{{- define "genai.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "genai.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "genai.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "genai.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "genai.selector" -}}
app.kubernetes.io/name: {{ include "genai.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* managed-by says Helm: the operator's own label of that name is on its Jobs only. */}}
{{- define "genai.labels" -}}
{{ include "genai.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: genai-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "genai.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "genai.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "genai.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The namespaces whose Secrets are read and in which Jobs run, as JSON. */}}
{{- define "genai.enabled" -}}
{{- $enabled := .Values.enabledNamespaces -}}
{{- if .Values.watchNamespaces -}}
{{- range $enabled -}}
{{- if not (has . $.Values.watchNamespaces) -}}
{{- fail (printf "enabledNamespaces has %s, which watchNamespaces lacks: builds there would never be seen" .) -}}
{{- end -}}
{{- end -}}
{{- $enabled = default .Values.watchNamespaces $enabled -}}
{{- end -}}
{{- toJson $enabled -}}
{{- end -}}

{{/*
Those of some namespaces that are there, as JSON: one that is gone must not stop an upgrade. Without
an apiserver (helm template, Argo CD) all of them.
*/}}
{{- define "genai.present" -}}
{{- $found := list -}}
{{- $live := lookup "v1" "Namespace" "" "kube-system" -}}
{{- range . -}}
{{- $space := lookup "v1" "Namespace" "" . -}}
{{- $phase := dig "status" "phase" "" (default (dict) $space) -}}
{{- if or (not $live) (and $space (ne $phase "Terminating")) -}}
{{- $found = append $found . -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "genai.subject" -}}
- kind: ServiceAccount
  name: {{ include "genai.account" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* What every container of the chart is: Pod Security "restricted", and a root that cannot be written. */}}
{{- define "genai.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "genai.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Names of the targets that this release makes, as JSON. */}}
{{- define "genai.targets" -}}
{{- $names := list -}}
{{- if .Values.targets.create -}}
{{- range $name, $item := .Values.targets.items -}}
{{- if and $item (ne (toString $item.enabled) "false") -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* Labels of the nodes that an image runs on, with those that were given; a given one wins. */}}
{{- define "genai.nodeSelector" -}}
{{- $found := dict }}
{{- with .arch }}{{ $_ := set $found "kubernetes.io/arch" . }}{{ end }}
{{- toYaml (mergeOverwrite $found (default dict .given)) }}
{{- end }}

{{/* The serving image of a target: its own, else that of all Cpu targets. */}}
{{- define "genai.servingImage" -}}
{{- if .item.servingImage }}{{ .item.servingImage }}
{{- else if and .shared.digest (eq .item.backend "Cpu") }}{{ printf "%s@%s" .shared.repository .shared.digest }}
{{- end }}
{{- end -}}
