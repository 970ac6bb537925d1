{{- define "holdfast.name" -}}
{{- (hasPrefix .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name)) | trunc 30 | trimSuffix "-" -}}
{{- end }}

{{- define "holdfast.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "holdfast.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "holdfast.secret" -}}
{{ required "existingSecret is missing: make a Secret with the keys secret and index, and name it (see values.yaml)." .Values.existingSecret }}
{{- end }}

{{/* What every pod has: no privileges, a root that cannot be written. */}}
{{- define "holdfast.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "holdfast.container" -}}
image: {{ include "holdfast.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The StatefulSets: one for each zone, or one without. */}}
{{- define "holdfast.sets" -}}
{{- $name := include "holdfast.name" . }}
{{- range .Values.zones }}
- {name: {{ $name }}-{{ . }}, zone: {{ . }}}
{{- else }}
- {name: {{ $name }}, zone: ""}
{{- end }}
{{- end }}

{{/* The pods of all nodes. */}}
{{- define "holdfast.nodes" -}}
{{- $replicas := int .Values.nodes.replicas }}
{{- range include "holdfast.sets" . | fromYamlArray }}
{{- $set := .name }}
{{- range until $replicas }}
- {{ $set }}-{{ . }}
{{- end }}
{{- end }}
{{- end }}
