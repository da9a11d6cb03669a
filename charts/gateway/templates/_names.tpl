{{- define "gateway.name" -}}
{{- default .Release.Name .Values.name -}}
{{- end -}}
{{- define "gateway.account" -}}
{{- default (include "gateway.name" .) .Values.serviceAccount.name -}}
{{- end -}}
{{- /* Istio's habit: the gateway `istio-ingressgateway` is selected by `istio: ingressgateway`. */ -}}
{{- define "gateway.selector" -}}
{{- $own := dict "app" (include "gateway.name" .) "istio" (trimPrefix "istio-" (include "gateway.name" .)) -}}
{{- $own := mergeOverwrite $own .Values.labels -}}
app: {{ $own.app | quote }}
istio: {{ $own.istio | quote }}
{{- end -}}
{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
{{- range $key, $value := .Values.labels }}
{{- if and (ne $key "app") (ne $key "istio") }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}
app.kubernetes.io/name: {{ include "gateway.name" . | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
