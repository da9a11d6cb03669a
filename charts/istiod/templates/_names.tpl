{{- define "suffix" -}}
{{- if .Values.revision }}-{{ .Values.revision }}{{ end -}}
{{- end -}}
{{- define "revision" -}}
{{- default "default" .Values.revision -}}
{{- end -}}
{{- define "namespaced" -}}
{{- if ne .Release.Namespace "istio-system" }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}
{{- define "labels" -}}
app: istiod
{{ include "labels.but.app" . }}
{{- end -}}
{{- define "labels.but.app" -}}
istio: pilot
istio.io/rev: {{ include "revision" . | quote }}
app.kubernetes.io/name: istiod
app.kubernetes.io/part-of: istio
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
install.operator.istio.io/owning-resource: installed-state
operator.istio.io/component: Pilot
{{- end -}}
