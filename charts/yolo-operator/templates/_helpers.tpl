{{/* The release's objects are named after it; a release named yolo-operator is not named twice. */}}
{{- define "yolo-operator.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{/* The network policies of the inference pods let in pods with app.kubernetes.io/name: yolo-operator. */}}
{{- define "yolo-operator.selector" -}}
app.kubernetes.io/name: yolo-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "yolo-operator.labels" -}}
{{ include "yolo-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "yolo-operator.image" -}}
{{ .image.repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end }}

{{/* What an https Prometheus needs, as sources of a projected volume. */}}
{{- define "yolo-operator.prometheus-files" -}}
{{- with .Values.prometheus.caConfigMapName -}}
- configMap: {name: {{ . | quote }}, items: [{key: ca.crt, path: ca.crt}]}
{{ end }}
{{- with .Values.prometheus.tokenSecretName -}}
- secret: {name: {{ . | quote }}, items: [{key: token, path: token}]}
{{ end }}
{{- end }}
